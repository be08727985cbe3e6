"""How much of a fuzzer's budget is left."""

from pipeline.campaign.plan.definition import FuzzerPlan
from pipeline.campaign.state import FuzzerState

SHORTEST = 1.0
"""Seconds. Less than this of a budget or a slice counts as used up: libFuzzer knows whole seconds only."""

REST = 0.1
"""The part of a slice that is not worth a slice of its own: a smaller rest of the budget goes to the last slice."""


def left(plan: FuzzerPlan, fuzzer_state: FuzzerState) -> float:
    """What is left of the budget, in seconds, or in runs if it is a budget of runs; 0 if it counts as used up."""
    if plan.budget.runs is not None:
        return float(max(0, plan.budget.runs - fuzzer_state.executions))
    seconds = (plan.budget.seconds or 0) - fuzzer_state.seconds
    return seconds if seconds >= SHORTEST else 0.0


def used_part(plan: FuzzerPlan, fuzzer_state: FuzzerState) -> float:
    """The part of the budget that is used, from 0 to 1."""
    return 1 - left(plan, fuzzer_state) / (plan.budget.runs or plan.budget.seconds or 1)


def left_of_slice(plan: FuzzerPlan, fuzzer_state: FuzzerState, number: int) -> float:
    """Seconds that are left of slice `number`, never more than the budget has; 0 if the slice counts as used up.

    If the budget would have hardly anything left after the slice, the slice gets all of it.
    """
    one = fuzzer_state.slices.get(number)
    used = one.seconds if one else 0.0
    remaining = left(plan, fuzzer_state)
    seconds = plan.slice - used
    if plan.budget.runs is None and used + remaining < plan.slice * (1 + REST):
        seconds = remaining
    return seconds if seconds >= SHORTEST and remaining else 0.0
