"""What targets said of themselves: assertions, CHECKs and panics."""

import pytest

from pipeline.fuzz.crashes.messages import LONGEST, Message, last
from pipeline.fuzz.crashes.report import parse
from pipeline.fuzz.crashes.rules import key
from pipeline.fuzz.crashes.stack import Frame


def said(text: str) -> Message | None:
    return last(text, 0, len(text))


@pytest.mark.parametrize(
    ("line", "kind", "text"),
    [
        # glibc, bionic, musl, macOS
        ('f: a.c:39: void f(int): Assertion `x > 0 && "no"\' failed.', "assertion failure", 'x > 0 && "no"'),
        ('a.c:39: f: assertion "x > 0" failed', "assertion failure", "x > 0"),
        ("Assertion failed: x > 0 (../../src/a.c: f: 39)", "assertion failure", "x > 0"),
        ("Assertion failed: (x > 0), function f, file a.c, line 39.", "assertion failure", "x > 0"),
        # Zircon
        ("ASSERT FAILED at (../../src/lib/a.cc:39): status == ZX_OK", "assertion failure", "status == ZX_OK"),
        ("DEBUG ASSERT FAILED at (a.cc:39): !empty()", "assertion failure", "!empty()"),
        # libc++, GLib
        ("/c++/v1/optional:804: assertion this->has_value() failed: no value", "assertion failure", "no value"),
        ("GLib:ERROR:../a.c:39:f: assertion failed: (j < i)", "assertion failure", "(j < i)"),
        # Chromium, glog, Fuchsia's FX_CHECK
        ("[1:1:0417/2245.8:FATAL:a.cc(39)] Check failed: a == b (1 vs. 2)", "check failure", "a == b in a.cc"),
        ("[0908/07.8:FATAL:content/a.cc:40] Check failed: a. ", "check failure", "a in a.cc"),
        ("F0813 00:29:27.775753  384244 file.cc:130] Check failed: sorted(f)", "check failure", "sorted(f) in file.cc"),
        ("[12.345][1][2][tag] FATAL: [src/a.cc(39)] Check failed: a.", "check failure", "a in a.cc"),
        (
            "# Fatal error in ../../a.h, line 24\n# Check failed: a != 1234 (0 vs. 1).",
            "check failure",
            "a != NUMBER in a.h",
        ),
        # Rust before 1.73, since, and since 1.91
        ("thread 'main' panicked at 'it is 7, can't', src/a.rs:6:5", "panic", "it is NUMBER, can't"),
        ("thread 'main' panicked at 'two\nlines', src/a.rs:6:5", "panic", "two"),
        ("thread '<unnamed>' panicked at src/a.rs:6:5:\nindex 9 of 5", "panic", "index NUMBER of NUMBER"),
        ("thread 'main' (4711) panicked at src/a.rs:6:5:\nno", "panic", "no"),
        ("thread 'main' panicked at src/a.rs:6:5:\n\ta  b", "panic", "a b"),
        # libstdc++; libc++abi since LLVM 16, and before
        (
            "terminate called after throwing an instance of 'a::b<int>'\n  what():  no",
            "uncaught exception",
            "a::b<int>",
        ),
        ("libc++abi: terminating due to uncaught exception of type a::b: no: no", "uncaught exception", "a::b"),
        ("libc++abi: terminating with uncaught exception of type int", "uncaught exception", "int"),
        # Envoy
        ("[critical][assert] source/a.cc:259] panic: not reached", "panic", "not reached"),
        # Values that differ from run to run; a sanitizer that does not begin a line
        ("a.c:3: f: Assertion `p != 0x7f0012345678' failed.", "assertion failure", "p != ADDRESS"),
        ("Assertion failed: x (a.c: f: 39)AddressSanitizer:DEADLYSIGNAL", "assertion failure", "x"),
        ("Assertion failed: (" + "x" * 900 + "), function f, file a.c, line 39.", "assertion failure", "x" * LONGEST),
    ],
)
def test_a_message(line: str, kind: str, text: str) -> None:
    for output in (f"before\n{line}", f"before\n{line}\nnote: behind it\n"):
        found = said(output)
        assert found is not None
        assert (found.kind, found.text) == (kind, text)


