"""The kinds of images, told apart by their first bytes, and the readers for them."""

from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Protocol

from pipeline.errors import WrongFormat
from pipeline.host.faults import image_faults
from pipeline.images import git_lfs
from pipeline.images.part import Part
from pipeline.images.reader import opened
from pipeline.text.printable import printable

_LOOKED_AT = 4096
_SHOWN = 16


class Inspector(Protocol):
    """A function that reads an image of one kind and tells what is in it."""

    def __call__(self, path: Path, *, digests: bool = True) -> Part:
        """See `inspect` in this module."""


class Kind(StrEnum):
    """The kind that a file claims to be. The value is its name for people and in JSON."""

    ZBI = "ZBI"
    FVM = "FVM"
    SPARSE_FVM = "sparse FVM"
    CPIO = "cpio"
    ELF = "ELF file"
    QCOW2 = "qcow2 disk"
    OTHER_CPIO = "cpio archive of another format than newc"
    ANDROID_SPARSE = "Android sparse image"
    GZIP = "file compressed by gzip"
    XZ = "file compressed by xz"
    ZSTD = "file compressed by zstd"
    LZ4 = "file compressed by lz4"
    BZIMAGE = "Linux kernel that unpacks itself (bzImage)"
    ARM64_IMAGE = "Linux kernel for arm64 (Image)"
    GIT_LFS = "Git LFS pointer"
    EMPTY = "empty file"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class _Magic:
    offset: int
    content: bytes
    kind: Kind

    def fits(self, head: bytes) -> bool:
        return head.startswith(self.content, self.offset)


# The first that fits counts
_MAGICS = (
    _Magic(0, git_lfs.BEGINNING, Kind.GIT_LFS),
    _Magic(0, b"FVM PART", Kind.FVM),
    _Magic(0, b"FVM SPRS", Kind.SPARSE_FVM),
    _Magic(0, b"070701", Kind.CPIO),
    _Magic(0, b"070702", Kind.OTHER_CPIO),
    _Magic(0, b"070707", Kind.OTHER_CPIO),
    _Magic(0, b"\xc7\x71", Kind.OTHER_CPIO),
    _Magic(0, b"\x7fELF", Kind.ELF),
    _Magic(0, b"QFI\xfb", Kind.QCOW2),
    _Magic(0, b"\x3a\xff\x26\xed", Kind.ANDROID_SPARSE),
    _Magic(0, b"\x1f\x8b", Kind.GZIP),
    _Magic(0, b"\xfd7zXZ\0", Kind.XZ),
    _Magic(0, b"\x28\xb5\x2f\xfd", Kind.ZSTD),
    _Magic(0, b"\x04\x22\x4d\x18", Kind.LZ4),
    _Magic(0, b"\x02\x21\x4c\x18", Kind.LZ4),
    _Magic(0x202, b"HdrS", Kind.BZIMAGE),
    _Magic(0x38, b"ARM\x64", Kind.ARM64_IMAGE),
    # Two magics of a ZBI: if one of them is damaged, the file is still taken for a ZBI, and its reader tells the damage
    _Magic(24, b"\x29\x17\x78\xb5", Kind.ZBI),
    _Magic(0, b"BOOT", Kind.ZBI),
)

_HINTS = {
    Kind.OTHER_CPIO: "make it anew in the format that an initramfs has: cpio -o -H newc",
    Kind.ANDROID_SPARSE: "make it raw: simg2img FILE OUT.img",
    Kind.GZIP: "unpack it: gzip -dc FILE > OUT, and look at OUT",
    Kind.XZ: "unpack it: xz -dc FILE > OUT, and look at OUT",
    Kind.ZSTD: "unpack it: zstd -dc FILE > OUT, and look at OUT",
    Kind.LZ4: "unpack it: lz4 -dc FILE > OUT, and look at OUT",
    Kind.BZIMAGE: "QEMU boots it as it is (-kernel); what is packed in it: extract-vmlinux FILE > OUT",
    Kind.ARM64_IMAGE: "QEMU boots it as it is (-kernel); there are no parts in it to look at",
    Kind.ELF: "look into it with: readelf --all --wide FILE",
    Kind.QCOW2: "look into it with: qemu-img info FILE, and qemu-img check FILE",
    Kind.GIT_LFS: git_lfs.HINT,
    Kind.EMPTY: "was it copied as a whole? make or fetch it anew",
    Kind.UNKNOWN: "Topcoat knows ZBI, FVM, sparse FVM and cpio; is it the right file?",
}


def identify(path: Path) -> Kind:
    """The kind that a file claims to be, by its first 4 KiB. Raises UsageError or StoreError if it cannot be read."""
    return _kind(_head(path))


def require(path: Path, *wanted: Kind) -> None:
    """Raise WrongFormat unless a file claims to be of one of the wanted kinds.

    The message names the first of them as what the file should be, and says what it is instead. Raises UsageError and
    StoreError as `identify` does.
    """
    if (kind := identify(path)) not in wanted:
        what = "" if kind is Kind.UNKNOWN else f", but {_a(kind)}"
        hint = _HINTS.get(kind, "is it the right file?")
        raise WrongFormat(f"it is no {wanted[0]}{what}", hint=hint).about(printable(str(path)))


def _a(kind: Kind) -> str:
    return f"an {kind}" if kind[0] in "AEFeo" else f"a {kind}"


def _head(path: Path) -> bytes:
    with opened(path) as source:
        return source.at(0, min(_LOOKED_AT, source.size))


def _kind(head: bytes) -> Kind:
    if not head:
        return Kind.EMPTY
    return next((magic.kind for magic in _MAGICS if magic.fits(head)), Kind.UNKNOWN)


def inspect(path: Path, *, digests: bool = True) -> Part:
    """An image as a tree, by the reader for its kind. Without `digests` contents are not hashed, and less may be read.

    Raises WrongFormat for a file of a kind that has no reader, ImageError for one so damaged that there is nothing to
    show, UsageError if it cannot be opened, and StoreError if it cannot be read. An ImageError names the file. Smaller
    damage is told as a problem of a part.
    """
    with image_faults(printable(str(path))):
        head = _head(path)
        kind = _kind(head)
        if kind not in _READERS:
            raise _refusal(kind, head)
        read: Inspector = import_module(f"pipeline.images.{_READERS[kind]}").inspect
        return read(path, digests=digests)


def _refusal(kind: Kind, head: bytes) -> WrongFormat:
    hint = _HINTS[kind]
    if kind is Kind.UNKNOWN:
        start = head[:_SHOWN]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in start)
        return WrongFormat(f"not an image that Topcoat knows; it begins with {start.hex(' ')} ({text})", hint=hint)
    if kind is Kind.EMPTY:
        return WrongFormat("not an image: the file is empty", hint=hint)
    article = "an" if kind[0] in "AEIOU" else "a"
    return WrongFormat(f"{article} {kind}, into which Topcoat does not look", hint=hint)


_READERS = {
    Kind.ZBI: "zbi",
    Kind.FVM: "fvm",
    Kind.SPARSE_FVM: "sparse_fvm",
    Kind.CPIO: "initramfs",
}
"""The reader for each kind: a module of this package with a function `inspect`, imported when it is used."""
