"""Which buckets are probably the same, and why."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.builds.demo.planted import PLANTED
from pipeline.fuzz.crashes.links import links
from pipeline.fuzz.crashes.rules import decide
from tests.fuzz.crashes.recorded import planted

ENTRY = "LLVMFuzzerTestOneInput"


@dataclass(frozen=True)
class Bucket:
    """As the store has them."""

    slug: str
    frames: tuple[str, ...]
    kind: str = "SEGV"


def reasons(one: Bucket, other: Bucket, shown: Mapping[str, Mapping[str, int]] | None = None) -> tuple[str, ...]:
    found = links([one, other], shown or {})
    assert found == links([other, one], shown or {})
    assert all(link.buckets == tuple(sorted((one.slug, other.slug))) for link in found)
    return found[0].why if found else ()


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        (("f", "g", "h"), ("f", "g", "k"), ("both have f, then g",)),
        (("f", "g", "h"), ("x", "f", "g"), ("both have f, then g",)),
        (("f", "g", "h"), ("f", "x", "h"), ("both have f, then h",)),
        (("f", "g", "h"), ("g", "f", "x"), ()),
        (("f", "g", "h"), ("f", "x", "y"), ()),
        (("f", "g", ENTRY), ("x", "g", ENTRY), ()),
        (("f", ENTRY), ("f", "g", ENTRY), ()),
        ((ENTRY,), (f"{ENTRY} a.c",), ()),
        (("a", "b", "c", "f", "g"), ("x", "y", "z", "f", "g"), ()),
        ((), (), ()),
    ],
)
def test_two_of_three_parts_in_order_link(one: tuple[str, ...], other: tuple[str, ...], why: tuple[str, ...]) -> None:
    assert reasons(Bucket("a", one), Bucket("b", other)) == why


def test_the_same_place_links_reports_of_another_kind() -> None:
    one, other = Bucket("a", ("f", ENTRY)), Bucket("b", ("f", ENTRY), "heap-buffer-overflow")
    assert reasons(one, other) == ("the same place, f, in reports of SEGV and heap-buffer-overflow",)
    assert reasons(Bucket("a", (ENTRY,)), Bucket("b", (ENTRY,), "FPE")) == ()


def test_a_timeout_is_not_compared_with_a_crash() -> None:
    slow, slower = (Bucket(slug, ("walk", "parse", slug), "timeout") for slug in "ab")
    assert reasons(slow, Bucket("c", ("f", "walk", "parse"))) == ()
    assert reasons(slow, slower) == ("both have walk, then parse",)


def test_one_loop_that_was_stopped_in_different_calls_is_linked() -> None:
    loop, call, other = (Bucket(slug, parts, "timeout") for slug, parts in (
        ("a", ("corridor", ENTRY)), ("b", ("turn", "corridor", ENTRY)), ("c", ("look", "step", "corridor")),
    ))  # fmt: skip
    for one in (call, other):
        assert reasons(loop, one) == ("both were stopped in corridor or in what it calls",)
    assert reasons(call, other) == (), "they are linked by the first"
    assert reasons(loop, Bucket("d", ("corridor", "cellar", ENTRY), "timeout")) == ()
    assert reasons(Bucket("a", (ENTRY,), "timeout"), call) == (), "of the entry alone nothing is known"


def test_one_bug_under_several_titles_is_linked_by_its_reproducer() -> None:
    """Complaint: one bug has several titles. Its input is run ten times, and shows one or the other."""
    one, other, third = Bucket("a", ("f",)), Bucket("b", ("g",)), Bucket("c", ("h",))
    assert reasons(one, other) == ()
    assert reasons(one, other, {"a": {"a": 7, "b": 3}}) == (
        "the inputs of a showed both, 7 times its own and 3 times the other",
    )
    assert reasons(one, other, {"a": {"b": 3}, "b": {"a": 2}}) == (
        "their inputs showed each other's stack, 3 and 2 times",
    )
    assert reasons(one, third, {"a": {"a": 7, "b": 3}}) == ()


def test_an_input_that_shows_only_another_crash_links_nothing() -> None:
    """It has two bugs in it, of which one comes first: with a build where one is fixed, or masked."""
    assert reasons(Bucket("a", ("f",)), Bucket("b", ("g",)), {"a": {"b": 10}, "b": {"b": 10}}) == ()


def test_all_reasons_are_told() -> None:
    (link,) = links([Bucket("b", ("f", "g")), Bucket("a", ("f", "g", "h"))], {"b": {"b": 1, "a": 1}})
    assert link.line() == (
        "a and b are probably the same: both have f, then g; the inputs of b showed both, 1 times its own and 1 times "
        "the other"
    )


def test_distinct_bugs_are_not_linked() -> None:
    """The planted ones, which are distinct by design."""
    for fuzzer in {bug.fuzzer for bug in PLANTED}:
        decisions = [decide(planted(bug), fuzzer) for bug in PLANTED if bug.fuzzer == fuzzer]
        assert links([Bucket(one.slug, one.parts, one.kind) for one in decisions], {}) == ()


buckets = st.lists(
    st.builds(
        Bucket,
        st.sampled_from("abcde"),
        st.lists(st.sampled_from(["f", "g", "h", ENTRY]), max_size=4).map(tuple),
        st.sampled_from(["SEGV", "timeout", "FPE"]),
    ),
    max_size=5,
    unique_by=lambda bucket: bucket.slug,
)
shown = st.dictionaries(st.sampled_from("abcde"), st.dictionaries(st.sampled_from("abcde"), st.integers(0, 9)))


@given(buckets, shown, st.randoms(use_true_random=False))
def test_the_order_does_not_count(
    buckets: list[Bucket], shown: dict[str, dict[str, int]], order: random.Random
) -> None:
    found = links(buckets, shown)
    shuffled = buckets.copy()
    order.shuffle(shuffled)
    assert links(shuffled, shown) == found
    assert [link.buckets for link in found] == sorted({link.buckets for link in found})
    assert all(link.why and "\n" not in link.line() for link in found)
