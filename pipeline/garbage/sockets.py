"""Directories of sockets on which nobody listens any more. See pipeline.lease."""

import os
import re
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline import lease
from pipeline.errors import InstanceBusy, StoreError
from pipeline.garbage import processes
from pipeline.garbage.item import Item, Spared, alone, delete, is_directory, used
from pipeline.instance import Instance
from pipeline.publish import is_locked
from pipeline.settings import Store

_SHARED = Path("/tmp")
_UNLEASED_AGE = 3600.0  # older versions made no leases, and no boot takes as long
_USED = "a guest uses it"
_GONE = "it is gone already"
_NAME = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class _Claim:
    """Who could claim a directory: an instance of this store that is dead, one that is gone, or nobody knows."""

    why: str
    dead: Instance | None = None
    gone: Path | None = None


def items(store: Store, dead: Sequence[Instance], others: Sequence[Instance]) -> Iterator[Item]:
    """Those that are not held, and belong to a dead instance of the store, to one that is gone, or to nobody known.

    `others` are the instances of the store that live or are worked on; theirs are never touched, held or not.
    """
    known = {path: instance for instance in dead for path in _recorded(instance)}
    in_use = {path for instance in others for path in _recorded(instance)}
    for path in _all(store, [*dead, *others]):
        if path in in_use or lease.is_held(path):
            continue
        claim = _claim(store, path, known.get(path), others)
        if claim and not _is_listened_to(path):
            yield Item("sockets", str(path), used(path), claim.why, partial(_remove, store, path, claim))


def _recorded(instance: Instance) -> set[Path]:
    """Where the sockets of the instance may be: TMPDIR may have been another, and the store elsewhere."""
    found = {_real(instance.sockets), _real(instance.sockets_in_use)}
    with suppress(ValueError, TypeError, OSError):  # a handle that makes no sense says nothing
        handle = instance.handle()
        found |= {_real(handle.sockets)} if handle else set()
    return found


def _real(path: Path | str) -> Path:
    return Path(os.path.realpath(path))


def _all(store: Store, instances: Sequence[Instance]) -> list[Path]:
    """All directories of sockets of this user, of whatever store, without links on their paths."""
    usual = Instance("i0", store.instances / "i0").sockets.parent
    temporary = Path(os.environ.get("TMPDIR", _SHARED))
    recorded = {path.parent for instance in instances for path in _recorded(instance)}
    near = {_real(place) / usual.name for place in (_SHARED, temporary, usual.parent)}
    bases = sorted(base for base in near | recorded if base.name == usual.name and _is_private(base))
    return [path for base in bases for path in sorted(base.iterdir()) if _is_one(path)]


def _is_one(path: Path) -> bool:
    return _NAME.fullmatch(path.name) is not None and _is_private(path)


def _is_private(path: Path) -> bool:
    if not is_directory(path):
        return False
    facts = path.stat()
    return facts.st_uid == os.getuid() and not facts.st_mode & 0o022


def _claim(store: Store, path: Path, known: Instance | None, others: Sequence[Instance]) -> _Claim | None:
    named = lease.instance_of(path)
    if named is None:
        return _unleased(path, known)
    if not _exists(named):
        return _Claim(f"its instance is gone: {named}", gone=named)
    if _real(named.parent) != _real(store.instances):
        return None  # of another store, which looks after it
    if any(named.name == other.name for other in others):
        return None
    return _Claim(f"{named.name} has ended", dead=Instance(named.name, named))


def _unleased(path: Path, known: Instance | None) -> _Claim | None:
    if known is not None:
        return _Claim(f"{known.name} has ended", dead=known)
    with suppress(FileNotFoundError):  # it is gone meanwhile
        youngest = max(entry.lstat().st_mtime for entry in (path, *path.iterdir()))
        if time.time() - youngest >= _UNLEASED_AGE:
            return _Claim("nobody listens, and nobody has for an hour")
    return None


def _exists(path: Path) -> bool:
    """Unlike Path.exists, this raises OSError if nobody can know."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _is_listened_to(directory: Path) -> bool:
    with suppress(FileNotFoundError):  # it is gone meanwhile
        return any(map(_answers, directory.iterdir()))
    return False


def _answers(path: Path) -> bool:
    """Whether a connection to it would not be refused. It is closed at once."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            client.connect(str(path))
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except OSError:  # for example, it has clients enough
        return True
    return True


def _remove(store: Store, path: Path, claim: _Claim) -> None:
    with ExitStack() as held:
        if claim.dead:
            held.enter_context(alone(claim.dead.directory))
            if not processes.is_dead(claim.dead, processes.find(store)):
                raise Spared(f"{claim.dead.name} was booted meanwhile")
        if not path.is_dir():
            raise Spared(_GONE)
        if _claim(store, path, claim.dead, ()) != claim:
            raise Spared(_USED)
        said = lease.instance_of(path)
        held.enter_context(_seized(path))
        if said and lease.instance_of(path) is None and [entry.name for entry in path.iterdir()] == ["lease"]:
            delete(path)  # another gc was quicker, and taking the lease has made the file anew
            raise Spared(_GONE)
        # A boot takes its instance's lock, makes the instance's directory, and takes the lease, in this order
        gone = claim.gone is None or not (_exists(claim.gone) or is_locked(claim.gone))
        if not gone or lease.instance_of(path) != said or _is_listened_to(path):
            raise Spared(_USED)
        delete(*(entry for entry in path.iterdir() if entry.name != "lease"))
        delete(path)  # the lease last: if this is killed, the next gc still knows whose it is


@contextmanager
def _seized(path: Path) -> Iterator[None]:
    with ExitStack() as held:
        try:
            held.enter_context(lease.seized(path))
        except InstanceBusy:
            raise Spared(_USED) from None
        except StoreError:
            if path.is_dir():
                raise
            raise Spared(_GONE) from None
        yield
