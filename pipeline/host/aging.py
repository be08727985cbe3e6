"""Protection from systemd-tmpfiles, which deletes files in /tmp that nobody has touched for days.

It takes a BSD lock on each directory that it comes to, and skips one that somebody else has locked, with all below it
(tmpfiles.d(5), "Age"). A single file it skips if the sticky bit is set (XDG Base Directory Specification, about
XDG_RUNTIME_DIR); locks of files count only from systemd 256 on.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pipeline.host.deadline import Deadline
from pipeline.host.locks import acquire

log = logging.getLogger("topcoat")

STICKY = 0o1000
"""The bit of a file's mode that tells systemd-tmpfiles not to delete the file."""

_PATIENCE = 1.0  # seconds; systemd-tmpfiles holds a directory only while it goes through it


@contextmanager
def kept(*directories: Path) -> Iterator[tuple[int, ...]]:
    """Protect existing directories from systemd-tmpfiles during the body, or for longer.

    Yields a descriptor for each. They are closed at the end, but a directory stays protected as long as a process lives
    that has inherited its descriptor. Any number of processes may protect the same directory. One that cannot be
    protected is logged and is no failure: most lie where nothing is cleaned up.
    """
    descriptors: list[int] = []
    try:
        for directory in directories:
            try:
                descriptors.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
                take = partial(fcntl.flock, descriptors[-1], fcntl.LOCK_SH | fcntl.LOCK_NB)
                acquire(take, Deadline(_PATIENCE))
            except OSError as error:
                log.warning("%s is not kept from being cleaned up: %s", directory, error.strerror or error)
        yield tuple(descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
