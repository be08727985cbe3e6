"""Adding up a ledger."""

import pytest

from pipeline.campaign.ledger import (
    Benched,
    Booted,
    Closed,
    Crashed,
    Ended,
    Harvested,
    LedgerEntry,
    Merged,
    Opened,
    Proved,
    Result,
    Started,
    Subject,
)
from pipeline.campaign.state import MOST_POINTS, State

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


def test_attempts_at_one_slice_are_one_gain_and_the_curve_stays_short() -> None:
    """A fuzzer that crashes four times a second: its last three attempts would tell of less than a second."""
    state = State.of(ended(1 + attempt // 500, attempt, 0.25, "crash", attempt) for attempt in range(1, 1501))
    fuzzer_state = state.fuzzer_state(A)
    assert [(gain.slice, gain.features) for gain in fuzzer_state.gains] == [(2, 500), (3, 500), (4, 1)]
    assert fuzzer_state.gains[0].seconds == pytest.approx(125)
    assert len(fuzzer_state.curve) <= MOST_POINTS
    assert fuzzer_state.curve[-1][3] == 1500


def test_attempts_add_up() -> None:
    entries: list[LedgerEntry] = [OPENED, started(), ended(seconds=4), started(attempt=2), ended(attempt=2, features=8)]
    fuzzer_state = State.of([*entries, Closed(A, 1, "time"), started(2), ended(2, seconds=2)]).fuzzer_state(A)
    assert (fuzzer_state.seconds, fuzzer_state.executions, fuzzer_state.attempts, fuzzer_state.current) == (
        16,
        3000,
        3,
        2,
    )
    assert (fuzzer_state.edges, fuzzer_state.features, fuzzer_state.units, fuzzer_state.peak_rss) == (2, 8, 7, 40)
    assert [fuzzer_state.curve[2], fuzzer_state.curve[-1]] == [(5, 1100, 1, 2, 1), (16, 3000, 2, 4, 1)]


def test_another_build_is_another_subject() -> None:
    state = State.of([started(), ended(), Closed(A, 1, "time")])
    assert state.fuzzer_state(Subject("p/a", "new build", "plan")).seconds == 0
    assert state.fuzzer_state(Subject("p/a", "build", "new plan")).current == 1


def test_an_attempt_that_has_not_ended_counts_for_nothing_yet_and_is_known() -> None:
    state = State.of([started(), Harvested(A, 1, 1, 5.0, 500, 1, 2, 3)])
    assert state.interrupted() == [started()]
    assert state.fuzzer_state(A).slices[1].checkpoint == Harvested(A, 1, 1, 5.0, 500, 1, 2, 3)
    state.add(Harvested(A, 1, 1, 9.0, 900, 1, 2, 0))
    assert state.fuzzer_state(A).slices[1].checkpoint == Harvested(A, 1, 1, 9.0, 900, 1, 2, 3), "all that it has added"
    assert state.fuzzer_state(A).seconds == 0
    state.add(ended(result="interrupted", seconds=5))
    assert state.interrupted() == []
    assert state.fuzzer_state(A).seconds == 5


@pytest.mark.parametrize("result", ["failed", "hang", "guest died"])
def test_failures_in_a_row_are_strikes(result: Result) -> None:
    state = State.of([OPENED, started(), ended(result=result), started(), ended(result=result)])
    assert (state.fuzzer_state(A).strikes, state.fuzzer_state(A).failure) == (2, "why")
    state.add(ended())
    assert state.fuzzer_state(A).strikes == 0


@pytest.mark.parametrize("result", ["stopped", "interrupted", "host"])
def test_what_is_not_the_fuzzer_s_fault_is_no_strike_and_no_pardon(result: Result) -> None:
    assert State.of([ended(result="failed"), ended(result=result)]).fuzzer_state(A).strikes == 1


def test_whoever_starts_it_again_gives_all_another_chance() -> None:
    state = State.of([ended(result="failed"), Benched(A, "too bad")])
    assert state.fuzzer_state(A).benched == "too bad"
    state.add(OPENED)
    assert (state.fuzzer_state(A).benched, state.fuzzer_state(A).strikes, state.processes) == ("", 0, 1)


def test_gain_is_of_what_was_never_covered_before() -> None:
    state = State.of([ended(features=10), ended(features=10), ended(features=40), ended(features=20)])
    assert state.fuzzer_state(A).recent_gain == 30 / 30


def test_crashes_merges_boots_and_proofs() -> None:
    merged = Merged(A, 7, 3, 9, 9, True, "", 2.0)
    proved = Proved("host", "build", True, "", 3.0)
    booted = Booted("pool-0", "boot", 2.0, "there was none")
    crashed = Crashed(A, 1, 1, "group", True, "sha")
    state = State.of([ended(), crashed, crashed, merged, proved, booted])
    fuzzer_state = state.fuzzer_state(A)
    assert (fuzzer_state.crashes, fuzzer_state.units, fuzzer_state.unmerged) == ({"group": 2}, 3, 0)
    assert (state.boots, state.proofs, state.merging) == ([booted], {("host", "build"): proved}, 2.0)


def test_a_merge_that_is_not_taken_leaves_the_units() -> None:
    fuzzer_state = State.of([ended(), Merged(A, 7, 7, 9, 1, False, "covers less", 2.0)]).fuzzer_state(A)
    assert (fuzzer_state.units, fuzzer_state.unmerged) == (7, 0)


def test_fuzzers_do_not_mix() -> None:
    state = State.of([ended(), ended(subject=B, seconds=3)])
    assert (state.fuzzer_state(A).seconds, state.fuzzer_state(B).seconds) == (10, 3)
