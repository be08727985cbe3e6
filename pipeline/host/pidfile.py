"""Finding the process of a pidfile that it keeps locked while it lives, as QEMU does."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.host.locks import locked_by_someone
from pipeline.host.process import Process

_LONGEST_PID = 32  # bytes of a pidfile that are read


def owner_of_pidfile(pidfile: Path) -> Process | None:
    """The living process whose pid is in `pidfile` and which has that file open and locked; None if there is none.

    That the pid is there is not enough: whoever has the file open can write any pid into it.
    """
    if not locked_by_someone(pidfile):
        return None
    try:
        with pidfile.open("rb") as stream:  # whoever has the file open can make it as long as the disk allows
            named = Process.find(int(stream.read(_LONGEST_PID)))
        return named if named and _has_open(named.pid, pidfile) else None
    except (OSError, ValueError):
        return None


def _has_open(pid: int, file: Path) -> bool:
    """Whether the process has this very file open, as far as that can be told.

    A process that we may not look into, such as a QEMU that has become another user, counts if a file of that name is
    on its command line. One that is just ending counts: nothing but the lock is left to tell it by.
    """
    there = file.stat()
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        try:
            entries = list(Path(f"/proc/{pid}/fd").iterdir())
            for entry in entries:
                with suppress(FileNotFoundError):  # or has closed it
                    if entry.readlink().name == file.name and os.path.samestat(entry.stat(), there):
                        return True
            return not entries
        except PermissionError:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            return not words or os.fsencode(file.name) in map(os.path.basename, words.split(b"\0"))
    return False


def has_moved(process: Process, pidfile: Path) -> bool:
    """Whether the process has a pidfile of the same name open at another place: the store was moved while it ran.

    A deleted pidfile does not count. True if that cannot be told because we may not look into the process.
    """
    if owner_of_pidfile(pidfile) == process:
        return False
    try:
        opened = [path for path in _open_files(process.pid) if path.name == pidfile.name]
    except PermissionError:
        return True
    return any(str(path) != os.path.realpath(pidfile) for path in opened)


def _open_files(pid: int) -> Iterator[Path]:
    """The paths of the files that the process has open; a deleted file's ends in " (deleted)" (proc(5))."""
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # or has closed it
                yield entry.readlink()
