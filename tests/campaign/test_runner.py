"""A campaign with guests of a script: budgets, faults, and kills at any moment."""

import errno
import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline import ledger
from pipeline.campaign.budget import SHORTEST
from pipeline.campaign.definition import Budget, Definition, FuzzerPlan
from pipeline.campaign.result import RESULT
from pipeline.campaign.runner import Only, Runner
from pipeline.campaign.state import State
from pipeline.campaign.subjects import Subjects
from pipeline.corpus import Corpus
from pipeline.crashes.vault import Vault
from pipeline.errors import BootError, CampaignError, NotProved, StoreError
from pipeline.ledger import Closed, Crashed, Ended, Entry, Merged, Proved, Started, Subject
from pipeline.settings import Campaign, Store
from tests.campaign.scripted import PANIC, Behaviour, ScriptedGuests, ScriptedSite, World

A, B, C = "fuzzers/a", "fuzzers/b", "fuzzers/c"
CHOSEN = Campaign(canary="off", harvest=3600.0)


class Killed(BaseException):
    """The process is gone."""


class Bench:
    """A store, and campaigns on it."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.world = World()
        self.chosen = CHOSEN
        self.builds: dict[str, str] = {}

    def definition(self, *plans: FuzzerPlan, seed: int = 1, name: str = "nightly") -> Definition:
        return Definition(name, seed, "gain", tuple(sorted(plans, key=lambda plan: plan.name)))

    def runner(
        self, definition: Definition, workers: int = 1, only: Only | None = None, whole: str = "whole"
    ) -> Runner:
        subjects = {
            plan.name: Subject(plan.name, self.builds.get(plan.name, "build"), plan.digest())
            for plan in definition.fuzzers
        }
        found = Subjects(subjects, whole)
        guests = ScriptedGuests(self.world)
        return Runner(definition, found, guests, self.store, self.chosen, workers, only, self.world.clock)

    def run(self, definition: Definition, workers: int = 1) -> State:
        return self.runner(definition, workers).run()

    @property
    def entries(self) -> list[Entry]:
        return list(ledger.read(self.store.campaigns / "nightly/ledger.jsonl"))

    def of(self, kind: type[Any]) -> list[Any]:
        return [entry for entry in self.entries if isinstance(entry, kind)]

    def standing(self, name: str, plan: FuzzerPlan, build: str = "build") -> Any:
        return State.of(self.entries).standing(Subject(name, build, plan.digest()))

    def units(self, name: str) -> set[str]:
        return set(Corpus.of(self.store.root, name).units())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def plan(name: str = A, seconds: int | None = 60, slice_: int = 20, runs: int | None = None) -> FuzzerPlan:
    return FuzzerPlan(name, Budget(None if runs else seconds, runs), slice_)


def interrupted(runner: Runner) -> None:
    """A tick during which somebody presses Ctrl-C, once something runs."""
    if runner.active:
        raise KeyboardInterrupt


def kill(runner: Runner, at: int, before: bool = False) -> None:
    """Have its process end with the entry of this number: just before it is written, or just after."""
    real: Callable[[Entry], None] = runner.note
    written = 0

    def note(entry: Entry) -> None:
        nonlocal written
        written += 1
        if written > at or (before and written == at):
            raise Killed
        real(entry)
        if written == at:
            raise Killed

    runner.note = note  # type: ignore[method-assign]


class TestBudget:
    @pytest.mark.parametrize("workers", [1, 2, 5])
    def test_every_budget_is_used_in_slices(self, bench: Bench, workers: int) -> None:
        bench.run(bench.definition(plan(A), plan(B, 50), plan(C, 5)), workers)
        assert [bench.standing(name, one).seconds for name, one in ((A, plan(A)), (B, plan(B)), (C, plan(C)))] == [
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
        assert bench.standing(A, plan(A)).executions == 50_000
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
        assert bench.standing(B, plan(B), "new build").seconds == 60

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
        assert bench.standing(A, plan()).seconds == 60

    def test_a_piece_for_which_no_budget_is_left_is_refused(self, bench: Bench) -> None:
        definition = bench.definition(plan())
        bench.run(definition)
        with pytest.raises(CampaignError, match=f"nothing of the budget of {A} is left for slice 99"):
            bench.runner(definition, only=Only(A, 99)).run()
        assert [entry.slice for entry in bench.of(Closed)] == [1, 2, 3]

    def test_what_it_takes_besides_is_no_time_of_the_budget(self, bench: Bench) -> None:
        bench.world.slow = 1.5
        state = bench.run(bench.definition(plan()))
        assert (bench.standing(A, plan()).seconds, state.besides) == (60, 4.5)


class TestFaults:
    def test_a_fuzzer_that_crashes_goes_on_and_its_crash_is_kept(self, bench: Bench) -> None:
        bench.world.behaviours[A] = Behaviour(crash="boom", after=5)
        runner = bench.runner(bench.definition(plan()))
        runner.run()
        assert bench.standing(A, plan()).seconds == 60
        assert {entry.result for entry in bench.of(Ended)} == {"crash"}
        (group,) = runner.groups()
        assert (group.count, list(group.fuzzers)) == (12, [A])
        (kept,) = (runner.directory / "crashes").glob("*/*/input")
        assert kept.read_bytes() == b"boom"

    def test_a_crash_is_stored_when_it_is_reported_before_the_fuzzer_ends(self, bench: Bench) -> None:
        bench.world.behaviours[A] = Behaviour(crash="boom", after=20)
        runner, stored = bench.runner(bench.definition(plan(seconds=20))), threading.Event()
        real: Callable[[Entry], None] = runner.note

        def note(entry: Entry) -> None:
            real(entry)
            if isinstance(entry, Crashed):
                stored.set()

        runner.note = note  # type: ignore[method-assign]
        seen: list[int] = []
        bench.world.on_crash = lambda: seen.append(len(runner.groups()) if stored.wait(10) else 0)
        runner.run()
        assert seen == [1]
        assert len(bench.of(Crashed)) == 1

    def test_a_crash_that_cannot_be_stored_ends_it_and_its_attempt(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise StoreError("storing a crash: No space left on device", hint="")

        bench.world.behaviours[A] = Behaviour(crash="boom", after=5)
        with monkeypatch.context() as context:
            context.setattr(Vault, "add", full)
            with pytest.raises(StoreError, match="No space left"):
                bench.run(bench.definition(plan()))
        assert [(entry.result, entry.seconds) for entry in bench.of(Ended)] == [("host", 5)]
        bench.run(bench.definition(plan()))
        assert bench.standing(A, plan()).seconds == 60

    def test_a_dictionary_of_its_own_is_the_only_one(
        self, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also for the canary's fuzzer, which ran in the same guest with that of its package."""
        sizes = ScriptedSite.sizes
        package = {"pkg": {"a.dict": 1}, "pkg/corpus": {"seed": 1}}
        monkeypatch.setattr(ScriptedSite, "sizes", lambda self, where: package.get(where) or sizes(self, where))
        (tmp_path / "own.dict").write_text('"x"\n')
        bench.chosen = Campaign(canary_crash=A, canary_clean=B)
        bench.world.behaviours[A] = Behaviour(crash="boom")
        bench.run(bench.definition(FuzzerPlan(A, Budget(20), 20, dictionary=tmp_path / "own.dict")))
        ran = [words for fuzzer, words in bench.world.runs if fuzzer == A and "-print_final_stats=1" in words]
        told = [[word for word in words if word.startswith("-dict=")] for words in ran]
        assert told[0] == ["-dict=pkg/a.dict"]
        assert {tuple(one) for one in told[1:]} == {("-dict=data/dictionary",)}
        assert all(words[-1] == "pkg/corpus" for words in ran)

    def test_a_guest_that_dies_is_replaced_and_the_fuzzer_benched_in_the_end(self, bench: Bench) -> None:
        bench.world.behaviours[A] = Behaviour(fate="dies", after=2)
        runner = bench.runner(bench.definition(plan(A), plan(B)))
        state = runner.run()
        assert [entry.result for entry in bench.of(Ended) if entry.subject.fuzzer == A] == ["guest died"] * 3
        assert len(state.boots) == 4
        assert bench.standing(B, plan(B)).seconds == 60
        assert runner.status().fuzzers[0].benched.startswith("3 failures in a row, the last one: ")

    def test_of_a_guest_that_has_ended_what_the_host_knows_is_told(self, bench: Bench) -> None:
        """Of the connection that broke the user can make nothing."""
        bench.world.behaviours[A] = Behaviour(fate="dies")
        bench.run(bench.definition(plan()))
        assert [entry.reason.partition("; it said last")[0] for entry in bench.of(Ended)] == [
            f"{PANIC}; the guest does not answer"
        ] * 3
        assert f"the last one: {PANIC}; the guest does not answer" in bench.standing(A, plan()).benched

    def test_a_guest_whose_disk_a_fuzzer_has_filled_is_nobody_elses(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench.world.behaviours[A] = Behaviour(fate="fills", after=20)
        bench.run(bench.definition(plan(A, seconds=20), plan(B, seconds=20)))
        guests = {entry.subject.fuzzer: entry.instance for entry in bench.of(Started)}
        assert guests[A] != guests[B]
        assert {entry.result for entry in bench.of(Ended)} == {"done"}
        assert len(State.of(bench.entries).boots) == 2, "none only to close the slice"
        assert f"{guests[A]}, after {A}: 0 B are left on its disk of 237 MiB" in caplog.messages

    @pytest.mark.parametrize(("fate", "result"), [("hangs", "hang"), ("fails", "failed")])
    def test_a_fuzzer_that_fails_is_benched(self, bench: Bench, fate: str, result: str) -> None:
        bench.world.behaviours[A] = Behaviour(fate=fate)
        bench.run(bench.definition(plan(A), plan(B)))
        assert [entry.result for entry in bench.of(Ended) if entry.subject.fuzzer == A] == [result] * 3
        assert bench.standing(B, plan(B)).seconds == 60

    def test_one_that_ends_itself_has_not_succeeded(self, bench: Bench) -> None:
        bench.world.behaviours[A] = Behaviour(fate="leaves", after=2)
        bench.run(bench.definition(plan(A), plan(B)))
        ended = [entry for entry in bench.of(Ended) if entry.subject.fuzzer == A]
        assert [entry.result for entry in ended] == ["failed"] * 3
        assert "it ended by itself, before its time or its runs were over, and reported nothing" in ended[0].reason
        assert bench.standing(B, plan(B)).seconds == 60

    @pytest.mark.parametrize(
        "last",
        [
            b"Done 9 runs in 2 second(s)\n",
            b"stat::number_of_executed_units: 9\n",
            b"INFO: found line matching 'maze.c:5', exiting.\n",
            b"INFO: found item with checksum 'ab', exiting.\n",
        ],
    )
    def test_one_that_ends_as_libfuzzer_does_has(self, bench: Bench, last: bytes) -> None:
        """Without its time being over: -verbosity=0 leaves out "Done", -exit_on_item all of it."""
        bench.world.behaviours[A] = Behaviour(fate="leaves", after=20, last=last)
        bench.run(bench.definition(plan(A)))
        assert {entry.result for entry in bench.of(Ended)} == {"done"}

    def test_what_went_on_is_warned_of_once(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        bench.world.behaviours[A] = behaviour = Behaviour()

        def finds(_: str) -> None:  # not in its first run
            if len(bench.world.runs) > 1:
                behaviour.said = b"a.c:1:2: runtime error: shift exponent 40 is too large\n"

        bench.world.on_run = finds
        bench.run(bench.definition(plan(A)))
        told = "it went on after a runtime error: shift exponent 40 is too large"
        assert [entry.reason for entry in bench.of(Ended)] == ["", told, told]
        assert len([one for one in caplog.messages if "nothing is kept of that" in one]) == 1

    @pytest.mark.parametrize("fate", ["fails", "leaves"])
    def test_what_a_failed_attempt_said_last_is_kept_and_told(self, bench: Bench, fate: str) -> None:
        kept_size = 64 << 10
        long = b"".join(b"%07d\n" % number for number in range(kept_size // 8))
        bench.world.behaviours[A] = Behaviour(fate=fate, last=long + b"one\n\033[31mFUZZ_MODE\033[0m must be set\n\n")
        runner = bench.runner(bench.definition(plan(A)))
        runner.run()
        (status,) = runner.status().fuzzers
        last = f"it said last: {kept_size // 8 - 1:07} | one | FUZZ_MODE must be set (failures/{A}/1.3.txt)"
        assert status.benched.endswith(last)
        kept = sorted((runner.directory / "failures" / A).iterdir())
        assert [path.name for path in kept] == ["1.1.txt", "1.2.txt", "1.3.txt"]
        assert {path.stat().st_size for path in kept} == {kept_size}

    def test_a_disk_that_takes_no_last_words_hides_no_failure(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("pipeline.campaign.failures.publish_bytes", full)
        bench.world.behaviours[A] = Behaviour(fate="fails", last=b"FUZZ_MODE must be set\n")
        bench.run(bench.definition(plan(A)))
        assert {entry.result for entry in bench.of(Ended)} == {"failed"}
        assert all(entry.reason.endswith(" | FUZZ_MODE must be set") for entry in bench.of(Ended))
        assert "keeping what a fuzzer said last" in caplog.text

    def test_units_of_a_guest_that_dies_were_harvested_before(self, bench: Bench) -> None:
        bench.chosen = Campaign(canary="off", harvest=0.001)
        bench.world.behaviours[A] = Behaviour(units=3)
        bench.run(bench.definition(plan()))
        assert bench.units(A) <= set(bench.world.found[A])

    def test_an_artifact_that_is_refused_does_not_keep_the_units_away(self, bench: Bench) -> None:
        bench.world.merged_part = 1.0
        bench.world.behaviours[A] = Behaviour(reports="forbidden/x")
        bench.run(bench.definition(plan()))
        assert bench.units(A) == set(bench.world.found[A])

    def test_no_guest_can_be_booted(self, bench: Bench) -> None:
        bench.world.unbootable = 99
        with pytest.raises(BootError, match="it panicked"):
            bench.run(bench.definition(plan()))
        assert [boot.failure for boot in State.of(bench.entries).boots] == ["panic"] * 3

    def test_no_guest_can_be_booted_for_the_canary(self, bench: Bench) -> None:
        bench.chosen = Campaign(canary_crash=B, canary_clean=C)
        bench.world.unbootable = 99
        with pytest.raises(BootError, match="it panicked"):
            bench.run(bench.definition(plan()))
        assert [boot.failure for boot in State.of(bench.entries).boots] == ["panic"]

    def test_a_boot_that_fails_once_is_no_matter(self, bench: Bench) -> None:
        bench.world.unbootable = 2
        bench.run(bench.definition(plan()))
        assert bench.standing(A, plan()).seconds == 60

    def test_ten_gigabytes_of_output_are_cut(self, bench: Bench) -> None:
        bench.chosen = Campaign(canary="off", output_size=4096)
        bench.world.behaviours[A] = Behaviour(said=b"x" * (1 << 24), crash="boom", after=30)
        runner = bench.runner(bench.definition(plan(seconds=20)))
        runner.run()
        (output,) = (runner.directory / "crashes").glob("*/*/output.txt")
        assert output.stat().st_size < 10_000

    def test_interrupted_it_takes_in_what_runs_and_goes_on_later(self, bench: Bench) -> None:
        runner = bench.runner(bench.definition(plan(A), plan(B)))
        bench.world.on_run = lambda _: runner.stop()
        runner.run()
        assert runner.status().state == "stopped"
        assert bench.units(A) == set(bench.world.found[A])
        bench.world.on_run = None
        bench.run(bench.definition(plan(A), plan(B)))
        assert bench.standing(A, plan()).seconds == 60

    def test_what_fetches_the_units_after_a_run_is_not_halted(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """To halt is to kill all that works in the fuzzer's directory."""
        runner, fetch = bench.runner(bench.definition(plan(A))), ScriptedSite.fetch
        stops: list[object] = []

        def stopped(site: ScriptedSite, directory: str, names: Collection[str], into: Path) -> None:
            runner.stop()
            fetch(site, directory, names, into)

        monkeypatch.setattr(ScriptedSite, "fetch", stopped)
        monkeypatch.setattr(ScriptedSite, "stop", stops.append)
        runner.run()
        assert stops == []
        assert bench.units(A) == set(bench.world.found[A])

    def test_what_was_about_to_start_is_halted_again(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipeline.campaign.runner.HALT_AGAIN", 0.01)
        runner, halts, heard = bench.runner(bench.definition(plan(A))), [], threading.Event()
        real = runner.stop

        def stop() -> None:
            real()
            halts.append(1)
            if len(halts) > 2:
                heard.set()

        runner.stop = stop  # type: ignore[method-assign]

        def starts(_: str) -> None:  # deaf to the first one
            runner.stop()
            assert heard.wait(10)

        bench.world.on_run = starts
        with pytest.raises(KeyboardInterrupt):
            runner.run(interrupted, 0.01)
        assert [entry.result for entry in bench.of(Ended)] == ["stopped"]


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

    def test_it_is_not_merged_again(self, bench: Bench) -> None:
        bench.run(bench.definition(plan()))
        bench.run(bench.definition(plan()))
        assert len(bench.of(Merged)) == 1


class TestCanary:
    def test_it_is_looked_for_once_on_a_host(self, bench: Bench) -> None:
        bench.chosen = Campaign(canary_crash=B, canary_clean=C)
        bench.world.behaviours[B] = Behaviour(crash="boom")
        bench.run(bench.definition(plan(A)))
        bench.run(bench.definition(plan(A)))
        (proved,) = bench.of(Proved)
        assert (proved.proved, proved.reason) == (True, "")

    def test_without_the_crash_the_campaign_stops(self, bench: Bench) -> None:
        bench.chosen = Campaign(canary_crash=B, canary_clean=C)
        with pytest.raises(NotProved, match=f"the canary was not found: {B} did not crash"):
            bench.run(bench.definition(plan(A)))
        assert bench.of(Started) == []

    def test_a_clean_one_that_crashes_is_told(self, bench: Bench) -> None:
        bench.chosen = Campaign(canary_crash=B, canary_clean=C)
        bench.world.behaviours |= {B: Behaviour(crash="boom"), C: Behaviour(crash="bang")}
        with pytest.raises(NotProved, match=f"{C}, which never fails, failed: crash"):
            bench.run(bench.definition(plan(A)))

    def test_unproved_results_are_marked(self, bench: Bench) -> None:
        bench.chosen = Campaign(canary="warn", canary_crash=B, canary_clean=C)
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


class TestKilled:
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
        standing = runner.standing(one.name)
        assert one.budget.seconds is not None
        assert one.budget.seconds - SHORTEST < standing.seconds <= one.budget.seconds + one.slice
        assert harvested[one.name] <= bench.units(one.name)
    closed = [(entry.subject, entry.slice) for entry in bench.of(Closed)]
    assert len(closed) == len(set(closed))
    attempts = [(entry.subject, entry.slice, entry.attempt) for entry in bench.of(Started)]
    assert len(attempts) == len(set(attempts))
    assert state.interrupted() == []
