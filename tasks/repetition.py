"""The same command twice at the same time: the second one ends, and names the first.

Luigi's own way is a file of pids, made 0777, in a directory of /tmp, where another user can have come first. Here it is
a flock in the store, which the kernel gives back when its holder ends, however it ends.
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
from pipeline.publish import is_locked, lock_of, locked
from pipeline.settings import Store


def refuse_repetitions(store: Store) -> None:
    """From now on luigi ends with its code for "already running" if another process runs its command on this store."""
    directory = store.cache / "running"

    def acquire_for(_: object, processes: int = 1, take_from_by: int | None = None) -> bool:
        if processes > 1:  # --lock-size: its user wants it twice
            return True
        path = directory / sha256("\0".join(sys.argv[1:]).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        holder = _hold(path)
        if holder is None:
            return True
        if holder and take_from_by is not None:  # --take-lock: the holder is to begin nothing new
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
    """Hold the lock until this process ends. Returns the pid of who holds it already; 0 if it has not said so yet."""
    held = ExitStack()
    try:
        held.enter_context(locked(path, 0))
    except InstanceBusy:
        return int(lock_of(path).read_text() or "0")
    except StoreError:  # full, or read-only: whatever is to be written will say so, and a guest can be stopped
        return None
    os.register_at_fork(after_in_child=held.close)  # what outlives this process for a moment does not hold it
    atexit.register(_release, path, os.getpid(), held)
    with suppress(OSError):
        lock_of(path).write_text(str(os.getpid()))
        for other in path.parent.glob("*.lock"):  # of killed processes
            if not is_locked(other.with_suffix("")):
                other.unlink()
    return None


def _release(path: Path, owner: int, held: ExitStack) -> None:
    if os.getpid() == owner:
        with suppress(OSError):
            lock_of(path).unlink()
        held.close()
