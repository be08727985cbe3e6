"""What keeps directories from those who clean up: systemd-tmpfiles deletes in /tmp what nobody has touched for days.

It takes a BSD lock of each directory that it comes to, and passes one over that somebody has locked, with all that is
below (tmpfiles.d(5), "Age"). Of single files it asks for the sticky bit (XDG Base Directory Specification, about
XDG_RUNTIME_DIR); for locks only from systemd 256 on.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.deadline import Deadline

log = logging.getLogger("topcoat")

STICKY = 0o1000
"""Of a file's mode: it is not to be cleaned up."""

_PATIENCE = 1.0  # seconds; who cleans up holds a directory only while it goes through it
_POLL = 0.01  # flock(2) knows no time limit


@contextmanager
def kept(*directories: Path) -> Iterator[tuple[int, ...]]:
    """Have nothing cleaned up in the directories, which exist, during the body, or for longer.

    Yields a descriptor for each. They are closed at the end, but the directory is kept while a process lives that has
    inherited its descriptor. Any number of processes may keep the same directory. One that cannot be kept is told in
    the log and is no failure: most are where nobody cleans up.
    """
    descriptors: list[int] = []
    try:
        for directory in directories:
            try:
                descriptors.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
                _share(descriptors[-1])
            except OSError as error:
                log.warning("%s is not kept from being cleaned up: %s", directory, error.strerror or error)
        yield tuple(descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _share(descriptor: int) -> None:
    deadline = Deadline(_PATIENCE)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if deadline.expired:
                raise
        time.sleep(_POLL)
