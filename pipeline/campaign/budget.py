"""How much of a fuzzer's budget is left."""

from pipeline.campaign.definition import FuzzerPlan
from pipeline.campaign.state import Standing

SHORTEST = 1.0
"""Seconds. What is left of a budget or a slice below that counts as used: libFuzzer knows whole seconds."""

REST = 0.1
"""The part of a slice that makes none of its own: a rest of the budget that is smaller belongs to the last slice."""


def left(plan: FuzzerPlan, standing: Standing) -> float:
    """Seconds, or runs if the budget is one of runs; 0 if it counts as used."""
    if plan.budget.runs is not None:
        return float(max(0, plan.budget.runs - standing.executions))
    seconds = (plan.budget.seconds or 0) - standing.seconds
    return seconds if seconds >= SHORTEST else 0.0


def used_part(plan: FuzzerPlan, standing: Standing) -> float:
    """The part that is used, 0 to 1."""
    return 1 - left(plan, standing) / (plan.budget.runs or plan.budget.seconds or 1)


def left_of_slice(plan: FuzzerPlan, standing: Standing, number: int) -> float:
    """Seconds that are left of a slice, 0 if it counts as used: no more than its budget has.

    If hardly anything of that would stay, it is all that is left.
    """
    one = standing.slices.get(number)
    used = one.seconds if one else 0.0
    remaining = left(plan, standing)
    seconds = plan.slice - used
    if plan.budget.runs is None and used + remaining < plan.slice * (1 + REST):
        seconds = remaining
    return seconds if seconds >= SHORTEST and remaining else 0.0
