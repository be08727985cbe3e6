"""Files that appear whole or not at all, and the locks under which they are made.

The order is always the same: take the artifact's lock, make the new file under a temporary name in the same
directory, fsync, rename it over the old one, fsync the directory. So what is there stays until its successor is whole:
neither a failure nor a kill at any moment takes it away. For that long, the disk must have room for both.
"""

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.deadline import Deadline
from pipeline.errors import InstanceBusy
from pipeline.faults import host_faults
from pipeline.process import holder_of_flock
from pipeline.text import one_line

log = logging.getLogger("topcoat")

LOCK_LIMIT = 3600.0
"""Seconds to wait for another process that makes the same artifact: the largest image on the slowest disk."""

_ASIDE = ".previous"  # in the private directory: what is about to be replaced
_WORK = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp", re.DOTALL)
_PATIENCE = 1.0  # seconds of waiting that are not worth a word
_LOCK_POLL = 0.05  # flock(2) knows no time limit, so the wait for it is the one place that polls


def make_private(directory: Path) -> None:
    """Make the directory, and those above it that are missing, for nobody but us to enter. Raises OSError.

    What others could open they could lock, and a store has keys, and programs that we run.
    """
    try:
        directory.mkdir(0o700)
    except FileNotFoundError:
        make_private(directory.parent)
        directory.mkdir(0o700, exist_ok=True)
    except OSError:
        if not directory.is_dir():
            raise


@contextmanager
def locked(path: Path, limit: float = LOCK_LIMIT) -> Iterator[None]:
    """Hold the flock of `path` (the file `<path>.lock`, which stays) during the body.

    The kernel gives the lock back when its holder ends, however it ends. Waits at most `limit` seconds for another
    holder, then raises InstanceBusy. A process that forks inside the body shares the lock with its child.
    """
    descriptor = _take(path, Deadline(limit))
    try:
        yield
    finally:
        os.close(descriptor)


