"""The beginning and the end of what a fuzzer says."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.campaign.output import Capture


@given(st.lists(st.binary(max_size=30)), st.integers(2, 40))
def test_what_fits_is_kept_whole_and_of_the_rest_both_ends(pieces: list[bytes], limit: int) -> None:
    capture, whole, half = Capture(limit), b"".join(pieces), limit // 2
    for piece in pieces:
        capture.write(piece)
    assert capture.written == len(whole)
    if len(whole) <= 2 * half:
        assert capture.content() == whole
    else:
        gap = b"\n[%d bytes are left out here]\n" % (len(whole) - 2 * half)
        assert capture.content() == whole[:half] + gap + whole[-half:]


def test_ten_gigabytes_take_no_more_than_the_limit() -> None:
    capture, piece = Capture(1 << 16), bytes(1 << 20)
    for _ in range(10 << 10):
        capture.write(piece)
    assert capture.written == 10 << 30
    assert len(capture.content()) < (1 << 16) + 100


@pytest.mark.slow
def test_tiny_pieces_take_hardly_more_memory_than_they_hold() -> None:
    tracemalloc.start()
    try:
        capture = Capture(1 << 20)
        for _ in range(1 << 19):
            capture.write(b"x\n")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(capture.content()) == 1 << 20
    assert peak < 3 << 20


@given(st.lists(st.binary(max_size=30)), st.integers(2, 40), st.integers(1, 50))
def test_the_end_of_what_is_kept(pieces: list[bytes], limit: int, size: int) -> None:
    capture, whole = Capture(limit), b"".join(pieces)
    for piece in pieces:
        capture.write(piece)
    end = capture.end(size)
    assert len(end) <= size
    if size <= limit // 2 or len(whole) <= 2 * (limit // 2):
        assert end == whole[-size:]
