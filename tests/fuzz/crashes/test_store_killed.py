"""Many use the store of crashes at once, and are killed at any moment."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipeline.fuzz.crashes.crash import Crash
from pipeline.fuzz.crashes.store import OTHERS, CrashStore
from tests.fuzz.crashes.made_up import BUILD, CRASH, FUZZER, SLUG, elsewhere, names, other, sized
from tests.waiting import SOON


def counted(crash_store: CrashStore) -> int:
    return sum(bucket.count for bucket in crash_store.buckets())


def test_a_crash_that_is_not_counted_is_counted_next_time(tmp_path: Path) -> None:
    crash_store = CrashStore(tmp_path)
    file = crash_store.directory(FUZZER, SLUG) / "bucket.json"
    crash_store.add(CRASH)
    before = file.read_bytes()
    crash_store.add(other(1))
    file.write_bytes(before)
    assert counted(crash_store) == 2
    assert crash_store.add(other(2)).directory == file.parent / "3"
    assert counted(crash_store) == 3


def test_a_first_crash_that_is_not_counted_is_one(tmp_path: Path) -> None:
    crash_store = CrashStore(tmp_path)
    crash_store.add(CRASH)
    buckets = crash_store.buckets()
    (crash_store.directory(FUZZER, SLUG) / "bucket.json").unlink()
    assert crash_store.buckets() == buckets
    assert crash_store.add(CRASH).same
    assert counted(crash_store) == 2


def test_what_killed_ones_have_left_goes_away(tmp_path: Path) -> None:
    crash_store = CrashStore(tmp_path)
    place = crash_store.directory(FUZZER, SLUG)
    crash_store.add(CRASH)
    for remains in (".7.abcd1234.tmp", ".1.removed_.tmp", ".bucket.json.abcd1234.tmp"):
        (place / remains / "x").mkdir(parents=True)
    (place.parent / "empty").mkdir()
    assert counted(crash_store) == 1
    CrashStore(tmp_path).add(elsewhere("g"))
    assert names(place) == ["1", "bucket.json"]
    assert counted(crash_store) == 2


ADDING = """
import sys
from pathlib import Path
from tests.fuzz.crashes.made_up import other
from pipeline.fuzz.crashes.store import CrashStore
for number in range(100_000):
    CrashStore(Path(sys.argv[1]), kept=4).add(other(number))
    print(number, flush=True)
