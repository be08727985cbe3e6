"""The demo guest's fuzzers: libFuzzer targets in C, one file each, named after the examples of Fuchsia.

In the guest each has a name space of its own, `/data/fuzz/PACKAGE/FUZZER`, with the directories `data`, `tmp` and
`pkg`. `pkg` holds the program, and the dictionary and the seeds if there are any. To add a fuzzer, add NAME.c here, and
if need be NAME.dict and the directory NAME.corpus.
"""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ToolFailed

SOURCES = Path(__file__).parent
"""The directory of the sources."""

PACKAGE = "example-fuzzers"
"""Fuchsia's name for the package; its launcher knows it as one whose fuzzers are for trying out."""

OPTIONS = "options.c"
"""The source that is linked into every fuzzer."""


@dataclass(frozen=True)
class DemoFuzzer:
    """One fuzzer, known by its source file."""

    source: Path

    @property
    def name(self) -> str:
        """The last part of the full name `example-fuzzers/NAME`."""
        return self.source.stem

    @property
    def home(self) -> str:
        """The fuzzer's directory in the guest, without the leading slash."""
        return f"data/fuzz/{PACKAGE}/{self.name}"

    @property
    def dictionary(self) -> Path | None:
        """The dictionary, or None if the fuzzer has none."""
        path = self.source.with_suffix(".dict")
        return path if path.is_file() else None

    @property
    def seeds(self) -> list[Path]:
        """The inputs that the fuzzer starts from, sorted by name."""
        return [path for path in sorted(self.source.with_suffix(".corpus").glob("*")) if path.is_file()]


def missing(made: Path, present: Container[str]) -> Mapping[str, str]:
    """What to do about each fuzzer that has a source and is not in `present`, by full name.

    `made` is the directory that the fuzzers are made into.
    """
    found = {f"{PACKAGE}/{fuzzer.name}": fuzzer.name for fuzzer in all_in(SOURCES)}
    return {full: _why_missing(made, name) for full, name in found.items() if full not in present}


def _why_missing(made: Path, name: str) -> str:
    if (made / FAILED / f"{name}.txt").exists():
        return f"{name}.c does not compile; what is wrong with it: luigi --module tasks DemoFuzzers"
    return f"{name}.c has not been compiled yet: luigi --module tasks DemoFuzzers"


FAILED = "failed"
"""The directory, within what is made of the fuzzers, with the compiler's words about those that do not compile."""


def failures(made: Path) -> list[ToolFailed]:
    """Errors, to be shown, about the fuzzers that are missing in the directory `made` as they do not compile."""
    return [
        ToolFailed(
            f"{words.stem} does not compile, so the guest has to do without it",
            hint=f"mend {words.stem}.c, or what it includes; the next run makes it",
            detail=words.read_text(),
        )
        for words in sorted((made / FAILED).glob("*.txt"))
    ]


def all_in(directory: Path) -> list[DemoFuzzer]:
    """All fuzzers whose sources are in the directory, sorted by name."""
    return [DemoFuzzer(path) for path in sorted(directory.glob("*.c")) if path.name != OPTIONS and path.is_file()]


def left_out(directory: Path) -> list[Path]:
    """The paths in the directory that are named like a part of a fuzzer, but are no files."""
    named = (path for pattern in ("*.c", "*.dict", "*.corpus/*") for path in directory.glob(pattern))
    return sorted(path for path in named if not path.is_file())


def inputs(directory: Path) -> Mapping[str, Path]:
    """All files that the fuzzers of a directory are made of, by name relative to it; headers are not among them."""
    return dict(_inputs(directory))


def _inputs(directory: Path) -> Iterator[tuple[str, Path]]:
    yield OPTIONS, directory / OPTIONS
    for fuzzer in all_in(directory):
        for part in (fuzzer.source, fuzzer.dictionary, *fuzzer.seeds):
            if part:
                yield str(part.relative_to(directory)), part
