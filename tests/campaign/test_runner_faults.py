"""A campaign whose fuzzers, guests and host have faults."""

import errno
import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from pipeline.campaign.ledger import Crashed, Ended, LedgerEntry, Started
from pipeline.campaign.plan.definition import Budget, FuzzerPlan
from pipeline.campaign.state import State
from pipeline.errors import BootError, StoreError
from pipeline.fuzz.crashes.store import CrashStore
from pipeline.settings import CampaignSettings
from tests.campaign.bench import A, B, Bench, C, interrupted, plan
from tests.campaign.scripted import PANIC, Behaviour, ScriptedSite


class TestFaults:
    def test_a_fuzzer_that_crashes_goes_on_and_its_crash_is_kept(self, bench: Bench) -> None:
        bench.world.behaviours[A] = Behaviour(crash="boom", after=5)
        runner = bench.runner(bench.definition(plan()))
        runner.run()
        assert bench.fuzzer_state(A, plan()).seconds == 60
        assert {entry.result for entry in bench.of(Ended)} == {"crash"}
        (found,) = runner.buckets()
        assert (found.bucket.count, found.bucket.fuzzer, found.state, found.present, found.earlier) == (
            *(12, A, "new"),
            *(12, 0),
        )
        assert {name: seen.count for name, seen in found.bucket.campaigns.items()} == {"nightly": 12}
        assert {name: seen.count for name, seen in found.bucket.builds.items()} == {"build": 12}
        (kept,) = (bench.store.crashes / A).glob("*/*/input")
        assert kept.parents[1] == found.directory
        assert kept.read_bytes() == b"boom"

    def test_a_crash_is_stored_when_it_is_reported_before_the_fuzzer_ends(self, bench: Bench) -> None:
        bench.world.behaviours[A] = Behaviour(crash="boom", after=20)
        runner, stored = bench.runner(bench.definition(plan(seconds=20))), threading.Event()
        real: Callable[[LedgerEntry], None] = runner.note

        def note(entry: LedgerEntry) -> None:
            real(entry)
            if isinstance(entry, Crashed):
                stored.set()

        runner.note = note  # type: ignore[method-assign]
        seen: list[int] = []
        bench.world.on_found = lambda: seen.append(len(runner.buckets()) if stored.wait(10) else 0)
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
            context.setattr(CrashStore, "add", full)
            with pytest.raises(StoreError, match="No space left"):
                bench.run(bench.definition(plan()))
        assert [(entry.result, entry.seconds) for entry in bench.of(Ended)] == [("host", 5)]
        bench.run(bench.definition(plan()))
        assert bench.fuzzer_state(A, plan()).seconds == 60

    def test_a_dictionary_of_its_own_is_the_only_one(
        self, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also for the canary's fuzzer, which ran in the same guest with that of its package."""
        sizes = ScriptedSite.sizes
        package = {"pkg": {"a.dict": 1}, "pkg/corpus": {"seed": 1}}
        monkeypatch.setattr(ScriptedSite, "sizes", lambda self, where: package.get(where) or sizes(self, where))
        (tmp_path / "own.dict").write_text('"x"\n')
        bench.chosen = CampaignSettings(canary_crash=A, canary_clean=B)
        bench.world.behaviours[A] = Behaviour(crash="boom")
        bench.run(bench.definition(FuzzerPlan(A, Budget(20), 20, dictionary=tmp_path / "own.dict")))
        ran = [words for fuzzer, words in bench.world.runs if fuzzer == A and "-print_final_stats=1" in words]
        told = [[word for word in words if word.startswith("-dict=")] for words in ran]
        assert told[0] == ["-dict=pkg/a.dict"]
        assert {tuple(one) for one in told[1:]} == {("-dict=data/dictionary",)}
        assert all([word for word in words if not word.startswith("-")][-1] == "pkg/corpus" for words in ran)

    def test_a_guest_that_dies_is_replaced_and_the_fuzzer_benched_in_the_end(self, bench: Bench) -> None:
        bench.world.behaviours[A] = Behaviour(fate="dies", after=2)
        bench.world.merged_part = 1.0
        runner = bench.runner(bench.definition(plan(A), plan(B)))
        state = runner.run()
        assert [entry.result for entry in bench.of(Ended) if entry.subject.fuzzer == A] == ["guest died"] * 3
        assert len(state.boots) == 4
        assert bench.fuzzer_state(B, plan(B)).seconds == 60
        assert runner.status().fuzzers[0].benched.startswith("3 failures in a row, the last one: ")

    def test_of_a_guest_that_has_ended_what_the_host_knows_is_told(self, bench: Bench) -> None:
        """Of the connection that broke the user can make nothing."""
        bench.world.behaviours[A] = Behaviour(fate="dies")
        bench.run(bench.definition(plan()))
        assert [entry.reason.partition("; it said last")[0] for entry in bench.of(Ended)] == [
            f"{PANIC}; the guest does not answer"
        ] * 3
        assert f"the last one: {PANIC}; the guest does not answer" in bench.fuzzer_state(A, plan()).benched

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
        assert bench.fuzzer_state(B, plan(B)).seconds == 60

    def test_one_that_ends_itself_has_not_succeeded(self, bench: Bench) -> None:
        bench.world.behaviours[A] = Behaviour(fate="leaves", after=2)
        bench.run(bench.definition(plan(A), plan(B)))
        ended = [entry for entry in bench.of(Ended) if entry.subject.fuzzer == A]
        assert [entry.result for entry in ended] == ["failed"] * 3
        assert "it ended by itself, before its time or its runs were over, and reported nothing" in ended[0].reason
        assert bench.fuzzer_state(B, plan(B)).seconds == 60

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
        bench.chosen = CampaignSettings(canary="off", harvest=0.001)
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
        bench.chosen = CampaignSettings(canary_crash=B, canary_clean=C)
        bench.world.unbootable = 99
        with pytest.raises(BootError, match="it panicked"):
            bench.run(bench.definition(plan()))
        assert [boot.failure for boot in State.of(bench.entries).boots] == ["panic"]

    def test_a_boot_that_fails_once_is_no_matter(self, bench: Bench) -> None:
        bench.world.unbootable = 2
        bench.run(bench.definition(plan()))
        assert bench.fuzzer_state(A, plan()).seconds == 60

    def test_ten_gigabytes_of_output_are_cut(self, bench: Bench) -> None:
        bench.chosen = CampaignSettings(canary="off", output_size=4096)
        bench.world.behaviours[A] = Behaviour(said=b"x" * (1 << 24), crash="boom", after=30)
        runner = bench.runner(bench.definition(plan(seconds=20)))
        runner.run()
        (output,) = bench.store.crashes.glob("*/*/*/*/output.txt")
        assert output.stat().st_size < 10_000

    def test_interrupted_it_takes_in_what_runs_and_goes_on_later(self, bench: Bench) -> None:
        runner = bench.runner(bench.definition(plan(A), plan(B)))
        bench.world.on_run = lambda _: runner.stop()
        runner.run()
        assert runner.status().state == "stopped"
        assert bench.units(A) == set(bench.world.found[A])
        bench.world.on_run = None
        bench.run(bench.definition(plan(A), plan(B)))
        assert bench.fuzzer_state(A, plan()).seconds == 60

    def test_what_fetches_the_units_after_a_run_is_not_halted(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """To halt is to kill all that works in the fuzzer's directory."""
        runner, fetch = bench.runner(bench.definition(plan(A))), ScriptedSite.fetch
        stops: list[object] = []

        def stopped(guest_fuzzer: ScriptedSite, directory: str, names: Collection[str], into: Path) -> None:
            runner.stop()
            fetch(guest_fuzzer, directory, names, into)

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
