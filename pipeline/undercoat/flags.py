"""Command lines as Go's package `flag` reads them, which is what callers of `undercoat` know.

One dash or two, `-name value` or `-name=value`, the last one wins; flags end at the first word that is none, or at
`--`. Source: the documentation of Go's flag package, and the texts of its errors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.errors import UsageError

_HINT = "these are all flags that it takes; what is for a fuzzer goes behind --"


@dataclass(frozen=True)
class Parsed:
    """What a list of words says."""

    values: Mapping[str, str]
    """By the name of the flag, without dashes; the last value of each."""
    rest: Sequence[str] = field(default_factory=tuple)
    """The words behind the flags, without `--`."""


def parse(words: Sequence[str], names: Sequence[str], switches: Sequence[str] = ()) -> Parsed:
    """Read the flags at the beginning of `words`. `switches` are those that stand without a value, or have `=BOOL`.

    Raises UsageError for a flag that is not among `names`, one without its value, and a word that is no flag's form.
    """
    left, values = list(words), {}
    while left and len(left[0]) > 1 and left[0].startswith("-"):
        word = left.pop(0)
        if word == "--":
            break
        name, value = _flag(word)
        if name not in (*names, *switches):
            raise UsageError(_unknown(name), hint=_HINT)
        if value is None and name in switches:
            value = "true"
        if value is None and not left:
            raise UsageError(f"flag needs an argument: -{name}", hint=_HINT)
        values[name] = left.pop(0) if value is None else value
    return Parsed(values, tuple(left))


def _flag(word: str) -> tuple[str, str | None]:
    """The name and, where it has one of its own, the value."""
    bare = word.removeprefix("-").removeprefix("-")
    name, equals, value = bare.partition("=")
    if not name or name.startswith("-"):
        raise UsageError(f"bad flag syntax: {word}", hint=_HINT)
    return name, value if equals else None


def _unknown(name: str) -> str:
    return "flag: help requested" if name in ("h", "help") else f"flag provided but not defined: -{name}"
