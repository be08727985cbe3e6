"""Preparation of a build's images for a boot: our key goes into the ZBI, and the disk gets room."""

import fcntl
from pathlib import Path

from pipeline.builds.build import Build
from pipeline.errors import StoreError
from pipeline.host.faults import image_faults
from pipeline.host.resources import free_bytes
from pipeline.host.tools import Tool, require_output, run
from pipeline.settings import Store, ToolSettings
from pipeline.store.freshness import Proof
from pipeline.text.quantity import parse_size, readable_size

KEY_IN_IMAGE = "data/ssh/authorized_keys"
"""The file with our key: Fuchsia's sshd looks for it below /boot, that of the Linux guest below /."""

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_SPARE = 64 << 20  # bytes: the host's disk is not to be filled completely, and fvm adds its tables

DISK_LENGTH = "3G"
"""The size to which the disk is extended, as by `undercoat`: room for fuzzers, corpora and artifacts."""


def initrd_path(store: Store, build: Build) -> Path:
    """The path of the build's ZBI with our key in it."""
    return store.images(build.name) / f"ssh-{build.path('zbi').name}"


def disk_path(store: Store, build: Build) -> Path:
    """The path of the build's extended disk."""
    return store.images(build.name) / f"extended-{build.path('blk').name}"


def make_initrd(build: Build, public_key: Path, output: Path, tools: ToolSettings) -> Proof | None:
    """Make `output`, the build's ZBI with `public_key` in it, by the chosen `zbi` program.

    Returns what was proved of it, or None if `[tools] proof` is off. Raises ToolError, ImageError or StoreError.
    """
    from pipeline.builds.proof import prove_initrd
    from pipeline.images import kinds

    zbi, source = build.tool("zbitool"), build.path("zbi")
    kinds.require(source, kinds.Kind.ZBI, kinds.Kind.CPIO)
    add_file(zbi, source, output, KEY_IN_IMAGE, public_key, tools.timeout)
    if not tools.proof:
        return None
    key, strict = public_key.read_bytes(), tools.strict
    return prove_initrd(zbi, output, source, build.arch, KEY_IN_IMAGE, key, strict=strict)


def add_file(zbi: Tool, source: Path, output: Path, target: str, content: Path, timeout: float) -> None:
    """Make `output`: the image `source` with the content of the file `content` added at `target`. Raises ToolError."""
    run(zbi, "-o", output, source, "-e", f"{target}={content}", timeout=timeout)
    require_output(zbi, output)


def make_disk(build: Build, length: str, output: Path, tools: ToolSettings) -> Proof | None:
    """Make `output`, a copy of the build's disk, extended to `length` by the chosen `fvm` program.

    `length` is in bytes, or has a suffix K, M or G. The copy shares blocks with the original or leaves out zeros where
    the file system allows that. Returns what was proved of it, or None if `[tools] proof` is off. Raises ToolError,
    ImageError or StoreError.
    """
    from pipeline.builds.proof import prove_disk

    fvm, source = build.tool("fvm"), build.path("blk")
    _refuse_sparse(source)
    copy_disk(source, output, tools.timeout)
    extend(fvm, output, length, tools.timeout)
    return prove_disk(fvm, output, source, parse_size(length)) if tools.proof else None


def copy_disk(source: Path, copy: Path, timeout: float) -> None:
    """Copy a disk; blocks are shared and zeros left out where the file system allows that.

    `timeout` is in seconds. Raises ToolError, and StoreError if there is no room.
    """
    program = Tool.in_path("cp", hint="install coreutils")
    _require_room(source, copy.parent)
    run(program, "--reflink=auto", "--sparse=always", source, copy, timeout=timeout)


def _refuse_sparse(disk: Path) -> None:
    """Raise WrongFormat, with a hint, for a sparse FVM: no guest can use it, and an `fvm` would only name the magic."""
    from pipeline.images import fvm, kinds

    if kinds.identify(disk) is kinds.Kind.SPARSE_FVM:
        with image_faults(str(disk)), disk.open("rb") as stream:
            fvm.read(stream)


def extend(fvm: Tool, disk: Path, length: str, timeout: float) -> None:
    """Extend a disk that nobody else uses. `timeout` is in seconds. Raises ToolError."""
    # Topcoat's own program can change the file itself if no slice has to move; others always make a second copy
    run(fvm, disk, "extend", "--length", length, *(["--in-place"] if fvm.own else []), timeout=timeout)
    require_output(fvm, disk)


def _require_room(source: Path, directory: Path) -> None:
    """Raise StoreError if a copy of `source` would not fit into `directory`: better now than at the last gigabyte."""
    wanted, free = source.stat().st_blocks * 512 + _SPARE, free_bytes(directory)
    if free < wanted and not _can_share(source, directory):
        raise StoreError(
            f"a copy of {source} takes {readable_size(wanted)}, and {readable_size(free)} are free",
            hint="free some space, see topcoat gc and topcoat clean (the old copy stays until the new one is whole); "
            "or move the store: [store] root or TOPCOAT_ROOT",
        )


def _can_share(source: Path, directory: Path) -> bool:
    """Whether the file system can copy `source` into the directory without taking room."""
    trial = directory / "clone"
    try:
        with source.open("rb") as original, trial.open("wb") as clone:
            fcntl.ioctl(clone, _FICLONE, original.fileno())
    except OSError:
        return False
    finally:
        trial.unlink(missing_ok=True)
    return True
