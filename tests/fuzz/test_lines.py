import re
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fuzz.lines import LineEnds, LogPrefixes, Stage, through
from tests.fuzz.cuts import cut, cuts

_ORIGINAL = re.compile(rb"[0-9\[\]\.]*\[klog\] (?:INFO|WARNING|ERROR): ")

pieces_of_logs = st.lists(
    st.sampled_from(
        [b"[klog] INFO: ", b"[klog] WARNING: ", b"[klog] ERROR: ", b"[klog] DEBUG: ", b"[", b"]", b"1.5", b"[kl", b"x",
         b"\n", b"\r", b"INFO: ", b"[klog] ", b"[[0012.3]", b"\xff", b" "]
    )
).map(b"".join)  # fmt: skip


def whole(stage: Stage, pieces: Iterable[bytes]) -> bytes:
    return b"".join(through(stage, iter(pieces)))


@pytest.mark.parametrize(
    "before", [b"", b"[klog] INFO: ", b"[1][klog] INFO: ", b"[1][2][3][klog] WARNING: ", b"[12.34][klog] ERROR: "]
)
def test_b10_prefixes_are_removed(before: bytes) -> None:
    assert whole(LogPrefixes(), [before + b"something"]) == b"something"


@given(pieces_of_logs, cuts)
def test_prefixes_go_as_by_the_original_expression(text: bytes, places: list[int]) -> None:
    assert whole(LogPrefixes(), cut(text, places)) == _ORIGINAL.sub(b"", text)


class Short(LogPrefixes):
    MOST = 3


@given(pieces_of_logs, cuts)
def test_prefixes_that_are_too_long_go_alike_however_they_are_cut(text: bytes, places: list[int]) -> None:
    assert whole(Short(), cut(text, places)) == whole(Short(), [text])


def test_of_a_long_prefix_the_end_goes() -> None:
    assert whole(Short(), [b"x[12345][klog] INFO: y"]) == b"x[123y"


def test_digits_without_end_are_not_held_back() -> None:
    stage = LogPrefixes()
    came = sum(len(piece) for _ in range(100) for piece in stage.feed(b"0" * 65536))
    assert came == 99 * 65536
    assert len(b"".join(stage.end())) == 65536


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (b"", b""),
        (b"a\r\nb\n", b"a\nb\n"),
        (b"a\r\r\n", b"a\r\n"),
        (b"a\rb\n", b"a\rb\n"),
        (b"a", b"a\n"),
        (b"a\r", b"a\n"),
        (b"\r", b"\n"),
        (b"\n\n", b"\n\n"),
        (b"a\v\f\x1c\xe2\x80\xa8b\n", b"a\v\f\x1c\xe2\x80\xa8b\n"),
    ],
)
def test_line_ends(text: bytes, clean: bytes) -> None:
    assert whole(LineEnds(), [text]) == clean
    assert whole(LineEnds(), [bytes([byte]) for byte in text]) == clean


@given(st.text("a\r\n").map(str.encode), cuts)
def test_line_ends_are_those_of_the_original_scanner(text: bytes, places: list[int]) -> None:
    lines = text.split(b"\n")
    if lines[-1] == b"":
        del lines[-1]
    assert whole(LineEnds(), cut(text, places)) == b"".join(line.removesuffix(b"\r") + b"\n" for line in lines)


@pytest.mark.parametrize("make", [LineEnds, LogPrefixes])
def test_what_is_certain_is_not_held_back(make: Callable[[], Stage]) -> None:
    assert b"".join(make().feed(b"one line\nand a half")) == b"one line\nand a half"
