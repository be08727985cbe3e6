"""Which crashes of a campaign have their guest kept, and what becomes of the attempt: with scripted guests."""

import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.campaign import guests
from pipeline.campaign.ledger import Benched, Crashed, Ended, Started
from pipeline.errors import StoreError
from pipeline.vm.capsule import FACTS, NAME, CrashedProcess
from pipeline.vm.qemu.capturing import GuestLostError, NotCapturedError
from tests.campaign.bench import A, B, Bench, plan
from tests.campaign.scripted import Behaviour
from tests.waiting import eventually


@pytest.fixture
def keeping(bench: Bench) -> Bench:
    bench.chosen = replace(bench.chosen, capsule="first")
    bench.world.behaviours[A] = Behaviour(crash="f", sleeper=118)
    return bench


def kept(bench: Bench) -> list[str]:
    return sorted(str(file.parent.relative_to(bench.store.crashes)) for file in bench.store.crashes.rglob(FACTS))


def test_the_first_crash_of_a_bucket(keeping: Bench) -> None:
    keeping.run(keeping.definition(plan(seconds=3, slice_=3)))
    crashes = keeping.of(Crashed)
    assert len(crashes) == 3
    assert [crash.new for crash in crashes] == [True, False, False]
    assert keeping.world.captured == [CrashedProcess(A, 118)]
    assert kept(keeping) == [f"{A}/{crashes[0].group}/1/{NAME}"]


def test_one_that_sleeps_is_ended_and_its_time_is_that_of_the_crash(keeping: Bench) -> None:
    keeping.world.capturing = lambda _: keeping.world.clock.pass_(50.0)
    keeping.run(keeping.definition(plan(seconds=3, slice_=3)))
    assert [(ended.result, ended.seconds) for ended in keeping.of(Ended)] == [("crash", 1.0)] * 3
    assert len(keeping.world.stopped) >= 3


def test_without_the_setting_nothing_sleeps(bench: Bench) -> None:
    bench.world.behaviours[A] = Behaviour(crash="f", sleeper=118)
    bench.run(bench.definition(plan(seconds=3, slice_=3)))
    assert {ended.result for ended in bench.of(Ended)} == {"crash"}
    assert (bench.world.captured, kept(bench)) == ([], [])


def test_a_process_that_does_not_sleep_is_none_to_keep(keeping: Bench) -> None:
    """Such as that of a timeout, which libFuzzer reports itself."""
    keeping.world.behaviours[A] = Behaviour(crash="f")
    keeping.run(keeping.definition(plan(seconds=3, slice_=3)))
    assert len(keeping.of(Crashed)) == 3
    assert keeping.world.captured == []


@pytest.mark.parametrize("artifact", ["crash-1", "crash-" + "0" * 40])
@pytest.mark.parametrize("forgets", [False, True])
def test_a_crash_whose_input_does_not_come_is_kept_all_the_same(keeping: Bench, artifact: str, forgets: bool) -> None:
    keeping.world.behaviours[A] = Behaviour(crash="f", sleeper=118, artifact=artifact, keeps=b"torn", forgets=forgets)
    keeping.run(keeping.definition(plan(seconds=1, slice_=1)))
    assert [crash.new for crash in keeping.of(Crashed)] == [True]
    assert len(kept(keeping)) == 1


def test_a_guest_that_lies_about_sleeping_harms_only_itself(keeping: Bench) -> None:
    said = b"==7==Sleeping for 8640000 second(s) before dying\n"
    keeping.world.behaviours[A] = Behaviour(fate="fails", last=said)
    keeping.run(keeping.definition(plan(seconds=20)))
    assert [(ended.result, ended.seconds) for ended in keeping.of(Ended)] == [("failed", 1.0)] * 3
    assert keeping.world.captured == []
    assert len(keeping.of(Benched)) == 1


def test_no_more_than_may_be(keeping: Bench, caplog: pytest.LogCaptureFixture) -> None:
    keeping.chosen = replace(keeping.chosen, capsule_count=1)
    keeping.world.behaviours[B] = Behaviour(crash="g", sleeper=9)
    keeping.run(keeping.definition(plan(A, seconds=2, slice_=2), plan(B, seconds=2, slice_=2)))
    assert len({crash.group for crash in keeping.of(Crashed)}) == 2
    assert len(kept(keeping)) == 1
    (told,) = [record.message for record in caplog.records if "no more capsules are made" in record.message]
    assert told.endswith("/crashes has 1; to have more, raise [campaign] capsule_count, or delete some")


