"""Taking files out of an image. Nothing in an image can make them land outside the directory that is meant for them."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.images.zbi import container, item_types
from pipeline.images.zbi.bootfs import Reader
from pipeline.images.zbi.container import Item

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Tells whether a name is wanted: by a shell pattern (`*` matches "/" too), and by none that starts with ! or ^.

    Without patterns every name is.
    """
    excluded = [pattern[1:] for pattern in patterns if pattern.startswith(("!", "^"))]
    included = [pattern for pattern in patterns if not pattern.startswith(("!", "^"))]

    def wanted(name: str) -> bool:
        taken = not included or any(fnmatchcase(name, pattern) for pattern in included)
        return taken and not any(fnmatchcase(name, pattern) for pattern in excluded)

    return wanted


def extract(items: Sequence[Item], directory: Path, wanted: Callable[[str], bool]) -> int:
    """Write the wanted files of all BOOTFS items below `directory`, which is made if needed. Returns their number.

    Files that are there are replaced. Raises ImageDamaged, and UsageError where a link stands in the way.
    """
    directory.mkdir(parents=True, exist_ok=True)
    count = 0
    for item in items:
        if item.type == item_types.BOOTFS:
            count += _extract_item(item, directory, wanted)
    return count


def _extract_item(item: Item, directory: Path, wanted: Callable[[str], bool]) -> int:
    reader = Reader(item)
    files = sorted((file for file in reader.files if wanted(file.name)), key=lambda file: (file.offset, file.size))
    written: dict[tuple[int, int], str] = {}
    for file in files:
        place = (file.offset, file.size)
        with _parent(directory, file.name) as parent:
            if file.size and place in written:  # as in the image, so that 100,000 names of one gigabyte stay one
                _linked(directory, written[place], parent, file.name)
                continue
            _create(parent, file.name, reader.content(file) if file.size else ())
        written[place] = file.name
    reader.rest()
    return len(files)


def _linked(directory: Path, known: str, parent: int, name: str) -> None:
    with _parent(directory, known) as known_parent:
        last = name.rpartition("/")[2]
        with suppress(FileNotFoundError):
            os.unlink(last, dir_fd=parent)
        known_last = known.rpartition("/")[2]
        os.link(known_last, last, src_dir_fd=known_parent, dst_dir_fd=parent, follow_symlinks=False)


def _create(parent: int, name: str, pieces: Iterable[memoryview]) -> None:
    last = name.rpartition("/")[2]
    with suppress(FileNotFoundError):
        os.unlink(last, dir_fd=parent)
    descriptor = os.open(last, _NEW, 0o644, dir_fd=parent)
    with open(descriptor, "wb", buffering=0) as stream:
        for piece in pieces:
            container.write_all(stream, piece)


@contextmanager
def _parent(root: Path, name: str) -> Iterator[int]:
    """A descriptor of the directory in which a file of this name belongs. Links on the way are not followed."""
    opened = [os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        for component in name.split("/")[:-1]:
            opened.append(_entered(opened[-1], component, name))
            os.close(opened.pop(-2))
        yield opened[-1]
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _entered(directory: int, name: str, whole: str) -> int:
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=directory)
    try:
        return os.open(name, _DIRECTORY, dir_fd=directory)
    except OSError as error:
        raise UsageError(
            f"{whole!r} cannot be extracted: {name!r} is there and is no directory", hint="extract into a new directory"
        ) from error
