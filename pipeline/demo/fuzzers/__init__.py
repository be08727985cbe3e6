"""The demo guest's fuzzers: libFuzzer targets in C, one file each, named as the examples of Fuchsia.

In the guest each has a name space of its own, `/data/fuzz/PACKAGE/FUZZER`, with the directories `data`, `tmp` and
`pkg`. In `pkg` are the program, its dictionary and its seeds, where there are some. To add a fuzzer, add NAME.c here,
and if need be NAME.dict and the directory NAME.corpus.
"""

from collections.abc import Iterator, Mapping
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
        return path if path.exists() else None

    @property
    def seeds(self) -> list[Path]:
        """The inputs that it starts from."""
        return sorted(self.source.with_suffix(".corpus").glob("*"))


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
    return [Fuzzer(path) for path in sorted(directory.glob("*.c")) if path.name != OPTIONS]


def inputs(directory: Path) -> Mapping[str, Path]:
    """All that the fuzzers of a directory are made of, by relative name."""
    return dict(_inputs(directory))


def _inputs(directory: Path) -> Iterator[tuple[str, Path]]:
    for path in (directory / OPTIONS, *(fuzzer.source for fuzzer in all_in(directory))):
        for part in (path, path.with_suffix(".dict"), *sorted(path.with_suffix(".corpus").glob("*"))):
            if part.exists() or part == path:
                yield str(part.relative_to(directory)), part
