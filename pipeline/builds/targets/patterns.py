"""Patterns of paths in a directory: which of its files are meant.

`*`, `?` and `[…]` are those of a shell and do not go beyond a name; the part `**` stands for any number of directories.
A pattern begins at the top of the directory, and means what lies below a directory, too: `testdata`, `testdata/*.xml`,
`**/*.xml`.
"""

from fnmatch import fnmatchcase
from pathlib import PurePosixPath

_ANY = "**"


def takes(pattern: str, path: PurePosixPath) -> bool:
    """Whether the pattern means this file, or a directory in which it lies; both are relative to the same directory."""
    parts = PurePosixPath(pattern).parts
    reached = _beyond_any(parts, {0})
    for name in path.parts:
        if len(parts) in reached:
            break
        stayed = {at for at in reached if parts[at] == _ANY}
        passed = {at + 1 for at in reached - stayed if fnmatchcase(name, parts[at])}
        reached = _beyond_any(parts, stayed | passed)
    return len(parts) in reached


def _beyond_any(parts: tuple[str, ...], reached: set[int]) -> set[int]:
    """The places in the pattern, with those behind each `**`, which may stand for nothing."""
    found = set(reached)
    for at in sorted(reached):
        while at < len(parts) and parts[at] == _ANY:
            at += 1
            found.add(at)
    return found
