"""Which crashes are the same: the rules, and how they explain themselves."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.builds.demo.planted import PLANTED
from pipeline.errors import UsageError
from pipeline.fuzz.crashes import functions
from pipeline.fuzz.crashes.report import UNKNOWN, CrashReport, parse
from pipeline.fuzz.crashes.rules import (
    DEFAULT,
    MOST_FRAMES,
    RULES_VERSION,
    Rule,
    consistent,
    decide,
    identity,
    key,
    parse_rule,
    slug,
    title,
)
from pipeline.fuzz.crashes.stack import Frame
from pipeline.text.printable import printable
from tests.fuzz.crashes.recorded import OUTPUTS, parsed, planted, read

ENTRY = Frame("LLVMFuzzerTestOneInput")
FROZEN = json.loads((Path(__file__).parent / "keys.json").read_text())
TOKEN = Rule("dedup-token")
SLUG = re.compile(r"[a-z0-9_-]{1,80}")


def crash(kind: str, *functions: str) -> CrashReport:
    return CrashReport(kind, frames=tuple(map(Frame, functions)))


def test_distinct_bugs_have_distinct_keys_and_directories() -> None:
    reports = [planted(bug) for bug in PLANTED]
    assert len({key(one) for one in reports}) == len({slug(one) for one in reports}) == len(PLANTED)


def test_a_bug_has_one_key_whether_it_was_found_or_reproduced() -> None:
    for found, again in (
        ("fuzz-crash", "crash_fuzzer-greet"),
        ("fuzz-maze", "maze_fuzzer-trap_door"),
        ("fuzz-parser", "parser_fuzzer-copy_text"),
    ):
        assert key(read(found)) == key(read(again))


def test_lines_files_and_addresses_do_not_count() -> None:
    one = CrashReport("SEGV", "READ 1", (Frame("f(int)", "a.c", 1, "m+0x1"), ENTRY), "x", ("crash-1",), b"")
    other = CrashReport("SEGV", "READ 4", (Frame("void f<int>(char)", "b/a.c", 2, "m+0x2"), ENTRY), "y")
    assert key(one) == key(other)
    assert key(one) != key(CrashReport("FPE", frames=one.frames))


def test_only_the_upper_frames_count() -> None:
    assert key(crash("SEGV", "a", "b", "c", "d")) == key(crash("SEGV", "a", "b", "c", "e")) == "SEGV | a | b | c"
    assert key(crash("SEGV", "a", "b", "c"), rule=parse_rule("frames:2")) == "SEGV | a | b"


def test_of_a_timeout_the_lower_frames_count() -> None:
    slow = ("LLVMFuzzerTestOneInput", "fuzzer::Run()")
    assert key(crash("timeout", "deep", "loop", "parse", "all", *slow)) == key(
        crash("timeout", "memcpy", "deeper", "other", "loop", "parse", "all", *slow)
    )
    assert key(crash("timeout", "loop", *slow)) == "timeout | loop | LLVMFuzzerTestOneInput"


def test_of_a_timeout_whose_stack_is_cut_off_the_upper_frames_count() -> None:
    assert key(crash("timeout", "loop", "parse", "all", "more")) == "timeout | loop | parse | all"


def test_of_a_stack_overflow_the_calls_that_recur_count() -> None:
    ring = ["a", "b", "c", "d"] * 10
    keys = {key(crash("stack-overflow", "leaf" * at, *ring[at:])) for at in range(4)}
    assert keys == {"stack-overflow | a | b | c"}
    assert key(crash("stack-overflow", "big", "caller")) == "stack-overflow | big | caller"


def test_of_a_stack_overflow_in_no_fixed_order_the_calls_that_recur_count() -> None:
    tree = ["expression", "term", "expression", "expression", "term", "leaf", "term", "expression", "root"]
    assert key(crash("stack-overflow", *tree)) == "stack-overflow | expression | term"


def test_the_entry_alone_is_told_by_its_file() -> None:
    one = CrashReport("SEGV", frames=(Frame("LLVMFuzzerTestOneInput", "/src/one.cc", 3), Frame("fuzzer::f")))
    assert key(one) == "SEGV | LLVMFuzzerTestOneInput one.cc"


def test_without_frames_the_fuzzer_stands_in() -> None:
    assert key(crash("timeout"), fuzzer="example-fuzzers/a") == "timeout | example-fuzzers/a"
    assert key(crash("timeout", "f"), fuzzer="example-fuzzers/a") == "timeout | f"
    assert slug(crash("timeout"), "example-fuzzers/a").startswith("timeout-example-fuzzers-a-")


def test_the_directory_has_the_functions_name_though_there_is_a_message() -> None:
    assert slug(CrashReport("panic", frames=(Frame("f"),), message="no")).startswith("panic-f-")
    assert slug(CrashReport("panic", message="it is gone")).startswith("panic-it-is-gone-")


@pytest.mark.parametrize(
    ("kind", "frames", "expected"),
    [
        ("SEGV", ("f", "g"), "SEGV in f"),
        ("timeout", (), "timeout"),
        ("panic", ("it is gone", "f", "g"), "panic in f: it is gone"),
        ("check failure", ("x in a.cc",), "check failure: x in a.cc"),
        ("bad-cast", ("Bad-cast to A from B", "f"), "bad-cast in f: Bad-cast to A from B"),
    ],
)
def test_a_line_for_people(kind: str, frames: tuple[str, ...], expected: str) -> None:
    assert title(kind, frames) == expected


def test_an_identity_is_that_of_the_key() -> None:
    assert identity("a") != identity("b")
    assert re.fullmatch("[0-9a-f]{12}", identity("\ud800"))


texts = st.text(max_size=100)
reports = st.builds(
    CrashReport, texts, texts, st.lists(st.builds(Frame, texts, texts, st.integers(0, 9), texts)).map(tuple), texts
)


@given(reports, texts)
def test_a_slug_is_always_one_name(one: CrashReport, fuzzer: str) -> None:
    assert SLUG.fullmatch(slug(one, fuzzer))
    assert slug(one, fuzzer).endswith(identity(key(one, fuzzer=fuzzer)))


@pytest.mark.parametrize("name", sorted(path.name for path in OUTPUTS.glob("*.txt")))
def test_keys_are_frozen(name: str) -> None:
    """If this fails for a good reason, raise RULES_VERSION: buckets that exist get other names."""
    found = parse((OUTPUTS / name).read_bytes())
    assert FROZEN["rule"] == DEFAULT.versioned
    assert FROZEN["outputs"][name] == (found and slug(found, "package/fuzzer"))


@pytest.mark.parametrize("name", sorted(FROZEN["outputs"]))
def test_what_a_bucket_keeps_has_its_key(name: str) -> None:
    """Nothing that is kept of a crash contradicts the bucket's title: the output as it came, and as it is stored."""
    output = (OUTPUTS / f"{name}").read_bytes()
    own = key(parse(output) or UNKNOWN, "package/fuzzer")
    assert consistent([output, printable(output).encode()], own, "package/fuzzer")
    other = "lsan" if name != "lsan.txt" else "asan-leaks"
    assert not consistent([output, (OUTPUTS / f"{other}.txt").read_bytes()], own, "package/fuzzer")
    assert not consistent([output], own + "x", "package/fuzzer")


