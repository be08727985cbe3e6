"""qcow2, QEMU's disk format: what an image says of itself, and whether its tables lie in the file.

Format: QEMU, docs/interop/qcow2.txt. What the guest has written is not read.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.digests import digest
from pipeline.errors import ImageDamaged
from pipeline.images.part import Fact, Part
from pipeline.images.source import Source, opened

MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_MORE = struct.Struct(">QQQII")  # since version 3
_SIZE_2 = _HEADER.size
_SIZE_3 = _HEADER.size + _MORE.size
_EXTENSION = struct.Struct(">II")
_EXTENSIONS_MOST = 256
_BACKING_FORMAT = 0xE2792ACA
_EXTERNAL_FILE = 0x44415441
_LONGEST_NAME = 1023
_ENCRYPTION = {0: "", 1: "AES", 2: "LUKS"}
_DIRTY, _CORRUPT, _EXTERNAL, _COMPRESSION, _EXTENDED = (1 << bit for bit in range(5))
_KNOWN = _DIRTY | _CORRUPT | _EXTERNAL | _COMPRESSION | _EXTENDED
_ENTRY = 8
_TABLE_OFFSET = 0x00FFFFFFFFFFFE00
_TABLE_LARGEST = 32 << 20  # QEMU opens no image with a larger L1 table
_CHUNK = 65536


@dataclass(frozen=True)
class _Header:
    version: int
    backing_at: int
    backing_size: int
    cluster_bits: int
    disk_size: int
    encryption: int
    entries: int
    table_at: int
    counts_at: int
    counts_clusters: int
    snapshots: int
    incompatible: int = 0
    length: int = _SIZE_2

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits

    @property
    def entries_needed(self) -> int:
        """How many entries the L1 table must have for the disk: one for each L2 table, which is a cluster."""
        per_table = self.cluster // (2 * _ENTRY if self.incompatible & _EXTENDED else _ENTRY)
        return -(-self.disk_size // (self.cluster * per_table))


def inspect(path: Path, *, digests: bool = True) -> Part:
    """What a qcow2 image is: a part without parts. Sizes are in bytes; `virtual_size` is what a guest sees.

    The digest is that of the file, maybe a "b3s:" one, see pipeline/digests.py. Raises ImageDamaged if its header
    cannot be made sense of; what is wrong beyond that is a problem of the part. Raises UsageError and StoreError as
    `opened` does.
    """
    with opened(path) as source:
        header = _header(source)
        facts, problems = _facts(header), list(_problems(source, header))
        try:
            facts |= _names(source, header)
        except ImageDamaged as error:
            problems.append(error.message)
        whole = digest(path) if digests else None
        return Part("qcow2", size=source.size, offset=0, digest=whole, facts=facts, problems=tuple(problems))


def _header(source: Source) -> _Header:
    magic, version, backing_at, backing_size, bits, size, encryption, entries, table, counts, clusters, snapshots, _ = (
        _HEADER.unpack(source.at(0, _SIZE_2))
    )
    if magic != MAGIC:
        raise _damaged(f"the magic {magic.hex(' ')}", 0, MAGIC.hex(" "))
    if version not in (2, 3):
        raise _damaged(f"version {version}", 4, "2 or 3")
    if not 9 <= bits <= 21:
        raise _damaged(f"clusters of 2^{bits} bytes", 20, "2^9 to 2^21")
    known = (version, backing_at, backing_size, bits, size, encryption, entries, table, counts, clusters, snapshots)
    if version == 2:
        return _Header(*known)
    incompatible, _, _, _, length = _MORE.unpack(source.at(_SIZE_2, _MORE.size))
    if length < _SIZE_3 or length % 8 or length > 1 << bits:
        raise _damaged(f"a header of {length} bytes", 100, f"a multiple of 8 from {_SIZE_3} to the size of a cluster")
    return _Header(*known, incompatible, length)


def _damaged(problem: str, offset: int, expected: str) -> ImageDamaged:
    return ImageDamaged(problem, offset=offset, expected=expected, hint="make the disk anew, by qemu-img or a boot")


def _facts(header: _Header) -> dict[str, Fact]:
    facts: dict[str, Fact] = {
        "version": header.version,
        "virtual_size": header.disk_size,
        "cluster_size": header.cluster,
        "snapshots": header.snapshots,
        "encrypted": header.encryption != 0,
        "encryption": _ENCRYPTION.get(header.encryption, f"unknown: {header.encryption}"),
        "external_data": bool(header.incompatible & _EXTERNAL),
        "extended_l2": bool(header.incompatible & _EXTENDED),
        "dirty": bool(header.incompatible & _DIRTY),
    }
    return {key: value for key, value in facts.items() if value or key in ("virtual_size", "encrypted")}


def _problems(source: Source, header: _Header) -> Iterator[str]:
    unknown = header.incompatible & ~_KNOWN
    if unknown:
        yield f"it has features that QEMU may not ignore, and that nobody knows: {unknown:#x}"
    if header.incompatible & _CORRUPT:
        yield "QEMU has marked it corrupt; repair it: qemu-img check -r all FILE"
    if not source.holds(header.counts_at, header.counts_clusters * header.cluster) or header.counts_at == 0:
        yield _outside("refcount table", header.counts_at)
    yield from _problems_of_table(source, header)


def _problems_of_table(source: Source, header: _Header) -> Iterator[str]:
    if header.entries < header.entries_needed:
        yield f"its L1 table has {header.entries} entries, but the disk needs {header.entries_needed}"
    if header.entries * _ENTRY > _TABLE_LARGEST:
        yield f"its L1 table has {header.entries} entries, more than QEMU opens"
    elif not source.holds(header.table_at, header.entries * _ENTRY):
        yield _outside("L1 table", header.table_at)
    else:
        lost = sum(not source.holds(offset, header.cluster) for offset in _tables(source, header))
        if lost:
            yield f"{lost} of its L2 tables are not in the file: it is cut off"


def _outside(what: str, offset: int) -> str:
    return f"its {what}, at byte {offset:#x}, is not in the file"


def _tables(source: Source, header: _Header) -> Iterator[int]:
    """Where the L2 tables start."""
    end = header.table_at + header.entries * _ENTRY
    for position in range(header.table_at, end, _CHUNK):
        chunk = source.at(position, min(_CHUNK, end - position))
        for (entry,) in struct.iter_unpack(">Q", chunk):
            if entry & _TABLE_OFFSET:
                yield entry & _TABLE_OFFSET


def _names(source: Source, header: _Header) -> dict[str, Fact]:
    """The files that it needs beside itself, as it names them. Raises ImageDamaged."""
    facts: dict[str, Fact] = {}
    if header.backing_at:
        if not 0 < header.backing_size <= _LONGEST_NAME or header.backing_at + header.backing_size > header.cluster:
            raise _damaged(
                f"a backing file's name of {header.backing_size} bytes at byte {header.backing_at:#x}",
                8,
                f"at most {_LONGEST_NAME}, in the first cluster",
            )
        facts["backing_file"] = _text(source.at(header.backing_at, header.backing_size))
    extensions = dict(_extensions(source, header))
    for number, key in ((_BACKING_FORMAT, "backing_format"), (_EXTERNAL_FILE, "external_data_file")):
        if number in extensions:
            facts[key] = _text(extensions[number])
    return facts


def _text(name: bytes) -> str:
    return name.decode(errors="replace")


def _extensions(source: Source, header: _Header) -> Iterator[tuple[int, bytes]]:
    """Type and content of each header extension. All lie in the first cluster, before the backing file's name."""
    position, end = header.length, header.backing_at or header.cluster
    for _ in range(_EXTENSIONS_MOST):
        if position + _EXTENSION.size > min(end, source.size):
            return
        number, size = _EXTENSION.unpack(source.at(position, _EXTENSION.size))
        if number == 0:
            return
        if position + _EXTENSION.size + size > end:
            raise _damaged(f"a header extension of {size} bytes", position, "one within the first cluster")
        yield number, source.at(position + _EXTENSION.size, size)
        position += _EXTENSION.size + size + -size % 8
