"""Streams, cut into pieces."""

from collections.abc import Iterable
from itertools import pairwise

from hypothesis import strategies as st

cuts = st.lists(st.integers(0, 200))


def cut(text: bytes, places: Iterable[int]) -> list[bytes]:
    """The text in pieces, none of them empty."""
    ends = sorted({0, len(text), *(place for place in places if place < len(text))})
    return [text[start:end] for start, end in pairwise(ends)]