"""


@pytest.mark.parametrize("after", [0, 1, 2, 7])
def test_whoever_is_killed_leaves_what_the_next_one_understands(tmp_path: Path, after: int) -> None:
    root = Path(__file__).parents[3]
    child = subprocess.Popen([sys.executable, "-c", ADDING, str(tmp_path)], stdout=subprocess.PIPE, cwd=root)
    with child:
        assert child.stdout is not None
        for _ in range(after):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        told = after + len(child.stdout.readlines())
    crash_store = CrashStore(tmp_path, kept=4)
    before = counted(crash_store)
    assert before in (told, told + 1)
    crash_store.add(replace(CRASH, input=b"the next one"))
    (bucket,) = crash_store.buckets()
    assert (bucket.count, bucket.last) == (before + 1, before + 1)
    assert names(crash_store.directory(FUZZER, SLUG)) == sorted([*bucket.kept, "bucket.json"])
    assert len(bucket.kept) == min(before + 1, 4)


class Killed(BaseException):
    """What ends an add, after which nothing is tidied up."""


def killed_at(step: int, crash_store: CrashStore, crash: Crash) -> bool:
    """Add a crash, and end that before the disk is changed for good this often. Returns whether it has come so far."""
    steps = count()

    def ending(real: Callable[..., None]) -> Callable[..., None]:
        def done(*arguments: object) -> None:
            if next(steps) == step:
                raise Killed
            real(*arguments)

        return done

    rmtree = ending(shutil.rmtree)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "rename"):
            patch.setattr(os, name, ending(getattr(os, name)))
        # Only what was removed on purpose: whoever is killed tidies nothing up
        patch.setattr(shutil, "rmtree", lambda path, *_, **__: rmtree(path) if ".removed_." in str(path) else None)
        try:
            crash_store.add(crash)
        except Killed:
            return True
    return False


@pytest.mark.parametrize(("kept", "before"), [(100, 0), (3, 5)])
def test_whatever_was_done_last_before_a_kill_the_next_one_goes_on(tmp_path: Path, kept: int, before: int) -> None:
    for number in range(before):
        CrashStore(tmp_path, kept=kept).add(other(1000 + number))
    for step in count():
        crash_store = CrashStore(tmp_path, kept=kept)
        killed = killed_at(step, crash_store, other(step))
        after = counted(crash_store)
        assert after in ((before, before + 1) if killed else (before + 1,))
        assert all("1" in bucket.kept for bucket in crash_store.buckets())
        before = after
        if not killed:
            break
    assert step >= 8
    place = crash_store.directory(FUZZER, SLUG)
    assert CrashStore(tmp_path, kept=kept).add(CRASH).directory == place / str(before + 1)
    (bucket,) = crash_store.buckets()
    assert len(bucket.kept) == min(kept, before + 1)
    assert names(place) == sorted([*bucket.kept, "bucket.json"])


def add_some(store: Path, start: int) -> None:
    for number in range(start, start + 10):
        CrashStore(store, kept=100).add(replace(other(number), campaign=f"c{start}", build=f"b3:{start}"))


def test_threads_and_processes_lose_no_count(tmp_path: Path) -> None:
    spawning = multiprocessing.get_context("spawn")
    workers: list[threading.Thread | BaseProcess] = [
        *(threading.Thread(target=add_some, args=(tmp_path, start)) for start in (0, 100)),
        *(spawning.Process(target=add_some, args=(tmp_path, start)) for start in (200, 300)),
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(SOON)
    crash_store = CrashStore(tmp_path)
    (bucket,) = crash_store.buckets()
    assert (bucket.count, bucket.last, len(bucket.kept)) == (40, 40, 40)
    by_campaign = {name: seen.count for name, seen in bucket.campaigns.items()}
    assert by_campaign == dict.fromkeys(("c0", "c100", "c200", "c300"), 10)
    assert {build.digest for build in crash_store.builds(FUZZER).builds} == {"b3:0", "b3:100", "b3:200", "b3:300"}


class Store(RuleBasedStateMachine):
    """Crashes are added and counted, and processes are killed: of a few buckets, of which few crashes are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.place = TemporaryDirectory()
        self.count = 0
        self.slugs: set[str] = set()
        self.start()

    def start(self) -> None:
        self.crash_store = CrashStore(Path(self.place.name), kept=4, buckets=2)

    def teardown(self) -> None:
        self.place.cleanup()

    @rule(function=st.sampled_from("fgh"), size=st.integers(1, 9), campaign=st.sampled_from("xy"))
    def add(self, function: str, size: int, campaign: str) -> None:
        crash = replace(elsewhere(function), input=sized(size).input, campaign=campaign)
        stored = self.crash_store.add(crash)
        assert stored.new == (stored.bucket not in self.slugs)
        assert (stored.directory is None) == (stored.bucket == OTHERS)
        if stored.directory:
            assert (stored.directory / "input").read_bytes() == crash.input
        self.slugs.add(stored.bucket)
        self.count += 1

    @precondition(lambda self: self.slugs)
    @rule(data=st.data(), n=st.integers(1, 5))
    def count_some(self, data: st.DataObject, n: int) -> None:
        self.crash_store.count(FUZZER, data.draw(st.sampled_from(sorted(self.slugs))), BUILD, "x", n)
        self.count += n

    @rule(function=st.sampled_from("fgh"), size=st.integers(1, 9), step=st.integers(0, 20))
    def kill(self, function: str, size: int, step: int) -> None:
        killed_at(step, self.crash_store, replace(elsewhere(function), input=sized(size).input))
        self.start()
        after = counted(self.crash_store)
        assert after in (self.count, self.count + 1)
        self.count = after
        self.slugs = {bucket.slug for bucket in self.crash_store.buckets()}

    @rule()
    def lose_memory(self) -> None:
        self.start()

    @invariant()
    def all_is_counted_and_the_best_are_kept(self) -> None:
        buckets = self.crash_store.buckets()
        assert sum(bucket.count for bucket in buckets) == self.count
        assert {bucket.slug for bucket in buckets} == self.slugs
        assert len(self.slugs - {OTHERS}) <= 2
        for bucket in buckets:
            assert bucket.count == sum(seen.count for seen in bucket.campaigns.values())
            assert bucket.slug == OTHERS or "1" in bucket.kept
            crashes = self.crash_store.crashes(bucket)
            assert [str(crash.number) for crash in crashes] == list(bucket.kept)
            assert len({crash.facts.sha256 for crash in crashes}) == len(crashes)


TestStoreMachine = Store.TestCase
TestStoreMachine.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
