"""The recorded behaviour of Fuchsia's own `fvm` and `zbi`; shared/vectors/README.md explains the cases."""

import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from pipeline.images import fvm, zbi
from pipeline.images.zbi import bootfs, compression, container, item_types

ROOT = Path(__file__).resolve().parents[3] / "shared/vectors"
VECTORS = ROOT / "fvm"
ZBI_VECTORS = ROOT / "zbi"

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


def cases(folder: Path) -> list[Case]:
    if not folder.is_dir():
        return []
    found: list[Case] = json.loads((folder / "manifest.json").read_text())["cases"]
    return found


pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason=f"the recorded cases are not there: {ROOT}")


@pytest.mark.parametrize("case", cases(VECTORS), ids=lambda case: case["name"])
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
        used += [(first.slice_offset(start), count * first.slice_size) for start, count in metadata.runs()]
        assert rest_is_zero(stream, used) is expect["rest_is_zero"]


def read_at(stream: BinaryIO, start: int, size: int) -> bytes:
    stream.seek(start)
    return stream.read(size)


def header_at(stream: BinaryIO, start: int) -> fvm.FvmHeader:
    return fvm.FvmHeader.decode(read_at(stream, start, fvm.BLOCK))


def check_header(header: fvm.FvmHeader, wanted: Case) -> None:
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
    return [
        {
            "index": partition.index,
            "name": partition.name,
            "type_guid_hex": partition.type_guid.bytes_le.hex(),
            "instance": partition.instance_guid.bytes_le.hex(),
            "slices": partition.slices,
            "flags": partition.flags,
        }
        for partition in metadata.partitions
    ]


def slices(stream: BinaryIO, metadata: fvm.Metadata) -> list[Case]:
    found = []
    for extent in metadata.extents:
        for number in range(extent.pslice, extent.end):
            content = read_at(stream, metadata.header.slice_offset(number), metadata.header.slice_size)
            digest = hashlib.sha256(content).hexdigest()
            vslice = extent.vslice + number - extent.pslice
            found.append({"pslice": number, "vpart": extent.partition, "vslice": vslice, "sha256": digest})
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


# What we do otherwise, on purpose
REFUSED = {
    "path-leading-slash": "a device refuses the whole directory",
    "name-256": "a device refuses the whole directory",
}
ACCEPTED = {"last-file-empty-read": "a device takes it, and Fuchsia's own tool writes it; ours comes out readable"}
KEPT_RAW = {"add-key-to-raw": "the BOOTFS stays as it was: nobody knows what an old kernel could unpack"}
OTHER_LAYOUT = {"empty-key-last": "one more page, so that the result can be read again"}

ZBI_REASONS = {
    "[ERROR: offset+size too large]": "offset+size too large",
    "manifest entry has no '=' separator": "manifest entry has no '=' separator|this is no ZBI",
    "(directory vs file) without --replace": "(directory vs file) without --replace",
    "incompatible with --list": "incompatible with --list",
}


@pytest.mark.parametrize("case", cases(ZBI_VECTORS), ids=lambda case: case["name"])
def test_zbi(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for name in case["inputs"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ZBI_VECTORS / name).read_bytes())
    for name, source in case.get("prepare", {}).items():
        (tmp_path / name).write_bytes((ZBI_VECTORS / source).read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code = zbi.main(case["args"])
    said = capsys.readouterr()
    name = case["name"]
    assert bool(code) == (name in REFUSED or (bool(case["exit"]) and name not in ACCEPTED)), said
    if case["stderr_contains"] and code:
        reason = next((ours for theirs, ours in ZBI_REASONS.items() if theirs in case["stderr_contains"]), None)
        assert any(words in said.err for words in (reason or case["stderr_contains"].strip()).split("|")), said.err
    if "stdout" in case["expect"]:
        assert said.out.splitlines() == case["expect"]["stdout"]
    if name in ACCEPTED:
        assert zbi.main(["-t", "-v", "OUT"]) == 0
    elif name not in REFUSED:
        check_zbi(tmp_path / "OUT", case, before)


def check_zbi(out: Path, case: Case, before: dict[Path, bytes]) -> None:
    expect = case["expect"]
    if expect["out"] == "absent":
        assert not out.exists()
    elif expect["out"] == "unchanged":
        assert out.read_bytes() == before[out]
    else:
        with container.opened(out) as items:
            found = [zbi_item(item) for item in items]
            wanted = [as_wanted(case, item, mine) for item, mine in zip(expect["items"], found, strict=True)]
            assert found == wanted
            assert [bootfs_files(item) for item in items if item.type == item_types.BOOTFS] == [
                files for files in (expect["bootfs"], *expect.get("more_bootfs", [])) if files
            ]
            assert item_types.is_kernel(items[0].type if items else 0) is expect["bootable"]
        assert zbi.main(["-t", "-v", str(out)]) == 0


def as_wanted(case: Case, item: Case, mine: Case) -> Case:
    """What the case wants of an item; what is our choice is as we have chosen."""
    wanted = {**item}
    if wanted.get("compression") == "any":
        wanted["compression"] = mine["compression"]
        assert mine["compression"] != "none" or case["name"] in KEPT_RAW
    if item["name"] == "BOOTFS" and case["name"] in KEPT_RAW:
        wanted["flags"] = mine["flags"]
    if item["name"] == "BOOTFS" and case["name"] in OTHER_LAYOUT:
        wanted["payload_sha256"] = mine["payload_sha256"]
        wanted["extra"] += bootfs.PAGE
    return wanted


def zbi_item(item: container.Item) -> Case:
    real = item.real_crc()
    content = hashlib.sha256(b"".join(map(bytes, compression.unpacked(item)))).hexdigest()
    name = item_types.NAMES.get(item.type)
    found = {
        "type_hex": f"{item.type:08x}",
        "name": name,
        "extra": item.extra,
        "flags": f"{item.flags:08x}",
        "crc": ("ok" if item.crc == real else "bad") if item.flags & container.CRC_FLAG else "none",
        "payload_sha256": content,
    }
    if item.type == item_types.BOOTFS:
        return found | {"compression": compression.method_of(item).algorithm.replace("lz4f", "lz4")}
    return found | {"length": item.payload.size, "crc32": f"{item.crc:08x}"}


def bootfs_files(item: container.Item) -> list[Case]:
    reader = bootfs.BootfsReader(item)
    content = b"".join(map(bytes, compression.unpacked(item)))
    return [
        {
            "name": file.name,
            "size": file.size,
            "sha256": hashlib.sha256(content[file.offset : file.end]).hexdigest(),
        }
        for file in reader.files
    ]
