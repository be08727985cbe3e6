"""The files that images are in."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import UsageError


@contextmanager
def opened(path: Path, *, writable: bool = False) -> Iterator[BinaryIO]:
    """A regular file, to be read, or changed where it is. Raises UsageError for anything else, OSError."""
    access = os.O_RDWR if writable else os.O_RDONLY
    descriptor = os.open(path, access | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would be waited for
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(f"{path} is not a regular file", hint="give the file of an image")
    with open(descriptor, "r+b" if writable else "rb") as stream:
        yield stream
