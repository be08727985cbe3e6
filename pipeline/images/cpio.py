"""cpio archives in the "newc" format, as Linux unpacks them from an initramfs.

Format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst. An initramfs may be several archives, one
after the other; later entries replace earlier ones. Only NUL bytes may stand between archives, and an uncompressed
archive must start at a multiple of 4: otherwise the kernel says "invalid magic at start of compressed archive" and
drops it and all that follows. Every archive written here is therefore padded to 512 bytes.

As a command, this module replaces Fuchsia's `zbi` for guests that boot from an initramfs, with the same arguments::

    python -m pipeline.images.cpio -o OUT IN [--replace] -e PATH=FILE...

OUT is IN plus one more archive with the given files (mode 0600, owner 0) and the directories that lead to them.
"""

import argparse
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import ImageDamaged, ImageError, TopcoatError, UsageError
from pipeline.store.publish import publish

MAGIC = b"070701"
BLOCK = 512
HEADER = 110
"""The size of an entry's header in bytes. The name follows it directly."""

TRAILER = "TRAILER!!!"
"""The name of the entry that marks the end of an archive."""

_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f]{110}")
_LONGEST_NAME = 4096  # PATH_MAX, as in the kernel


@dataclass(frozen=True)
class CpioEntry:
    """One file, directory, link or device. `name` has no leading slash; the `data` of a link is its target."""

    name: str
    mode: int
    data: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    """The major and minor number of a device; (0, 0) for all else."""


def directory(name: str, mode: int = 0o755) -> CpioEntry:
    """An entry for a directory. `mode` holds the permission bits."""
    return CpioEntry(name, stat.S_IFDIR | mode)


def file(name: str, data: bytes, mode: int = 0o644) -> CpioEntry:
    """An entry for a regular file with this content. `mode` holds the permission bits."""
    return CpioEntry(name, stat.S_IFREG | mode, data)


def symlink(name: str, target: str) -> CpioEntry:
    """An entry for a symbolic link to `target`."""
    return CpioEntry(name, stat.S_IFLNK | 0o777, target.encode())


def character_device(name: str, major: int, minor: int, mode: int = 0o600) -> CpioEntry:
    """An entry for a character device. `mode` holds the permission bits."""
    return CpioEntry(name, stat.S_IFCHR | mode, rdev=(major, minor))


def encode(entries: Iterable[CpioEntry]) -> bytes:
    """One whole archive with these entries, padded to 512 bytes.

    Owner and time are 0, so that equal entries give equal bytes. Raises ImageError for a name that is too long.
    """
    parts = [_record(number, entry) for number, entry in enumerate(entries, start=1)]
    parts.append(_record(0, CpioEntry(TRAILER, 0)))
    return _padded(b"".join(parts), BLOCK)


def _record(inode: int, entry: CpioEntry) -> bytes:
    name = os.fsencode(entry.name) + b"\0"
    if len(name) > _LONGEST_NAME:
        raise ImageError(f"the name {entry.name[:40]}… is too long for an initramfs", hint="shorten it")
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    numbers = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.rdev, len(name), 0)
    header = MAGIC + b"".join(b"%08X" % number for number in numbers)
    return _padded(_padded(header + name, 4) + entry.data, 4)


def _padded(data: bytes, block: int) -> bytes:
    return data + bytes(-len(data) % block)


def decode(data: bytes) -> Iterator[CpioEntry]:
    """All entries of the uncompressed archives in `data`, in order. Raises ImageDamaged at one that is not sound."""
    position = 0
    while position < len(data):
        if data[position] == 0:
            position += 4
            continue
        entry, position = _entry_at(data, position)
        if entry.name != TRAILER:
            yield entry


