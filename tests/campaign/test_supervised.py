"""The runs of a fuzzer at one slice: started again after each crash, and each an attempt of its own in the ledger."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.campaign import crash_intake
from pipeline.campaign.ledger import Crashed, Ended, Harvested, Started
from pipeline.campaign.state import State
from pipeline.fuzz.crashes.store import CrashStore
from pipeline.fuzz.repetition import next_seed
from tests.campaign.bench import A, Bench, Killed, kill, plan
from tests.campaign.scripted import Behaviour, unit


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.world.behaviours[A] = Behaviour(crash="boom", after=5, artifact=f"crash-{unit('boom')[0]}")
    return made


def test_each_run_is_an_attempt_of_its_own(bench: Bench) -> None:
    bench.world.merged_part = 1.0
    bench.run(bench.definition(plan(seconds=20)))
    started, ended = bench.of(Started), bench.of(Ended)
    assert [entry.attempt for entry in started] == [entry.attempt for entry in ended] == [1, 2, 3, 4]
    assert [(entry.result, entry.seconds, entry.executions) for entry in ended] == [("crash", 5, 5000)] * 4
    order = [(type(entry), entry.attempt) for entry in bench.entries if isinstance(entry, Started | Crashed | Ended)]
    assert order == [(kind, attempt) for attempt in (1, 2, 3, 4) for kind in (Started, Crashed, Ended)]
    assert sum(entry.added for entry in ended) == len(bench.units(A))


def test_the_ledger_tells_the_seed_and_the_time_of_each(bench: Bench) -> None:
    bench.run(bench.definition(plan(seconds=20)))
    started = bench.of(Started)
    seeds = [started[0].seed]
    while len(seeds) < 4:
        seeds.append(next_seed(seeds[-1]))
    assert [entry.seed for entry in started] == seeds
    asked = [dict(word[1:].split("=") for word in entry.arguments if "=" in word) for entry in started]
    assert [(one["seed"], one["max_total_time"]) for one in asked] == [
        (str(seed), str(left)) for seed, left in zip(seeds, (20, 15, 10, 5), strict=True)
    ]
    ran = [words for _, words in bench.world.runs if "-print_final_stats=1" in words]
    assert [words[-2:] for words in ran] == [
        (f"-seed={one['seed']}", f"-max_total_time={one['max_total_time']}") for one in asked
    ]


def test_a_budget_of_runs_is_checked_between_two(bench: Bench) -> None:
    bench.run(bench.definition(plan(runs=12_000)))
    assert [entry.executions for entry in bench.of(Ended)] == [5000, 5000, 2000]


def test_one_command_makes_all_of_them(bench: Bench) -> None:
    bench.run(bench.definition(plan(seconds=40)))
    assert len(bench.world.commands) == 2, "one for each slice"


class TestOften:
    def test_what_was_seen_often_is_only_counted(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        bench.world.behaviours[A] = replace(bench.world.behaviours[A], after=0.5)
        bench.run(bench.definition(plan(seconds=20)))
        crashes = bench.of(Crashed)
        assert len(crashes) == 40
        (bucket,) = CrashStore(bench.store.root).buckets()
        assert bucket.count == 40
        assert {entry.group for entry in crashes} == {bucket.slug}
        assert [entry.new for entry in crashes] == [True] + [False] * 39
        told = [message for message in caplog.messages if "from now on it is only counted" in message]
        assert told == [f"{A}: {bucket.slug} was seen {crash_intake.ENOUGH} times: from now on it is only counted"]
        assert "is lost" not in caplog.text

    def test_and_its_inputs_are_not_fetched(self, bench: Bench) -> None:
        fetched: list[None] = []
        bench.world.on_fetch = lambda: fetched.append(None)
        bench.world.behaviours[A] = replace(bench.world.behaviours[A], after=0.5, units=0)
        bench.run(bench.definition(plan(seconds=20)))
        assert len(fetched) == crash_intake.ENOUGH

    def test_another_bucket_is_taken_in_all_the_same(self, bench: Bench) -> None:
        bench.world.behaviours[A] = replace(bench.world.behaviours[A], after=0.5)
        runs = 0

        def change(_: str) -> None:
            nonlocal runs
            runs += 1
            if runs == 30:
                bench.world.behaviours[A] = Behaviour(crash="other", after=5, artifact=f"crash-{unit('other')[0]}")

        bench.world.on_run = change
        bench.run(bench.definition(plan(seconds=20)))
        buckets = {bucket.frames[0]: bucket for bucket in CrashStore(bench.store.root).buckets()}
        assert set(buckets) == {"boom", "other"}
        assert [path.read_bytes() for path in (bench.store.root / "crashes" / A).glob("*other*/1/input")] == [b"other"]


def test_an_input_that_the_output_tells_is_not_fetched(bench: Bench) -> None:
    fetched: list[None] = []
    bench.world.on_fetch = lambda: fetched.append(None)
    bench.world.behaviours[A] = replace(bench.world.behaviours[A], base64=b"boom", units=0)
    bench.run(bench.definition(plan(seconds=20)))
    assert fetched == []
    assert [path.read_bytes() for path in (bench.store.root / "crashes" / A).glob("*/1/input")] == [b"boom"]


def test_one_that_the_output_tells_wrongly_is_fetched(bench: Bench) -> None:
    bench.world.behaviours[A] = replace(bench.world.behaviours[A], base64=b"bang", units=0)
    bench.run(bench.definition(plan(seconds=20)))
    assert [path.read_bytes() for path in (bench.store.root / "crashes" / A).glob("*/1/input")] == [b"boom"]


@settings(deadline=None, max_examples=30)
@given(at=st.integers(1, 16), before=st.booleans())
def test_killed_at_any_entry_it_goes_on_and_no_budget_is_exceeded(
    tmp_path_factory: pytest.TempPathFactory, at: int, before: bool
) -> None:
    bench = Bench(tmp_path_factory.mktemp("killed"))
    bench.world.behaviours[A] = Behaviour(crash="boom", after=5, artifact=f"crash-{unit('boom')[0]}")
    definition = bench.definition(plan(seconds=20))
    runner = bench.runner(definition)
    kill(runner, at, before)
    with pytest.raises(Killed):
        runner.run()
    bench.run(definition)
    state = State.of(bench.entries).fuzzer_state(bench.of(Started)[0].subject)
    assert state.seconds >= 20
    noted = sum(entry.seconds for entry in [*bench.of(Ended)])
    assert noted == pytest.approx(state.seconds)
    numbers = [entry.attempt for entry in bench.of(Started)]
    assert numbers == sorted(set(numbers))
    assert not State.of(bench.entries).interrupted()
    (bucket,) = CrashStore(bench.store.root).buckets()
    assert bucket.count >= len(bench.of(Crashed))


def test_how_far_a_run_has_come_is_noted_for_the_one_that_is_open(bench: Bench) -> None:
    bench.chosen = replace(bench.chosen, harvest=0.0001)
    bench.run(bench.definition(plan(seconds=20)))
    opened = 0
    for entry in bench.entries:
        if isinstance(entry, Started):
            opened = entry.attempt
        elif isinstance(entry, Harvested | Crashed | Ended):
            assert entry.attempt == opened
