"""A guard against the same command running twice at once: the second process ends, and names the first.

Luigi uses a file of pids with mode 0777 in a directory in /tmp, which another user may have made first. Here it is a
flock in the store, which the kernel releases when its holder ends, however that happens.
"""

import atexit
import os
import sys
from contextlib import ExitStack, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import luigi.lock
from luigi.cmdline_parser import CmdlineParser

from pipeline.errors import InstanceBusy, StoreError
from pipeline.host.locks import holder_of_flock, is_locked, lock_of, locked
from pipeline.settings import Store

_MOMENT = 0.2  # seconds; whoever only deletes the lock of a killed process holds it for less


def refuse_repetitions(store: Store) -> None:
    """Have luigi end with its code for "already running" if another process runs the same command on this store."""
    directory = store.cache / "running"

    def acquire_for(_: object, processes: int = 1, take_from_by: int | None = None) -> bool:
        if processes > 1:  # --lock-size: the user wants to run it several times
            return True
        path = directory / sha256("\0".join(sys.argv[1:]).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        holder = _hold(path)
        if holder is None:
            return True
        if holder and take_from_by is not None:  # --take-lock: the holder shall begin nothing new
            os.kill(holder, take_from_by)
            return True
        parser: Any = CmdlineParser.get_instance()  # luigi has no types for it
        follow = getattr(parser.get_task_obj(), "follow", lambda: "topcoat instances")()
        who = f"process {holder}" if holder else "another process"
        text = f"error: {who} is already running the same command\n  hint: see how it stands: {follow}"
        print(text, file=sys.stderr)
        return False

    luigi.lock.acquire_for = acquire_for


def _hold(path: Path) -> int | None:
    """Hold the lock of `path` until this process ends, if the store can be written, and return None.

    If another process holds it, return the pid of that, or 0 if that process cannot be seen.
    """
    held = ExitStack()
    try:
        held.enter_context(locked(path, _MOMENT))
    except InstanceBusy:
        holder = holder_of_flock(lock_of(path))
        return holder.pid if holder else 0
    except StoreError:  # full or read-only: the tasks report that, and a guest can still be stopped
        return None
    os.register_at_fork(after_in_child=held.close)  # children that outlive this process do not hold it
    atexit.register(_release, path, os.getpid(), held)
    with suppress(OSError):
        for other in path.parent.glob("*.lock"):  # left by killed processes
            if not is_locked(other.with_suffix("")):
                with suppress(InstanceBusy, StoreError), locked(other.with_suffix(""), 0):
                    other.unlink()  # while it is held: whoever waits for it notices
    return None


def _release(path: Path, owner: int, held: ExitStack) -> None:
    if os.getpid() == owner:
        with suppress(OSError):
            lock_of(path).unlink()
        held.close()
