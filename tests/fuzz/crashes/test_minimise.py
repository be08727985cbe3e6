"""Minimising inputs with oracles that are made up: whatever these say, the result is one that they have seen."""

import random
from collections.abc import Callable, Sequence
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fuzz.crashes.minimise import PLAIN, Limits, Minimised, minimise, tries_for
from tests.campaign.scripted import Clock

Bug = Callable[[bytes], bool]


def oracle(bug: Bug) -> Callable[[Sequence[bytes]], list[bool]]:
    return lambda candidates: [bug(candidate) for candidate in candidates]


def minimised(content: bytes, bug: Bug, **limits: int) -> Minimised:
    return minimise(content, oracle(bug), Limits(runs=10**6, **limits))


def one_smaller(content: bytes) -> list[bytes]:
    return [content[:at] + content[at + 1 :] for at in range(len(content))]


def one_plainer(content: bytes) -> list[bytes]:
    rank = {byte: at for at, byte in enumerate(PLAIN)}
    return [
        content[:at] + bytes([byte]) + content[at + 1 :]
        for at, old in enumerate(content)
        for byte in PLAIN
        if rank[byte] < rank.get(old, len(PLAIN))
    ]


def has_in_order(content: bytes, wanted: bytes) -> bool:
    rest = iter(content)
    return all(byte in rest for byte in wanted)


inputs = st.binary(max_size=120)


