"""The places of the pool."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InstanceBusy
from pipeline.host.process import Process
from pipeline.settings import Store
from pipeline.vm.slot import Slot, Use

SAMPLE: dict[str, Any] = {
    "schema": 1,
    "state": "leased",
    "boot_id": "6ed5b97c4d0d497abbc50ccdd8f53e66",
    "since": "2026-11-23T17:53:35Z",
    "owner": {"pid": 7, "start_ticks": 123, "host_boot_id": "85b7c2f4-7a40-4f0a-9d8b-5b6f2c9a1e11"},
    "work": "campaign nightly",
}
"""Frozen: what earlier versions have written must be understood. A change of the format is a new schema."""


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    return Slot(Store(tmp_path), 3)


def test_the_frozen_sample_is_what_is_written_and_understood(slot: Slot) -> None:
    use = Use("leased", SAMPLE["boot_id"], Process(**SAMPLE["owner"]), SAMPLE["since"], SAMPLE["work"])
    assert use.encode() == SAMPLE
    slot.file.parent.mkdir()
    slot.file.write_text(json.dumps(SAMPLE))
    assert slot.use() == use


def test_what_was_noted_before_work_was_told_is_understood(slot: Slot) -> None:
    slot.file.parent.mkdir()
    slot.file.write_text(json.dumps({name: value for name, value in SAMPLE.items() if name != "work"}))
    use = slot.use()
    assert use
    assert (use.since, use.work) == (SAMPLE["since"], "")


def test_what_is_noted_is_found(slot: Slot) -> None:
    assert slot.use() is None
    slot.note("idle", "x")
    use = slot.use()
    assert use
    assert (use.state, use.boot_id, use.owner.alive) == ("idle", "x", True)
    slot.forget()
    slot.forget()
    assert slot.use() is None


def test_only_one_has_it(slot: Slot) -> None:
    with slot.taken():
        with pytest.raises(InstanceBusy), slot.taken():
            pass
        with Slot(slot.store, 4).taken():
            pass
    with slot.taken():
        pass


def test_all_whose_use_is_noted(slot: Slot) -> None:
    assert Slot.noted(slot.store) == []
    for number in (10, 3):
        Slot(slot.store, number).note("idle", "x")
    for name in ("slot-x.json", "slot-03.json", "slot-²7.json", "slot-.json"):
        (slot.file.parent / name).touch()
    assert Slot.noted(slot.store) == [slot, Slot(slot.store, 10)]


def test_its_names(slot: Slot) -> None:
    root = slot.store.root
    assert slot.instance.name == "pool-3"
    assert slot.instance.directory == root / "instances/pool-3"
    slot.note("idle", "x")
    with slot.taken():
        assert sorted(path.name for path in (root / "pool").iterdir()) == ["slot-3.json", "slot-3.lock"]


WRONG: list[dict[str, Any]] = [
    {"schema": 2},
    {"state": "lost"},
    {"state": 1},
    {"boot_id": 7},
    {"owner": {}},
    {"owner": None},
]


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "null", "{}", "1", "[" * 50000, *(json.dumps({**SAMPLE, **change}) for change in WRONG)],
)
def test_a_damaged_state_says_nothing(slot: Slot, damage: str) -> None:
    slot.file.parent.mkdir()
    slot.file.write_text(damage)
    assert slot.use() is None
    slot.note("idle", "x")
    assert slot.use()


@given(st.binary(max_size=100))
def test_no_content_does_harm(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    slot = Slot(Store(tmp_path_factory.mktemp("slots")), 0)
    slot.file.parent.mkdir()
    slot.file.write_bytes(content)
    assert slot.use() is None
