"""Adding up a ledger."""

import pytest

from pipeline.campaign.state import State
from pipeline.ledger import (
    Benched,
    Booted,
    Closed,
    Crashed,
    Ended,
    Entry,
    Harvested,
    Merged,
    Opened,
    Proved,
    Result,
    Started,
    Subject,
)

A, B = Subject("p/a", "build", "plan"), Subject("p/b", "build", "plan")
OPENED = Opened("host", 1, {})


def started(number: int = 1, attempt: int = 1, subject: Subject = A) -> Started:
    return Started(subject, number, attempt, "pool-0", "boot", 1, ())


def ended(
    number: int = 1,
    attempt: int = 1,
    seconds: float = 10,
    result: Result = "done",
    features: int = 4,
    subject: Subject = A,
    added: int = 1,
) -> Ended:
    curve = ((1.0, 100, 1, 2, 1), (seconds, 1000, 2, features, 1))
    return Ended(subject, number, attempt, result, "why", seconds, 1000, 2, features, 7, added, 40, curve)


def test_attempts_add_up() -> None:
    entries: list[Entry] = [OPENED, started(), ended(seconds=4), started(attempt=2), ended(attempt=2, features=8)]
    standing = State.of([*entries, Closed(A, 1, "time"), started(2), ended(2, seconds=2)]).standing(A)
    assert (standing.seconds, standing.executions, standing.attempts, standing.current) == (16, 3000, 3, 2)
    assert (standing.edges, standing.features, standing.units, standing.peak_rss) == (2, 8, 7, 40)
    assert [standing.curve[2], standing.curve[-1]] == [(5, 1100, 1, 2, 1), (16, 3000, 2, 4, 1)]


def test_another_build_is_another_subject() -> None:
    state = State.of([started(), ended(), Closed(A, 1, "time")])
    assert state.standing(Subject("p/a", "new build", "plan")).seconds == 0
    assert state.standing(Subject("p/a", "build", "new plan")).current == 1


def test_an_attempt_that_has_not_ended_counts_for_nothing_yet_and_is_known() -> None:
    state = State.of([started(), Harvested(A, 1, 1, 5.0, 500, 1, 2, 3)])
    assert state.interrupted() == [started()]
    assert state.standing(A).slices[1].checkpoint == Harvested(A, 1, 1, 5.0, 500, 1, 2, 3)
    assert state.standing(A).seconds == 0
    state.add(ended(result="interrupted", seconds=5))
    assert state.interrupted() == []
    assert state.standing(A).seconds == 5


@pytest.mark.parametrize("result", ["failed", "hang", "guest died"])
def test_failures_in_a_row_are_strikes(result: Result) -> None:
    state = State.of([OPENED, started(), ended(result=result), started(), ended(result=result)])
    assert (state.standing(A).strikes, state.standing(A).failure) == (2, "why")
    state.add(ended())
    assert state.standing(A).strikes == 0


@pytest.mark.parametrize("result", ["stopped", "interrupted", "host"])
def test_what_is_not_the_fuzzer_s_fault_is_no_strike_and_no_pardon(result: Result) -> None:
    assert State.of([ended(result="failed"), ended(result=result)]).standing(A).strikes == 1


def test_whoever_starts_it_again_gives_all_another_chance() -> None:
    state = State.of([ended(result="failed"), Benched(A, "too bad")])
    assert state.standing(A).benched == "too bad"
    state.add(OPENED)
    assert (state.standing(A).benched, state.standing(A).strikes, state.processes) == ("", 0, 1)


def test_gain_is_of_what_was_never_covered_before() -> None:
    state = State.of([ended(features=10), ended(features=10), ended(features=40), ended(features=20)])
    assert state.standing(A).recent_gain == 30 / 30


def test_crashes_merges_boots_and_proofs() -> None:
    merged = Merged(A, 7, 3, 9, 9, True, "", 2.0)
    proved = Proved("host", "build", True, "", 3.0)
    booted = Booted("pool-0", "boot", 2.0, "there was none")
    crashed = Crashed(A, 1, 1, "group", True, "sha")
    state = State.of([ended(), crashed, crashed, merged, proved, booted])
    standing = state.standing(A)
    assert (standing.crashes, standing.units, standing.unmerged) == ({"group": 2}, 3, 0)
    assert (state.boots, state.proofs, state.merging) == ([booted], {("host", "build"): proved}, 2.0)


def test_a_merge_that_is_not_taken_leaves_the_units() -> None:
    standing = State.of([ended(), Merged(A, 7, 7, 9, 1, False, "covers less", 2.0)]).standing(A)
    assert (standing.units, standing.unmerged) == (7, 0)


def test_fuzzers_do_not_mix() -> None:
    state = State.of([ended(), ended(subject=B, seconds=3)])
    assert (state.standing(A).seconds, state.standing(B).seconds) == (10, 3)