@given(inputs, st.binary(max_size=6))
def test_what_a_bug_needs_is_found_wherever_it_is(content: bytes, wanted: bytes) -> None:
    """A bug that stays whatever is added: its smallest input is nothing but what it needs."""
    around = content[: len(content) // 2] + wanted + content[len(content) // 2 :]
    result = minimised(around, lambda one: has_in_order(one, wanted))
    assert (result.content, result.why) == (wanted, "minimal")
    assert (result.confirmed, result.of) == ((10, 10) if around != wanted else (0, 0))


@given(inputs, st.integers(0, 255), st.integers(0, 255))
def test_two_bytes_far_apart(content: bytes, one: int, other: int) -> None:
    result = minimised(bytes([one]) + content + bytes([other]), lambda c: len(c) > 1 and (c[0], c[-1]) == (one, other))
    assert result.content == bytes([one, other])


@given(inputs, st.integers(0, 2**32))
@settings(max_examples=60)
def test_any_bug_at_all(content: bytes, seed: int) -> None:
    """The result is in the bucket, not larger, and no single byte of it can be removed or be plainer."""

    def bug(candidate: bytes) -> bool:
        return candidate == content or random.Random(crc32(candidate) ^ seed).random() < 0.2

    result = minimised(content, bug)
    assert bug(result.content)
    assert len(result.content) <= len(content)
    assert not any(map(bug, one_smaller(result.content)))
    assert not any(map(bug, one_plainer(result.content)))
    assert result.why == "minimal"
    assert (result.steps > 0) == (result.content != content)


def test_a_record_that_tells_its_length_goes_as_a_whole() -> None:
    """None of its bytes can go alone, and it begins where no half of the input ends."""

    def bug(content: bytes) -> bool:
        at = 0
        while at < len(content) and content[at] in (3, 5):
            at += 1 + content[at]
        return content[at:].startswith(b"bug")

    assert minimised(b"\x03abc\x05defgh\x05ijklmbug and more", bug).content == b"bug"


def test_an_input_with_a_checksum_stays_as_it_is() -> None:
    body = b"a long text that must be whole"
    content = crc32(body).to_bytes(4, "big") + body
    result = minimised(content, lambda one: len(one) > 4 and crc32(one[4:]).to_bytes(4, "big") == one[:4])
    assert (result.content, result.steps, result.why) == (content, 0, "minimal")


def test_another_bug_in_the_same_input_is_not_taken_for_it() -> None:
    """What comes first counts: without its length, the text is no overflow, and the division by zero is left."""

    def bucket(content: bytes) -> str:
        return "overflow" if content.count(b"t") > 16 else "division" if b"A\0" in content else ""

    content = b"TCT\x11" + 17 * b"t" + b"A\0" + b"rest"
    result = minimised(content, lambda one: bucket(one) == "overflow")
    assert result.content == 17 * b"t"
    assert minimised(content, lambda one: bucket(one) == "division").why == "not in its bucket"


def test_what_does_not_matter_becomes_plain_text() -> None:
    """A length, and so many bytes that only have to be there; one must not be a digit, one no printable one."""

    def bug(content: bytes) -> bool:
        return len(content) > 8 and content[0] == 8 and not content[4:5].isdigit() and content[6] < 32

    result = minimised(b"\x08\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8\xf7\xf6".replace(b"\xfa", b"\x01"), bug)
    assert result.content == b"\x08000A0\x0000"


def test_the_same_answers_give_the_same_result() -> None:
    content = random.Random(1).randbytes(300)
    asked: list[list[bytes]] = [[], []]
    results = []
    for book in asked:

        def stays(candidates: Sequence[bytes], book: list[bytes] = book) -> list[bool]:
            book.extend(candidates)
            return [content[7] in one and content[200] in one for one in candidates]

        results.append(minimise(content, stays, Limits()))
    assert asked[0] == asked[1]
    assert results[0] == results[1]


@given(st.integers(0, 2**32))
@settings(max_examples=30)
def test_a_flaky_bug(seed: int) -> None:
    """It crashes at p = 0.3. The result has all that the bug needs, whatever the dice say."""
    dice = random.Random(seed)
    content = b"some text {here} and more of it"
    result = minimised(content, lambda one: b"{here}" in one and dice.random() < 0.3, tries=tries_for(3, 10))
    assert b"{here}" in result.content
    if result.why == "minimal":
        assert result.confirmed > 0
    else:
        assert (result.why in ("not in its bucket", "not confirmed"), result.content) == (True, content)


def test_how_often_a_candidate_is_tried() -> None:
    assert [tries_for(same, 10) for same in (10, 9, 5, 3, 1, 0)] == [1, 2, 5, 9, 10, 10]
    assert tries_for(0, 0) == 1, "nothing is known"


def test_a_crash_that_came_by_chance_is_not_made_smaller() -> None:
    came = iter([True, True])
    result = minimise(b"once", lambda many: [next(came, False) for _ in many], Limits())
    assert (result.content, result.why, result.steps) == (b"once", "not confirmed", 0)
    assert (result.confirmed, result.of) == (0, 10)


@given(st.binary(min_size=1, max_size=200), st.integers(1, 60), st.integers(1, 8), st.integers(1, 3))
def test_runs_are_bounded(content: bytes, runs: int, batch: int, tries: int) -> None:
    asked: list[int] = []

    def stays(candidates: Sequence[bytes]) -> list[bool]:
        asked.append(len(candidates))
        return [sum(candidate) % 3 == sum(content) % 3 for candidate in candidates]

    result = minimise(content, stays, Limits(runs=runs, batch=batch, tries=tries, confirm=4))
    assert sum(asked) == result.tried <= runs + 4
    assert max(asked) <= batch
    assert sum(result.content) % 3 == sum(content) % 3
    assert result.why in ("minimal", "runs")


def test_the_time_is_bounded() -> None:
    clock = Clock()

    def stays(candidates: Sequence[bytes]) -> list[bool]:
        clock.pass_(1.0)
        return [b"!" in candidate for candidate in candidates]

    content = bytes(range(256)) * 4
    result = minimise(content, stays, Limits(seconds=3.0), clock)
    assert (result.why, b"!" in result.content, len(result.content) < len(content)) == ("deadline", True, True)
    assert clock.now <= 3.0 + 1.0


@pytest.mark.parametrize("answers", [0, 1, 2])
def test_an_oracle_that_gives_up(answers: int) -> None:
    """A guest is lost, and no other one can be had: nothing is confirmed, so the original is kept."""
    left = answers

    def stays(candidates: Sequence[bytes]) -> list[bool]:
        nonlocal left
        told = [True for _ in candidates[:left]]
        left -= len(told)
        return told

    result = minimise(b"0123456789" * 10, stays, Limits())
    assert (result.content, result.why, result.confirmed) == (b"0123456789" * 10, "gave up", 0)


def test_an_error_of_the_oracle_is_nobody_else_s() -> None:
    def stays(_: Sequence[bytes]) -> list[bool]:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        minimise(b"input", stays, Limits())