@pytest.mark.parametrize(
    ("output", "place"),
    [
        ("f: src/a.c:39: void f(int): Assertion `x > 0' failed.", Frame("", "src/a.c", 39)),
        ('src/a.c:39: f: assertion "x > 0" failed', Frame("", "src/a.c", 39)),
        ("thread 'main' panicked at 'it is, isn't it', src/a.rs:6:5", Frame("", "src/a.rs", 6)),
        ("thread '<unnamed>' panicked at src/a.rs:6:5:\nno", Frame("", "src/a.rs", 6)),
        ("thread 'main' (4) panicked at src/a.rs:6:5:\nassertion failed: x > 0", Frame("", "src/a.rs", 6)),
        ("Assertion failed: x > 0 (../../src/a.c: f: 39)", None),
        ("terminate called after throwing an instance of 'a:1'", None),
    ],
)
def test_where_it_was_said(output: str, place: Frame | None) -> None:
    found = said(output)
    assert found is not None
    assert found.place == place


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Check failed: ",
        "ssertion",
        "assertion of identity",
        "don't panic: towel",
        "thread 'x' panicked at a.rs:1:2:\n",
        "terminate called without an active exception",
        "libc++abi: terminating due to uncaught foreign exception",
    ],
)
def test_what_is_no_message(line: str) -> None:
    assert said(f"{line}\n") is None


def test_the_last_message_counts() -> None:
    assert said("Check failed: a.\nCheck failed: b.\n") == Message("check failure", "b")


CRASH = "ERROR: {}\n    #0 0x1 in abort\n    #1 0x1 in f a.c:3\n    #2 0x1 in LLVMFuzzerTestOneInput a.c:9\n"


@pytest.mark.parametrize(
    "error",
    ["libFuzzer: deadly signal", "AddressSanitizer: ABRT on unknown address 0x1", "UndefinedBehaviorSanitizer: ILL"],
)
def test_a_message_explains_how_the_target_ended(error: str) -> None:
    found = parse(("Assertion failed: x (a.c: f: 39)\n" + CRASH.format(error)).encode())
    assert found is not None
    assert key(found) == "assertion failure | x | f | LLVMFuzzerTestOneInput"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        # What else went wrong is told by its report
        (
            "Assertion failed: x (a.c: f: 3)\n" + CRASH.format("AddressSanitizer: heap-use-after-free on a"),
            "heap-use-after-free",
        ),
        # The target went on after it
        (
            "Assertion failed: x (a.c: f: 3)\n#7\tNEW cov: 1\n" + CRASH.format("libFuzzer: deadly signal"),
            "deadly signal",
        ),
    ],
)
def test_a_message_that_explains_nothing(output: str, expected: str) -> None:
    found = parse(output.encode())
    assert found is not None
    assert (found.kind, found.message) == (expected, "")


def test_two_assertions_in_one_function_are_two_bugs() -> None:
    keys = set()
    for expression in ("x > 0", "y > 0"):
        found = parse(
            f"Assertion failed: {expression} (a.c: f: 39)\n{CRASH.format('libFuzzer: deadly signal')}".encode()
        )
        assert found is not None
        keys.add(key(found))
    assert len(keys) == 2


def test_fuchsias_system_log_comes_behind_the_report() -> None:
    log = "MS: 0 \n[00012.345678][1][2][fuzzer] FATAL: [src/a.cc(39)] Check failed: a.\n"
    found = parse((CRASH.format("libFuzzer: deadly signal") + log).encode())
    assert found is not None
    assert (found.kind, found.message) == ("check failure", "a in a.cc")
    hidden = parse((CRASH.format("libFuzzer: deadly signal") + "Check failed: of the input\n").encode())
    assert hidden is not None
    assert hidden.message == ""
