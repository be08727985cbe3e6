"""The demo guest's fuzzers: libFuzzer targets in C, one file each, named as the examples of Fuchsia.

In the guest each has a name space of its own, `/data/fuzz/PACKAGE/FUZZER`, with the directories `data`, `tmp` and
`pkg`. In `pkg` are the program, its dictionary and its seeds, where there are some. To add a fuzzer, add NAME.c here,
and if need be NAME.dict and the directory NAME.corpus.
"""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ToolFailed

SOURCES = Path(__file__).parent
"""Where the sources are."""

PACKAGE = "example-fuzzers"
"""Fuchsia's name of the package; its launcher knows it as one whose fuzzers are for trying out."""

OPTIONS = "options.c"
"""The source that is linked into every fuzzer."""


@dataclass(frozen=True)
class Fuzzer:
    """One fuzzer, by its source."""

    source: Path

    @property
    def name(self) -> str:
        """As in the name `example-fuzzers/NAME`."""
        return self.source.stem

    @property
    def home(self) -> str:
        """Its directory in the guest, without the leading slash."""
        return f"data/fuzz/{PACKAGE}/{self.name}"

    @property
    def dictionary(self) -> Path | None:
        """Its dictionary, if it has one."""
        path = self.source.with_suffix(".dict")
        return path if path.is_file() else None

    @property
    def seeds(self) -> list[Path]:
        """The inputs that it starts from."""
        return [path for path in sorted(self.source.with_suffix(".corpus").glob("*")) if path.is_file()]


def missing(made: Path, present: Container[str]) -> Mapping[str, str]:
    """By full name, what to do about the fuzzers that have a source and are not `present`, made into this directory."""
    found = {f"{PACKAGE}/{fuzzer.name}": fuzzer.name for fuzzer in all_in(SOURCES)}
    return {full: _why_missing(made, name) for full, name in found.items() if full not in present}


def _why_missing(made: Path, name: str) -> str:
    if (made / FAILED / f"{name}.txt").exists():
        return f"{name}.c does not compile; what is wrong with it: luigi --module tasks DemoFuzzers"
    return f"{name}.c has not been compiled yet: luigi --module tasks DemoFuzzers"


FAILED = "failed"
"""The directory, among what is made of the fuzzers, with the compiler's words about those that it does not take."""


def failures(made: Path) -> list[ToolFailed]:
    """What to tell of the fuzzers that are missing in the directory `made`, because they do not compile."""
    return [
        ToolFailed(
            f"{words.stem} does not compile, so the guest has to do without it",
            hint=f"mend {words.stem}.c, or what it includes; the next run makes it",
            detail=words.read_text(),
        )
        for words in sorted((made / FAILED).glob("*.txt"))
    ]


def all_in(directory: Path) -> list[Fuzzer]:
    """All fuzzers whose sources are in the directory, sorted by name."""
    return [Fuzzer(path) for path in sorted(directory.glob("*.c")) if path.name != OPTIONS and path.is_file()]


def left_out(directory: Path) -> list[Path]:
    """What is named like a part of a fuzzer in the directory, and is no file."""
    named = (path for pattern in ("*.c", "*.dict", "*.corpus/*") for path in directory.glob(pattern))
    return sorted(path for path in named if not path.is_file())


def inputs(directory: Path) -> Mapping[str, Path]:
    """All that the fuzzers of a directory are made of, by relative name."""
    return dict(_inputs(directory))


def _inputs(directory: Path) -> Iterator[tuple[str, Path]]:
    yield OPTIONS, directory / OPTIONS
    for fuzzer in all_in(directory):
        for part in (fuzzer.source, fuzzer.dictionary, *fuzzer.seeds):
            if part:
                yield str(part.relative_to(directory)), part
