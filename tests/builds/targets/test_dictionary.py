"""Dictionaries, as libFuzzer takes or refuses them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.builds.targets.dictionary import wrong_lines

SPACES = b" \t\n\v\f\r"
FUZZERS = Path(__file__).parents[3] / "pipeline/builds/demo/targets"


@pytest.mark.parametrize(
    "line",
    [
        *(b'"a"', b'name="value"', b'name@2="value"', b'  "a"\t\r', b'anything at all "a"', b'\xff"a"'),
        *(rb'"\x00\xfF"', rb'"\\"', rb'"\""', b'"a"b"', b'"""', b'"\t "', b"# comment", b"   # comment", b"", b" \t"),
    ],
)
def test_lines_that_libfuzzer_takes(line: bytes) -> None:
    assert list(wrong_lines(b'"first"\n' + line)) == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        *((line, "text in double quotes") for line in (b"a", b'"', b'"a', b'a"', b"name=value", b'"a" # no comment')),
        *((line, "holds something") for line in (b'""', b'name=""')),
        *((line, "backslash") for line in (rb'"\n"', rb'"\x1"', rb'"\xgg"', rb'"\"', rb'"\\\"', rb'"a\"')),
        *((line, "printable ASCII") for line in (b'"\xff"', b'"\x00"', "ä".encode().join([b'"'] * 2))),
    ],
)
def test_lines_that_libfuzzer_refuses(line: bytes, why: str) -> None:
    ((number, message, hint),) = wrong_lines(b'# first\n"a"\n' + line + b"\n")
    assert number == 3
    assert why in message
    assert hint


def test_all_wrong_lines_are_told() -> None:
    assert [number for number, _, _ in wrong_lines(b'a\n"b"\nc')] == [1, 3]


def test_an_empty_file_is_refused_and_one_of_comments_is_not() -> None:
    assert [message for _, message, _ in wrong_lines(b"")] == ["the dictionary is empty"]
    assert list(wrong_lines(b"\n")) == []


@pytest.mark.parametrize("path", sorted(FUZZERS.glob("*.dict")), ids=lambda path: path.name)
def test_the_demo_fuzzers_have_sound_ones(path: Path) -> None:
    assert list(wrong_lines(path.read_bytes())) == []


def taken_by_libfuzzer(line: bytes) -> bool:
    """ParseOneDictionaryEntry, step by step."""
    entry = line.strip(SPACES)
    if len(entry) < 3 or not entry.endswith(b'"'):
        return False
    opening = entry.find(b'"', 0, -2)
    return opening >= 0 and all_taken(entry[opening + 1 : -1])


def all_taken(text: bytes) -> bool:
    while text:
        length = taken(text)
        if not length:
            return False
        text = text[length:]
    return True


def taken(text: bytes) -> int:
    """How many bytes the first byte of the entry is written with."""
    if text[:1] != b"\\":
        return 32 <= text[0] < 127 or text[0] in SPACES
    if text[1:2] in (b"\\", b'"'):
        return 2
    return 4 if text[1:2] == b"x" and len(text) > 3 and set(text[2:4]) <= set(b"0123456789abcdefABCDEF") else 0


@given(st.lists(st.sampled_from([*b'"\\xa0g= \t\r\x00\xff#'])).map(bytes))
def test_the_rules_are_libfuzzers(line: bytes) -> None:
    skipped = not line.strip(b" \t\v\f\r") or line.strip(b" \t\v\f\r").startswith(b"#")
    refused = list(wrong_lines(b"\n" + line))
    assert bool(refused) == (not skipped and not taken_by_libfuzzer(line))
