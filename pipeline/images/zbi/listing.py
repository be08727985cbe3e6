"""The content of an image in the words of `zbi --list`."""

from collections.abc import Iterator, Sequence

from pipeline.errors import ImageTooLarge
from pipeline.images.zbi import bootfs, item_types
from pipeline.images.zbi.container import CRC_FLAG, HEADER, MAGIC, Item, ItemDraft
from pipeline.text.printable import printable

LONGEST_CMDLINE = 1 << 20
"""The most bytes that a command line may have; kernels take some thousand."""

_INDENT = "        :"


def unbootable(items: Sequence[Item | ItemDraft], kernel: int | None = None) -> str:
    """Why no device boots an image of these items; "" if one does.

    `kernel` is the type of item that the image must start with, None if any kernel will do.
    """
    if not items:
        return "empty ZBI"
    kernels = [item.type for item in items if item_types.is_kernel(item.type)]
    if not kernels:
        return "no kernel item found"
    if not item_types.is_kernel(items[0].type):
        return "kernel item out of order: must be first"
    if kernel not in (None, items[0].type):
        return f"kernel arch mismatch: it has {item_types.name_of(items[0].type)}"
    return ""


def headline(items: Sequence[Item]) -> str:
    """The first line of the list: whether the image can be booted."""
    why = unbootable(items)
    return f"UNBOOTABLE: {why}" if why else "BOOTABLE: bootable image"


def lines(item: Item, position: int, *, verbose: bool = False) -> Iterator[str]:
    """The lines about one item, whose header starts at `position`; with `verbose` also about its content.

    Raises ImageDamaged or ImageTooLarge if the content cannot be read.
    """
    name = item_types.name_of(item.type)
    size = f" (size={item.content_size:08x})" if item.type in item_types.STORAGE else ""
    yield f"{position:08x}: {item.payload.size:08x} {name}{size}"
    crc = f"CRC={item.crc:08x}" if item.flags & CRC_FLAG and item.crc is not None else "NO CRC"
    yield f"{_INDENT}          MAGIC={MAGIC:08x} {crc}"
    if verbose:
        yield from (f"{_INDENT} {line}" for line in _contents(item))


def wrong_crc(item: Item) -> str:
    """The line about a wrong CRC; "" if it is right."""
    real = item.real_crc()
    if not item.flags & CRC_FLAG or item.crc in (None, real):
        return ""
    return f"error: CRC {real:08x} does not match header {item.crc:08x}"


def words(item: Item) -> list[bytes]:
    """The words of a CMDLINE item. Raises ImageTooLarge."""
    return cmdline(item).rstrip(b"\0").split()


def cmdline(item: Item) -> bytes:
    """The text of a CMDLINE item. Raises ImageTooLarge."""
    with item.faults():
        if item.payload.size > LONGEST_CMDLINE:
            raise ImageTooLarge(
                f"a CMDLINE of {item.payload.size} bytes",
                offset=item.offset,
                expected=f"at most {LONGEST_CMDLINE}",
                hint="is that a command line? look at the image: topcoat image FILE",
            )
        return item.payload.read(0, item.payload.size)


def end_of(item: Item, position: int) -> int:
    """Where the next item starts, if this one starts at `position`."""
    return position + HEADER.size + item.payload.size + -item.payload.size % 8


def _contents(item: Item) -> Iterator[str]:
    if item.type == item_types.CMDLINE:
        yield from map(printable, words(item))
    if item.type == item_types.BOOTFS:
        reader = bootfs.BootfsReader(item)
        for file in reader.files:
            yield f"{file.offset:08x} {file.size:08x} {printable(file.name)}"
        reader.rest()
