import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text import printable, tail

_NASTY = st.sampled_from(
    [
        *"\x1b\x07\x9b\x90\x9d\r\n\t\0\x7f\x85\u2028\u202e\u2066; ä字",
        "\x1b[",
        "\x1b]0;",
        "\x1bP",
        "\x1b\\",
        "31m",
        "?25l",
    ]
)
_TEXT = st.lists(_NASTY | st.text(max_size=5), max_size=30).map("".join)
_BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def forbidden(char: str) -> bool:
    return (unicodedata.category(char) == "Cc" and char not in "\n\t") or unicodedata.bidirectional(char) in _BIDI


@given(_TEXT)
def test_no_control_character_passes(text: str) -> None:
    assert [char for char in printable(text) if forbidden(char)] == []


@given(st.binary() | _TEXT.map(lambda text: text.encode(errors="surrogatepass")))
def test_no_control_character_passes_in_bytes(data: bytes) -> None:
    text = printable(data)
    assert [char for char in text if forbidden(char)] == []
    assert text.encode().decode() == text  # no lone surrogates


@given(_TEXT)
def test_what_is_printable_stays_as_it_is(text: str) -> None:
    once = printable(text)
    assert printable(once) == once


@given(st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"))))
def test_harmless_text_is_kept(text: str) -> None:
    assert printable(text) == printable(text.encode()) == text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31;1mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPq#0\x1b\\text", "text"),
        ("\x1b[?25lhidden cursor", "hidden cursor"),
        ("\x1bcreset", "reset"),
        ("one\r\ntwo\rthree", "one\ntwothree"),
        ("tab\tstays", "tab\tstays"),
        ("\x1b[\x1b[31mnested", "nested"),
        ("bell\x07 nul\x00 del\x7f nel\x85", "bell nul del nel"),
        ("evil\u202etxt.exe", "eviltxt.exe"),
        (b"bad \xff byte", "bad \ufffd byte"),
    ],
    ids=["colour", "title", "link", "sixel", "cursor", "reset", "cr", "tab", "nested", "controls", "bidi", "bytes"],
)
def test_examples(raw: bytes | str, shown: str) -> None:
    assert printable(raw) == shown


def test_tail_gives_the_last_lines_that_are_not_empty() -> None:
    assert tail("one\n\ntwo  \r\n \t\nthree\n\n", lines=2) == "two\nthree"


def test_tail_of_little_is_all_of_it() -> None:
    assert tail(b"only\n") == "only"


@pytest.mark.parametrize("nothing", ["", b"", "\n\n", "\x1b[2J\x07"])
def test_tail_of_nothing_is_empty(nothing: bytes | str) -> None:
    assert tail(nothing) == ""


def test_tail_cuts_long_lines() -> None:
    assert tail("x" * 11 + "\n" + "y" * 10, width=10) == "xxxx…xxxx\n" + "y" * 10


@given(_TEXT, st.integers(1, 5), st.integers(3, 20))
def test_tail_keeps_its_limits(text: str, lines: int, width: int) -> None:
    kept = tail(text, lines, width).split("\n")
    assert len(kept) <= lines
    assert all(len(line) <= width for line in kept)
    assert [char for line in kept for char in line if forbidden(char)] == []


def test_an_escape_string_without_end_hides_no_later_lines() -> None:
    assert "Kernel panic" in tail("\x1b]0;never ended\nKernel panic\n")
