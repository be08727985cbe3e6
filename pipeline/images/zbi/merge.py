"""Merging images, files and items into one image, as Fuchsia's `zbi` does.

As soon as a file is added, all BOOTFS items become one, which goes to the end of the image: a device reads only the
first one. All CMDLINE items become one in any case, which comes before the BOOTFS. Everything else is carried over byte
for byte, in order. Source: the behaviour of Fuchsia's zircon/tools/zbi, and its usage text.
"""

import dataclasses
import hashlib
import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from pipeline.errors import ImageTooLarge, InputChanged, StoreError, UsageError
from pipeline.host.faults import host_faults, image_faults
from pipeline.images.reader import opened
from pipeline.images.zbi import bootfs, compression, container, item_types, listing
from pipeline.images.zbi.bootfs import BootfsReader, Census, File
from pipeline.images.zbi.compression import Method, Packed
from pipeline.images.zbi.container import FilePayload, Item, ItemDraft, chunks
from pipeline.images.zbi.tree import Tree
from pipeline.text.printable import printable

_BLANKS = b" \t\r\n"


class Content(Protocol):
    """The content of a file in the new BOOTFS."""

    @property
    def size(self) -> int:
        """The size in bytes."""

    @property
    def identity(self) -> object:
        """A value that is equal for contents that are to be stored only once."""

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The whole content in pieces; each is valid until the next one is asked for."""


class Unpacked:
    """The BOOTFS of one item, whose files can be read in any order.

    Read in the order of their offsets, which is the usual one, the files come from a single pass over the item. For any
    other order it is unpacked into a temporary file.
    """

    def __init__(self, item: Item, resources: ExitStack, census: Census) -> None:
        self._item = item
        self._resources = resources
        self._reader = BootfsReader(item, census)
        self._spilled: int | None = None
        self.files = self._reader.files

    def pieces(self, file: File) -> Iterator[bytes | memoryview]:
        """The content of a file, in pieces; each is valid until the next one is asked for."""
        if self._spilled is None and file.offset >= self._reader.position:
            return self._reader.content(file)
        if self._spilled is None:
            self._spilled = self._spill()
        return chunks(FilePayload(self._spilled, file.offset, file.size))

    def _spill(self) -> int:
        try:
            stream = self._resources.enter_context(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115
            for piece in compression.unpacked(self._item):
                container.write_all(stream, piece)
        except OSError as error:
            raise StoreError(
                f"unpacking a BOOTFS into a temporary file: {error.strerror}",
                hint=f"{self._item.content_size} bytes must fit there: set TMPDIR to a directory with more space",
            ) from error
        return stream.fileno()

    def finish(self) -> None:
        """Raise ImageDamaged if the rest of the item cannot be read."""
        if self._spilled is None:
            self._reader.rest()


@dataclass(frozen=True)
class Old:
    """A file from the BOOTFS of an input."""

    source: Unpacked
    file: File

    @property
    def size(self) -> int:
        """See Content."""
        return self.file.size

    @property
    def identity(self) -> object:
        """See Content: names that shared a range of bytes still share it."""
        return (id(self.source), self.file.offset, self.file.size)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """See Content."""
        return self.source.pieces(self.file)


@dataclass(frozen=True)
class New:
    """A file of the host, which is read again when the image is written."""

    path: Path
    size: int
    identity: str
    """The SHA-256 of the content, in hexadecimal."""

    @classmethod
    def at(cls, path: Path) -> "New":
        """The file as it is now. Raises UsageError if it cannot be read, ImageTooLarge if no BOOTFS could hold it."""
        with opened(path) as source, image_faults(printable(str(path))):
            if source.size > compression.MOST_UNPACKED:
                raise ImageTooLarge(
                    f"it has {source.size} bytes",
                    expected=f"at most {compression.MOST_UNPACKED} in a BOOTFS",
                    hint="is it the right file?",
                )
            digest = hashlib.sha256()
            for chunk in chunks(FilePayload(source.stream.fileno(), 0, source.size)):
                digest.update(chunk)
            return cls(path, source.size, digest.hexdigest())

    def pieces(self) -> Iterator[bytes | memoryview]:
        """See Content. Raises InputChanged if the file has changed since: other names may share these bytes."""
        digest = hashlib.sha256()
        with opened(self.path) as source, image_faults(printable(str(self.path))):
            for chunk in chunks(FilePayload(source.stream.fileno(), 0, min(source.size, self.size))):
                digest.update(chunk)
                yield chunk
        if source.size != self.size or digest.hexdigest() != self.identity:
            raise InputChanged(
                f"{printable(str(self.path))} changed while it was read", hint="try again when nobody writes to it"
            )


class ZbiMerge:
    """The inputs that have been added so far. It is a context manager: at its end temporary files are deleted."""

    def __init__(self) -> None:
        self._resources = ExitStack()
        self._items: list[Item] = []
        self._replacing: dict[int, bool] = {}  # for each BOOTFS item, by its index in _items
        self._added: list[tuple[str, Path, bool]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    def add_image(self, path: Path, *, replace: bool = False) -> None:
        """Add all items of an image. With `replace`, files of its BOOTFS replace earlier ones of the same name."""
        for item in self._resources.enter_context(container.opened(path)):
            self.add_item(dataclasses.replace(item, file=printable(str(path))), replace=replace)

    def add_item(self, item: Item, *, replace: bool = False) -> None:
        """Add one item. With `replace`, files of a BOOTFS replace earlier ones of the same name."""
        if item.type == item_types.BOOTFS:
            self._replacing[len(self._items)] = replace
        self._items.append(item)

    def add_file(self, target: str, source: Path, *, replace: bool = False) -> None:
        """Add a file of the host, or all files of a directory, at `target` in the BOOTFS.

        With `replace`, they replace earlier files of the same name. Raises UsageError for a target that a device
        refuses.
        """
        folded = posixpath.normpath(target)
        bootfs.check_name(folded)
        self._added.append((folded, source, replace))

    def add_directory(self, source: Path, *, replace: bool = False) -> None:
        """Add all files of a directory of the host, under the names that they have in it."""
        self._added.append(("", source, replace))

    @property
    def items(self) -> tuple[Item, ...]:
        """All items of the inputs, unchanged and in order."""
        return tuple(self._items)

    def outcome(self, method: Method | None = None) -> list[Item | ItemDraft]:
        """The items of the new image.

        The new BOOTFS is compressed by `method`; without one, as the first BOOTFS of the images was, or by zstd if none
        had any. Raises ImageError for a name that comes twice, UsageError for a source that cannot be read.
        """
        kept: list[Item | ItemDraft] = [
            self._carried(item, method)
            for place, item in enumerate(self._items)
            if item.type != item_types.CMDLINE and not (self._added and place in self._replacing)
        ]
        cmdline = self._cmdline()
        if cmdline:
            kept.append(container.made(item_types.CMDLINE, cmdline + b"\0"))
        if self._added:
            kept.append(self._bootfs(method or self._usual_method()))
        return kept

    @staticmethod
    def _carried(item: Item, method: Method | None) -> Item | ItemDraft:
        """An item of an image as it is; one that was made from a file is compressed, if its type allows that."""
        if item.offset is not None or item.type not in item_types.STORAGE:
            return item
        return Packed(item.type, chunks(item.payload), item.payload.size, method or compression.ZSTD)

    def _cmdline(self) -> bytes:
        texts: list[bytes] = []
        size = 0
        for item in self._items:
            if item.type == item_types.CMDLINE:
                text = listing.cmdline(item).rstrip(b"\0").rstrip(_BLANKS)
                texts += filter(None, [text if texts else text.lstrip(_BLANKS)])
                size += len(text)
            if size > listing.LONGEST_CMDLINE:
                raise ImageTooLarge(
                    "the command lines are too long together",
                    expected=f"at most {listing.LONGEST_CMDLINE} bytes",
                    hint="leave out one of them",
                )
        return b" ".join(texts)

    def _usual_method(self) -> Method:
        first = next((self._items[place] for place in self._replacing if self._items[place].offset is not None), None)
        return compression.ZSTD if first is None else compression.method_of(first)

    def _bootfs(self, method: Method) -> Packed:
        census = Census()
        tree: Tree[Content] = Tree()
        sources = []
        for place, replace in self._replacing.items():
            with self._items[place].faults():
                source = Unpacked(self._items[place], self._resources, census)
                for file in source.files:
                    tree.insert(file.name, Old(source, file), replace=replace)
            sources.append(source)
        for target, path, replace in self._added:
            for name, new in _files_at(target, path):
                tree.insert(name, new, replace=replace)
        names = sorted(tree.files, key=bootfs.order)
        contents = [tree.files[name] for name in names]
        directory, offsets, total = bootfs.layout(
            [(name, content.size, content.identity) for name, content in zip(names, contents, strict=True)]
        )
        stored = {at: content for at, content in zip(offsets, contents, strict=True) if content.size}
        return Packed(item_types.BOOTFS, _payload(directory, stored, total, sources), total, method)


def _payload(
    directory: bytes, contents: dict[int, Content], total: int, sources: list[Unpacked]
) -> Iterator[bytes | memoryview]:
    yield directory
    position = len(directory)
    for offset, content in sorted(contents.items(), key=lambda pair: pair[0]):
        yield bytes(offset - position)
        yield from content.pieces()
        position = offset + content.size
    yield bytes(total - position)
    for source in sources:
        source.finish()


def _files_at(target: str, path: Path) -> Iterator[tuple[str, Content]]:
    if not path.is_dir():
        yield target, New.at(path)
        return
    with host_faults(f"looking through {printable(str(path))}", "file"):
        for source in sorted(path.iterdir()):
            if source.is_symlink() and source.is_dir():
                raise UsageError(
                    f"{printable(str(source))} is a link to a directory",
                    hint="add what it leads to by a -e of its own",
                )
            inside = posixpath.join(target, source.name)
            bootfs.check_name(inside)
            yield from _files_at(inside, source)
