"""Capsules as files: what is believed, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pipeline.errors import StoreError
from pipeline.store.publish import publish_json
from pipeline.vm.capsule import DISK, FACTS, KEY, NAME, STATE, Capsule, CapsuleFacts, found_in
from pipeline.vm.template import saved_files

SAMPLE: dict[str, Any] = {
    "schema": 1,
    "crashed": {"fuzzer": "example-fuzzers/overflow_fuzzer", "pid": 118},
    "build": "demo",
    "boot_id": "6ed5b97c4d0d497abbc50ccdd8f53e66",
    "host_key": "ssh-ed25519 AAAAC3Nz",
    "machine": {
        "kind": "pc-q35-7.2",
        "cpu": "max,erms=off,fsrm=off",
        "smp": 1,
        "memory": 512,
        "accelerator": "tcg",
        "threads": "auto",
        "restrict": True,
        "generation": True,
        "gate": True,
        "arguments": ["-name", "x"],
        "targets": False,
    },
    "qemu": "7.2.22 Debian 1:7.2+dfsg-7+deb12u18",
    "saved": "2026-11-30T18:26:51Z",
    "files": {
        "disk.qcow2": {"bytes": 328704, "digest": "b3s:bd11"},
        "sshid": {"bytes": 387, "digest": "b3:d0c2"},
        "state.zst": {"bytes": 22429179, "digest": "b3:4f19"},
    },
}
"""Frozen: what earlier versions have written must be understood. A change of the format is a new schema."""

GUEST = b"QEVM" + bytes(3_000_000) + b"end"
CONTENT = {STATE: zstandard.ZstdCompressor().compress(GUEST), DISK: b"QFI\xfb\0\0\0\3" + bytes(100), KEY: b"private"}


def test_the_frozen_sample_is_what_is_written_and_understood() -> None:
    facts = CapsuleFacts.decode(json.dumps(SAMPLE).encode())
    assert json.loads(json.dumps(facts.encode())) == SAMPLE
    assert facts.crashed.pid == 118
    with pytest.raises(ValueError, match="schema"):
        CapsuleFacts.decode(json.dumps(SAMPLE | {"schema": 2}).encode())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "crashes/segv-f-00/1" / NAME
    made.mkdir(parents=True)
    for name, content in CONTENT.items():
        (made / name).write_bytes(content)
    facts = CapsuleFacts.decode(json.dumps(SAMPLE).encode())
    publish_json(made / FACTS, replace(facts, files=saved_files(made, *CONTENT)).encode())
    return made


def test_what_was_saved_comes_back_in_pieces(directory: Path) -> None:
    pieces = list(Capsule(directory).state())
    assert b"".join(pieces) == GUEST
    assert max(map(len, pieces)) <= 1 << 20


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:5] + bytes([content[5] ^ 1]) + content[6:])


def to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


FAULTS: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "a directory": to_directory,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [FACTS, *CONTENT])
def test_what_is_not_as_it_was_saved_is_refused(directory: Path, name: str, fault: str) -> None:
    FAULTS[fault](directory / name)
    with pytest.raises(StoreError, match="capsule") as caught:
        Capsule(directory)
    assert caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"files": {}},
        {"schema": 2},
        {"boot_id": "x; reboot"},
        *({"crashed": {"fuzzer": "x", "pid": pid}} for pid in ("118; reboot", 0, -1)),
        *({"machine": SAMPLE["machine"] | {"kind": kind}} for kind in ("none", "q35,accel=kvm", "pc-q35-7.2\n")),
        *({"machine": SAMPLE["machine"] | {"cpu": cpu}} for cpu in ("", "a b", "\x1b[31m")),
        *({"machine": SAMPLE["machine"] | {name: 0}} for name in ("smp", "memory")),
    ],
)
def test_facts_that_make_no_sense_are_refused(directory: Path, change: dict[str, Any]) -> None:
    facts = json.loads((directory / FACTS).read_text())
    (directory / FACTS).write_text(json.dumps(facts | change))
    with pytest.raises(StoreError, match="is damaged: "):
        Capsule(directory)


@pytest.mark.parametrize(
    "header",
    [
        b"QFI\xfb\0\0\0\3" + bytes(7) + b"\x68" + bytes(64),
        b"QFI\xfb\0\0\0\3" + bytes(64) + bytes(7) + b"\4",
        b"raw",
    ],
    ids=["backing file", "data file", "raw"],
)
def test_a_disk_that_leads_to_files_of_the_host_is_refused(directory: Path, header: bytes) -> None:
    """Whoever opened it would show them to the guest."""
    (directory / DISK).write_bytes(header)
    facts = json.loads((directory / FACTS).read_text())
    facts["files"] = {name: vars(file) for name, file in saved_files(directory, *CONTENT).items()}
    (directory / FACTS).write_text(json.dumps(facts))
    with pytest.raises(StoreError, match=r"disk\.qcow2 needs other files"):
        Capsule(directory)


def test_where_there_are_some(directory: Path) -> None:
    crash, bucket = directory.parent, directory.parents[1]
    assert found_in(directory) == found_in(crash) == found_in(bucket) == [directory]
    shutil.copytree(crash, bucket / "3")
    (bucket / "2").mkdir()
    (bucket / "group.json").write_text("{}")
    assert found_in(bucket) == [directory, bucket / "3" / NAME]
    directory.rename(bucket / "moved")
    assert found_in(bucket / "moved") == [bucket / "moved"]
    assert found_in(crash) == []
    assert found_in(bucket.parent) == []
    assert found_in(bucket / "nothing") == []
