"""Where a campaign is described: a TOML file, or the parameters of a task."""

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pipeline.campaign.problems import Problem
from pipeline.campaign.toml_lines import KeyPath, TomlLines
from pipeline.size import readable
from pipeline.text import one_line

MOST = 1 << 20
"""Bytes of a file that is read: of a campaign, or a dictionary."""

# The deepest key of a campaign has three parts
_DEEP = re.compile(r"""(?:^|[{,])[ \t[]*(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){16}""", re.MULTILINE)
_PLACE = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)
_PARAMETERS = {"slice": "slice-length"}
"""Keys whose parameters have other names."""
_SYNTAX = "it is TOML: see docs/campaign.md for an example"


@dataclass(frozen=True)
class Source:
    """What is said of a campaign, and where each part of it stands.

    `problems` has the reason if it could not be understood at all; `content` is empty then.
    """

    name: str
    """The path of the file as it was given; empty for parameters."""
    content: Mapping[str, object]
    text: str = ""
    directory: Path = field(default_factory=Path.cwd)
    """What paths in it are relative to; absolute."""
    problems: tuple[Problem, ...] = ()

    @classmethod
    def file(cls, path: Path) -> "Source":
        """Read a file. It never raises: what goes wrong is one of the problems."""
        name = one_line(str(path))
        try:
            text = read_bounded(path).decode("utf-8-sig")
        except OSError as error:
            return cls(name, {}, problems=(Problem(name, None, "", f"{error.strerror}", "name the campaign's file"),))
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            return cls(name, {}, problems=(Problem(name, line, "", "it is not UTF-8", "save it as UTF-8"),))
        try:
            if _DEEP.search(text):  # for which tomllib takes minutes
                raise RecursionError
            return cls(name, tomllib.loads(text), text, path.parent.absolute())
        except (ValueError, RecursionError) as error:
            return cls(name, {}, problems=(_syntax(name, text, error),))

    def problem(self, path: KeyPath, message: str, hint: str) -> Problem:
        """Something is wrong with what stands at this key path."""
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
        line = self._lines.line(path) if self.name else None
        shown = one_line(key) if self.name or not key else f"--{self.called(str(path[0]))}"
        return Problem(self.name, line, shown, one_line(message), one_line(hint))

    def called(self, key: str) -> str:
        """A key as whoever has given it calls it: parameters have names of their own."""
        return one_line(key if self.name else _PARAMETERS.get(key, key))

    def written(self, key: str, value: str) -> str:
        """How this value of a key, given in TOML, is written where the source comes from."""
        bare = value.strip('[]"')
        return f"{key} = {value}" if self.name else f"--{self.called(key)} '{bare}'"

    @cached_property
    def _lines(self) -> TomlLines:
        return TomlLines(self.text)


def read_bounded(path: Path) -> bytes:
    """The content of a regular file of at most `MOST` bytes. Raises OSError, with a `strerror` that says why."""
    if b"\0" in os.fsencode(path):
        raise OSError(0, "a path has no NUL")
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe could be waited for in vain
        raise OSError(0, "it is no regular file")
    with path.open("rb") as stream:
        content = stream.read(MOST + 1)
    if len(content) > MOST:
        raise OSError(0, f"it is larger than {readable(MOST)}")
    return content


def _syntax(name: str, text: str, error: Exception) -> Problem:
    if isinstance(error, RecursionError):
        return Problem(name, None, "", "it is nested too deeply", _SYNTAX)
    place = _PLACE.fullmatch(str(error))
    if place is None:
        return Problem(name, None, "", one_line(str(error)), _SYNTAX)
    if place[2] is None:
        return Problem(name, text.rstrip().count("\n") + 1, "", f"{one_line(place[1])}, at its end", _SYNTAX)
    return Problem(name, int(place[2]), "", f"{one_line(place[1])}, at column {place[3]}", _SYNTAX)
