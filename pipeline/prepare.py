"""Preparing a build's images for a boot: our key into the ZBI, room onto the disk."""

import fcntl
from pathlib import Path

from pipeline.build import Build
from pipeline.errors import StoreError
from pipeline.faults import image_faults
from pipeline.freshness import Proof
from pipeline.host import free_bytes
from pipeline.settings import Store, Tools
from pipeline.size import parse_size, readable
from pipeline.tools import Tool, require_output, run

KEY_IN_IMAGE = "data/ssh/authorized_keys"
"""Where Fuchsia's sshd looks for it, below /boot, and the demo guest's below /."""

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_SPARE = 64 << 20  # the disk is not to be filled to its last byte, and fvm adds its tables

DISK_LENGTH = "3G"
"""What `undercoat` extends the disk to: room for fuzzers, corpora and artifacts."""


def initrd_path(store: Store, build: Build) -> Path:
    """Where the ZBI with our key goes."""
    return store.images(build.name) / f"ssh-{build.path('zbi').name}"


def disk_path(store: Store, build: Build) -> Path:
    """Where the extended disk goes."""
    return store.images(build.name) / f"extended-{build.path('blk').name}"


def make_initrd(build: Build, public_key: Path, output: Path, tools: Tools) -> Proof | None:
    """Make `output`, the build's ZBI with `public_key` in it, by the chosen `zbi` tool. Returns what was proved of it.

    Raises ToolError, ImageError or StoreError.
    """
    from pipeline.images import kinds
    from pipeline.proof import prove_initrd

    zbi, source = build.tool("zbitool"), build.path("zbi")
    kinds.require(source, kinds.Kind.ZBI, kinds.Kind.CPIO)
    add_file(zbi, source, output, KEY_IN_IMAGE, public_key, tools.timeout)
    if not tools.proof:
        return None
    key, strict = public_key.read_bytes(), tools.strict
    return prove_initrd(zbi, output, source, build.arch, KEY_IN_IMAGE, key, strict=strict)


def add_file(zbi: Tool, source: Path, output: Path, target: str, content: Path, timeout: float) -> None:
    """Make `output` of the image `source` and a file with this content. Raises ToolError."""
    run(zbi, "-o", output, source, "-e", f"{target}={content}", timeout=timeout)
    require_output(zbi, output)


def make_disk(build: Build, length: str, output: Path, tools: Tools) -> Proof | None:
    """Make `output`, a copy of the build's disk that shares or skips what can be, extended by the chosen `fvm` tool.

    `length` is in bytes, or with a suffix K, M or G. Returns what was proved of the outcome. Raises ToolError,
    ImageError or StoreError.
    """
    from pipeline.proof import prove_disk

    fvm, source = build.tool("fvm"), build.path("blk")
    _refuse_sparse(source)
    copy_disk(source, output, tools.timeout)
    extend(fvm, output, length, tools.timeout)
    return prove_disk(fvm, output, source, parse_size(length)) if tools.proof else None


def copy_disk(source: Path, copy: Path, timeout: float) -> None:
    """Copy a disk, sharing or skipping what can be. Raises ToolError, and StoreError if there is no room."""
    program = Tool.in_path("cp", hint="install coreutils")
    _require_room(source, copy.parent)
    run(program, "--reflink=auto", "--sparse=always", source, copy, timeout=timeout)


def _refuse_sparse(disk: Path) -> None:
    """Raise WrongFormat, with the way out, for a sparse FVM: no guest can use it, and a tool only says "magic"."""
    from pipeline.images import fvm, kinds

    if kinds.identify(disk) is kinds.Kind.SPARSE_FVM:
        with image_faults(str(disk)), disk.open("rb") as stream:
            fvm.read(stream)


def extend(fvm: Tool, disk: Path, length: str, timeout: float) -> None:
    """Extend a disk that nobody else uses. Raises ToolError."""
    # Ours may change the file itself, where no slice has to move; others make a second copy in any case
    run(fvm, disk, "extend", "--length", length, *(["--in-place"] if fvm.own else []), timeout=timeout)
    require_output(fvm, disk)


def _require_room(source: Path, directory: Path) -> None:
    """Raise StoreError if a copy of `source` would not fit into `directory`: better now than at the last gigabyte."""
    wanted, free = source.stat().st_blocks * 512 + _SPARE, free_bytes(directory)
    if free < wanted and not _can_share(source, directory):
        raise StoreError(
            f"a copy of {source} takes {readable(wanted)}, and {readable(free)} are free",
            hint="free some space, see topcoat gc and topcoat clean (the old copy stays until the new one is whole); "
            "or move the store: [store] root or TOPCOAT_ROOT",
        )


def _can_share(source: Path, directory: Path) -> bool:
    """Whether the file system can make a copy that takes no room."""
    trial = directory / "clone"
    try:
        with source.open("rb") as original, trial.open("wb") as clone:
            fcntl.ioctl(clone, _FICLONE, original.fileno())
    except OSError:
        return False
    finally:
        trial.unlink(missing_ok=True)
    return True
