"""The recorded behaviour of Fuchsia's own `fvm`; shared/vectors/README.md explains the cases."""

import gzip
import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from pipeline.images import fvm

VECTORS = Path(__file__).resolve().parents[3] / "shared/vectors/fvm"
MANIFEST = VECTORS / "manifest.json"

Case = dict[str, Any]

# What our program says for the reason that the reference tool words otherwise
REASONS = {
    "must be greater or equal than": "must be greater or equal than",
    "Bad size": "Bad size",
    "FVM Magic mismatch": "FVM magic mismatch|this is a sparse FVM",
    "Failed to create FVM Metadata from image": "neither of the two copies of its tables is intact",
    "Failed to synthesize metadata for extended FVM": "the tables were made for a larger disk",
    "Failed to read image": "is cut off|neither of the two copies|FVM magic mismatch",
    "Cannot extend a source image to a smaller image size": "the volume has",
}


def cases() -> list[Case]:
    if not MANIFEST.is_file():
        return []
    found: list[Case] = json.loads(MANIFEST.read_text())["cases"]
    return found


pytestmark = pytest.mark.skipif(not MANIFEST.is_file(), reason=f"the recorded cases are not there: {MANIFEST}")


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["name"])
def test_fvm(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for name, source in case.get("prepare", {}).items():
        (tmp_path / name).write_bytes(gzip.decompress((VECTORS / source).read_bytes()))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    try:
        code: object = fvm.main(case["args"])
    except SystemExit as error:
        code = error.code
    said = capsys.readouterr().err
    assert bool(code) == bool(case["exit"]), said
    if case["stderr_contains"]:
        reason = next(ours for theirs, ours in REASONS.items() if theirs in case["stderr_contains"])
        assert any(words in said for words in reason.split("|")), said
    check(tmp_path / case["args"][0], case["expect"], before)
    assert [path.name for path in tmp_path.iterdir()] == ([] if case["expect"]["out"] == "absent" else ["OUT"])


def check(out: Path, expect: Case, before: dict[Path, bytes]) -> None:
    if expect["out"] == "absent":
        assert not out.exists()
        return
    assert out.stat().st_size == expect["file_size"]
    if expect["out"] == "unchanged":
        assert out.read_bytes() == before[out]
        return
    with out.open("rb") as stream:
        first = header_at(stream, 0)
        second = header_at(stream, first.metadata_size)
        metadata = fvm.read(stream)
        for header, wanted in zip((first, second), expect["copies"], strict=True):
            check_header(header, wanted)
        assert (
            read_at(stream, 0, first.metadata_size) == read_at(stream, first.metadata_size, first.metadata_size)
        ) is (expect["copies_equal"])
        assert partitions(metadata) == expect["partitions"]
        assert slices(stream, metadata) == expect["slices"]
        used = [(0, 2 * first.metadata_size)]
        used += [(first.slice_offset(number), first.slice_size) for number in metadata.allocated()]
        assert rest_is_zero(stream, used) is expect["rest_is_zero"]


def read_at(stream: BinaryIO, start: int, size: int) -> bytes:
    stream.seek(start)
    return stream.read(size)


def header_at(stream: BinaryIO, start: int) -> fvm.Header:
    return fvm.Header.decode(read_at(stream, start, fvm.BLOCK))


def check_header(header: fvm.Header, wanted: Case) -> None:
    assert wanted == {
        "magic_ok": True,
        "hash_ok": True,
        "pslice_count": header.slices,
        "slice_size": header.slice_size,
        "fvm_partition_size": header.partition_size,
        "allocation_table_size": header.allocation_table_size,
        "generation": header.generation,
        "major_version": header.major_version,
        "oldest_minor_version": header.oldest_minor_version,
    }


def partitions(metadata: fvm.Metadata) -> list[Case]:
    entries = enumerate(struct.iter_unpack("<16s16sII24s", metadata.partitions))
    return [
        {
            "index": index,
            "name": name.rstrip(b"\0").decode(),
            "type_guid_hex": kind.hex(),
            "instance": instance.hex(),
            "slices": count,
            "flags": flags,
        }
        for index, (kind, instance, count, flags, name) in entries
        if count
    ]


def slices(stream: BinaryIO, metadata: fvm.Metadata) -> list[Case]:
    found = []
    for number in metadata.allocated():
        (entry,) = struct.unpack_from("<Q", metadata.allocation, 8 * number)
        content = read_at(stream, metadata.header.slice_offset(number), metadata.header.slice_size)
        digest = hashlib.sha256(content).hexdigest()
        found.append({"pslice": number, "vpart": entry & 0xFFFF, "vslice": entry >> 16 & 0xFFFFFFFF, "sha256": digest})
    return found


def rest_is_zero(stream: BinaryIO, used: list[tuple[int, int]]) -> bool:
    """Whether all data extents of the sparse file outside `used` (sorted) hold zeros only."""
    position, size = 0, os.fstat(stream.fileno()).st_size
    for start, length in [*used, (size, 0)]:
        while position < start:
            try:
                data = os.lseek(stream.fileno(), position, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole follows
                return True
            if data >= start:
                break
            end = min(start, os.lseek(stream.fileno(), data, os.SEEK_HOLE))
            if any(os.pread(stream.fileno(), end - data, data)):
                return False
            position = end
        position = start + length
    return True
