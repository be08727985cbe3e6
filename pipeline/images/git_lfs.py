"""Git LFS pointers: small texts that stand in the place of files whose content has not been fetched.

Format: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
"""

from pathlib import Path

BEGINNING = b"version https://git-lfs.github.com/spec/v1"
"""The first bytes of every pointer."""

HINT = "fetch the file itself where it was cloned: git lfs pull"
"""The hint for an error about a pointer."""

_LONGEST = 1024  # bytes; the specification says that a pointer is shorter


def is_pointer(path: Path) -> bool:
    """Whether the file is a Git LFS pointer. Raises OSError if it cannot be read."""
    with path.open("rb") as stream:
        start = stream.read(_LONGEST)
    return start.startswith(BEGINNING) and len(start) < _LONGEST