def test_an_output_that_tells_nothing_is_of_the_unknown() -> None:
    assert consistent([b"", b"nothing"], key(UNKNOWN, "p/f"), "p/f")
    assert consistent([], "any")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("default", Rule()),
        ("dedup-token", TOKEN),
        ("frames:1", Rule("frames", 1)),
        ("frames:20", Rule("frames", MOST_FRAMES)),
    ],
)
def test_a_rule_has_a_text_and_a_version(text: str, rule: Rule) -> None:
    assert str(rule) == text
    assert rule.versioned == f"{text}/{RULES_VERSION}"
    assert parse_rule(text) == parse_rule(rule.versioned) == rule


@pytest.mark.parametrize(
    "text",
    [
        "", "frames", "frames:", "frames:0", "frames:21", "frames:100", "frames:-1", "frames:03", "frames:3 ",
        "frames:٣", "Default", "default/", "default/0", f"default/{RULES_VERSION + 1}", "dedup_token", "default\n",
        "\x1b[31mred",
    ],
)  # fmt: skip
def test_other_rules_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="there is no rule") as refused:
        parse_rule(text)
    assert "frames:5" in refused.value.hint
    assert "\x1b" not in str(refused.value)


def reasons(one: CrashReport, rule: Rule = DEFAULT) -> list[str]:
    """What is said of each frame: its reason, with a plus before it if it decides."""
    return ["+" * judged.decides + judged.why for judged in decide(one, rule=rule).frames]


