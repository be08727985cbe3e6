"""Who gets the next slice."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pipeline.campaign.allocation import FLOOR, Candidate, choose
from pipeline.settings import Allocation

names = st.sampled_from("abcdefgh")
candidates = st.lists(
    st.builds(Candidate, names, st.floats(0, 1), st.floats(0, 100), st.integers(0, 3)),
    min_size=1,
    max_size=8,
    unique_by=lambda one: one.name,
)


def turns(found: list[Candidate], allocation: Allocation, count: int) -> Counter[str]:
    return Counter(choose(found, turn, allocation).name for turn in range(1, count + 1))


@given(candidates, st.integers(1, 100), st.sampled_from(["gain", "even"]), st.randoms())
def test_one_of_them_whatever_their_order(
    found: list[Candidate], turn: int, allocation: Allocation, chance: object
) -> None:
    chosen = choose(found, turn, allocation)
    assert chosen in found
    assert choose(found[::-1], turn, allocation) == chosen


def test_even_takes_whoever_has_had_the_smallest_part() -> None:
    found = [Candidate("a", 0.5, 9.0, 3), Candidate("b", 0.2, 0.0, 1), Candidate("c", 0.2, 5.0, 1)]
    assert turns(found, "even", 10) == {"b": 10}


def test_gain_takes_whoever_never_ran_first() -> None:
    found = [Candidate("a", 0.1, 9.0, 3), Candidate("c", 0.0, 0.0, 0), Candidate("b", 0.0, 0.0, 0)]
    assert turns(found, "gain", 10) == {"b": 10}


def test_gain_leaves_each_fourth_slice_to_whoever_had_least() -> None:
    found = [Candidate("a", 0.6, 9.0, 3), Candidate("b", 0.1, 1.0, 1), Candidate("c", 0.3, 8.9, 1)]
    assert turns(found, "gain", 4 * FLOOR) == {"a": 12, "b": 4}


def test_nobody_gains_so_all_get_the_same() -> None:
    found = [Candidate("a", 0.6, 0.0, 3), Candidate("b", 0.1, 0.0, 1)]
    assert turns(found, "gain", 8) == {"b": 8}
