"""What is left of budgets and slices."""

import pytest

from pipeline.campaign.budget import left, left_of_slice, used_part
from pipeline.campaign.plan.definition import Budget, FuzzerPlan
from pipeline.campaign.state import FuzzerState, Slice


def fuzzer_state(*seconds: float, executions: int = 0) -> FuzzerState:
    """Of a fuzzer whose slices took so long."""
    return FuzzerState({number: Slice(1, one, executions) for number, one in enumerate(seconds, 1)})


def of(seconds: int = 60, slice_: int = 20, runs: int | None = None) -> FuzzerPlan:
    return FuzzerPlan("p/a", Budget(None if runs else seconds, runs), slice_)


@pytest.mark.parametrize(
    ("took", "remains"), [((), 60.0), ((20.0, 20.0), 20.0), ((20.0, 20.0, 19.5), 0.0), ((63.0,), 0.0)]
)
def test_what_is_less_than_a_second_counts_as_used(took: tuple[float, ...], remains: float) -> None:
    assert left(of(), fuzzer_state(*took)) == remains
    assert used_part(of(), fuzzer_state(*took)) == 1 - remains / 60


def test_a_budget_of_runs() -> None:
    assert left(of(runs=100), fuzzer_state(5.0, executions=40)) == 60
    assert left(of(runs=100), fuzzer_state(5.0, executions=140)) == 0
    assert left_of_slice(of(runs=100), fuzzer_state(5.0, executions=40), 2) == 20


@pytest.mark.parametrize(
    ("took", "number", "seconds"),
    [
        ((), 1, 20.0),
        ((5.0,), 1, 15.0),
        ((19.5,), 1, 0.0),
        ((20.0, 20.0), 3, 20.0),
        ((19.0, 19.5), 3, 21.5),  # else two slices: one of 20 s and one of 1.5
        ((19.0, 19.5, 3.0), 3, 18.5),
        ((17.0, 19.5), 3, 20.0),  # what would stay is worth a slice
        ((20.0, 28.0), 3, 12.0),
        ((20.0, 45.0), 3, 0.0),
    ],
)
def test_a_small_rest_of_the_budget_belongs_to_the_last_slice(
    took: tuple[float, ...], number: int, seconds: float
) -> None:
    assert left_of_slice(of(), fuzzer_state(*took), number) == seconds