def test_each_frame_has_a_reason() -> None:
    assert reasons(read("fuzz-crash")) == [
        "a sanitizer's", *["the fuzzing engine's own"] * 2, *["of the C library"] * 4,
        "+", "+", *["below the entry"] * 9,
    ]  # fmt: skip
    assert reasons(crash("SEGV", "malloc", "operator new(unsigned long)", "std::__throw_bad_alloc", "a", "")) == [
        "an allocator", "an allocator", "of C++'s runtime", "+", "without a name",
    ]  # fmt: skip
    assert reasons(crash("panic", "core::panicking::panic", "runtime.gopanic", "my_assert", "_exit", "f")) == [
        "of Rust's runtime", "of Go's runtime", "what checks an assertion", "of the C library", "+",
    ]  # fmt: skip
    assert reasons(crash("SEGV", *"abcde")) == ["+", "+", "+", "beyond the first 3", "beyond the first 3"]


def test_a_message_takes_the_place_of_a_frame() -> None:
    one = CrashReport("panic", frames=tuple(map(Frame, "abc")), message="it is gone")
    assert reasons(one) == ["+", "+", "beyond the first 2"]
    assert decide(one).message == "it is gone"
    assert reasons(one, parse_rule("frames:1")) == ["the message decides alone"] * 3
    assert key(one, rule=parse_rule("frames:1")) == "panic | it is gone"


def test_of_a_timeout_it_is_told_that_the_loop_is_chance() -> None:
    one = crash("timeout", "memcpy", "deep", "loop", "parse", "all", "LLVMFuzzerTestOneInput", "main")
    assert reasons(one) == [
        "of the C library", "where in the loop is chance", *["+next to the entry"] * 3,
        "the entry of every input", "below the entry",
    ]  # fmt: skip


def test_of_a_stack_overflow_it_is_told_which_calls_recur() -> None:
    one = crash("stack-overflow", "leaf", *["d", "c", "b", "a"] * 4, "root")
    assert key(one) == "stack-overflow | a | d | c"
    assert reasons(one)[0] == reasons(one)[-1] == "not in the cycle of calls"
    assert reasons(one).count("+in the cycle of calls") == 3
    assert reasons(one).count("in the cycle of calls, too") == 9
    assert reasons(one).count("beyond the first 3 of the cycle") == 4


def test_without_names_it_is_told_what_handles_the_signal() -> None:
    places = ["libclang_rt.asan.so+0x1", "f+0x2", "libc.so.6+0x3", "f+0x4"]
    one = CrashReport("deadly signal", frames=tuple(Frame("", place=place) for place in places))
    assert reasons(one) == ["above the handler of the signal"] * 2 + ["of the C library", "+"]


def test_an_explanation_for_people() -> None:
    assert decide(read("maze_fuzzer-sealed_gate")).lines()[:2] == [
        'assertion failure in sealed_gate: keys > 0 && "the gate is sealed"  (rule default/1)',
        '+ said: keys > 0 && "the gate is sealed"',
    ]
    lines = decide(CrashReport("SEGV", frames=(Frame("abort"), Frame("f", "a.c", 3), Frame("", place="m+0x1")))).lines()
    assert lines[1:] == ["  #0 abort  (of the C library)", "+ #1 f  a.c:3", "+ #2 m+0x1"]


TOKENS = """\
==1==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x602000000031 at pc 0x4a5b6c bp 0x7ffe sp 0x7ffd
WRITE of size 4 at 0x602000000031 thread T0
    #0 0x4a5b6b in __asan_memcpy /src/compiler-rt/lib/asan/a.cpp:22
    #1 0x4c1a2b in copy_text(char*) /src/p.c:7
    #2 0x4c1a2c in record /src/p.c:9

DEDUP_TOKEN: {}
0x602000000031 is located 0 bytes to the right of 1-byte region
    #0 0x1 in malloc

DEDUP_TOKEN: malloc--other
"""


