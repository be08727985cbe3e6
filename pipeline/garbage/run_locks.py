"""Luigi's directory of pid files: who runs which command line on which store."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path

from pipeline.garbage.item import Item, Spared, delete_empty, is_directory, used
from pipeline.process import Process
from pipeline.settings import Store


def lock_directory(store: Store) -> Path:
    """The directory for this user and store.

    Luigi's own /tmp/luigi belongs to whoever came first, and takes the same command for another store for a repetition.
    """
    digest = sha256(bytes(store.root)).hexdigest()[:12]
    usual = tempfile.gettempdir()
    # luigi takes it through its settings, in which these begin the name of something else
    base = "/tmp" if "%" in usual or "${" in usual else usual
    return Path(base, f"topcoat-luigi-{os.getuid()}-{digest}")


def items(store: Store) -> Iterator[Item]:
    """That of the store, if its files list processes of which none lives: they were killed."""
    for path in sorted({lock_directory(store), lock_directory(Store(Path(os.path.realpath(store.root))))}):
        if is_directory(path) and path.stat().st_uid == os.getuid() and not any(map(_lives, path.iterdir())):
            yield Item("lock directory", str(path), used(path), "no luigi runs on this store", partial(_remove, path))


def _lives(file: Path, ended: int | None = None) -> bool:
    """Whether one of the processes lives that luigi has noted in the file, but for `ended`."""
    try:
        pids = [int(line) for line in file.read_text().split()]
    except FileNotFoundError:
        return False
    except ValueError:
        return True  # it is not luigi's
    return any(Process.find(pid) for pid in pids if pid != ended)


def tidy(path: Path) -> None:
    """Remove what this process has noted, which is about to end, and the directory if nobody else is noted there."""
    with suppress(OSError, Spared):  # it was never made, or somebody else comes at this moment
        _remove(path, os.getpid())


def _remove(path: Path, ended: int | None = None) -> None:
    """Luigi takes no lock for it. One that begins at this very moment may not notice that its command runs twice."""
    if not path.is_dir():
        raise Spared("it is gone already")
    for file in path.iterdir():
        if _lives(file, ended):
            raise Spared("luigi runs on this store")
        file.unlink(missing_ok=True)
    delete_empty(path)
