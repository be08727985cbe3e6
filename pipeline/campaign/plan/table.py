"""Reading a table of a campaign's file, key by key: a value that cannot be used is a problem, and counts as absent."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pipeline.campaign.plan.problems import Problem
from pipeline.campaign.plan.source import CampaignSource
from pipeline.campaign.plan.toml_lines import KeyPath
from pipeline.errors import UsageError
from pipeline.text.printable import is_plain
from pipeline.text.quantity import parse_duration
from pipeline.text.spelling import nearest

T = TypeVar("T")

LARGEST = (1 << 31) - 1
"""The largest number of runs or seconds: libFuzzer keeps its numbers in an int."""

_TIME = 'write whole seconds, at least 1, as a number or such as "10m"'
_KINDS: dict[type, str] = {str: "text, in quotes", list: "a list", dict: "a table"}


@dataclass(frozen=True)
class Notes:
    """The problems and warnings that were found, in the order of reading."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


class TomlTable:
    """One table of a source, at a key path. Its readers return None for a value that is absent or cannot be used."""

    def __init__(self, source: CampaignSource, content: Mapping[str, object], path: KeyPath, notes: Notes) -> None:
        """Read `content`, the table at `path`; problems and warnings are added to `notes`."""
        self.source = source
        self.content = content
        self.path = path
        self.notes = notes

    def refuse(self, message: str, hint: str, *keys: str | int) -> None:
        """Note a problem with the value that `keys` lead to, or with its absence."""
        self.notes.problems.append(self.source.problem((*self.path, *keys), message, hint))

    def warn(self, message: str, hint: str, *keys: str | int) -> None:
        """Note a warning: the value that `keys` lead to is odd, but does no harm."""
        self.notes.warnings.append(self.source.problem((*self.path, *keys), message, hint))

    def only(self, known: Sequence[str], elsewhere: Mapping[str, str]) -> None:
        """Refuse all keys that are not `known`. `elsewhere` has hints for some of them."""
        for key in self.content:
            if key not in known:
                near = nearest(key, known)
                hint = elsewhere.get(key) or (f"did you mean {near[0]}?" if near else f"known are: {', '.join(known)}")
                self.refuse(f"there is no key {key} here", hint, key)

    def require(self, key: str, example: str) -> None:
        """Refuse the table if it lacks the key."""
        if key not in self.content:
            self.refuse(f"{key} is missing", f"write {self.source.written(key, example)}", key)

    def text(self, key: str) -> str | None:
        """The text at a key; it is not empty, and has no control characters."""
        value = self._typed(key, str)
        return value if value is not None and self._is_usable(value, key) else None

    def texts(self, key: str) -> Iterator[tuple[int, str]]:
        """The usable texts of the list at a key, each with its position."""
        for position, value in enumerate(self._typed(key, list) or ()):
            if isinstance(value, str):
                if self._is_usable(value, key, position):
                    yield position, value
            else:
                self.refuse(f"{key} is a list of texts", "put each of them in quotes", key, position)

    def whole(self, key: str, least: int, most: int) -> int | None:
        """The whole number at a key, from `least` to `most`."""
        value = self.content.get(key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and least <= value <= most):
            return value
        self._unusable(key, f"write a whole number from {least} to {most}")
        return None

    def seconds(self, key: str) -> int | None:
        """The time at a key, in whole seconds."""
        try:
            return whole_seconds(self.content[key]) if key in self.content else None
        except UsageError as error:
            self._unusable(key, error.hint)
            return None

    def choice(self, key: str, allowed: Sequence[str]) -> str | None:
        """The text at a key, which is one of `allowed`."""
        value = self.content.get(key)
        if value is None or (isinstance(value, str) and value in allowed):
            return value
        self._unusable(key, f"write one of: {', '.join(allowed)}")
        return None

    def table(self, key: str) -> "TomlTable | None":
        """The table at a key of this one."""
        content = self._typed(key, dict)
        return None if content is None else TomlTable(self.source, content, (*self.path, key), self.notes)

    def tables(self, key: str) -> Iterator["TomlTable"]:
        """The tables of the list at a key."""
        for position, content in enumerate(self._typed(key, list) or ()):
            if isinstance(content, dict):
                yield TomlTable(self.source, content, (*self.path, key, position), self.notes)
            else:
                self.refuse(f"{key} is a list of tables", f"write [[{key}]], and its keys below", key, position)

    def _typed(self, key: str, kind: type[T]) -> T | None:
        value = self.content.get(key)
        if value is None or isinstance(value, kind):
            return value
        self._unusable(key, f"{key} is {_KINDS[kind]}")
        return None

    def _is_usable(self, text: str, *keys: str | int) -> bool:
        problem = "is empty" if not text else "" if is_plain(text) else "has control characters"
        if problem:
            self.refuse(
                f"{keys[0]} {problem}", "write something, or leave it out" if not text else "delete them", *keys
            )
        return not problem

    def _unusable(self, key: str, hint: str) -> None:
        try:
            shown = f" = {self.content[key]!r}"
        except ValueError:  # it has thousands of digits, which Python does not print
            shown = ""
        self.refuse(f"{self.source.called(key)}{shown} cannot be used", hint, key)


def whole_seconds(value: object) -> int:
    """The whole seconds of a time, at least 1, given as a number or as text such as "10m". Raises UsageError."""
    seconds = parse_duration(value, 1) if isinstance(value, str) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 1 <= seconds <= LARGEST:
        raise UsageError("Bad time", hint=_TIME)
    whole = round(seconds)
    if abs(seconds - whole) > 1e-6:  # floats are not exact: 0.07h is a little more than 252 s
        raise UsageError("Bad time", hint=_TIME)
    return whole
