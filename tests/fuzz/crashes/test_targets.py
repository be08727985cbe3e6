"""What targets in C, C++ and Rust said when they were built as others build them, and failed in all their ways.

The outputs are those of small programs, built with clang 19 and rustc 1.97, without build ids, stripped, and run with
`symbolize=0`, to which the symbolizer has added names. Those of ubsan-recovered, ubsan-signal and ubsan-survived were
run with halt_on_error=0, all others with halt_on_error=1.
"""

from pathlib import Path

import pytest

from pipeline.fuzz.crashes.report import CrashReport, parse
from pipeline.fuzz.crashes.rules import key, key_frames, slug, title
from pipeline.fuzz.crashes.stack import Frame

OUTPUTS = Path(__file__).parent / "outputs"
CLOSURE = "target::_::__libfuzzer_sys_run"
ENTRY = "LLVMFuzzerTestOneInput"


def text(name: str) -> str:
    return (OUTPUTS / f"{name}.txt").read_text()


def parsed(output: str) -> CrashReport:
    found = parse(output.encode())
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "kind", "frames"),
    [
        # UndefinedBehaviorSanitizer: the report that ended the run counts, not those that the target survived
        ("ubsan-recovered", "global-buffer-overflow", ["look", ENTRY]),
        ("ubsan-recovered-abort", "deadly signal", [f"{ENTRY} ub.c"]),
        ("ubsan-signal", "SEGV", [f"{ENTRY} ub.c"]),
        ("ubsan-no-stack", "index-out-of-bounds", ["ub.c"]),
        ("cxx-bad-cast", "bad-cast", ["Bad-cast to const Other from shop::Derived", "shop::Cart::cast", ENTRY]),
        # MemorySanitizer, LeakSanitizer
        ("msan-origin", "use-of-uninitialized-value", ["branch", "heap", ENTRY]),
        ("msan-abort", "deadly signal", [f"{ENTRY} msan.c"]),
        ("lsan", "memory leak", ["make", "chain", ENTRY]),
        ("asan-leaks", "memory leak", ["text", ENTRY]),
        # C++
        ("cxx-exception", "uncaught exception", ["std::out_of_range", "shop::Cart::lookup", ENTRY]),
        (
            "cxx-exception-libcxxabi",
            "uncaught exception",
            ["std::invalid_argument", "std::__1::stoi", "shop::Cart::number"],
        ),
        ("cxx-noexcept", "uncaught exception", ["shop::broken", "shop::Cart::never", ENTRY]),
        ("cxx-assert", "assertion failure", ['code == 7 && "seven"', "shop::Cart::checked", ENTRY]),
        ("cxx-libstdcxx-assertion", "assertion failure", ["!this->empty()", "shop::Cart::front", ENTRY]),
        (
            "cxx-libcxx-assertion",
            "assertion failure",
            ["front() called on an empty vector", "shop::Cart::front", ENTRY],
        ),
        ("cxx-lambda", "deadly signal", ["shop::Cart::lambda::lambda::operator_c", "shop::Cart::lambda", ENTRY]),
        # Rust
        (
            "rust-panic",
            "panic",
            [
                "end byte index NUMBER is not a char boundary; it is inside 'é' (bytes NUMBER of",
                "parser::text",
                CLOSURE,
            ],
        ),
        (
            "rust-trait",
            "panic",
            ["index out of bounds: the len is NUMBER but the index is NUMBER", "parser::Reader::take", CLOSURE],
        ),
        (
            "rust-closure",
            "panic",
            ["called `Option::unwrap()` on a `None` value", "parser::closure::closure", "parser::closure"],
        ),
        ("rust-assert", "assertion failure", ["left == right", "parser::equal", CLOSURE]),
        ("rust-abort", "deadly signal", ["parser::ended", CLOSURE, ENTRY]),
        # Without a sanitizer, libFuzzer prints no stack
        ("rust-no-stack", "panic", ["called `Option::unwrap()` on a `None` value", "parser.rs"]),
        ("rust-assert-no-stack", "assertion failure", ["left == right", "parser.rs"]),
    ],
)
def test_a_crash_is_told_by_its_kind_and_the_targets_own_frames(name: str, kind: str, frames: list[str]) -> None:
    found = parsed(text(name))
    assert (found.kind, list(key_frames(found))) == (kind, frames)


