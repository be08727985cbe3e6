"""What is in an initramfs: the entries of its cpio archives, as Linux would unpack them.

Format: see pipeline/images/cpio.py. Content is read in pieces, so that even a large initramfs needs little memory.
"""

import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import ImageDamaged, ImageError, ImageTooLarge
from pipeline.images import cpio
from pipeline.images.part import Fact, Part
from pipeline.images.reader import ImageReader, opened

_ENTRIES_MOST = 262_144
_PIECE = 65536
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
}
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x02\x21\x4c\x18": "LZ4 (of kernels)",
    b"BZh": "bzip2",
    b"\x5d\x00\x00": "LZMA",
    b"\x89LZO": "LZO",
}
"""The compressions of the archive that may follow an uncompressed one (with microcode, say), by their first bytes."""


@dataclass(frozen=True)
class _Found:
    entry: Part
    path: str
    archive: int


def inspect(path: Path, *, digests: bool = True) -> Part:
    """An initramfs as a tree: the entries of all its archives, in their order.

    Facts of the whole: the number of `archives`. Facts of an entry: `mode`; `owner`, unless it is 0:0; the number of a
    `device`; the `target` of a link; the number of its `archive`, unless that is the first; `replaced` if a later entry
    takes its place. A compressed archive is one part, and ends the list.

    Damage ends the list too: the whole has the entries before it, and the damage as its problem. Raises UsageError if
    the file cannot be opened, and StoreError if it cannot be read.
    """
    with opened(path) as source:
        found: list[_Found] = []
        problems: tuple[str, ...] = ()
        try:
            found.extend(_entries(source, digests))
        except ImageError as error:
            problems = (error.message,)
        if not found and not problems:
            problems = ("there are no files in it",)
        archives = max((item.archive for item in found), default=0)
        parts = tuple(_with_replaced(found))
        return Part("cpio", size=source.size, offset=0, facts={"archives": archives}, problems=problems, parts=parts)


def _entries(source: ImageReader, digests: bool) -> Iterator[_Found]:
    archive, count = 1, 0
    position = _after_nuls(source, 0)
    while position < source.size:
        if name := _compression(source, position):
            size = source.size - position
            digest = source.digest(position, size) if digests else None
            yield _Found(Part("compressed", name, size, position, digest), "", archive)
            return
        if count == _ENTRIES_MOST:
            raise _too_many(position)
        header, name = _header(source, position)
        if name == cpio.TRAILER:
            archive += 1
        else:
            yield _Found(_part(source, header, name, position, archive, digests), _normal(name), archive)
        count += 1
        position = _after_nuls(source, position + header.end)


def _after_nuls(source: ImageReader, position: int) -> int:
    """The position after the NULs that may stand before an entry or archive. They are skipped in fours."""
    piece = source.at(position, min(4, source.size - position))
    while position < source.size and piece.count(0) == len(piece):
        position += len(piece)
        position = source.after_hole(position)
        piece = source.at(position, min(_PIECE, source.size - position))
    return position + (len(piece) - len(piece.lstrip(b"\0")) & ~3)


def _compression(source: ImageReader, position: int) -> str:
    start = source.at(position, min(8, source.size - position))
    return next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), "")


def _header(source: ImageReader, position: int) -> tuple[cpio.CpioHeader, str]:
    start = source.at(position, min(cpio.HEADER, source.size - position))
    header = cpio.CpioHeader.decode(start, position)
    name = header.name(source.at(position + cpio.HEADER, header.name_size), position)
    if not source.holds(position + header.content, header.size):
        raise ImageDamaged(
            f"{name!r} is cut off: it has {header.size} bytes", offset=position, hint="make the initramfs anew"
        )
    return header, name


def _too_many(position: int) -> ImageTooLarge:
    return ImageTooLarge(
        "more entries", offset=position, expected=f"at most {_ENTRIES_MOST}", hint="look at it with cpio -t"
    )


def _part(source: ImageReader, header: cpio.CpioHeader, name: str, position: int, archive: int, digests: bool) -> Part:
    kind = _KINDS.get(stat.S_IFMT(header.mode), "unknown")
    start = position + header.content
    return Part(
        kind=kind,
        name=name,
        size=header.size,
        offset=start,
        digest=source.digest(start, header.size) if digests and kind == "file" else None,
        facts=dict(_facts(source, header, start, archive)),
        problems=() if kind != "unknown" else (f"mode {header.mode:o} is of no kind of file",),
    )


def _facts(source: ImageReader, header: cpio.CpioHeader, start: int, archive: int) -> Iterator[tuple[str, Fact]]:
    yield "mode", f"{stat.S_IMODE(header.mode):04o}"
    if stat.S_ISLNK(header.mode):
        yield "target", source.at(start, min(header.size, _PIECE)).decode(errors="replace")
    if stat.S_ISCHR(header.mode) or stat.S_ISBLK(header.mode):
        yield "device", f"{header.rdev[0]}:{header.rdev[1]}"
    if header.owner or header.group:
        yield "owner", f"{header.owner}:{header.group}"
    if archive > 1:
        yield "archive", archive


def _normal(name: str) -> str:
    return "/".join(word for word in name.split("/") if word not in ("", "."))


def _with_replaced(found: list[_Found]) -> Iterator[Part]:
    """The entries, each with the fact `replaced` if a later one has its name. Directories are not replaced by that."""
    last = {item.path: number for number, item in enumerate(found)}
    for number, item in enumerate(found):
        stays = last[item.path] == number or item.entry.kind == "directory"
        yield item.entry if stays else replace(item.entry, facts={**item.entry.facts, "replaced": True})
