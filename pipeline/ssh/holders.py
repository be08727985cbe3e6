"""Who else is connected to a guest's SSH port: any user of the host can be, and servers limit how many may wait."""

import pwd
from collections import Counter
from contextlib import suppress
from pathlib import Path

_TABLES = {Path("/proc/net/tcp"): "0100007F", Path("/proc/net/tcp6"): "0000000000000000FFFF00000100007F"}
"""Each table with 127.0.0.1 as it is written there: an IPv6 socket can connect to it too, as ::ffff:127.0.0.1."""
_ESTABLISHED = "01"
_SHOWN = 3


def told(port: int, own: int = 0, but: int = -1) -> str:
    """Tell in one clause which users hold connections to a port of the loopback interface; empty if none does.

    The connection whose socket has the inode `own` does not count, nor do those of the user id `but`. Source of the
    tables' format: proc_pid_net(5), and Linux's tcp4_seq_show and tcp6_seq_show.
    """
    held = _held(port, own)
    del held[but]
    names = [f"{_name(user)} {count}" for user, count in held.most_common(_SHOWN)]
    return f"connections to its port are held by {', '.join(names)}" if names else ""


def _held(port: int, own: int) -> Counter[int]:
    held: Counter[int] = Counter()
    for table, loopback in _TABLES.items():
        with suppress(OSError):  # a kernel without this table: then nobody can tell
            for line in table.read_text().splitlines()[1:]:
                _, _, remote, state, _, _, _, user, _, inode, *_ = line.split()
                if state == _ESTABLISHED and remote == f"{loopback}:{port:04X}" and int(inode) != own:
                    held[int(user)] += 1
    return held


def _name(user: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(user).pw_name
    return f"user {user}"