def _take(path: Path, deadline: Deadline) -> int:
    """A descriptor that holds the lock."""
    while True:
        descriptor = _open_lock(path)
        try:
            _acquire(descriptor, path, deadline)
            if _is_current(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # somebody has deleted the file meanwhile, and another may hold its successor


def lock_of(path: Path) -> Path:
    """The file whose lock is held by who works on `path`."""
    return Path(f"{path}.lock")


def _open_lock(path: Path) -> int:
    with host_faults(f"locking {path.name}"):
        try:
            make_private(path.parent)
            return os.open(lock_of(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            with suppress(FileNotFoundError):  # a guest can be stopped all the same
                return os.open(lock_of(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            raise


def _is_current(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), lock_of(path).stat())
    except FileNotFoundError:
        return False


def _acquire(descriptor: int, path: Path, deadline: Deadline) -> None:
    untold = Deadline(_PATIENCE)
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if deadline.expired:
                raise InstanceBusy(
                    f"another process has been working on {path.name} for more than {deadline.seconds:.0f} s",
                    hint=_who(lock_of(path)),
                ) from None
        if untold.expired and not told:
            log.info("waiting for another process that works on %s", path.name)
            told = True
        time.sleep(_LOCK_POLL)


def _who(lock: Path) -> str:
    holder = holder_of_flock(lock)
    if holder is None:
        return f"see who holds it: fuser -v '{lock}'"
    return f"wait for process {holder.pid} ({one_line(holder.command, 100)}), or end it: kill {holder.pid}"


def is_locked(path: Path) -> bool:
    """Whether some process holds `locked(path)` at this moment."""
    return has_flock(lock_of(path))


def has_flock(file: Path) -> bool:
    """Whether some process holds an exclusive flock of the file. Raises OSError if that cannot be told."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Yield a path to make `target` at; when the body ends well, it becomes `target` in one step and is on disk.

    The yielded path lies in a private directory beside `target`, so that whatever else a tool leaves there goes away
    with it. When the body fails, `target` is as before. Remains of a killed predecessor are removed: the caller holds
    `locked(target)`. Raises StoreError for a full, read-only or forbidden store, or for a directory that would replace
    one with something in it.
    """
    with _publishing((target,), Path.replace) as (made,):
        yield made


@contextmanager
def replacing(targets: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
    """As `publish`, for files and directories that belong together, whatever is there: all are made before one counts.

    They are in one directory, and the caller holds the lock of the first. Nobody but their owner gets any right
    to them: images have keys in them.
    """
    with _publishing(targets, _replace) as made:
        yield made
        for one in made:
            _take_rights(one)


@contextmanager
def _publishing(targets: Sequence[Path], replace: Callable[[Path, Path], object]) -> Iterator[tuple[Path, ...]]:
    first, place = targets[0], targets[0].parent
    with host_faults(f"making {first.name}"):
        make_private(place)
        for remains in _remains(first):
            _clear(remains)
        work = Path(tempfile.mkdtemp(prefix=f".{first.name}.", suffix=".tmp", dir=place))
        try:
            made = tuple(work / target.name for target in targets)
            yield made
            for one in made:
                sync(one)
            for one, target in zip(made, targets, strict=True):
                replace(one, target)
            sync_one(place)
        finally:
            with suppress(OSError):  # what stays is cleared by the next publish
                _clear(work)


def _replace(made: Path, target: Path) -> None:
    if made.is_dir() and os.path.lexists(target):  # no directory can be renamed over another one
        (made.parent / _ASIDE).mkdir(exist_ok=True)
        target.rename(made.parent / _ASIDE / target.name)
    made.replace(target)


def put_back(work: Path) -> None:
    """Save from a directory in which `publish` has worked what was set aside, and has no successor. Raises OSError."""
    with suppress(FileNotFoundError):
        for old in (work / _ASIDE).iterdir():
            if not os.path.lexists(work.parent / old.name):
                old.rename(work.parent / old.name)


def _clear(work: Path) -> None:
    put_back(work)
    shutil.rmtree(work)


def _remains(target: Path) -> list[Path]:
    names = os.listdir(target.parent)  # noqa: PTH208  a Path for each of thousands of neighbours takes its time
    return [target.parent / name for name in names if target_of_remains(name) == target.name]


def target_of_remains(name: str) -> str | None:
    """The name of what was to be made in the directory `name`, if that is one which `publish` has made."""
    # mkdtemp puts eight characters; less exact, "x" would match what is being made of "x.y" under another lock
    match = _WORK.fullmatch(name)
    return match[1] if match else None


def _take_rights(path: Path) -> None:
    if path.is_symlink():
        return
    path.chmod(path.stat().st_mode & 0o700)
    if path.is_dir():
        for inner in path.iterdir():
            _take_rights(inner)


def sync(path: Path) -> None:
    """fsync a file, or a directory with the files in it."""
    if path.is_dir() and not path.is_symlink():
        for file in path.iterdir():
            sync(file)
    sync_one(path)


def sync_one(path: Path) -> None:
    """Have the content of a file, or the names in a directory, on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_bytes(target: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a small file as `publish` does. It never exists with more rights than `mode`."""
    with publish(target) as made:
        write_new(made, data, mode)


def write_new(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file that is not there yet. It never exists with more rights than `mode`. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as stream:
        stream.write(data)


def publish_json(target: Path, value: object, mode: int = 0o644) -> None:
    """Write `value` as JSON with sorted keys, indented, with a final newline."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    # Paths need not be UTF-8: as an escape of JSON each byte comes back as it was
    publish_bytes(target, text.encode(errors="backslashreplace"), mode)


def remove(*targets: Path) -> None:
    """Delete files; what is not there is no error."""
    for target in targets:
        with host_faults(f"removing {target.name}"):
            target.unlink(missing_ok=True)
