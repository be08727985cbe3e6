"""A campaign with guests of a script: budgets, merges, the canary."""

from pathlib import Path

import pytest

from pipeline.campaign.ledger import Booted, Closed, Ended, Merged, Proved, Started
from pipeline.campaign.plan.definition import Budget, FuzzerPlan
from pipeline.campaign.result import RESULT
from pipeline.campaign.schedule import Only
from pipeline.errors import CampaignError, NotProved
from pipeline.fuzz.corpus import Corpus
from pipeline.settings import CampaignSettings
from tests.campaign.bench import A, B, Bench, C, Killed, kill, plan
from tests.campaign.scripted import Behaviour


class TestBudget:
    @pytest.mark.parametrize("workers", [1, 2, 5])
    def test_every_budget_is_used_in_slices(self, bench: Bench, workers: int) -> None:
        bench.run(bench.definition(plan(A), plan(B, 50), plan(C, 5)), workers)
        assert [bench.fuzzer_state(name, one).seconds for name, one in ((A, plan(A)), (B, plan(B)), (C, plan(C)))] == [
            60,
            50,
            5,
        ]
        assert {(entry.subject.fuzzer, entry.slice) for entry in bench.of(Closed)} == {
            *((A, number) for number in (1, 2, 3)),
            *((B, number) for number in (1, 2, 3)),
            (C, 1),
        }

    def test_a_budget_of_runs(self, bench: Bench) -> None:
        bench.run(bench.definition(plan(A, runs=50_000)))
        assert bench.fuzzer_state(A, plan(A)).executions == 50_000
        assert [entry.executions for entry in bench.of(Ended)] == [20_000, 20_000, 10_000]

    def test_nothing_is_done_twice(self, bench: Bench) -> None:
        definition = bench.definition(plan())
        bench.run(definition)
        runs = len(bench.world.runs)
        bench.run(definition)
        assert len(bench.world.runs) == runs

    def test_more_budget_goes_on(self, bench: Bench) -> None:
        bench.run(bench.definition(plan(seconds=40)))
        bench.run(bench.definition(plan(seconds=100)))
        assert [(entry.slice, entry.seconds) for entry in bench.of(Ended)] == [(number, 20) for number in range(1, 6)]

    def test_a_new_build_of_one_makes_only_its_slices_stale(self, bench: Bench) -> None:
        definition = bench.definition(plan(A), plan(B))
        bench.run(definition)
        bench.builds[B] = "new build"
        bench.world.runs.clear()
        bench.run(definition)
        assert {fuzzer for fuzzer, _ in bench.world.runs} == {B}
        assert bench.fuzzer_state(B, plan(B), "new build").seconds == 60

    def test_seeds_differ_and_are_the_same_in_another_run(self, bench: Bench, tmp_path: Path) -> None:
        bench.run(bench.definition(plan()))
        again = Bench(tmp_path / "again")
        again.run(again.definition(plan()))
        other = Bench(tmp_path / "other")
        other.run(other.definition(plan(), seed=2))
        seeds = [entry.seed for entry in bench.of(Started)]
        assert len(set(seeds)) == 3
        assert seeds == [entry.seed for entry in again.of(Started)]
        assert not set(seeds) & {entry.seed for entry in other.of(Started)}

    def test_a_corpus_remembers_that_a_campaign_counts_more_as_covered(self, bench: Bench) -> None:
        bench.world.behaviours[A] = Behaviour(units=4)
        bench.run(bench.definition(FuzzerPlan(A, Budget(5), 5, options=(("use_value_profile", "1"),))))
        bench.run(bench.definition(FuzzerPlan(A, Budget(5), 5)))
        words = [words for _, words in bench.world.runs if "-merge=1" in words]
        assert len(words) == 2
        assert all("-use_value_profile=1" in merge for merge in words)

    def test_the_seeds_of_the_definition_come_into_the_corpus(self, bench: Bench, tmp_path: Path) -> None:
        bench.world.merged_part = 1.0
        (tmp_path / "seeds").mkdir()
        (tmp_path / "seeds/one").write_bytes(b"one")
        bench.run(bench.definition(FuzzerPlan(A, Budget(5), 5, seeds=(tmp_path / "seeds",))))
        sources = {unit.source for unit in Corpus.of(bench.store.root, A).units().values()}
        assert "seed" in sources

    def test_a_piece_by_itself(self, bench: Bench) -> None:
        definition = bench.definition(plan())
        bench.runner(definition, only=Only(A, 2)).run()
        assert [(entry.slice, entry.reason) for entry in bench.of(Closed)] == [(2, "time")]
        bench.runner(definition, only=Only(A, None)).run()
        assert len(bench.of(Merged)) == 1
        bench.run(definition)
        assert bench.fuzzer_state(A, plan()).seconds == 60

    def test_a_piece_for_which_no_budget_is_left_is_refused(self, bench: Bench) -> None:
        definition = bench.definition(plan())
        bench.run(definition)
        with pytest.raises(CampaignError, match=f"nothing of the budget of {A} is left for slice 99"):
            bench.runner(definition, only=Only(A, 99)).run()
        assert [entry.slice for entry in bench.of(Closed)] == [1, 2, 3]

    def test_what_it_takes_besides_is_no_time_of_the_budget(self, bench: Bench) -> None:
        bench.world.slow = 1.5
        state = bench.run(bench.definition(plan()))
        assert (bench.fuzzer_state(A, plan()).seconds, state.besides) == (60, 4.5)