def test_a_sanitizers_token_decides_without_its_interceptors() -> None:
    one = parsed(TOKENS.format("__asan_memcpy--copy_text(char*)--record"))
    assert one.dedup_token == ("__asan_memcpy", "copy_text(char*)", "record")
    decision = decide(one, rule=TOKEN)
    assert decision.key == "heap-buffer-overflow | copy_text | record"
    assert decision.note == ""
    assert reasons(one, TOKEN) == ["a sanitizer's", "+", "+"]
    assert decision.slug == slug(one), "where both rules take the same frames, the bucket is the same"
    assert reasons(parsed(TOKENS.format("memcpy--copy_text(char*)")), TOKEN)[2] == "not in the sanitizer's token"


def test_a_message_counts_with_a_token_too() -> None:
    one = replace(crash("panic", "abort", "f", "g"), message="it is gone", dedup_token=("abort", "f", "g"))
    assert decide(one, rule=TOKEN).key == "panic | it is gone | f | g"
    assert decide(one, rule=TOKEN).title == decide(one).title == "panic in f: it is gone"


@pytest.mark.parametrize("token", ["", " ", "----", "__asan_memcpy", "__asan_memcpy--malloc--abort", "-- --"])
def test_without_a_token_the_default_rule_decides_and_that_is_told(token: str) -> None:
    decision = decide(parsed(TOKENS.format(token).replace("malloc--other", "")), rule=TOKEN)
    assert decision.slug == decide(parsed(TOKENS.format("x"))).slug
    assert "so the rule `default` decides" in decision.note
    assert decision.note in decision.lines()


@pytest.mark.parametrize(
    ("token", "functions"),
    [
        ("a--b--c", ("a", "b", "c")),
        ("C::operator--(int)--b", ("C::operator--(int)", "b")),
        ("C::operator----b", ("C::operator--", "b")),
        ("my_operator--b", ("my_operator", "b")),
        ("a----b", ("a", "b")),
        ("std::vector<int, std::a<int>>::at(unsigned)--f", ("std::vector<int, std::a<int>>::at(unsigned)", "f")),
        ("a b--\x1b[31mc", ("a b", "c")),
        ("--".join(["f"] * 40), ("f",) * 32),
    ],
)  # fmt: skip
def test_a_token_is_taken_apart(token: str, functions: tuple[str, ...]) -> None:
    assert parsed(TOKENS.format(token)).dedup_token == functions


def test_of_several_leaks_the_token_is_that_of_the_stack() -> None:
    text = """==1==ERROR: LeakSanitizer: detected memory leaks

Indirect leak of 5 byte(s) in 1 object(s) allocated from:
    #0 0x1 in malloc
    #1 0x1 in inner

DEDUP_TOKEN: malloc--inner
Direct leak of 8 byte(s) in 1 object(s) allocated from:
    #0 0x1 in malloc
    #1 0x1 in outer

DEDUP_TOKEN: malloc--outer
"""
    assert key(parsed(text), rule=TOKEN) == "memory leak | outer"


def test_a_long_token_does_not_hold_a_name_of_any_length() -> None:
    (name,) = parsed(TOKENS.format("f" * 9000)).dedup_token
    assert len(name) == 1000


# Complaint: distinct panics in Rust were merged, because the upper frames of all of them are those of its runtime
RUST = """\
thread '<unnamed>' panicked at src/{0}.rs:{1}:{1}:
{2}
==1== ERROR: libFuzzer: deadly signal
    #0 0x1 in __sanitizer_print_stack_trace
    #1 0x1 in fuzzer::PrintStackTrace()
    #2 0x1 in __pthread_kill_implementation
    #3 0x1 in abort
    #4 0x1 in std::process::abort::h0123456789abcdef /rustc/9/library/std/src/process.rs:2
    #5 0x1 in libfuzzer_sys::initialize::{{closure}}::h1123456789abcdef
    #6 0x1 in std::panicking::rust_panic_with_hook::h2123456789abcdef
    #7 0x1 in rust_begin_unwind
    #8 0x1 in core::panicking::panic_fmt::h3123456789abcdef
    #9 0x1 in core::option::unwrap_failed::h4123456789abcdef
    #10 0x1 in <parser::{0} as parser::Read>::read::h{3:016x} /src/{0}.rs:{1}
    #11 0x1 in parser::all::h5123456789abcdef
    #12 0x1 in rust_fuzzer_test_input
"""


