"""JSON documents as typed values."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store import document


@dataclass(frozen=True)
class Part:
    size: int


@dataclass(frozen=True)
class Whole:
    name: str
    seconds: float
    parts: tuple[Part, ...]
    by_name: Mapping[str, Part]
    state: Literal["good", "bad"]
    note: str | None = None


FACTS: dict[str, Any] = {
    "schema": 3, "name": "\udcff", "seconds": 1, "parts": [{"size": 1}], "by_name": {"\udcfe": {"size": 2}},
    "state": "good", "later": "a field of a later version",
}  # fmt: skip


def decoded(facts: object) -> Whole:
    return document.decode(json.dumps(facts), Whole, 3)


def test_a_document_is_a_value() -> None:
    """Also with names that are no UTF-8, as those of files may be."""
    assert decoded(FACTS) == Whole("\udcff", 1.0, (Part(1),), {"\udcfe": Part(2)}, "good")
    assert isinstance(decoded(FACTS).seconds, float)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 1}, "Expected `str`, got `int` - at `$.name`"),
        ({"seconds": "1"}, "Expected `float`, got `str` - at `$.seconds`"),
        ({"seconds": True}, "Expected `float`, got `bool` - at `$.seconds`"),
        ({"parts": [{"size": 1.5}]}, "Expected `int`, got `float` - at `$.parts[0].size`"),
        ({"parts": [{}]}, "Object missing required field `size` - at `$.parts[0]`"),
        ({"by_name": []}, "Expected `object`, got `array` - at `$.by_name`"),
        ({"state": "ugly"}, "Invalid enum value 'ugly' - at `$.state`"),
        ({"schema": 4}, "its schema is 4, not 3"),
        ({"schema": None}, "its schema is None, not 3"),
        ({"schema": "x" * 99}, f"its schema is '{'x' * 39}, not 3"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011  the whole text is compared
        decoded({**FACTS, **change})
    assert str(raised.value).removeprefix("a field is missing or wrong: ") == said


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"1", b"null", b"[" * 99999, b"\xff", b'{"schema": NaN}', b"{}"])
def test_what_is_no_document_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        document.decode(text, Whole, 3)


@given(st.binary(max_size=60) | st.recursive(st.integers() | st.text() | st.none(), st.lists).map(json.dumps))
def test_nothing_else_is_raised(text: bytes | str) -> None:
    with pytest.raises(ValueError, match=r"."):
        document.decode(text, Whole, 3)
