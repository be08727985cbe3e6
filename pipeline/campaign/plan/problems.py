"""What is wrong with a campaign: all of it at once, each problem with its place and what to do about it."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from pipeline.errors import SettingsError
from pipeline.text.printable import one_line


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a campaign or, as a warning, odd. All texts are fit to print, on one line."""

    file: str
    """The path of the file; empty for a problem in no file, but in a parameter."""
    line: int | None
    """The line, from 1; None if the problem concerns a whole file, or is in no file."""
    key: str
    """What leads to the value, such as fuzzer[0].budget, or --budget for a parameter.

    Empty if the problem concerns a whole file, or a line of a dictionary.
    """
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.place}: {self.advice}"

    @property
    def place(self) -> str:
        """FILE:LINE, or FILE if no line is known; for a problem in no file, the key."""
        where = self.file or self.key
        return where if self.line is None else f"{where}:{self.line}"

    @property
    def advice(self) -> str:
        """What is wrong, and what to do about it."""
        return f"{self.message} ({self.hint})"

    def encode(self) -> dict[str, object]:
        """The problem as values for JSON."""
        return asdict(self)


def refuse(name: str, problems: Sequence[Problem]) -> None:
    """Raise SettingsError that tells all problems, if there are any; `name` is where they were found."""
    if not problems:
        return
    number = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise SettingsError(
        f"the campaign cannot be run: {one_line(name)} has {number}",
        hint="correct it; docs/campaign.md has every key",
        detail="\n".join(map(str, problems)),
    )


def in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """The problems by file and line, each once."""
    return tuple(sorted(dict.fromkeys(problems), key=lambda problem: (problem.file, problem.line or 0)))
