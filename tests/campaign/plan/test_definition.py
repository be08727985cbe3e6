"""What a campaign comes to, and the digests by which it is known what has changed."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.campaign.plan.definition import Budget, Definition, FuzzerPlan
from pipeline.errors import StoreError

PLAN = FuzzerPlan("example-fuzzers/maze_fuzzer", Budget(seconds=600), 60, (("max_len", "4096"), ("timeout", "5")))

SAMPLE = {
    "allocation": "gain",
    "fuzzers": [
        {
            "budget": {"runs": 100000},
            "dictionary": None,
            "digest": "b3:c05efebb042ae8ba7fd812c51c49db3e7e082d7cd3202ebfafbe83e79a0a635a",
            "environment": {},
            "name": "example-fuzzers/crash_fuzzer",
            "options": {},
            "seeds": [],
            "slice": 60,
        },
        {
            "budget": {"seconds": 600},
            "dictionary": "/tmp/x/maze.dict",
            "digest": "b3:6da7083819c1d18d1289da5302e920385c5ac5be41f567a7d40fdcddddff8aa2",
            "environment": {},
            "name": "example-fuzzers/maze_fuzzer",
            "options": {"max_len": "4096", "timeout": "5"},
            "seeds": ["/tmp/x/seeds"],
            "slice": 60,
        },
    ],
    "name": "nightly",
    "schema": 1,
    "seed": 1,
}
"""Frozen, with the digests: a ledger that was written with them must still be understood."""


@pytest.fixture
def plan(tmp_path: Path) -> FuzzerPlan:
    """One with a dictionary, a directory of seeds and another seed."""
    (tmp_path / "seeds/below").mkdir(parents=True)
    for name in ("seeds/a", "seeds/below/b", "c"):
        (tmp_path / name).write_text(name)
    (tmp_path / "maze.dict").write_text('a="b"\n')
    return replace(PLAN, dictionary=tmp_path / "maze.dict", seeds=(tmp_path / "seeds", tmp_path / "c"))


def test_the_frozen_sample_is_what_is_encoded(tmp_path: Path, plan: FuzzerPlan) -> None:
    runs = FuzzerPlan("example-fuzzers/crash_fuzzer", Budget(runs=100_000), 60)
    encoded = Definition("nightly", 1, "gain", (runs, replace(plan, seeds=plan.seeds[:1]))).encode()
    assert json.loads(json.dumps(encoded).replace(str(tmp_path), "/tmp/x")) == SAMPLE
    assert json.dumps(encoded) == json.dumps(encoded, sort_keys=True)


def test_what_changes_the_results_changes_the_digest(tmp_path: Path, plan: FuzzerPlan) -> None:
    seen = {plan.digest()}

    def differs(changed: FuzzerPlan) -> bool:
        seen.add(changed.digest())
        return len(seen) == count + 1

    for changed in (
        replace(plan, options=()),
        replace(plan, options=(("max_len", "4097"), ("timeout", "5"))),
        replace(plan, environment=(("MODE", "x"),)),
        replace(plan, environment=(("MODE", "y"),)),
        replace(plan, dictionary=None),
        replace(plan, dictionary=tmp_path / "c"),
        replace(plan, seeds=()),
        replace(plan, seeds=plan.seeds[:1]),
    ):
        count = len(seen)
        assert differs(changed)
    for name in ("maze.dict", "seeds/below/b", "seeds/new", "c"):
        count = len(seen)
        (tmp_path / name).write_text("other" + name)
        assert differs(plan)


def test_nothing_else_changes_it(tmp_path: Path, plan: FuzzerPlan) -> None:
    digest = plan.digest()
    for changed in (
        replace(plan, budget=Budget(seconds=9000)),
        replace(plan, budget=Budget(runs=1)),
        replace(plan, slice=1),
        replace(plan, name="p/f"),
        replace(plan, seeds=(*reversed(plan.seeds), tmp_path / "seeds/a")),
    ):
        assert changed.digest() == digest
    (tmp_path / "seeds/below/b").rename(tmp_path / "seeds/moved")
    (tmp_path / "seeds/twice").write_text("c")
    (tmp_path / "maze.dict").rename(tmp_path / "other.dict")
    assert replace(plan, dictionary=tmp_path / "other.dict").digest() == digest


def test_seeds_are_regular_files_and_links_to_them(tmp_path: Path, plan: FuzzerPlan) -> None:
    os.mkfifo(tmp_path / "seeds/fifo")
    (tmp_path / "seeds/link").symlink_to(tmp_path / "c")
    (tmp_path / "seeds/loop").symlink_to(tmp_path / "seeds")
    (tmp_path / "seeds/gone").symlink_to("nowhere")
    names = ("c", "seeds/a", "seeds/below/b", "seeds/link")
    assert plan.seed_files() == tuple(tmp_path / name for name in names)


def test_files_that_are_gone_by_then_are_an_error(tmp_path: Path, plan: FuzzerPlan) -> None:
    (tmp_path / "c").unlink()
    with pytest.raises(StoreError, match=r"the dictionary and seeds of example-fuzzers/maze_fuzzer cannot be read.*/c"):
        plan.digest()


@pytest.mark.parametrize(("seconds", "length", "slices"), [(600, 60, 10), (601, 60, 11), (1, 1, 1), (59, 59, 1)])
def test_slices_cover_the_budget(seconds: int, length: int, slices: int) -> None:
    assert replace(PLAN, budget=Budget(seconds=seconds), slice=length).slices == slices


@given(st.integers(1, 1 << 31), st.integers(1, 1 << 31))
def test_slices_neither_lack_nor_exceed(seconds: int, length: int) -> None:
    slices = replace(PLAN, budget=Budget(seconds=seconds), slice=length).slices
    assert slices is not None
    assert (slices - 1) * length < seconds <= slices * length


def test_a_budget_of_runs_has_no_number_of_slices() -> None:
    assert replace(PLAN, budget=Budget(runs=5)).slices is None
