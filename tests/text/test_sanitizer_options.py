"""The text of ASAN_OPTIONS and its like, as sanitizers read it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text.sanitizer_options import SanitizerOptions, can_be_written, joined, parse

SIGNS = st.text(st.sampled_from(" ,:\n\t\r='\"ab"), max_size=12)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        (" :,\n\t\r", {}),
        ("a=1:b=2,c=3 d=4\ne=5\tf=6\rg=7", dict(zip("abcdefg", "1234567", strict=True))),
        (":: a=1,,b=2: ", {"a": "1", "b": "2"}),
        ("a=1:a=2", {"a": "2"}),
        ("a='x y:z,'", {"a": "x y:z,"}),
        ("a='x'b=\"'\"c=", {"a": "x", "b": "'", "c": ""}),
        ("a=b=c", {"a": "b=c"}),
        ("a=x'y\"z", {"a": "x'y\"z"}),
        ("=x", {"": "x"}),
    ],
)
def test_what_is_understood(text: str, values: dict[str, str]) -> None:
    assert parse(text) == SanitizerOptions(values)


@pytest.mark.parametrize(
    ("text", "values", "rest"),
    [
        ("a", {}, "a"),
        ("a=1:b : c=2", {"a": "1"}, "b : c=2"),
        ("a=1: b='x", {"a": "1"}, "b='x"),
        ("a='x''", {"a": "x"}, "'"),
        ("a=1:b=\"x':c=2", {"a": "1"}, "b=\"x':c=2"),
    ],
)
def test_from_where_it_is_not(text: str, values: dict[str, str], rest: str) -> None:
    assert parse(text) == SanitizerOptions(values, rest)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"b": "2", "a": "1", "c": ""}, "a=1:b=2:c="),
        ({"a": "x y"}, "a='x y'"),
        ({"a": "it's mine"}, 'a="it\'s mine"'),
        ({"a": "it's"}, "a=it's"),
        ({"a": "'"}, 'a="\'"'),
    ],
)
def test_how_it_is_written(values: dict[str, str], text: str) -> None:
    assert joined(values) == text


@given(SIGNS)
def test_what_was_read_can_be_written_and_is_read_the_same(text: str) -> None:
    values = parse(text).values
    assert all(map(can_be_written, values.values()))
    assert parse(joined(values)) == SanitizerOptions(values)


@given(SIGNS)
def test_nothing_but_separators_is_passed_over(text: str) -> None:
    told = parse(text)
    assert text.endswith(told.rest)
    assert parse(text.removesuffix(told.rest)) == SanitizerOptions(told.values)
    assert not told.rest or parse(told.rest) == SanitizerOptions({}, told.rest)


@given(SIGNS)
def test_what_can_be_written_is_what_some_text_says(value: str) -> None:
    forms = (value, f"'{value}'", f'"{value}"')
    assert can_be_written(value) == any(parse(f"a={form}") == SanitizerOptions({"a": value}) for form in forms)
