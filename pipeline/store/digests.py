"""Digests of files, by BLAKE3.

The digest of a file without any block of zeros is "b3:HEX", the same HEX that `b3sum` prints. For others it is
"b3s:HEX", over the blocks that are not all zero and a table of where they are: holes need not be read, and a file with
holes has the same digest as its copy without.
"""

import errno
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BLOCK = 65536

SHOWN = 12
"""How many digits of a digest people are shown."""

_CHUNK = 2 << 20  # two of them fit the processor's cache: chunks of 8 MiB are hashed at half the speed
_LARGE = 1 << 20  # below this size, threads do not pay
_ZEROS = bytes(BLOCK)


def digest(path: Path) -> str:
    """Hash a file, without any cache. Raises OSError."""
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
    # Read backwards from its end, what is hashed can be taken apart in only one way: no two files hash the same stream
    hasher.update(struct.pack(f"<{len(runs) + 2}Q", *runs, len(runs), size))
    return f"b3s:{hasher.hexdigest()}"


def digest_of_text(text: str) -> str:
    """The digest of a text in UTF-8; a path in it need not be, if it is decoded as `os.fsdecode` does it."""
    from blake3 import blake3

    return f"b3:{blake3(text.encode(errors='surrogateescape')).hexdigest()}"


def shortened(digest: str) -> str:
    """The beginning of a digest, which is enough for people: its kind and twelve digits. Other texts stay."""
    kind, colon, digits = digest.partition(":")
    return f"{kind}:{digits[:SHOWN]}" if colon and len(kind) <= len("b3s") else digest


def threads() -> int:
    """How many threads hash a large file: one for each CPU that this process may use.

    It is not blake3.AUTO, which means threads that all hashers share: if a process has used those and then forks, as
    luigi does for its workers, the child waits for them for ever.
    """
    return len(os.sched_getaffinity(0))


def combined(digests: Sequence[str]) -> str:
    """One digest for several files: the digest itself if there is only one, else a digest of the list."""
    return digests[0] if len(digests) == 1 else digest_of_text(" ".join(digests))


def _contents(descriptor: int, size: int) -> Iterator[tuple[int, memoryview]]:
    """Yield the parts of a file that are not zero: where each starts, and its bytes, in whole blocks but at the end."""
    for position, content in _read(descriptor, _pieces(descriptor, size), size):
        for first, last in _dense(content.obj, len(content)):
            yield position + first, content[first:last]


def _pieces(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the chunks to read, holes left out: the position and the length of each, in bytes."""
    for start, end in _extents(descriptor, size):
        for position in range(start, end, _CHUNK):
            yield position, min(_CHUNK, end - position)


def _read(descriptor: int, pieces: Iterator[tuple[int, int]], size: int) -> Iterator[tuple[int, memoryview]]:
    """Yield each piece with its position; its bytes stay only until the next one is asked for.

    A thread that reads ahead would save 3 %. Mapping the file would spare the copy, but SIGBUS ends a process that maps
    a file which is cut off meanwhile, or is on a broken disk.
    """
    buffer = memoryview(bytearray(min(size, _CHUNK)))
    for position, wanted in pieces:
        yield position, buffer[: os.preadv(descriptor, [buffer[:wanted]], position)]


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of each part of a file that is no hole, moved outwards to whole blocks."""
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
    """Yield start and end of the longest runs of blocks, in the first `length` bytes, that are not all zero."""
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
