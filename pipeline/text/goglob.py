"""File name patterns by the rules of Go's path/filepath, which `undercoat` uses wherever it takes a pattern.

`*` matches any text without "/", also the empty text and one that starts with a dot; `?` matches one character except
"/"; `[a-z]` and `[^a-z]` match one character that is, or is not, in the class; a backslash makes the next character
literal. There is no `**`, and braces are literal. Names that are not UTF-8 are handled as text with surrogates, as
`decoded` makes it: each byte that cannot be decoded counts as one character.

Source of the rules: the documentation of filepath.Match and filepath.Glob, https://pkg.go.dev/path/filepath
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from pipeline.errors import UsageError
from pipeline.text.printable import one_line

_MAGIC = re.compile(r"[*?\[\\]")


def decoded(name: bytes) -> str:
    """Decode a file name. Different names always give different texts, also if they are not UTF-8."""
    return name.decode("utf-8", "surrogateescape")


def encoded(name: str) -> bytes:
    """Encode a text that `decoded` has returned: the file name that it came from."""
    return name.encode("utf-8", "surrogateescape")


def literal(path: str) -> str:
    """The pattern that matches this path and nothing else."""
    return _MAGIC.sub(r"\\\g<0>", path)


def match(pattern: str, name: str) -> bool:
    """Whether the pattern matches the whole name. Raises UsageError if the pattern is malformed, whatever the name."""
    return compiled(pattern).match(name) is not None


@lru_cache(maxsize=64)
def compiled(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression, to be used with `match`. Raises UsageError if the pattern is malformed."""
    first, *others = _Parser(pattern).pieces()
    if not others:
        return re.compile(rf"{first}\Z", re.DOTALL)
    # Atomic groups: what follows a star is matched at the first place where it fits, without backtracking. Go does so,
    # and no pattern takes exponential time
    middle = "".join(f"(?>[^/]*?{piece})" for piece in others[:-1] if piece)
    return re.compile(rf"{first}{middle}[^/]*{others[-1]}\Z", re.DOTALL)


def has_magic(pattern: str) -> bool:
    """Whether the pattern has any special character, so that it is more than a plain name."""
    return _MAGIC.search(pattern) is not None


def expand(pattern: str, exists: Callable[[str], bool], names: Callable[[str], Iterable[str]]) -> list[str]:
    """All paths that match the pattern; those in one directory are sorted by name.

    `exists` tells whether there is anything at a path, without following links. `names` lists the names in a directory;
    it returns nothing for a path that is no directory or cannot be read. Raises UsageError if the pattern is malformed.
    """
    compiled(pattern)
    if not has_magic(pattern):
        return [pattern] if exists(pattern) else []
    above, slash, last = pattern.rpartition("/")
    directory = (above or "/") if slash else "."
    inside = expand(directory, exists, names) if has_magic(directory) else [directory]
    if not last:
        return [path for each in inside if exists(path := f"{each}/")]
    wanted = compiled(last)
    return [joined(each, name) for each in inside for name in sorted(names(each)) if wanted.match(name)]


def joined(directory: str, name: str) -> str:
    """The path of the entry `name` in the directory, in the form in which `expand` returns it (without "./")."""
    return name if directory == "." else f"{directory.rstrip('/')}/{name}"


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._rest = pattern

    def pieces(self) -> list[str]:
        """The parts of the pattern between the stars, as regular expressions; one if there is no star."""
        found = [""]
        while self._rest:
            character = self._next()
            if character == "*":
                found.append("")
            elif character == "[":
                found[-1] += self._character_class()
            else:
                found[-1] += "[^/]" if character == "?" else re.escape(self._escaped(character))
        return found

    def _next(self) -> str:
        if not self._rest:
            raise self._bad("it ends too early")
        character, self._rest = self._rest[0], self._rest[1:]
        return character

    def _escaped(self, character: str) -> str:
        return self._next() if character == "\\" else character

    def _taken(self, character: str) -> bool:
        found = self._rest.startswith(character)
        self._rest = self._rest[found:]
        return found

    def _character_class(self) -> str:
        negated = self._taken("^")
        ranges = [self._range()]
        while not self._taken("]"):
            ranges.append(self._range())
        inside = "".join(f"{re.escape(low)}-{re.escape(high)}" for low, high in ranges if low <= high)
        if not inside:  # an empty class, such as [z-a]
            return "." if negated else "(?!)"
        return f"[{'^' if negated else ''}{inside}]"

    def _range(self) -> tuple[str, str]:
        low = self._bound()
        return low, self._bound() if self._taken("-") else low

    def _bound(self) -> str:
        character = self._next()
        if character in "-]":
            raise self._bad(f"{character!r} in a class needs a backslash")
        return self._escaped(character)

    def _bad(self, why: str) -> UsageError:
        return UsageError(
            f"syntax error in pattern: {one_line(self._pattern)!r}: {why}",
            hint="patterns know * ? [a-z] [^a-z], and a backslash before what is to mean itself",
        )
