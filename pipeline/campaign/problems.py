"""What is wrong with a campaign: all of it at once, each with its place and what to do about it."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from pipeline.errors import SettingsError
from pipeline.text import one_line


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, or, as a warning, odd. All texts are fit to print, on one line."""

    file: str
    """Empty for what stands in no file, but was given as a parameter."""
    line: int | None
    """From 1; None if it is about the whole file, or in none."""
    key: str
    """What leads to the value, such as fuzzer[0].budget, or --budget for a parameter; empty for the whole file, and for
    lines of a dictionary."""
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.place}: {self.advice}"

    @property
    def place(self) -> str:
        """FILE:LINE, as far as there are such; else the name of the parameter."""
        where = self.file or self.key
        return where if self.line is None else f"{where}:{self.line}"

    @property
    def advice(self) -> str:
        """What is wrong, and what to do about it."""
        return f"{self.message} ({self.hint})"

    def encode(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def refuse(name: str, problems: Sequence[Problem]) -> None:
    """Raise SettingsError with all of them, if there are any. `name` is what they are found in."""
    if not problems:
        return
    number = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise SettingsError(
        f"the campaign cannot be run: {one_line(name)} has {number}",
        hint="correct it; docs/campaign.md has every key",
        detail="\n".join(map(str, problems)),
    )


def in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Each once, by file and line."""
    return tuple(sorted(dict.fromkeys(problems), key=lambda problem: (problem.file, problem.line or 0)))


def nearest(word: str, known: Iterable[str], most: int = 1) -> list[str]:
    """Those of `known` that `word` may be a misspelling of, the likeliest first."""
    from difflib import get_close_matches

    return get_close_matches(word, sorted(known), most)


def is_plain(text: str) -> bool:
    """Whether it is fit to print as it stands, on one line."""
    return one_line(text, len(text) + 1) == text
