"""What Git LFS leaves in the place of a file whose content nobody has fetched: a pointer, a small text.

Its format: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
"""

from pathlib import Path

BEGINNING = b"version https://git-lfs.github.com/spec/v1"
HINT = "fetch the file itself where it was cloned: git lfs pull"

_LONGEST = 1024  # by the specification, a pointer is shorter


def is_pointer(path: Path) -> bool:
    """Whether the file is a pointer. Raises OSError."""
    with path.open("rb") as stream:
        start = stream.read(_LONGEST)
    return start.startswith(BEGINNING) and len(start) < _LONGEST
