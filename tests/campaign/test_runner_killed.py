"""A campaign whose process is killed at any moment."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline.campaign.budget import SHORTEST
from pipeline.campaign.ledger import Closed, LedgerEntry, Started
from pipeline.campaign.plan.definition import Definition
from pipeline.campaign.runner import Runner
from tests.campaign.bench import A, B, Bench, C, Killed, kill, plan
from tests.campaign.scripted import Behaviour


def killed_after_each_slice(runner: Runner) -> None:
    """Have its process end as soon as a slice is over."""
    real: Callable[[LedgerEntry], None] = runner.note

    def note(entry: LedgerEntry) -> None:
        real(entry)
        if isinstance(entry, Closed):
            raise Killed

    runner.note = note  # type: ignore[method-assign]


class TestKilled:
    def test_the_next_slices_go_to_the_same_fuzzers_as_without_a_kill(self, tmp_path: Path) -> None:
        """One that finds nothing has every fourth turn, also if no process ever comes as far as its fourth turn."""
        whole, parts = Bench(tmp_path / "whole"), Bench(tmp_path / "parts")
        for bench in (whole, parts):
            bench.world.behaviours[B] = Behaviour(units=0)
        definition = whole.definition(plan(A, 240), plan(B, 240))
        whole.run(definition)
        for _ in range(14):
            runner = parts.runner(definition)
            killed_after_each_slice(runner)
            with pytest.raises(Killed):
                runner.run()
        order = [[entry.subject.fuzzer for entry in bench.of(Started)][:14] for bench in (whole, parts)]
        assert order[0] == order[1]
        assert order[0].count(B) >= 3

    @pytest.mark.parametrize("before", [True, False])
    @pytest.mark.parametrize("at", range(1, 15))
    def test_killed_at_an_entry_the_budget_is_kept(self, bench: Bench, at: int, before: bool) -> None:
        bench.world.merged_part = 1.0
        definition = bench.definition(plan(A), plan(B, 45))
        runner = bench.runner(definition)
        kill(runner, at, before)
        with pytest.raises(Killed):
            runner.run()
        check_after_kill(bench, definition)

    @pytest.mark.slow
    @hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        kills=st.lists(st.tuples(st.integers(1, 25), st.booleans()), max_size=4),
        budgets=st.lists(st.integers(1, 70), min_size=1, max_size=3),
        workers=st.integers(1, 3),
        crash=st.sampled_from(["", "boom"]),
    )
    def test_killed_again_and_again(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        kills: list[tuple[int, bool]],
        budgets: list[int],
        workers: int,
        crash: str,
    ) -> None:
        bench = Bench(tmp_path_factory.mktemp("killed"))
        bench.world.merged_part = 1.0
        bench.world.behaviours[A] = Behaviour(crash=crash, after=7)
        definition = bench.definition(*(plan(name, seconds) for name, seconds in zip((A, B, C), budgets, strict=False)))
        for at, before in kills:
            runner = bench.runner(definition, workers)
            kill(runner, at, before)
            try:
                runner.run()
            except Killed:
                continue
        check_after_kill(bench, definition, workers)


def check_after_kill(bench: Bench, definition: Definition, workers: int = 1) -> None:
    """Another run uses what is left of the budgets, and has all that was harvested."""
    harvested = {one.name: bench.units(one.name) for one in definition.fuzzers}
    runner = bench.runner(definition, workers)
    state = runner.run()
    for one in definition.fuzzers:
        fuzzer_state = runner.fuzzer_state(one.name)
        assert one.budget.seconds is not None
        assert one.budget.seconds - SHORTEST < fuzzer_state.seconds <= one.budget.seconds + one.slice
        assert harvested[one.name] <= bench.units(one.name)
    closed = [(entry.subject, entry.slice) for entry in bench.of(Closed)]
    assert len(closed) == len(set(closed))
    attempts = [(entry.subject, entry.slice, entry.attempt) for entry in bench.of(Started)]
    assert len(attempts) == len(set(attempts))
    assert state.interrupted() == []
