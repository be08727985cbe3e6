"""What is in a ZBI, as a tree, and what is wrong with it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.errors import ImageError
from pipeline.images.part import Fact, Part
from pipeline.images.zbi import bootfs, compression, container, item_types, listing
from pipeline.images.zbi.bootfs import File
from pipeline.images.zbi.container import Item


def inspect(path: Path, *, digests: bool = True) -> Part:
    """Read all of an image, every CRC and every frame. What is wrong in an item is among the problems of that item.

    Without `digests`, contents are not hashed. Raises ImageError if the container cannot be walked through, and
    UsageError if there is no such file. Takes one pass over the file, in memory for the names of the files only.
    """
    with container.opened(path) as items:
        parts = tuple(_of_item(item, digests=digests) for item in items)
        why = listing.unbootable(items)
        copies = sum(item.type == item_types.BOOTFS for item in items)
        many = (f"it has {copies} BOOTFS items, and a device reads only the first",) if copies > 1 else ()
        facts: dict[str, Fact] = {"bootable": not why, **({"why not": why} if why else {})}
        return Part("ZBI", size=path.stat().st_size, offset=0, facts=facts, problems=many, parts=parts)


def _of_item(item: Item, *, digests: bool) -> Part:
    """One item. The CRC is computed by a thread of its own: it takes as long as all the rest."""
    with ThreadPoolExecutor(1) as pool:
        problems = pool.submit(lambda: tuple(container.problems(item)))
        parts: tuple[Part, ...] = ()
        damage: tuple[str, ...] = ()
        digest = None
        try:
            if item.type == item_types.BOOTFS:
                parts = _files(item, digests=digests)
            elif item.type == item_types.CMDLINE:
                parts = tuple(Part("word", word.decode(errors="replace")) for word in listing.words(item))
            else:
                digest = _digest(compression.unpacked(item), wanted=digests)
        except ImageError as error:
            damage = (error.message,)
        return Part(
            "item",
            item_types.name_of(item.type),
            item.content_size,
            item.offset,
            digest,
            _facts(item),
            (*problems.result(), *damage),
            parts,
        )


def _facts(item: Item) -> dict[str, Fact]:
    facts: dict[str, Fact] = {"type": f"{item.type:#010x}"}
    if item.type in item_types.STORAGE and item.compressed:
        try:
            facts |= {"compression": compression.method_of(item).algorithm, "stored": item.payload.size}
        except ImageError:  # is among the problems
            facts |= {"compression": "unknown", "stored": item.payload.size}
    elif item.extra and item.type not in item_types.STORAGE:
        facts["extra"] = item.extra
    if not item.flags & container.CRC_FLAG:
        facts["CRC"] = "none"
    return facts


def _files(item: Item, *, digests: bool) -> tuple[Part, ...]:
    reader = bootfs.Reader(item)
    known: dict[tuple[int, int], str | None] = {}
    for file in sorted(reader.files, key=_place):
        if _place(file) not in known:
            known[_place(file)] = _digest(reader.content(file) if file.size else iter(()), wanted=digests)
    reader.rest()
    return tuple(Part("file", file.name, file.size, file.offset, known[_place(file)]) for file in reader.files)


def _place(file: File) -> tuple[int, int]:
    return file.offset, file.size


def _digest(pieces: Iterator[memoryview], *, wanted: bool) -> str | None:
    if not wanted:
        for _ in pieces:
            pass
        return None
    from blake3 import blake3

    hasher = blake3()
    for piece in pieces:
        hasher.update(piece)
    return f"b3:{hasher.hexdigest()}"
