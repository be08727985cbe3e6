"""Proof that a tool did what it was asked to: a tool that ends with 0 may have made nothing of use all the same."""

from pathlib import Path

from pipeline.errors import ImageError, ToolLied
from pipeline.images import cpio, fvm, zbi
from pipeline.tools import Tool

_OFF = "if you know better: [tools] proof = off"


def prove_initrd(tool: Tool, image: Path, path: str, content: bytes) -> None:
    """Raise ToolLied unless `image` is a sound ZBI or cpio archive in which the file `path` has this content."""
    data = image.read_bytes()
    try:
        if data.startswith(cpio.MAGIC):
            found = {entry.name: entry.data for entry in cpio.decode(data)}.get(path)
        else:
            found = zbi.file_in_bootfs(data, path)
    except ImageError as error:
        raise _lied(tool, image, error.message) from error
    if found is None:
        raise _lied(tool, image, f"{path} is not in it")
    if found != content:
        raise _lied(tool, image, f"{path} in it is not our key")


def prove_disk(tool: Tool, image: Path, source: Path, length: int) -> None:
    """Raise ToolLied unless `image` has at least `length` bytes and, if `source` is an FVM, is a sound one too."""
    size = image.stat().st_size
    if size < length:
        raise _lied(tool, image, f"it has {size} bytes, not {length}")
    with source.open("rb") as before, image.open("rb") as after:
        if before.read(len(fvm.MAGIC)) != fvm.MAGIC:
            return
        try:
            header = fvm.read(after).header
        except ImageError as error:
            raise _lied(tool, image, error.message) from error
    if header.partition_size + header.slice_size < length:
        raise _lied(tool, image, f"its volume has {header.partition_size} bytes, not {length}")


def _lied(tool: Tool, image: Path, problem: str) -> ToolLied:
    return ToolLied(
        f"{tool.name} ended well, but {image.name} is not what it should be: {problem}",
        hint=f"is it the right program for this build? {tool.argv[0]} ({_OFF})",
    )
