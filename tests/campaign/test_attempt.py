"""What an attempt tells of how far it has come."""

from pathlib import Path

import pytest

from pipeline.ledger import Ended
from tests.campaign.scripted import Behaviour
from tests.campaign.test_runner import A, Bench, plan


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
    assert bench.standing(A, plan(seconds=20)).executions == 5000


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
    assert bench.standing(A, plan()).seconds == 60
