"""Reading command lines as Go's package `flag` does, which the callers of `undercoat` are used to.

A flag has one dash or two, and is written `-name value` or `-name=value`; if it is repeated, the last one wins. Flags
end before the first word that is none, or at `--`. Source: the documentation of Go's flag package, and its errors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.errors import UsageError

_HINT = "these are all flags that it takes; what is for a fuzzer goes behind --"


@dataclass(frozen=True)
class Parsed:
    """The result of reading a command line: the values of its flags, and the words after them."""

    values: Mapping[str, str]
    """The last value of each flag, by the flag's name without dashes."""
    rest: Sequence[str] = field(default_factory=tuple)
    """The words after the flags, without `--`."""


def parse(words: Sequence[str], names: Sequence[str], switches: Sequence[str] = ()) -> Parsed:
    """Read the flags at the beginning of `words`: `names` need a value; `switches` have none, or `=BOOL`.

    Raises UsageError for an unknown flag, a flag without its value, and a malformed word that begins with a dash.
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
    """The name of a flag, and its value if it is in the same word, else None. Raises UsageError if it is malformed."""
    bare = word.removeprefix("-").removeprefix("-")
    name, equals, value = bare.partition("=")
    if not name or name.startswith("-"):
        raise UsageError(f"bad flag syntax: {word}", hint=_HINT)
    return name, value if equals else None


def _unknown(name: str) -> str:
    return "flag: help requested" if name in ("h", "help") else f"flag provided but not defined: -{name}"
