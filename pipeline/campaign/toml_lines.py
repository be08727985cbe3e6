"""On which line of a TOML file a value stands: tomllib does not tell.

The text is one that tomllib has taken. It is cut into its statements, each of which is TOML by itself, so tomllib can
say what is in it.
"""

import re
import tomllib
from collections.abc import Iterator

KeyPath = tuple[str | int, ...]
"""The keys, and the positions in arrays, that lead to a value: ("fuzzer", 0, "budget")."""

# What can hold a newline or a bracket that ends or begins nothing; what ends or begins something; the end of a line
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
    """The lines of everything in a TOML text."""

    def __init__(self, text: str) -> None:
        """`text` is valid."""
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
        """The first line of the statement that gives the value at `path`, or, if there is none, what it would be in."""
        while path not in self._lines:
            path = path[:-1]
        return self._lines[path]

    def _entered(self, header: dict[str, object], line: int) -> KeyPath:
        """The table that a header opens: `header` is what tomllib makes of it alone."""
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
    """Each key with its value, and each header of a table: the line at which it begins, and its text."""
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
