"""The content of a ZBI as a tree, and what is wrong with it."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

from pipeline.errors import ImageError
from pipeline.images.part import Fact, Part
from pipeline.images.zbi import bootfs, compression, container, item_types, listing
from pipeline.images.zbi.bootfs import Census, File
from pipeline.images.zbi.container import Item


def inspect(path: Path, *, digests: bool = True) -> Part:
    """A ZBI as a tree: all of it is read, every CRC checked, every frame unpacked, in one pass over the file.

    What is wrong in an item is a problem of that item's part. Without `digests`, contents are not hashed. Only the
    names of the files are held in memory. Raises ImageError if the container cannot be walked through, and UsageError
    if there is no such file.
    """
    with container.opened_whole(path) as (whole, items):
        parts = _Inspection(digests=digests).parts(items)
        why = listing.unbootable(items)
        facts: dict[str, Fact] = {"bootable": not why, **({"why not": why} if why else {})}
        size = container.HEADER.size + whole.payload.size
        return Part("ZBI", size=size, offset=0, facts=facts, problems=tuple(_problems(whole, items)), parts=parts)


def _problems(whole: Item, items: Sequence[Item]) -> Iterator[str]:
    yield from container.problems(whole)
    copies = sum(item.type == item_types.BOOTFS for item in items)
    if copies > 1:
        yield f"it has {copies} BOOTFS items, and a device reads only the first"


class _Inspection:
    """One pass over the items of an image."""

    def __init__(self, *, digests: bool) -> None:
        self._digests = digests
        self._census = Census()

    def parts(self, items: Iterable[Item]) -> tuple[Part, ...]:
        """The parts of these items. CRCs are computed in another thread: that takes as long as all the rest."""
        with ThreadPoolExecutor(1) as pool:
            return tuple(self._part(item, pool) for item in items)

    def _part(self, item: Item, pool: Executor) -> Part:
        problems = pool.submit(lambda: tuple(container.problems(item)))
        parts: tuple[Part, ...] = ()
        damage: tuple[str, ...] = ()
        digest = None
        try:
            if item.type == item_types.BOOTFS:
                parts = self._files(item)
            elif item.type == item_types.CMDLINE:
                parts = tuple(Part("word", word.decode(errors="replace")) for word in listing.words(item))
            else:
                digest = self._digest(compression.unpacked(item))
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

    def _files(self, item: Item) -> tuple[Part, ...]:
        reader = bootfs.BootfsReader(item, self._census)
        known: dict[tuple[int, int], str | None] = {}
        for file in sorted(reader.files, key=_place):
            if _place(file) not in known:
                known[_place(file)] = self._digest(reader.content(file) if file.size else iter(()))
        reader.rest()
        return tuple(Part("file", file.name, file.size, file.offset, known[_place(file)]) for file in reader.files)

    def _digest(self, pieces: Iterator[memoryview]) -> str | None:
        if not self._digests:
            for _ in pieces:
                pass
            return None
        from blake3 import blake3

        hasher = blake3()
        for piece in pieces:
            hasher.update(piece)
        return f"b3:{hasher.hexdigest()}"


def _facts(item: Item) -> dict[str, Fact]:
    facts: dict[str, Fact] = {"type": f"{item.type:#010x}"}
    if item.compressed:
        try:
            facts |= {"compression": compression.method_of(item).algorithm, "stored": item.payload.size}
        except ImageError:  # it is among the problems of the item
            facts |= {"compression": "unknown", "stored": item.payload.size}
    elif item.extra and item.type not in item_types.STORAGE:
        facts["extra"] = item.extra
    if not item.flags & container.CRC_FLAG:
        facts["CRC"] = "none"
    return facts


def _place(file: File) -> tuple[int, int]:
    return file.offset, file.size
