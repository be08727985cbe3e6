"""Writing files so that they appear whole or not at all.

The order is always the same: take the artifact's lock, make the new file under a temporary name in the same directory,
fsync, rename it over the old one, fsync the directory. So the old file stays until its successor is whole, whatever
fails or is killed at any moment. Until then the disk must have room for both.
"""

import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.host.faults import host_faults
from pipeline.host.trust import make_private

_ASIDE = ".previous"  # a directory in the private one, for what is about to be replaced
_WORK = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp", re.DOTALL)


@contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Yield a path at which to make `target`; when the body ends well, it becomes `target` in one step and is on disk.

    The yielded path lies in a private directory beside `target`, so that whatever else a tool leaves there is removed
    with it. When the body fails, `target` is as before. The caller holds `locked(target)`, so the remains of a killed
    predecessor are removed. Raises StoreError if the store is full, read-only or forbidden, or if a directory would
    replace another one that is not empty.
    """
    with _publishing((target,), Path.replace) as (made,):
        yield made


@contextmanager
def replacing(targets: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
    """Do as `publish` for several targets that belong together: all are made before the first is replaced.

    The targets are files or directories in one directory; directories that are not empty are replaced too. The caller
    holds the lock of the first. Only the owner gets any right to the targets, for images contain keys.
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
            with suppress(OSError):  # the next publish removes what stays
                _clear(work)


@contextmanager
def writing_out(target: Path) -> Iterator[BinaryIO]:
    """Yield a stream for a file that is for the user; when the body ends well, it becomes `target`, and is on disk.

    It is for places outside of the store: no lock is taken, and nothing is left beside the file, unless the process is
    killed. When the body fails, `target` is as before. Raises StoreError if it cannot be written.
    """
    with host_faults(f"writing {target.name}", "file"):
        made = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.tmp")
        try:
            with made.open("xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            made.replace(target)
            sync_one(target.parent)
        finally:
            made.unlink(missing_ok=True)


def _replace(made: Path, target: Path) -> None:
    if made.is_dir() and os.path.lexists(target):  # no directory can be renamed over another one
        (made.parent / _ASIDE).mkdir(exist_ok=True)
        target.rename(made.parent / _ASIDE / target.name)
    made.replace(target)


def put_back(work: Path) -> None:
    """Move back what a killed `replacing` has set aside in its private directory `work`, unless it has a successor.

    Raises OSError.
    """
    with suppress(FileNotFoundError):
        for old in (work / _ASIDE).iterdir():
            if not os.path.lexists(work.parent / old.name):
                old.rename(work.parent / old.name)


def _clear(work: Path) -> None:
    put_back(work)
    shutil.rmtree(work)


def _remains(target: Path) -> list[Path]:
    names = os.listdir(target.parent)  # noqa: PTH208  making a Path of each of thousands of neighbours takes its time
    return [target.parent / name for name in names if target_of_remains(name) == target.name]


def target_of_remains(name: str) -> str | None:
    """The name of the target that `publish` works on in its private directory `name`; None if it is no such name."""
    # mkdtemp adds eight characters; a laxer pattern would take work on "x.y", under another lock, for work on "x"
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
    """fsync a file, or a directory with everything in it. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        for file in path.iterdir():
            sync(file)
    sync_one(path)


def sync_one(path: Path) -> None:
    """fsync the content of a file, or the names in a directory. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_bytes(target: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a small file as `publish` does. It never exists with more rights than `mode`. Raises StoreError."""
    with publish(target) as made:
        write_new(made, data, mode)


def write_new(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file, which must not exist yet. It never exists with more rights than `mode`. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as stream:
        stream.write(data)


def publish_json(target: Path, value: object, mode: int = 0o644) -> None:
    """Write `value` as `as_json` does, and as `publish_bytes` writes it."""
    publish_bytes(target, as_json(value), mode)


def as_json(value: object) -> bytes:
    """`value` as indented JSON with sorted keys and a final newline."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    # Paths need not be UTF-8: written as JSON escapes, their bytes come back as they were
    return text.encode(errors="backslashreplace")


def remove(*targets: Path) -> None:
    """Delete files; a missing one is no error. Raises StoreError."""
    for target in targets:
        with host_faults(f"removing {target.name}"):
            target.unlink(missing_ok=True)


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """Yield a new directory in the host's place for temporary files, which is deleted after the body.

    `purpose` becomes part of its name. Raises StoreError if it cannot be made.
    """
    with host_faults("making a temporary directory", "temporary"):
        made = tempfile.TemporaryDirectory(prefix=f"topcoat-{purpose}-", ignore_cleanup_errors=True)
    with made as directory:
        yield Path(directory)
