"""What kind of image a file is, by its first bytes, and the reader for it."""

from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Protocol

from pipeline import git_lfs
from pipeline.errors import WrongFormat
from pipeline.faults import image_faults
from pipeline.images.part import Part
from pipeline.images.source import opened
from pipeline.text import printable

_LOOKED_AT = 4096
_SHOWN = 16


class Reader(Protocol):
    """What tells all that is in an image of one kind."""

    def __call__(self, path: Path, *, digests: bool = True) -> Part:
        """See `inspect`."""


class Kind(StrEnum):
    """What a file claims to be. The value is the name for people and for JSON."""

    ZBI = "ZBI"
    FVM = "FVM"
    SPARSE_FVM = "sparse FVM"
    CPIO = "cpio"
    ELF = "ELF"
    QCOW2 = "qcow2"
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


# The first that fits counts: a kernel for EFI begins like a Windows program
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
    # Of a ZBI one of these may be damaged, and it is still one that is not sound
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
    Kind.GIT_LFS: git_lfs.HINT,
    Kind.EMPTY: "was it copied as a whole? make or fetch it anew",
    Kind.UNKNOWN: "Topcoat knows ZBI, FVM, sparse FVM, cpio, ELF and qcow2; is it the right file?",
}


def identify(path: Path) -> Kind:
    """What a file claims to be, by at most 4 KiB of it. Raises UsageError and StoreError as `opened` does."""
    return _kind(_head(path))


def require(path: Path, *wanted: Kind) -> None:
    """Raise WrongFormat, saying what it is, unless a file claims to be one of these kinds. Raises what `identify` does.

    The first one is what it is called that it should be.
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
    """All that is in an image, by the reader for its kind. Without `digests` less is read.

    Raises WrongFormat for a file that is of no kind with a reader, ImageError for one so damaged that there is nothing
    to show, UsageError and StoreError as `opened` does. An ImageError names the file. What else is not sound is a
    problem of a part.
    """
    with image_faults(printable(str(path))):
        head = _head(path)
        kind = _kind(head)
        if kind not in _READERS:
            raise _refusal(kind, head)
        read: Reader = import_module(f"pipeline.images.{_READERS[kind]}").inspect
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
    Kind.ELF: "elf",
    Kind.QCOW2: "qcow2",
}
"""The modules of this package, each with a function `inspect`; loaded when they are used."""
