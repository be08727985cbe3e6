"""gdb at a process in a guest: gdbserver is copied there, and they talk through SSH.

gdb reads the program and its libraries from the guest, and debug information from the build. It was not made for guests
that mean harm.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pipeline.errors import CommandError, UsageError
from pipeline.ssh.connector import Connector
from pipeline.text import goglob
from pipeline.text.printable import tail

_PLACE = "/tmp/topcoat"  # in the guest
_LIMIT = 60.0  # seconds for a small command in the guest


@dataclass(frozen=True)
class Programs:
    """The programs of this host with which a process in a guest is debugged."""

    gdb: Path
    gdbserver: Path


def programs() -> Programs:
    """Find the programs. Raises UsageError if one is not there."""
    found = {name: shutil.which(name) for name in ("gdb", "gdbserver")}
    paths = [Path(path) for path in found.values() if path]
    if len(paths) < len(found):
        missing = " and ".join(name for name, path in found.items() if not path)
        raise UsageError(
            f"to debug, {missing} must be in PATH", hint="apt-get install gdb gdbserver; or look without --gdb"
        )
    return Programs(*paths)


def bring(connector: Connector, gdbserver: Path) -> str:
    """Copy gdbserver into the guest, once. Returns its path there.

    Raises ConnectError, or CommandError if it cannot run there.
    """
    there = f"{_PLACE}/{gdbserver.name}"
    if connector.run(f"test -x {there}", _LIMIT).status:  # else another gdb may be using it
        connector.put(goglob.literal(str(gdbserver)), _PLACE)
    tried = connector.run(f"chmod 755 {there} && {there} --version", _LIMIT)
    if tried.status:
        raise CommandError(
            f"the guest cannot run {gdbserver}",
            hint="does it fit the guest's libraries? use that of the guest's release of Debian",
            detail=tail(tried.stderr),
        )
    return there


def command(gdb: Path, name: str, pid: int, gdbserver: str, symbols: Sequence[Path], words: Sequence[str]) -> list[str]:
    """gdb's command line to debug the process `pid` in the instance `name`; its own further `words` come last.

    `symbols` are directories with debug information by build ids, whose names are the first two digits.
    """
    ours = [sys.executable, "-P", "-m", "pipeline.cli.main", "ssh", name, "--"]
    places = ":".join(str(path.parent) for path in symbols)
    return [
        *(str(gdb), "-q", "-iex", "set debuginfod enabled off"),
        *("-iex", f"set debug-file-directory {places}:/usr/lib/debug"),
        *("-ex", f"target remote | {shlex.join([*ours, gdbserver, '--once', '-', '--attach', str(pid)])}"),
        # Which thread gdb takes first is by chance
        *("-ex", "thread apply all -s backtrace"),
        *words,
    ]


def become(argv: Sequence[str], root: Path) -> NoReturn:
    """Become gdb, for a guest of the store at `root`."""
    os.execve(argv[0], list(argv), {**os.environ, "TOPCOAT_ROOT": str(root)})
