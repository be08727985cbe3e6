"""What an attempt tells of how far it has come."""

import threading
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from pipeline.campaign import harvest as harvests
from pipeline.campaign.ledger import Ended, Started
from tests.campaign.bench import A, Bench, plan
from tests.campaign.scripted import Behaviour


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_what_only_the_last_statistics_tell_counts(bench: Bench) -> None:
    """The last line of progress may be long ago: these are printed as it ends."""
    last = b"stat::number_of_executed_units: 5000\nstat::peak_rss_mb: 99\n"
    bench.world.behaviours[A] = Behaviour(fate="leaves", after=20, last=last)
    bench.run(bench.definition(plan(seconds=20)))
    (ended,) = bench.of(Ended)
    assert (ended.result, ended.executions, ended.peak_rss) == ("done", 5000, 99)
    assert bench.fuzzer_state(A, plan(seconds=20)).executions == 5000


def test_the_time_of_one_that_is_halted_ends_there(bench: Bench) -> None:
    """On a busy host a fuzzer that was killed may take long to be gone."""
    runner = bench.runner(bench.definition(plan()))

    def halted(_: str) -> None:
        bench.world.clock.pass_(3.0)
        runner.stop()

    bench.world.on_run = halted  # and the fuzzer goes on for its twenty seconds
    runner.run()
    assert [(entry.result, entry.seconds) for entry in bench.of(Ended)] == [("stopped", 3.0)]
    bench.world.on_run = None
    bench.run(bench.definition(plan()))
    assert bench.fuzzer_state(A, plan()).seconds == 60


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Once it is set, what was held back goes on."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.slow
@pytest.mark.parametrize("crash", ["", "f"])
@pytest.mark.parametrize("before_its_end", [True, False])
def test_a_guest_that_never_ends_giving_is_left(
    bench: Bench, gate: threading.Event, monkeypatch: pytest.MonkeyPatch, crash: str, before_its_end: bool
) -> None:
    """A byte every few seconds is no stall: the attempt ends, and so does its guest."""
    monkeypatch.setattr(harvests, "END_LIMIT", 3.0)
    drips = threading.Event()

    def drip() -> None:
        drips.set()
        bench.world.on_fetch = None
        bench.world.behaviours.clear()
        assert gate.wait(60)

    def once_it_drips() -> None:
        assert not before_its_end or drips.wait(60)
        bench.world.on_found = None

    bench.world.on_fetch, bench.world.on_found = drip, once_it_drips
    bench.world.behaviours[A] = Behaviour(reports="" if crash or not before_its_end else "tmp/slow-unit-1", crash=crash)
    bench.run(bench.definition(plan(seconds=20, slice_=10)))
    first, *others = bench.of(Ended)
    assert first.result == ("crash" if crash else "hang")
    assert first.reason.startswith("what it had found had not all come 3 s after its end; ") != bool(crash)
    assert {entry.result for entry in others} == ({"done", "crash"} if crash and not before_its_end else {"done"})
    instances = [entry.instance for entry in bench.of(Started)]
    assert [instance for instance, _ in groupby(instances)] == ["pool-0", "pool-1"]
    assert others[-1].result == "done"