def test_distinct_bugs_in_rust_are_kept_apart() -> None:
    none = "called `Option::unwrap()` on a `None` value"
    one = key(parsed(RUST.format("header", 7, none, 1)))
    assert one == f"panic | {none} | parser::header::read | parser::all"
    assert one == key(parsed(RUST.format("header", 9, none, 2))), "built again, after a line was added"
    assert one != key(parsed(RUST.format("footer", 7, none, 1))), "another function"
    assert one != key(parsed(RUST.format("header", 7, "attempt to add with overflow", 1))), "another panic in it"


# Complaint: distinct bugs in Fuchsia were merged, because the upper frames of all of them are those that end a process
FUCHSIA = """\
[00123.456][1][2][klog] INFO: {{{{{{reset}}}}}}
==1== ERROR: libFuzzer: deadly signal
   #0    0x00000123456789ab in __sanitizer_print_stack_trace compiler-rt/lib/asan/asan_stack.cpp:87 <libclang_rt.asan.so>+0x1
   #1    0x00000123456789ac in abort() ../../zircon/third_party/ulib/musl/src/exit/abort.c:7 <libc.so>+0x2
   #2    0x00000123456789ad in __zx_panic(const char*) ../../zircon/system/ulib/zircon/panic.cc:3 <libzircon.so>+0x3
   #3.1  0x00000123456789ae in fxl::LogMessage::~LogMessage(fxl::LogMessage*) ../../src/lib/fxl/log.cc:9 <libfxl.so>+0x4
   #4    0x0000{address:012x} in {function}({function}*) ../../src/{function}.cc:{line} <<VMO#{line}=blob-{line}>>+0x{line}
   #5    0x00000123456789b0 in LLVMFuzzerTestOneInput(const uint8_t*, size_t) ../../src/fuzz.cc:3 <>+0x6
"""  # noqa: E501


def test_distinct_bugs_in_fuchsia_are_kept_apart() -> None:
    one = key(parsed(FUCHSIA.format(address=1, function="read_header", line=7)))
    assert one == "deadly signal | read_header | LLVMFuzzerTestOneInput"
    assert one == key(parsed(FUCHSIA.format(address=0xFFF, function="read_header", line=90)))
    assert one != key(parsed(FUCHSIA.format(address=1, function="read_footer", line=7)))


def test_one_loop_that_takes_too_long_is_one_bucket_wherever_it_is_stopped() -> None:
    """Complaint: one timeout, many stacks. The alarm comes anywhere in the loop, in calls of any depth."""
    recorded = read("maze_fuzzer-endless_corridor")
    loop = next(at for at, frame in enumerate(recorded.frames) if functions.name(frame) == "endless_corridor")
    for upper in ((), (Frame("memcpy"),), recorded.frames[:loop], (Frame("__asan_memcpy"), Frame("fuzzer::f"))):
        assert slug(CrashReport("timeout", frames=(*upper, *recorded.frames[loop:]))) == slug(recorded)

    lines = "ERROR: libFuzzer: timeout after 2 seconds\n    #0 0x1 in fuzzer::PrintStackTrace()\n{}"
    below = ("step", "walk", "parse", "LLVMFuzzerTestOneInput", "fuzzer::Fuzzer::ExecuteCallback()", "main")
    inner = (("memcpy",), ("turn",), ("look", "turn"), ("strlen", "look", "turn"), ("step", "step", "step"), ("a::b",))
    stacks = [[*above, *below] for above in inner] + [[f"f{number}", *below] for number in range(14)]
    outputs = [
        lines.format("".join(f"    #{at} {at:#x} in {call}\n" for at, call in enumerate(stack, 1))) for stack in stacks
    ]
    assert len(outputs) == 20
    assert {key(parsed(output)) for output in outputs} == {"timeout | step | walk | parse"}