@dataclass(frozen=True)
class CpioHeader:
    """The fields of an entry's header that matter here. Sizes are in bytes; `name_size` includes the NUL at the end."""

    mode: int
    owner: int
    group: int
    links: int
    size: int
    rdev: tuple[int, int]
    name_size: int

    @classmethod
    def decode(cls, data: bytes, position: int) -> "CpioHeader":
        """Read a header from its 110 bytes. `position`, where it starts in the archive, is for errors: ImageDamaged."""
        if not data.startswith(MAGIC):
            raise _damaged(position, "no newc header")
        if len(data) < HEADER:
            raise _damaged(position, "the header is cut off")
        if not _HEXADECIMAL.fullmatch(data):
            raise _damaged(position, "the header is no hexadecimal text")
        numbers = [int(data[at : at + 8], 16) for at in range(6, HEADER, 8)]
        if not 1 < numbers[11] <= _LONGEST_NAME:
            raise _damaged(position, f"a name of {numbers[11]} bytes")
        mode, owner, group, links = numbers[1:5]
        return cls(mode, owner, group, links, numbers[6], (numbers[9], numbers[10]), numbers[11])

    @property
    def content(self) -> int:
        """Where the content starts, in bytes from the start of the header."""
        return _aligned(HEADER + self.name_size)

    @property
    def end(self) -> int:
        """Where the next header may start, in bytes from the start of this one."""
        return self.content + _aligned(self.size)

    def name(self, data: bytes, position: int) -> str:
        """Decode the name from the `name_size` bytes after the header. Raises ImageDamaged if a NUL is within it."""
        if b"\0" in data[:-1]:
            raise _damaged(position, "a NUL in a name")
        return os.fsdecode(data[:-1])


def _entry_at(data: bytes, start: int) -> tuple[CpioEntry, int]:
    header = CpioHeader.decode(data[start : start + HEADER], start)
    content = start + header.content
    if content + header.size > len(data):
        raise _damaged(start, "the entry is cut off")
    name = header.name(data[start + HEADER : start + HEADER + header.name_size], start)
    return CpioEntry(name, header.mode, data[content : content + header.size], header.rdev), start + header.end


def _aligned(size: int) -> int:
    return size + -size % 4


def _damaged(position: int, why: str) -> ImageDamaged:
    return ImageDamaged(
        f"no sound uncompressed cpio archive: {why} at byte {position}",
        hint="make the initramfs anew, as an uncompressed cpio in the newc format",
    )


def injection(target: str, data: bytes) -> list[CpioEntry]:
    """The entries that put a file of mode 0600 at `target`: the directories that lead to it (0700), then the file.

    Raises UsageError for a target that is absolute, empty or climbs with `..`.
    """
    path = PurePosixPath(target)
    if path.is_absolute() or not path.parts or ".." in path.parts:
        raise UsageError(
            f"{target!r} cannot be a path in the image", hint="give a relative path without .., such as data/x"
        )
    parents = [directory(str(parent), 0o700) for parent in reversed(path.parents) if parent.parts]
    return [*parents, file(str(path), data, 0o600)]


def inject(base: bytes, files: Iterable[tuple[str, bytes]], *, replace: bool = False) -> bytes:
    """The initramfs `base` with a second archive that holds `files` (target path and content).

    Raises ImageError if `base` is damaged or holds nothing. Unless `replace` is true, raises it also if a target cannot
    be added without replacing something: a file or link of that name, a file or link where a directory must be, or the
    same target given before. Raises UsageError for a target that `injection` refuses.
    """
    present = {entry.name.removeprefix("./"): entry for entry in decode(base)}
    if not present:
        raise ImageError("the initramfs holds no files", hint="give an uncompressed cpio in the newc format")
    added: dict[str, CpioEntry] = {}
    for target, data in files:
        for entry in injection(target, data):
            known = added.get(entry.name) or present.get(entry.name)
            both_directories = known and stat.S_ISDIR(known.mode) and stat.S_ISDIR(entry.mode)
            if known and not both_directories and not replace:
                raise ImageError(f"duplicate target path without --replace: {target}", hint="add --replace before -e")
            if not both_directories:
                added[entry.name] = entry
    return _padded(base, BLOCK) + encode(added.values())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zbi", description="Add files to an initramfs (arguments as of Fuchsia's zbi)."
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="OUT")
    parser.add_argument("input", type=Path, metavar="IN")
    parser.add_argument("-r", "--replace", action="store_true", help="a file of IN may be replaced")
    parser.add_argument("-e", "--entry", action="append", default=[], metavar="PATH=FILE")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns 0, or 1 after an error, which is printed on stderr."""
    options = _parser().parse_args(arguments)
    try:
        base = _read(options.input)
        image = inject(base, map(_named_file, options.entry), replace=options.replace)
        with publish(options.output.absolute()) as made:
            made.write_bytes(image)
    except TopcoatError as error:
        print(f"zbi: {error.explain()}", file=sys.stderr)
        return 1
    return 0


def _named_file(entry: str) -> tuple[str, bytes]:
    target, equals, source = entry.partition("=")
    if not equals:
        raise UsageError(f"manifest entry has no '=' separator: {entry}", hint="write -e PATH=FILE")
    return target, _read(Path(source))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="is the path right?") from error


if __name__ == "__main__":
    sys.exit(main())
