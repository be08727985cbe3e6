"""The lines on which the values of a TOML file stand, as tomllib does not tell them.

The text is one that tomllib has accepted. It is cut into its statements, each of which is TOML by itself, so that
tomllib can tell what is in it.
"""

import re
import tomllib
from collections.abc import Iterator

KeyPath = tuple[str | int, ...]
"""The keys, and the positions in arrays, that lead to a value: ("fuzzer", 0, "budget")."""

# Strings and comments, whose brackets and newlines mean nothing; then the brackets and newlines that do
_TOKEN = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*"
    r"|[\[{\]}\n]",
    re.DOTALL,
)


class TomlLines:
    """The line on which each value of a TOML text stands."""

    def __init__(self, text: str) -> None:
        """Find the lines of `text`, which must be valid TOML."""
        self._lines: dict[KeyPath, int] = {(): 1}
        self._last: dict[KeyPath, int] = {}  # the position of the last table in an array of tables
        table: KeyPath = ()
        for line, statement in _statements(text.replace("\r\n", "\n")):
            content = tomllib.loads(statement)
            if statement.lstrip().startswith("["):
                table = self._entered(content, line)
            else:
                self._note(table, content, line)

    def line(self, path: KeyPath) -> int:
        """The first line of the statement that gives the value at `path`, or else of the one that would contain it."""
        while path not in self._lines:
            path = path[:-1]
        return self._lines[path]

    def _entered(self, header: dict[str, object], line: int) -> KeyPath:
        """The key path of the table that a header opens; `header` is what tomllib makes of the header alone."""
        path: KeyPath = ()
        content: object = header
        while isinstance(content, dict) and content:
            ((key, content),) = content.items()
            path = (*path, key)
            self._lines.setdefault(path, line)
            if isinstance(content, list):
                self._last[path] = self._last.get(path, -1) + 1
            if path in self._last:
                path = (*path, self._last[path])
                self._lines.setdefault(path, line)
        return path

    def _note(self, path: KeyPath, content: object, line: int) -> None:
        self._lines.setdefault(path, line)
        if isinstance(content, dict):
            for key, value in content.items():
                self._note((*path, key), value, line)
        elif isinstance(content, list):
            for position, value in enumerate(content):
                self._note((*path, position), value, line)


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Each key with its value, and each header of a table: the line at which it begins, from 1, and its text."""
    depth, line, start = 0, 1, 0
    for token in _TOKEN.finditer(text):
        if token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth -= 1
        elif token[0] == "\n" and depth == 0:
            yield from _statement(line, text[start : token.end()])
            line += text.count("\n", start, token.end())
            start = token.end()
    yield from _statement(line, text[start:])


def _statement(line: int, text: str) -> Iterator[tuple[int, str]]:
    if text.strip() and not text.lstrip().startswith("#"):
        yield line, text
