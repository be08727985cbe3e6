import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.settings import SLACK, TCG_SCALE, BootSettings, Timeouts
from pipeline.vm.history import ENOUGH, KEPT, History, percentile

SAMPLE = '{"ended": "2026-11-24T20:00:00Z", "kind": "demo", "schema": 1, "seconds": 2.125}\n'
"""Frozen: what earlier versions have written must be understood."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "boots.jsonl"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_frozen_sample_is_understood_and_written_again(path: Path) -> None:
    write(path, SAMPLE)
    assert History(path, "demo").seconds() == [2.125]
    assert History(path, "other").seconds() == []
    path.unlink()
    History(path, "demo").add(2.125)
    assert {**json.loads(path.read_text()), "ended": ""} == {**json.loads(SAMPLE), "ended": ""}


def test_what_makes_no_sense_is_passed_over(path: Path) -> None:
    numbers = [SAMPLE.replace("2.125", number) for number in ("NaN", "-1", "9" * 400)]
    damaged = ["", "{", "7", "[]", '{"schema": 2}', "[" * 9999, *numbers]
    write(path, "\n".join([*damaged, SAMPLE, SAMPLE[:20]]))
    assert History(path, "demo").seconds() == [2.125]


def test_a_store_that_cannot_be_written_fails_no_boot(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    History(tmp_path / "cache" / "boots.jsonl", "demo").add(1.0)


def test_several_at_once_lose_nothing(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(History(path, "demo").add, [float(number + 1) for number in range(KEPT)]))
    assert sorted(History(path, "demo").seconds()) == [float(number + 1) for number in range(KEPT)]


def test_only_the_newest_count_and_the_file_does_not_grow_without_end(path: Path) -> None:
    write(path, SAMPLE * 20_000)
    history = History(path, "demo")
    assert len(history.seconds()) == KEPT
    history.add(9.0)
    assert history.seconds()[-1] == 9.0
    assert path.stat().st_size < 50_000


def test_one_kind_does_not_push_out_another(path: Path) -> None:
    other = SAMPLE.replace('"demo"', '"other"')
    write(path, other * 50 + SAMPLE * 20_000)
    History(path, "demo").add(1.0)
    assert len(History(path, "other").seconds()) == 50
    assert len(History(path, "demo").seconds()) == KEPT


def test_too_few_boots_tell_nothing(path: Path) -> None:
    history = History(path, "demo")
    for number in range(ENOUGH):
        assert history.slowest() is None
        history.add(float(number + 1))
    assert history.slowest() == ENOUGH


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=300), st.floats(0.01, 1.0))
def test_a_percentile_is_the_smallest_value_that_covers_the_share(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


@given(st.floats(0.01, 1e5), st.sampled_from(["kvm", "tcg"]))
def test_a_learned_limit_is_between_the_least_and_the_most(slowest: float, accel: str) -> None:
    limits = BootSettings().timeouts("kvm" if accel == "kvm" else "tcg", slowest)
    scale = TCG_SCALE if accel == "tcg" else 1.0
    assert limits.boot_least == Timeouts().boot_least * scale
    assert limits.boot_least <= limits.boot <= limits.boot_most
    assert limits.boot in (limits.boot_least, limits.boot_most, SLACK * slowest)


def test_without_a_history_the_first_limit_applies_and_a_set_one_always() -> None:
    assert BootSettings().timeouts("kvm").boot == 60.0
    assert BootSettings().timeouts("tcg").boot == 60.0 * TCG_SCALE
    assert BootSettings(scale=2.0).timeouts("kvm", 100.0).boot == SLACK * 100.0
    fixed = BootSettings(timeout=7.0).timeouts("tcg", 100.0)
    assert (fixed.boot, fixed.boot_most) == (7.0, 7.0)
