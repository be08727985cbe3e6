"""Digests of files, by BLAKE3.

A digest is "b3:HEX", the same that `b3sum` prints, for a file without any block of zeros. For others it is "b3s:HEX"
over the blocks that are not zero and a table of where they are: so holes need not be read, and a file with holes has
the same digest as its copy without.
"""

import errno
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

BLOCK = 65536

_CHUNK = 2 << 20  # two of them stay in the processor's cache: chunks of 8 MiB are hashed at half the speed
_LARGE = 1 << 20  # threads do not pay below
_ZEROS = bytes(BLOCK)


def digest(path: Path) -> str:
    """Hash a file, whatever any cache says. Raises OSError."""
    from blake3 import blake3

    runs: list[int] = []
    end = 0
    with path.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        hasher = blake3(max_threads=threads() if size >= _LARGE else 1)
        for start, content in _contents(stream.fileno(), size):
            if start != end:
                runs += [end, start]
            hasher.update(content)
            end = start + len(content)
    if end != size:
        runs += [end, size]
    if not runs:
        return f"b3:{hasher.hexdigest()}"
    # Read from its end, the stream can be taken apart in one way only
    hasher.update(struct.pack(f"<{len(runs) + 2}Q", *runs, len(runs), size))
    return f"b3s:{hasher.hexdigest()}"


def threads() -> int:
    """How many threads hash a large file: a number, for blake3.AUTO means threads that all hashers share.

    A process that forks after it has used those, as luigi does for its workers, leaves its child to wait for them for
    ever.
    """
    return len(os.sched_getaffinity(0))


def combined(digests: Sequence[str]) -> str:
    """One digest for several files: that of the only one, else of the list."""
    from blake3 import blake3

    return digests[0] if len(digests) == 1 else f"b3:{blake3(' '.join(digests).encode()).hexdigest()}"


def _contents(descriptor: int, size: int) -> Iterator[tuple[int, memoryview]]:
    """The parts of a file that are not zero: where each starts, and its bytes, in whole blocks but for the end."""
    pieces = _pieces(descriptor, size)
    for position, content in _read_ahead(descriptor, pieces) if size > _CHUNK else _read(descriptor, pieces):
        for first, last in _dense(content.obj, len(content)):
            yield position + first, content[first:last]


def _pieces(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """What to read: position and length of each chunk that is no hole."""
    for start, end in _extents(descriptor, size):
        for position in range(start, end, _CHUNK):
            yield position, min(_CHUNK, end - position)


def _read(descriptor: int, pieces: Iterator[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
    for position, wanted in pieces:
        buffer = bytearray(wanted)
        yield position, memoryview(buffer)[: os.preadv(descriptor, [buffer], position)]


def _read_ahead(descriptor: int, pieces: Iterator[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
    """The same, but the next chunk is read by a thread while the last one is used.

    Mapping the file would spare the copy, but a file that is cut off meanwhile, or a broken disk, ends a process that
    maps it by SIGBUS, without a word. An executor would do for the thread, but its futures cost some percent.
    """
    free: SimpleQueue[bytearray | None] = SimpleQueue()
    full: SimpleQueue[_Piece | None] = SimpleQueue()
    for _ in range(2):
        free.put(bytearray(_CHUNK))
    reader = threading.Thread(target=_fill, args=(descriptor, pieces, free, full))
    reader.start()
    try:
        while piece := full.get():
            if piece.error:
                raise piece.error
            yield piece.position, memoryview(piece.buffer)[: piece.length]
            free.put(piece.buffer)
    finally:
        free.put(None)
        reader.join()


class _Piece(NamedTuple):
    position: int
    buffer: bytearray
    length: int
    error: BaseException | None = None


def _fill(
    descriptor: int,
    pieces: Iterator[tuple[int, int]],
    free: "SimpleQueue[bytearray | None]",
    full: "SimpleQueue[_Piece | None]",
) -> None:
    try:
        for position, wanted in pieces:
            buffer = free.get()
            if buffer is None:
                return  # nobody waits any more
            got = os.preadv(descriptor, [memoryview(buffer)[:wanted]], position)
            full.put(_Piece(position, buffer, got))
            if got < wanted:
                break  # cut off: the signature will differ
        full.put(None)
    except BaseException as error:  # noqa: BLE001  whoever waits for the next piece raises it
        full.put(_Piece(0, bytearray(), 0, error))


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are no holes, their edges moved outwards to whole blocks."""
    position = 0
    while position < size:
        try:
            data = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # only a hole is left
        hole = os.lseek(descriptor, data, os.SEEK_HOLE)
        start = max(position, data - data % BLOCK)
        position = min(size, hole + -hole % BLOCK)
        yield start, position


def _dense(buffer: Any, length: int) -> Iterator[tuple[int, int]]:
    """The longest runs of blocks in the first `length` bytes that are not all zero."""
    begun, number = 0, -1
    firsts = bytes(buffer[0:length:BLOCK])  # only a block whose first byte is zero can be all zero
    while (number := firsts.find(0, number + 1)) >= 0:
        block = number * BLOCK
        if _is_zero(buffer, block, length):
            if begun < block:
                yield begun, block
            begun = block + BLOCK
    if begun < length:
        yield begun, length


def _is_zero(buffer: Any, start: int, length: int) -> bool:
    end = min(start + BLOCK, length)
    return bool(buffer[start:end] == _ZEROS[: end - start])
