import itertools
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text.printable import Filter, is_plain, one_line, printable, tail

_NASTY = st.sampled_from(
    [
        *"\x1b\x07\x9b\x90\x9d\r\n\t\0\x7f\x85\u2028\u202e\u2066; ä字",
        "\x1b[",
        "\x1b]0;",
        "\x1bP",
        "\x1b\\",
        "\x1b(",
        "31m",
        "?25l",
    ]
)
_TEXT = st.lists(_NASTY | st.text(max_size=5), max_size=30).map("".join)
_BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def forbidden(char: str) -> bool:
    return (unicodedata.category(char) == "Cc" and char not in "\n\t") or unicodedata.bidirectional(char) in _BIDI


@pytest.mark.slow
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
        ("\x1b(Bcharset", "charset"),
        ("one\r\ntwo\rthree", "one\ntwothree"),
        ("tab\tstays", "tab\tstays"),
        ("\x1b[\x1b[31mnested", "nested"),
        ("bell\x07 nul\x00 del\x7f nel\x85", "bell nul del nel"),
        ("evil\u202etxt.exe", "eviltxt.exe"),
        (b"bad \xff byte", "bad \ufffd byte"),
    ],
    ids=[
        "colour",
        "title",
        "link",
        "sixel",
        "cursor",
        "reset",
        "charset",
        "cr",
        "tab",
        "nested",
        "controls",
        "bidi",
        "bytes",
    ],
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


def filtered(pieces: list[bytes]) -> str:
    stream = Filter()
    return "".join([*(stream.feed(piece) for piece in pieces), stream.end()])


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


_BYTES = st.lists(_TEXT.map(lambda text: text.encode(errors="surrogatepass")) | st.binary(max_size=4), max_size=8)


@pytest.mark.slow
@given(_BYTES.map(b"".join), st.lists(st.integers(0, 500), max_size=40))
def test_a_filtered_stream_is_the_same_however_it_is_cut(data: bytes, places: list[int]) -> None:
    whole = filtered([data])
    assert filtered(cut(data, places)) == whole
    assert filtered([bytes([byte]) for byte in data]) == whole


@given(_BYTES)
def test_a_filtered_stream_is_what_printable_says_but_for_editing(pieces: list[bytes]) -> None:
    shown = filtered(pieces)
    assert [char for char in shown if forbidden(char) and char not in "\r\b"] == []
    assert shown.translate({ord("\r"): None, ord("\b"): None}) == printable(b"".join(pieces))


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        ([b"a\x1b", b"[3", b"1", b"mb"], ["a", "", "", "b"]),
        ([b"a\x1b]0;ti", b"tle\x1b", b"\\b"], ["a", "", "b"]),
        ([b"a\x1b]0;ti", b"tle\nb"], ["a", "\nb"]),
        ([b"a\x1b(", b"Bb"], ["a", "b"]),
        ([b"\xe5\xad", b"\x97"], ["", "字"]),
        ([b"\xc2", b"\x9b2J"], ["", "2J"]),
        ([b"x\b \b\ty\r\n\x07"], ["x\b \b\ty\r\n"]),
        ([b"prompt # \x1b[6n"], ["prompt # "]),
    ],
    ids=["csi", "osc", "unfinished", "charset", "utf-8", "c1", "editing", "prompt"],
)
def test_a_filter_passes_on_at_once_what_is_decided(pieces: list[bytes], shown: list[str]) -> None:
    stream = Filter()
    assert [stream.feed(piece) for piece in pieces] == shown
    assert stream.end() == ""


def test_the_end_of_a_stream_gives_what_was_held_back() -> None:
    assert filtered([b"a\x1b[31"]) == printable(b"a\x1b[31") == "a31"
    assert filtered([b"a\xe5"]) == "a\ufffd"


@pytest.mark.parametrize("begin", [b"\x1b]0;", b"\x1b[", b"\x1b[ ", b"\x1b "], ids=["osc", "csi", "blanks", "short"])
@pytest.mark.parametrize("filler", [b"1", b" ", b"\xff"])
def test_an_escape_without_end_is_not_kept(begin: bytes, filler: bytes) -> None:
    data = begin + filler * 10_000
    stream = Filter()
    shown = "".join(stream.feed(data[at : at + 7]) for at in range(0, len(data), 7))
    assert len(stream._held) < 300  # noqa: SLF001  nothing outside tells how much memory it takes
    assert shown + stream.end() == filtered([data]) == printable(data)


@given(_TEXT)
def test_one_line_is_one(text: str) -> None:
    shown = one_line(text, 30)
    assert [char for char in shown if unicodedata.category(char) == "Cc"] == []
    assert len(shown) <= 30


def test_one_line_shows_what_would_break_it() -> None:
    assert one_line("a\nb\tc\x1b[31md") == "a\\nb\\tcd"
    assert one_line(b"x" * 1000 + b"end", 11) == "xxxxx…xxend"


@pytest.mark.parametrize(
    ("text", "plain"), [("", True), ("a b é", True), ("a\nb", False), ("\t", False), ("\x1b[m", False)]
)
def test_what_is_plain_can_be_printed_as_it_stands(text: str, plain: bool) -> None:
    assert is_plain(text) == plain
    assert is_plain(text * 1000) == plain
