"""What is in an image, in the words of `zbi --list`."""

from collections.abc import Iterator, Sequence

from pipeline.errors import ImageTooLarge
from pipeline.images.zbi import bootfs, item_types
from pipeline.images.zbi.container import CRC_FLAG, HEADER, MAGIC, Draft, Item
from pipeline.text import printable

LONGEST_CMDLINE = 1 << 20
"""Bytes; kernels take some thousand."""

_INDENT = "        :"


def unbootable(items: Sequence[Item | Draft], kernel: int | None = None) -> str:
    """Why no device boots an image of these items, "" if one does. `kernel`: the type that it must start with."""
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
    """The first line: whether it can be booted."""
    why = unbootable(items)
    return f"UNBOOTABLE: {why}" if why else "BOOTABLE: bootable image"


def lines(item: Item, position: int, *, verbose: bool = False) -> Iterator[str]:
    """The lines about one item, which is the one at this position; with `verbose` also what is in it.

    Raises ImageDamaged if that cannot be read.
    """
    name = item_types.name_of(item.type)
    size = f" (size={item.content_size:08x})" if item.type in item_types.STORAGE else ""
    yield f"{position:08x}: {item.payload.size:08x} {name}{size}"
    crc = f"CRC={item.crc:08x}" if item.flags & CRC_FLAG and item.crc is not None else "NO CRC"
    yield f"{_INDENT}          MAGIC={MAGIC:08x} {crc}"
    if verbose:
        yield from (f"{_INDENT} {line}" for line in _contents(item))


def wrong_crc(item: Item) -> str:
    """What to say about a CRC that is not right; "" if it is."""
    real = item.real_crc()
    if not item.flags & CRC_FLAG or item.crc in (None, real):
        return ""
    return f"error: CRC {real:08x} does not match header {item.crc:08x}"


def words(item: Item) -> list[bytes]:
    """The words of a CMDLINE. Raises ImageTooLarge."""
    return cmdline(item).rstrip(b"\0").split()


def cmdline(item: Item) -> bytes:
    """The text of a CMDLINE. Raises ImageTooLarge."""
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
    """Where the item behind the one at this position starts."""
    return position + HEADER.size + item.payload.size + -item.payload.size % 8


def _contents(item: Item) -> Iterator[str]:
    if item.type == item_types.CMDLINE:
        yield from map(printable, words(item))
    if item.type == item_types.BOOTFS:
        reader = bootfs.Reader(item)
        for file in reader.files:
            yield f"{file.offset:08x} {file.size:08x} {printable(file.name)}"
        reader.rest()
