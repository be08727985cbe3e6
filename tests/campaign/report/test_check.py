"""What a new build has brought: old crashes do not fail it, new ones do, whatever has happened before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.campaign.report import check
from pipeline.campaign.report.check import CheckedState, compare, passes
from pipeline.errors import UsageError
from tests.campaign.report.histories import Then, histories, matrix_of


def state(*history: Then, against: str = "") -> CheckedState | None:
    (found,) = compare([matrix_of([list(history)])], against)
    return found.buckets[0].state if found.buckets else None


BAD, SEEN, GOOD, MASKED, NOTHING = Then("still", 1), Then("", 1), Then("none"), Then("masked"), Then()


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([BAD, BAD], "still"),
        ([BAD, GOOD], "fixed"),
        ([BAD, MASKED], "not known"),
        ([BAD, NOTHING], "not known"),
        ([NOTHING, BAD], "new"),
        ([BAD], "first"),
        ([MASKED], None),
        ([BAD, GOOD, SEEN], "back"),
        ([BAD, GOOD, MASKED, BAD], "back"),
        ([BAD, MASKED, SEEN], "still"),
        ([BAD, NOTHING, BAD], "still"),
        ([BAD, GOOD, GOOD], None),
        ([BAD, GOOD, MASKED], None),
    ],
)
def test_a_history(history: list[Then], expected: CheckedState | None) -> None:
    assert state(*history) == expected


def test_another_base() -> None:
    assert state(NOTHING, BAD, BAD) == "still"
    assert state(NOTHING, BAD, BAD, against="B1") == "new"
    assert state(BAD, GOOD, BAD, against="b3:00ff") == "still"
    assert state(BAD, GOOD, BAD, against="01ff") == "back"
    assert state(BAD, BAD, GOOD, against="B1") == "fixed"


@pytest.mark.parametrize("against", ["B9", "B0", "b3:99", "0", "ff", "nothing"])
def test_a_base_that_is_none_is_refused(against: str) -> None:
    with pytest.raises(UsageError, match="is no build with which a crash was seen or tried") as refused:
        state(BAD, GOOD, against=against)
    assert "B1 (b3:00f" in refused.value.hint


def test_a_base_that_may_be_several_is_refused() -> None:
    found = matrix_of([[BAD, GOOD]])
    builds = tuple(type(one)("b3:0123" + one.digest[3:], one.first_seen) for one in found.builds)
    with pytest.raises(UsageError, match="means 2 builds of mine/a_fuzzer"):
        compare([type(found)(found.fuzzer, builds, found.rows)], "0123")


@given(histories, st.data())
def test_only_what_was_not_in_the_base_fails(found: list[list[Then]], data: st.DataObject) -> None:
    matrix = matrix_of(found)
    base = data.draw(st.integers(0, len(matrix.builds) - 1))
    (told,) = compare([matrix], f"B{base + 1}")
    states = {one.bucket.slug: one.state for one in told.buckets}
    for row in matrix.rows:
        now, before = row.cells[-1], row.known_at(base)
        assert (states.get(row.bucket.slug) in check.FAILING) == (now.bad and not (before and before.bad))
        assert (states.get(row.bucket.slug) == "fixed") == bool(now.good and before and before.bad)
        if row.cells[base].bad:
            assert states[row.bucket.slug] in ("still", "fixed", "not known")
    assert passes([told]) == (not set(states.values()) & set(check.FAILING))
