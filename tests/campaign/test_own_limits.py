"""A unit that is too slow, or too large, for one campaign only."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.campaign.crash_intake import Places
from pipeline.campaign.failures import Failures
from pipeline.campaign.guest_fuzzer import CORPUS
from pipeline.campaign.ledger import Crashed, Ended, LedgerEntry, Subject
from pipeline.campaign.plan.definition import FuzzerPlan
from pipeline.campaign.supervised import SupervisedSlice
from pipeline.campaign.work import Work
from pipeline.fuzz.corpus import Corpus
from pipeline.fuzz.corpus.files import name_of
from pipeline.fuzz.crashes.store import CrashStore
from tests.campaign.bench import CHOSEN, A, Bench, plan
from tests.campaign.scripted import Behaviour, ScriptedGuest

SLOW, FAST = b"slow", b"fast"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.world.behaviours[A] = Behaviour(slow=SLOW, units=0)
    made.world.merged_part = 1.0
    Corpus.of(tmp_path, A).add([SLOW, FAST], "seed")
    return made


def hasty(**budget: int) -> FuzzerPlan:
    return replace(plan(A, **budget), options=(("timeout", "1"),))


def test_it_stays_in_the_corpus_and_the_campaign_goes_on_without_it(bench: Bench) -> None:
    bench.run(bench.definition(hasty()))
    assert {name_of(SLOW), name_of(FAST)} <= bench.units(A)
    assert Corpus.of(bench.store.root, A).quarantined() == {}
    (crashed,) = bench.of(Crashed)
    assert crashed.passed_over == name_of(SLOW)
    assert [entry.result for entry in bench.of(Ended)][:2] == ["crash", "done"]


def test_it_is_not_run_again_when_the_campaign_goes_on_and_guests_are_new(bench: Bench) -> None:
    bench.run(bench.definition(hasty(seconds=20)))
    bench.run(bench.definition(hasty(seconds=60)))
    assert len(bench.of(Crashed)) == 1


def test_it_is_taken_from_a_guest_that_has_it(bench: Bench, tmp_path: Path) -> None:
    root, guest, work = bench.store.root, ScriptedGuest(bench.world, "i0", "boot"), hasty()
    (given := tmp_path / "given").write_bytes(SLOW)
    guest.workspace(A).guest_fuzzer.push({name_of(SLOW): given}, CORPUS)
    guest.workspace(A).used = True
    noted: list[LedgerEntry] = []
    places = Places(Corpus.of(root, A), CrashStore(root), Failures(root), noted.append, frozenset({name_of(SLOW)}))
    attempt = SupervisedSlice(
        Work(Subject(A, "", ""), work, 2, 1, 20, None, 1), guest, places, CHOSEN, bench.world.clock
    )
    assert attempt.run().result == "done"


def test_another_campaign_runs_it(bench: Bench) -> None:
    bench.run(bench.definition(hasty()))
    bench.run(bench.definition(plan(seconds=20), name="patient"))
    assert {name_of(SLOW), name_of(FAST)} <= bench.units(A)


def test_one_that_crashes_is_a_bad_one_whatever_the_limits(bench: Bench) -> None:
    bench.world.behaviours[A] = Behaviour(crash="boom", after=5, units=0)
    bench.run(bench.definition(hasty()))
    assert list(Corpus.of(bench.store.root, A).quarantined()) == [name_of(b"boom")]
    assert {crashed.passed_over for crashed in bench.of(Crashed)} == {""}
