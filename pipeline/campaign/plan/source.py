"""Where a campaign is described: a TOML file, or the parameters of a task."""

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pipeline.campaign.plan.problems import Problem
from pipeline.campaign.plan.toml_lines import KeyPath, TomlLines
from pipeline.text.printable import one_line
from pipeline.text.quantity import readable_size

MOST = 1 << 20
"""The largest size of a campaign's file or a dictionary, in bytes."""

# Keys of 16 or more parts, though the deepest key of a campaign has three
_DEEP = re.compile(r"""(?:^|[{,])[ \t[]*(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){16}""", re.MULTILINE)
_PLACE = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)
_PARAMETERS = {"slice": "slice-length"}
"""The names of task parameters that differ from their keys, by key."""
_SYNTAX = "it is TOML: see docs/campaign.md for an example"


@dataclass(frozen=True)
class CampaignSource:
    """What describes a campaign, and where each part of it stands.

    If it could not be understood at all, `problems` has the reason, and `content` is empty.
    """

    name: str
    """The path of the file as it was given; empty for parameters."""
    content: Mapping[str, object]
    text: str = ""
    directory: Path = field(default_factory=Path.cwd)
    """The absolute path of the directory that paths in it are relative to."""
    problems: tuple[Problem, ...] = ()

    @classmethod
    def file(cls, path: Path) -> "CampaignSource":
        """Read a file. Nothing is raised: what goes wrong is one of the problems."""
        name = one_line(str(path))
        try:
            text = read_bounded(path).decode("utf-8-sig")
        except OSError as error:
            return cls(name, {}, problems=(Problem(name, None, "", f"{error.strerror}", "name the campaign's file"),))
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            return cls(name, {}, problems=(Problem(name, line, "", "it is not UTF-8", "save it as UTF-8"),))
        try:
            if _DEEP.search(text):  # tomllib would take minutes
                raise RecursionError
            return cls(name, tomllib.loads(text), text, path.parent.absolute())
        except (ValueError, RecursionError) as error:
            return cls(name, {}, problems=(_syntax(name, text, error),))

    def problem(self, path: KeyPath, message: str, hint: str) -> Problem:
        """A problem with the value at this key path."""
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
        line = self._lines.line(path) if self.name else None
        shown = one_line(key) if self.name or not key else f"--{self.called(str(path[0]))}"
        return Problem(self.name, line, shown, one_line(message), one_line(hint))

    def called(self, key: str) -> str:
        """A key by the name that its author knows: some task parameters are not named like their keys."""
        return one_line(key if self.name else _PARAMETERS.get(key, key))

    def written(self, key: str, value: str) -> str:
        """How a key with this value, given in TOML, is written in such a source: in a file, or as a parameter."""
        bare = value.strip('[]"')
        return f"{key} = {value}" if self.name else f"--{self.called(key)} '{bare}'"

    @cached_property
    def _lines(self) -> TomlLines:
        return TomlLines(self.text)


def read_bounded(path: Path) -> bytes:
    """The content of a regular file of at most `MOST` bytes. Raises OSError, with a `strerror` that says why."""
    if b"\0" in os.fsencode(path):
        raise OSError(0, "a path has no NUL")
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe could keep us waiting for ever
        raise OSError(0, "it is no regular file")
    with path.open("rb") as stream:
        content = stream.read(MOST + 1)
    if len(content) > MOST:
        raise OSError(0, f"it is larger than {readable_size(MOST)}")
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