class TestMerge:
    def test_a_corpus_is_merged_at_the_end(self, bench: Bench) -> None:
        bench.world.behaviours[A] = Behaviour(units=4)
        bench.run(bench.definition(plan()))
        (merged,) = bench.of(Merged)
        assert (merged.before, merged.after, merged.accepted) == (12, 6, True)
        assert len(bench.units(A)) == 6

    def test_one_that_is_ended_early_is_made_another_time(self, bench: Bench) -> None:
        runner = bench.runner(bench.definition(plan(seconds=20)))
        bench.world.on_run = lambda _: runner.stop() if len(bench.world.runs) == 2 else None
        bench.world.behaviours[A] = Behaviour(units=4)
        bench.world.refuses_merge = True
        runner.run()
        assert bench.of(Merged) == []
        bench.world.on_run, bench.world.refuses_merge = None, False
        bench.run(bench.definition(plan(seconds=20)))
        assert len(bench.of(Merged)) == 1

    def test_one_that_leaves_little_is_confirmed_by_another_boot(self, bench: Bench) -> None:
        bench.world.merged_part = 0.25
        bench.world.behaviours[A] = Behaviour(units=4)
        bench.run(bench.definition(plan(), plan(B)), workers=2)
        by_a, by_b = sorted(bench.of(Merged), key=lambda one: str(one.subject.fuzzer))
        assert (by_a.before, by_a.after, by_a.accepted, by_b.after) == (12, 3, True, 1)
        boots = {boot.boot_id: boot.why for boot in bench.of(Booted)}
        assert boots[by_a.confirmed_by] == f"{A}: it is to confirm the merge of another boot"
        assert boots[by_b.confirmed_by] == f"{B}: it is to confirm the merge of another boot"
        started = {one.boot_id for one in bench.of(Started)}
        assert started.isdisjoint({by_a.confirmed_by, by_b.confirmed_by}), "they have run nothing before"

    def test_a_boot_that_is_to_confirm_and_fails_is_tried_again(self, bench: Bench) -> None:
        bench.world.merged_part = 0.25
        bench.world.behaviours[A] = Behaviour(units=4)

        def fail(_: str) -> None:
            bench.world.unbootable = len([boot for boot in bench.of(Booted) if boot.failure]) < 2

        bench.world.on_run = fail
        bench.run(bench.definition(plan()))
        (merged,) = bench.of(Merged)
        assert (merged.accepted, len(bench.units(A))) == (True, 3)
        assert [boot.failure for boot in bench.of(Booted)].count("panic") == 2

    def test_one_that_is_ended_while_it_is_confirmed_is_made_another_time(self, bench: Bench) -> None:
        bench.world.merged_part = 0.25
        bench.world.behaviours[A] = Behaviour(units=4)
        runner = bench.runner(bench.definition(plan()))

        def measured() -> int:
            return sum("-runs=0" in words for _, words in bench.world.runs)

        bench.world.on_run = lambda _: runner.stop() if measured() == 3 else None
        runner.run()
        assert (measured(), set(bench.world.stopped)) == (3, {"boot1"}), "and that is where it is ended"
        bench.world.on_run = None
        assert (bench.of(Merged), len(bench.units(A))) == ([], 12)
        bench.run(bench.definition(plan()))
        assert [merged.accepted for merged in bench.of(Merged)] == [True]

    def test_it_is_not_merged_again(self, bench: Bench) -> None:
        bench.run(bench.definition(plan()))
        bench.run(bench.definition(plan()))
        assert len(bench.of(Merged)) == 1


class TestCanary:
    def test_it_is_looked_for_once_on_a_host(self, bench: Bench) -> None:
        bench.chosen = CampaignSettings(canary_crash=B, canary_clean=C)
        bench.world.behaviours[B] = Behaviour(crash="boom")
        bench.run(bench.definition(plan(A)))
        bench.run(bench.definition(plan(A)))
        (proved,) = bench.of(Proved)
        assert (proved.proved, proved.reason) == (True, "")

    def test_without_the_crash_the_campaign_stops(self, bench: Bench) -> None:
        bench.chosen = CampaignSettings(canary_crash=B, canary_clean=C)
        with pytest.raises(NotProved, match=f"the canary was not found: {B} did not crash"):
            bench.run(bench.definition(plan(A)))
        assert bench.of(Started) == []

    def test_a_clean_one_that_crashes_is_told(self, bench: Bench) -> None:
        bench.chosen = CampaignSettings(canary_crash=B, canary_clean=C)
        bench.world.behaviours |= {B: Behaviour(crash="boom"), C: Behaviour(crash="bang")}
        with pytest.raises(NotProved, match=f"{C}, which never fails, failed: crash"):
            bench.run(bench.definition(plan(A)))

    def test_unproved_results_are_marked(self, bench: Bench) -> None:
        bench.chosen = CampaignSettings(canary="warn", canary_crash=B, canary_clean=C)
        runner = bench.runner(bench.definition(plan(A)))
        runner.run()
        assert runner.status().proved is False
        assert "did not crash" in runner.status().unproved


class TestResult:
    def test_one_that_is_there_goes_before_anything_is_done(self, bench: Bench) -> None:
        """Else a campaign that is prolonged, and killed before its merge, would count as done with the old result."""
        runner = bench.runner(bench.definition(plan()))
        runner.directory.mkdir(parents=True)
        (runner.directory / RESULT).write_text("{}")
        kill(runner, 1, before=True)
        with pytest.raises(Killed):
            runner.run()
        assert not (runner.directory / RESULT).exists()