@pytest.mark.parametrize("error", [NotCapturedError("it is too large"), StoreError("full", hint="free some space")])
def test_why_there_is_none_is_told_and_another_crash_is_tried(
    keeping: Bench, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def capturing(_: Path) -> None:
        raise error

    contents = iter(range(10))
    keeping.world.on_run = lambda _: keeping.world.behaviours.update(
        {A: Behaviour(crash="f", sleeper=118, keeps=b"%d" % next(contents))}
    )
    keeping.world.capturing = capturing
    keeping.run(keeping.definition(plan(seconds=3, slice_=3)))
    assert [ended.result for ended in keeping.of(Ended)] == ["crash"] * 3
    assert len(keeping.world.captured) == 3
    assert sum("no capsule is made: " in record.message for record in caplog.records) == 3


def test_a_guest_that_is_lost_by_that_costs_the_fuzzer_no_failure(keeping: Bench) -> None:
    def lost(_: Path) -> None:
        raise GuestLostError("it does not go on")

    keeping.world.capturing = lost
    keeping.run(keeping.definition(plan(seconds=3, slice_=3)))
    assert [ended.result for ended in keeping.of(Ended)] == ["crash"] * 3
    boots = [started.boot_id for started in keeping.of(Started)]
    assert len(set(boots)) == 3, "each one was left"


def test_the_same_crash_again_is_as_good_as_another(keeping: Bench) -> None:
    """If the first could not be saved, or was found before there was to be a capsule."""
    keeping.chosen = replace(keeping.chosen, capsule="off")
    keeping.run(keeping.definition(plan(seconds=1, slice_=1)))
    keeping.chosen = replace(keeping.chosen, capsule="first")
    keeping.run(keeping.definition(plan(seconds=3, slice_=1)))
    (crash,) = {entry.group for entry in keeping.of(Crashed)}
    assert kept(keeping) == [f"{A}/{crash}/1/{NAME}"]


def test_what_was_left_half_made_is_removed(keeping: Bench) -> None:
    definition = keeping.definition(plan(seconds=1, slice_=1))
    keeping.run(definition)
    crash = keeping.store.crashes / Path(kept(keeping)[0]).parent
    half, other = crash / f".{NAME}.abcd1234.tmp", crash / ".else.abcd1234.tmp"
    for work in (half, other):
        work.mkdir()
    keeping.run(keeping.definition(plan(seconds=2, slice_=1)))
    assert (half.exists(), other.exists()) == (False, True)


class TestHold:
    """The process is stopped first, or there is nothing to keep. Its script runs here as in the guest."""

    def held(self, pid: int) -> str:
        line = ("sh", "-c", guests.HOLD.format(pid))
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=True).stdout.strip()

    def test_one_that_sleeps_is_stopped_until_it_is_killed(self) -> None:
        with subprocess.Popen(["sleep", "60"]) as process:
            assert self.held(process.pid) == "held"
            assert Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "T"
            assert self.held(process.pid) == "held"
            process.kill()
            assert process.wait(60) == -signal.SIGKILL

    def test_one_that_has_ended_is_not(self) -> None:
        with subprocess.Popen(["true"]) as process:
            process.wait(60)
        assert self.held(process.pid) == ""

    def test_nor_one_of_which_only_the_entry_is_left(self) -> None:
        with subprocess.Popen(["true"]) as process:
            eventually(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "Z")
            assert self.held(process.pid) == ""


def test_one_that_is_there_is_never_replaced(keeping: Bench) -> None:
    """Nor is another one made in its bucket, by whatever process."""
    definition = keeping.definition(plan(seconds=2, slice_=2))
    keeping.run(definition)
    (there,) = kept(keeping)
    file = keeping.store.crashes / there / FACTS
    file.write_text("the first")
    keeping.run(keeping.definition(plan(seconds=4, slice_=2)))
    assert len(keeping.world.captured) == 1
    assert (kept(keeping), file.read_text()) == ([there], "the first")
