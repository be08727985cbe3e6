"""Which files other users of this host can have written, and directories that are closed to them."""

import os
import stat
from pathlib import Path


def distrust(facts: os.stat_result, *, root: bool) -> str:
    """Why a file with this stat result is not trusted; "" if only this user can have written it.

    With `root`, files of root are trusted too. A file may be writable for its group if that is our own: many systems
    give each user one.
    """
    others = stat.S_IWOTH if facts.st_gid == os.getegid() else stat.S_IWOTH | stat.S_IWGRP
    if facts.st_uid != os.geteuid() and not (root and facts.st_uid == 0):
        return f"it belongs to another user ({facts.st_uid})"
    if facts.st_mode & others:
        return f"others can write to it (mode {facts.st_mode & 0o777:04o})"
    return ""


def make_private(directory: Path) -> None:
    """Make the directory and its missing parents so that only this user can enter them. Raises OSError.

    An existing directory keeps its mode. Others could lock whatever they can open, and a store holds keys, and programs
    that we run.
    """
    try:
        directory.mkdir(0o700)
    except FileNotFoundError:
        make_private(directory.parent)
        directory.mkdir(0o700, exist_ok=True)
    except OSError:
        if not directory.is_dir():
            raise
