"""Records: their frozen format, and the differences that they show."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.store import freshness
from pipeline.store.digest_cache import DigestCache
from pipeline.store.freshness import Key, Record, RecordedFile

SAMPLE = {
    "schema": 1,
    "task": "ExtendedBlk",
    "version": 1,
    "parameters": {"length": "3G"},
    "inputs": {"blk": "b3:1111"},
    "tools": {"fvm": "b3:2222"},
    "outputs": {"extended-fvm.blk": {"digest": "b3s:3333", "bytes": 3221225472}},
    "ended": "2026-11-23T14:00:00Z",
    "seconds": 4.1,
    "host": "builder",
}
"""Frozen: what earlier versions have written must be understood. A change of the format is a new schema."""

KEY = Key("ExtendedBlk", 1, {"length": "3G"}, {"blk": "b3:1111"}, {"fvm": "b3:2222"})
RECORD = Record(KEY, {"extended-fvm.blk": RecordedFile("b3s:3333", 3221225472)}, "2026-11-23T14:00:00Z", 4.1, "builder")


def test_the_frozen_sample_is_understood_and_written_again_unchanged(tmp_path: Path) -> None:
    (tmp_path / "x.made.json").write_text(json.dumps(SAMPLE))
    assert freshness.read(tmp_path / "x") == RECORD
    assert RECORD.encode() == SAMPLE


PROOF: dict[str, str | int] = {"image": "FVM", "bytes": 3221225472, "partitions": 2, "slices": 5}


def test_the_frozen_sample_with_a_proof(tmp_path: Path) -> None:
    (tmp_path / "x.made.json").write_text(json.dumps({**SAMPLE, "proof": PROOF}))
    assert freshness.read(tmp_path / "x") == replace(RECORD, proof=PROOF)
    assert replace(RECORD, proof=PROOF).encode() == {**SAMPLE, "proof": PROOF}


def test_no_record(tmp_path: Path) -> None:
    assert freshness.read(tmp_path / "x") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "record damaged"),
        ("[]", "record damaged"),
        ("7", "record damaged"),
        (json.dumps({**SAMPLE, "schema": 2}), "record of schema 2"),
        (json.dumps({**SAMPLE, "outputs": {"x": {}}}), "record damaged"),
        (json.dumps({**SAMPLE, "inputs": []}), "record damaged"),
        (json.dumps({**SAMPLE, "proof": "yes"}), "record damaged"),
        (json.dumps({key: value for key, value in SAMPLE.items() if key != "host"}), "record damaged"),
    ],
)
def test_a_record_that_cannot_be_understood(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "x.made.json").write_text(text)
    with pytest.raises(ValueError, match=f"^{reason}$"):
        freshness.read(tmp_path / "x")


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (KEY, None),
        (replace(KEY, task="Other"), "made by ExtendedBlk"),
        (replace(KEY, version=2), "version 1 -> 2"),
        (replace(KEY, parameters={"length": "4G"}), "parameter length 3G -> 4G"),
        (replace(KEY, parameters={}), "parameter length 3G -> none"),
        (replace(KEY, parameters={"length": "3G", "align": "4K"}), "parameter align none -> 4K"),
        (replace(KEY, tools={"fvm": "b3:9999"}), "tool fvm changed: b3:2222… -> b3:9999…"),
        (replace(KEY, inputs={"blk": "b3s:" + "7" * 64}), "input blk changed: b3:1111… -> b3s:77777777…"),
        (replace(KEY, inputs={"blk": "b3:1111", "more": "b3:1"}), "input more changed: none -> b3:1…"),
    ],
)
def test_the_first_difference_is_the_reason(now: Key, reason: str | None) -> None:
    assert freshness.changed(KEY, now) == reason


def test_what_became_of_the_outputs(tmp_path: Path) -> None:
    files = {"a": tmp_path / "a", "sub/b": tmp_path / "b"}
    for path in files.values():
        path.write_text(path.name)
    digests = DigestCache(None)
    freshness.write(files["a"], files, KEY, "2026-11-23T14:00:00Z", 0.1, digests)
    record = freshness.read(files["a"])
    assert record
    assert freshness.damaged(record, files, digests) is None
    assert freshness.damaged(record, {"a": files["a"]}, digests) == "output sub/b missing"
    assert freshness.damaged(record, {**files, "c": tmp_path / "c"}, digests) == "output c is new"
    files["sub/b"].write_text("B")
    assert freshness.damaged(record, files, digests) == "output sub/b changed"
    files["sub/b"].unlink()
    assert freshness.damaged(record, files, digests) == "output sub/b missing"
    files["sub/b"].mkdir()
    assert freshness.damaged(record, files, digests) == "output sub/b cannot be read: it is not a file"
