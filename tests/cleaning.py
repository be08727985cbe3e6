"""Cleaning up what is old, as /tmp is cleaned: by systemd-tmpfiles itself, and by what it does, where it is missing."""

import fcntl
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

DAYS = 24 * 3600
TMPFILES = shutil.which("systemd-tmpfiles")

Cleaner = Callable[[Path], None]


def by_systemd(directory: Path) -> None:
    """Clean by the times of modification alone: those of change cannot be set back for a test."""
    assert TMPFILES
    config = directory.with_name("tmpfiles.conf")
    config.write_text(f"e {directory} - - - mM:10d\n")
    subprocess.run([TMPFILES, "--clean", config], check=True, timeout=60)


def by_hand(directory: Path) -> None:
    """What systemd-tmpfiles 252 does with files and directories (src/tmpfiles/tmpfiles.c, dir_cleanup)."""
    for entry in list(directory.iterdir()):
        facts = entry.lstat()
        old = facts.st_mtime < time.time() - 10 * DAYS
        if stat.S_ISDIR(facts.st_mode):
            descriptor = os.open(entry, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                by_hand(entry)
                if old and not any(entry.iterdir()):
                    entry.rmdir()
            except BlockingIOError:
                continue
            finally:
                os.close(descriptor)
        elif old and not facts.st_mode & stat.S_ISVTX:
            entry.unlink()


CLEANERS = [
    pytest.param(by_hand, id="by hand"),
    pytest.param(
        by_systemd,
        id="by systemd",
        marks=pytest.mark.skipif(TMPFILES is None, reason="systemd-tmpfiles (package systemd) is not there"),
    ),
]


def age(directory: Path, days: int = 11) -> None:
    """As if nothing below had been written to for so long."""
    then = time.time() - days * DAYS
    for parent, directories, files in os.walk(directory, topdown=False):
        for name in (*directories, *files, "."):
            os.utime(Path(parent, name), (then, then), follow_symlinks=False)