KINDS = {
    "add": "integer-overflow",
    "shift_by": "undefined-shift",
    "shift_over": "undefined-shift",
    "shift_negative": "undefined-shift",
    "look": "index-out-of-bounds",
    "store_null": "null-dereference",
    "load_null": "null-dereference",
    "misaligned": "misaligned-address",
    "divide": "divide-by-zero",
    "divide_min": "integer-overflow",
    "boolean": "invalid-bool-value",
    "bound": "non-positive-vla-bound",
    "offset": "pointer-overflow",
    "float_cast": "float-cast-overflow",
    "unreachable_": "unreachable-code",
    "argument": "invalid-null-argument",
    "negate": "integer-overflow",
    "count": "invalid-builtin-use",
    "aligned": "alignment-assumption",
    "never": "invalid-null-return",
    "call_wrong": "incorrect-function-pointer-type",
    "object": "object-size",
}


def test_the_kinds_of_undefined_behaviour_are_told_apart() -> None:
    reports = [parsed(part) for part in text("ubsan-kinds").split("\n\n") if "runtime error" in part]
    assert {key_frames(found)[0]: found.kind for found in reports} == KINDS
    assert all(found.frames[0].file == "/src/ub.c" for found in reports)


def test_what_the_target_survived_is_no_crash() -> None:
    survived = text("ubsan-survived")
    assert parse(survived.encode()) is None
    assert parsed(survived[: survived.index("Executed")]).kind == "integer-overflow", "it would be one"


def test_of_several_reports_of_undefined_behaviour_the_last_one_ended_the_run() -> None:
    first, second = (part for part in text("ubsan-kinds").split("\n\n") if " in look " in part or " in add " in part)
    assert key(parsed(f"{first}\n{second}")) == "index-out-of-bounds | look | LLVMFuzzerTestOneInput"
    assert key(parsed(f"{second}\n{first}")) == "integer-overflow | add | LLVMFuzzerTestOneInput"


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ("undefined-behavior src/x.c:7:3 ", "undefined-behavior | x.c"),
        ("undefined-behavior /a/x.c:7:3 in f", "undefined-behavior | x.c"),
        ("signed-integer-overflow x.c:7:3 ", "signed-integer-overflow | x.c"),
        ("undefined-behavior (/targets/files/x+0x12) ", "undefined-behavior | fuzzer"),
    ],
)
def test_where_only_the_summary_is_left_it_counts(summary: str, expected: str) -> None:
    found = parsed(f"cut off\nSUMMARY: UndefinedBehaviorSanitizer: {summary}\nMS: 0 \n")
    assert key(found, fuzzer="fuzzer") == expected
    assert found.summary == f"SUMMARY: UndefinedBehaviorSanitizer: {summary}".strip()
    assert parse(f"SUMMARY: UndefinedBehaviorSanitizer: {summary}\nDone 1 runs in 0 second(s)\n".encode()) is None


def test_where_there_is_a_stack_the_place_of_the_message_is_not_added() -> None:
    for name in ("cxx-assert", "rust-panic", "cxx-bad-cast"):
        assert all(frame.function or frame.place for frame in parsed(text(name)).frames)
    assert parsed(text("rust-no-stack")).frames == (Frame("", "parser.rs", 9),)
    assert parsed(text("rust-assert-no-stack")).frames == (Frame("", "parser.rs", 15),)


def test_an_uncaught_exception_for_people() -> None:
    found = parsed(text("cxx-exception"))
    assert title(found.kind, key_frames(found)) == "uncaught exception in shop::Cart::lookup: std::out_of_range"
    assert slug(found).startswith("uncaught-exception-shop-cart-lookup-")


def test_origins_and_other_leaks_are_no_frames_of_the_crash() -> None:
    assert [frame.line for frame in parsed(text("msan-origin")).frames[:3]] == [7, 8, 16]
    assert [frame.function for frame in parsed(text("asan-leaks")).frames[:2]] == ["___interceptor_strdup", "text"]
