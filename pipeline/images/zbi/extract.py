"""Extraction of files from an image. Nothing in an image can make them land outside the directory given for them."""

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline.errors import StoreError, UsageError
from pipeline.host.beneath import Beneath
from pipeline.images.zbi import container, item_types
from pipeline.images.zbi.bootfs import BootfsReader, Census, File, encoded
from pipeline.images.zbi.container import Item
from pipeline.text.printable import printable

_OLD = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# ext4 takes 65,000 links to a file, after which a copy is made. FAT takes none at all
_NO_LINK = (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP)


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """A function that tells whether a name is wanted: it fits one of the shell patterns, and no excluding one.

    A pattern that starts with ! or ^ excludes; `*` matches "/" too. Without including patterns every name is wanted
    that is not excluded.
    """
    excluded = [pattern[1:] for pattern in patterns if pattern.startswith(("!", "^"))]
    included = [pattern for pattern in patterns if not pattern.startswith(("!", "^"))]

    def wanted(name: str) -> bool:
        taken = not included or any(fnmatchcase(name, pattern) for pattern in included)
        return taken and not any(fnmatchcase(name, pattern) for pattern in excluded)

    return wanted


def extract(items: Sequence[Item], directory: Path, wanted: Callable[[str], bool]) -> int:
    """Write the wanted files of all BOOTFS items below `directory`, which is made if needed. Returns their number.

    Existing files are replaced; names that share their content in the image become hard links. Raises ImageError,
    UsageError where something other than a directory stands in the way, and StoreError.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        census = Census()
        readers = (BootfsReader(item, census) for item in items if item.type == item_types.BOOTFS)
        with Beneath(directory) as below:
            return sum(_extract_item(reader, below, wanted) for reader in readers)
    except OSError as error:
        raise StoreError(
            f"extracting into {printable(str(directory))}: {error.strerror}",
            hint="give another directory, with enough space and the right to write there: -D DIR",
        ) from error


def _extract_item(reader: BootfsReader, below: Beneath, wanted: Callable[[str], bool]) -> int:
    files = sorted((file for file in reader.files if wanted(file.name)), key=lambda file: (file.offset, file.size))
    before: File | None = None
    for file in files:
        with _parent(below, file.name) as parent:
            if before is None or not file.size or (file.offset, file.size) != (before.offset, before.size):
                _create(parent, file.name, reader.content(file) if file.size else ())
            elif file.name != before.name:  # linked: 100,000 names of one gigabyte are to take one gigabyte here too
                _link(below, before.name, parent, file.name)
        before = file
    reader.rest()
    return len(files)


def _link(below: Beneath, known: str, parent: int, name: str) -> None:
    _make_room(parent, name)
    with _parent(below, known) as known_parent:
        try:
            os.link(_last(known), _last(name), src_dir_fd=known_parent, dst_dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            _copy(known_parent, known, parent, name)


def _copy(known_parent: int, known: str, parent: int, name: str) -> None:
    with (
        open(os.open(_last(known), _OLD, dir_fd=known_parent), "rb") as source,
        open(os.open(_last(name), _NEW, 0o644, dir_fd=parent), "wb") as target,
    ):
        shutil.copyfileobj(source, target, container.CHUNK)


def _create(parent: int, name: str, pieces: Iterable[memoryview]) -> None:
    _make_room(parent, name)
    descriptor = os.open(_last(name), _NEW, 0o644, dir_fd=parent)
    with open(descriptor, "wb", buffering=0) as stream:
        for piece in pieces:
            container.write_all(stream, piece)


def _make_room(parent: int, name: str) -> None:
    try:
        with suppress(FileNotFoundError):
            os.unlink(_last(name), dir_fd=parent)
    except IsADirectoryError as error:
        raise _in_the_way(name, "a directory is there") from error


def _last(name: str) -> bytes:
    # As bytes: names must not depend on the host's locale
    return encoded(name.rpartition("/")[2])


@contextmanager
def _parent(below: Beneath, name: str) -> Iterator[int]:
    """A descriptor, for the body, of the directory in which a file of this name belongs; it is made if needed."""
    try:
        with below.entered([encoded(component) for component in name.split("/")[:-1]]) as descriptor:
            yield descriptor
    except NotADirectoryError as error:
        component = error.filename.decode(errors="surrogateescape")
        raise _in_the_way(name, f"{component!r} is there and is no directory") from error


def _in_the_way(name: str, what: str) -> UsageError:
    return UsageError(
        f"{name!r} cannot be extracted: {what}",
        hint="extract into a new directory (-D DIR); if it is one, the image has both a file and a directory there: "
        "leave one out (-- '!NAME')",
    )
