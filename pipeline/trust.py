"""Whether a file can have been written by another user of this host."""

import os
import stat


def distrust(facts: os.stat_result, *, root: bool) -> str:
    """Why a file with these facts is not trusted; empty if only we can have written it, or also `root`.

    Its group may write to it if that is our own: many systems give each user one.
    """
    others = stat.S_IWOTH if facts.st_gid == os.getegid() else stat.S_IWOTH | stat.S_IWGRP
    if facts.st_uid != os.geteuid() and not (root and facts.st_uid == 0):
        return f"it belongs to another user ({facts.st_uid})"
    if facts.st_mode & others:
        return f"others can write to it (mode {facts.st_mode & 0o777:04o})"
    return ""
