"""Frames of stacks, as all the tools write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fuzz.crashes import stack
from pipeline.fuzz.crashes.functions import own
from pipeline.fuzz.crashes.stack import Frame, read


@pytest.mark.parametrize(
    ("line", "frame"),
    [
        (
            "    #7 0x55726e88fa28 in greet pipeline/builds/demo/fuzzers/crash_fuzzer.c:10:17",
            Frame("greet", "pipeline/builds/demo/fuzzers/crash_fuzzer.c", 10),
        ),
        ("    #7 0x55726e88fa28 in greet crash_fuzzer.c:10", Frame("greet", "crash_fuzzer.c", 10)),
        (
            "    #3 0x7f34b929304f  (/lib/libc.so.6+0x3c04f) (BuildId: 93ac61ec5a8eb1)",
            Frame("", place="libc.so.6+0x3c04f"),
        ),
        (
            "    #1 0x5 in fuzzer::Run(int*, char***) (/d/a b/f+0x46058) (BuildId: 96)",
            Frame("fuzzer::Run(int*, char***)", place="f+0x46058"),
        ),
        (
            "    #1 0x5 in a::b<c, d>::e(unsigned char const*) const /src/a.cc:1:2",
            Frame("a::b<c, d>::e(unsigned char const*) const", "/src/a.cc", 1),
        ),
        (
            "   #1.2  0x000041f27ab1c9a5 in fuzz(const uint8_t*, size_t) ../../file.cc:12 <x>+0x123",
            Frame("fuzz(const uint8_t*, size_t)", "../../file.cc", 12, "x+0x123"),
        ),
        ("   #0    0x00 in abort() a.c:7 <libc.so>+0xa sp 0x1", Frame("abort()", "a.c", 7, "libc.so+0xa")),
        ("   #0    0x00 in <libfoo.so>+0x1", Frame("", place="libfoo.so+0x1")),
        ("   #0    0x00 is not covered by any module", Frame("")),
        # ThreadSanitizer, GWP-ASan, Chromium, HWASan
        ("    #1 g(int) /src/a.cc:1:2 (m+0x1) (BuildId: 96)", Frame("g(int)", "/src/a.cc", 1, "m+0x1")),
        ("    #0 operator new(int) <null> (a.out+0x49)", Frame("operator new(int)", place="a.out+0x49")),
        ("  #9 ./a.out(_ZSt1f+0x45) [0x55585c0afa55]", Frame("_ZSt1f", place="a.out+0x45")),
        ("  #9 ./a.out(+0x45) [0x55585c0afa55]", Frame("", place="a.out+0x45")),
        ("#3 0x0000004f3cb6 logging::LogMessage::~LogMessage()", Frame("logging::LogMessage::~LogMessage()")),
        ("#3 0x0000004f3cb6 <unknown>", Frame("")),
        ("    #0 0x7e9aa0a3fc  (/system/lib64/libc.so+0x51994)", Frame("", place="libc.so+0x51994")),
        ("    #0 0x000000000000  (<unknown module>)", Frame("")),
        # What is not known, and what addr2line adds
        ("    #0 0x1 in f ??:?", Frame("f")),
        ("    #0 0x1 in ?? ??:0:0", Frame("")),
        ("    #0 0x1 in f a.cc:1115 (discriminator 1)", Frame("f", "a.cc", 1115)),
        ("    #0 0x1 in f(int) (/opt (x86)/a.so+0x1)", Frame("f(int)", place="a.so+0x1")),
        ("#0 0x1 in f", Frame("f")),
        ("#0 0x1 in f \r", Frame("f")),
        ("#0 0x1 in", Frame("")),
        ("#0 0x1", Frame("")),
        ("#0 0x1 in f x.c:1234567890123", Frame("f x.c:1234567890123")),
    ],
)  # fmt: skip
def test_a_frame(line: str, frame: Frame) -> None:
    assert read([line]) == (frame,)


@pytest.mark.parametrize(
    "line", ["", "#0", "#x 0x1 in f", "#12345: cov: 3", "0 0x1 in f", "a #0 0x1 in f", "#0 1 in f"]
)
def test_what_is_no_frame(line: str) -> None:
    assert read([line]) == ()


def frames(*numbers: str) -> list[str]:
    return [f"  #{number} 0x1 in f{number.replace('.', '_')}" for number in numbers]


def functions(lines: list[str]) -> list[str]:
    return [frame.function for frame in read(lines)]


def test_the_first_stack_ends_where_another_begins() -> None:
    assert functions(["x", *frames("0", "1", "2"), "", "freed by:", *frames("0", "1")]) == ["f0", "f1", "f2"]
    assert functions([*frames("0"), *frames("0.1", "0", "1"), "", *frames("0")]) == ["f0", "f0_1", "f0", "f1"]
    assert functions([*frames("0"), "freed by:", *frames("0", "1")]) == ["f0"]
    assert functions([*frames("0.1"), "a log", *frames("0", "1")]) == ["f0_1", "f0", "f1"]
    assert functions([*frames("0", "1"), *frames("0", "2")]) == ["f0", "f1", "f0", "f2"], "nothing is between them"


def test_lines_of_others_may_stand_in_a_stack_but_not_many() -> None:
    assert functions([*frames("0"), "[1.2] a log", *frames("1")]) == ["f0", "f1"]
    assert functions([*frames("0"), *["a log"] * 21, *frames("1")]) == ["f0"]
    assert functions([*frames("0"), "SUMMARY: it", *frames("1")]) == ["f0"]


def test_of_a_deep_stack_the_upper_part_is_kept() -> None:
    assert len(functions(frames(*map(str, range(400))))) == stack.MOST_FRAMES


@given(st.lists(st.text(max_size=30) | st.text(max_size=30).map("#0 0x1 in {}".format)))
def test_reading_never_fails(lines: list[str]) -> None:
    assert all(isinstance(frame, Frame) for frame in own(read(lines)))
