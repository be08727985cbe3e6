"""Growth of a volume, which is either written anew beside the file or changed within the file."""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ImageError, InstanceBusy
from pipeline.host.faults import host_faults, image_faults
from pipeline.images.fvm import slices
from pipeline.images.fvm.header import FvmHeader, smallest_disk
from pipeline.images.fvm.metadata import Metadata, check_nothing_hidden, check_within, read, read_copies
from pipeline.images.reader import opened
from pipeline.store.publish import publish


def extend_file(
    path: Path, length: int, *, lower_bound: bool = False, to_fit: bool = False, in_place: bool = False
) -> None:
    """Grow the volume in a file to `length` bytes, and the file with it.

    The new file replaces the old one in one step, with the same permission bits; a symbolic link stays one. With
    `lower_bound`, a file that is longer than `length` is left as it is, and a volume that is larger than its file is
    not made smaller. With `to_fit`, the file ends with the last allocated slice. With `in_place`, the file itself is
    changed if that is possible, see `extend_in_place`; otherwise it is written anew all the same.

    Raises what `extend` raises, UsageError for anything but a regular file, InstanceBusy if another process works on
    the file, and StoreError if it cannot be read or written.
    """
    with host_faults("extending an FVM"), image_faults(str(path)), _held(path, writable=in_place) as source:
        present = os.fstat(source.fileno()).st_size
        if length < present and lower_bound:
            return
        if length < present:
            raise ImageError(
                f"|length|({length}) must be greater or equal than |disk_size|({present} bytes)",
                hint="ask for more, or add --length-is-lowerbound",
            )
        if lower_bound:
            length = max(length, read(source).header.partition_size)
        if not (in_place and extend_in_place(source, length, to_fit=to_fit)):
            _rewrite(source, Path(os.path.realpath(path)), length, to_fit=to_fit)


def _rewrite(source: BinaryIO, path: Path, length: int, *, to_fit: bool) -> None:
    with publish(path) as made, made.open("wb") as output:
        extend(source, output, length, to_fit=to_fit)
        os.fchmod(output.fileno(), stat.S_IMODE(os.fstat(source.fileno()).st_mode))


@contextmanager
def _held(path: Path, *, writable: bool) -> Iterator[BinaryIO]:
    """Open the file and lock it, so that nobody else extends it during the body. Raises InstanceBusy."""
    while True:
        with opened(path, writable=writable) as file:
            stream = file.stream
            _lock(stream, path)
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):  # not replaced since it was opened
                yield stream
                return


def _lock(stream: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InstanceBusy(f"another process works on {path}", hint=f"see who holds it: fuser -v '{path}'") from None


def extend(source: BinaryIO, output: BinaryIO, length: int, *, to_fit: bool = False) -> None:
    """Write the volume of `source`, grown to `length` bytes, to the empty file `output`.

    The geometry is that of a new disk of this length; if the tables grow, the slices move. Partitions, slice numbers
    and generation stay. Only allocated slices are copied; all else is a hole. With `to_fit` the file ends with the last
    allocated slice. Raises ImageError if the volume cannot have this length, ImageDamaged if contents would be lost,
    and what `read` raises.
    """
    old = read(source)
    new = _grown(old, length, os.fstat(source.fileno()).st_size)
    output.writelines(new.encode() * 2)
    output.flush()
    for first, count in old.runs():
        start, target = old.header.slice_offset(first), new.header.slice_offset(first)
        slices.copy(source.fileno(), start, output.fileno(), target, count * old.header.slice_size)
    output.truncate(new.least_size if to_fit else length)


def extend_in_place(stream: BinaryIO, length: int, *, to_fit: bool = False) -> bool:
    """Grow the volume in the file itself, if no slice has to move: this takes a few writes, however large it is.

    Returns False, having changed nothing, if the allocation table has to grow. A kill or a loss of power at any moment
    leaves either the old volume or the new one, with all its contents: the copy of the tables that does not count is
    written first, and is on the disk before the other one is touched. That relies on a sector of 512 bytes being
    written as a whole. What the file holds outside of allocated slices stays there. Raises what `extend` raises; then
    nothing has been changed.
    """
    copies = read_copies(stream)
    old, descriptor = copies.current, stream.fileno()
    new = _grown(old, length, os.fstat(descriptor).st_size)
    if new.header.metadata_size != old.header.metadata_size:
        return False
    if not to_fit:
        _resize(descriptor, length)
    starts = (0, old.header.metadata_size)
    for start in starts if copies.second_counts else reversed(starts):
        slices.write(descriptor, start, b"".join(new.encode()))
        os.fsync(descriptor)
    if to_fit:
        _resize(descriptor, new.least_size)
    return True


def _resize(descriptor: int, size: int) -> None:
    os.ftruncate(descriptor, size)
    os.fsync(descriptor)


def _grown(old: Metadata, length: int, present: int) -> Metadata:
    """The metadata of the volume of `length` bytes. `present` is the size of the file. Raises what `extend` raises."""
    header = old.header
    if length < header.partition_size:
        raise ImageError(
            f"cannot extend to {length} bytes: the volume has {header.partition_size}",
            hint=f"ask for at least {header.partition_size}, or add --length-is-lowerbound",
        )
    check_nothing_hidden(old)
    check_within(old, present)
    return old.grown(_larger(header, length))


def _larger(old: FvmHeader, length: int) -> FvmHeader:
    new = replace(
        FvmHeader.for_disk(length, old.slice_size),
        generation=old.generation,
        major_version=old.major_version,
        oldest_minor_version=old.oldest_minor_version,
    )
    if new.slices < old.slices or new.allocation_table_size < old.allocation_table_size:
        raise ImageError(
            f"cannot extend to {length} bytes: the tables were made for a larger disk than that",
            hint=f"ask for at least {smallest_disk(old.slices, old.slice_size, old.allocation_table_size)}",
        )
    return new
