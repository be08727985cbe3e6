"""Reports of crashes."""

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.builds.demo.planted import PLANTED, Planted
from pipeline.fuzz.crashes import report
from pipeline.fuzz.crashes.report import parse
from pipeline.fuzz.crashes.rules import key, key_frames, slug
from pipeline.fuzz.crashes.stack import Frame
from tests.fuzz.crashes.recorded import OUTPUTS, parsed, planted, read
from tests.fuzz.crashes.sanitizers import SANITIZERS


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: f"{bug.fuzzer} {bug.function}")
def test_a_planted_bug_is_told_by_its_kind_and_its_function(bug: Planted) -> None:
    found = planted(bug)
    asserted = bug.function == "sealed_gate"
    assert found.kind == (
        "assertion failure" if asserted else bug.report.partition(": ")[2].removeprefix("attempting ")
    )
    assert found.message == ('keys > 0 && "the gate is sealed"' if asserted else "")
    assert key_frames(found)[bool(found.message)] == bug.function
    assert any(frame.file == f"pipeline/demo/fuzzers/{bug.fuzzer}.c" and frame.line for frame in found.frames)
    assert found.summary.startswith("SUMMARY: ")


def test_a_whole_report() -> None:
    found = read("fuzz-crash")
    assert (found.kind, found.access, len(found.frames)) == ("deadly signal", "", 18)
    assert found.frames[7] == Frame("greet", "pipeline/demo/fuzzers/crash_fuzzer.c", 10)
    assert found.frames[3] == Frame("", place="libc.so.6+0x3c04f")
    assert found.summary == "SUMMARY: libFuzzer: deadly signal"
    assert found.artifacts == ("crash-e210562ff4cc6602b04e7babf5bee5cb43d17c9b",)
    assert found.base64 == b"HI!!!!!!!!!HI"


def test_memory_that_ran_out_is_told_by_what_has_most_of_it() -> None:
    found = read("fuzz-oom")
    assert key(found) == "out-of-memory | keep | LLVMFuzzerTestOneInput"
    assert found.artifacts == ("oom-93d974b9700032409ec6d9d486b40476840fc143",)


def test_runs_without_a_crash() -> None:
    assert parse(b"") is None
    assert parse((OUTPUTS / "merge.txt").read_bytes()) is None
    assert parse(b"Done 1000 runs in 0 second(s)\nERROR: no fuzzer\nSUMMARY: none\n") is None


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("ERROR: libFuzzer: fuzz target exited", "fuzz target exited"),
        ("ERROR: libFuzzer: out-of-memory (malloc(4294967296))", "out-of-memory"),
        ("ERROR: libFuzzer: fuzz target overwrites its const input", "overwrites const input"),
        ("ERROR: AddressSanitizer: ABRT on unknown address 0x1 (pc 0x1 T0)", "ABRT"),
        ("ERROR: AddressSanitizer: attempting free on address which was not malloc()-ed: 0x1", "bad-free"),
        ("ERROR: AddressSanitizer: requested allocation size 0x1 (0x2) exceeds", "allocation-size-too-big"),
        ("ERROR: AddressSanitizer: allocator is out of memory trying to allocate 0x1 bytes", "out-of-memory"),
        ("ERROR: AddressSanitizer: memcpy-param-overlap: memory ranges [0x1", "memcpy-param-overlap"),
        ("ERROR: LeakSanitizer: detected memory leaks", "memory leak"),
        ("ERROR: HWAddressSanitizer: tag-mismatch on address 0x1", "tag-mismatch"),
        ("WARNING: MemorySanitizer: use-of-uninitialized-value", "use-of-uninitialized-value"),
        ("WARNING: ThreadSanitizer: data race (pid=1)", "data race"),
        ("ERROR: HWAddressSanitizer: allocation-tail-overwritten; heap [0x1,0x2)", "allocation-tail-overwritten"),
        ("ERROR: AddressSanitizer: out of memory: allocator is trying to allocate 0x1 bytes", "out-of-memory"),
        ("ERROR: AddressSanitizer failed to allocate 0x1 (1) bytes of LowLevelAllocator", "out-of-memory"),
        ('AddressSanitizer: CHECK failed: asan_thread.cpp:373 "((0)) != (0)" (0x0, 0x0)', "sanitizer check failure"),
        ("AddressSanitizer CHECK failed: asan_thread.cc:373", "sanitizer check failure"),
        ("UndefinedBehaviorSanitizer:DEADLYSIGNAL", "deadly signal"),
        ("Scudo ERROR: corrupted chunk header at address 0x1", "corrupted chunk header"),
        ("Scudo ERROR: invalid chunk state when deallocating address 0x1", "invalid chunk state"),
        ("*** GWP-ASan detected a memory error ***\nUse After Free at 0x1 (0 bytes into it)", "use after free"),
        ("*** GWP-ASan detected a memory error ***\nInvalid (Wild) Free at 0x1 (1 byte left)", "invalid wild free"),
        ("\n========= Per-input timeout exceeded: 26 > 25 (sec); exiting", "timeout"),
        ("\n========= Timeout of 25 seconds exceeded; exiting", "timeout"),
        ("\n========= RSS limit exceeded: 5000 > 4096 (mb); exiting", "out-of-memory"),
        ("[1][klog] INFO: <== write not-present page fault, PC at 0x1", "page fault"),
        ("<== fatal page fault, PC at 0x1", "page fault"),
        ("<== undefined instruction, PC at 0x1", "undefined instruction"),
        (
            "\npanic: runtime error: index out of range [5] with length 3\n\ngoroutine 1 [running]:",
            "index out of range",
        ),
        ("\npanic: it is 7\n\tpanic: again\n\ngoroutine 1 [running]:", "panic"),
        ("\nfatal error: all goroutines are asleep - deadlock!\n\ngoroutine 1 [running]:", "all goroutines are asleep"),
        ("\nfatal error: stack overflow\n\nruntime stack:\nx\n\ngoroutine 1 [running]:", "stack-overflow"),
        ("a.c:1:2: runtime error: assumption is violated during execution", "assumption-violation"),
        ("a.c:1:2: runtime error: applying zero offset to null pointer", "pointer-overflow"),
        ("ERROR: AddressSanitizer: \x1b[31m...", "unknown"),
        ("a.c:1:2: runtime error: signed integer overflow: 1 + 2", "integer-overflow"),
        ("a.c:1:2: runtime error: negation of -5 cannot be represented in type 'int'", "integer-overflow"),
        ("a.c:1:2: runtime error: unsigned integer overflow: 1 + 2", "unsigned-integer-overflow"),
        ("a.c:1:2: runtime error: division by zero", "divide-by-zero"),
        ("a.c:1:2: runtime error: index 9 out of bounds for type 'int[8]'", "index-out-of-bounds"),
        ("a.c:1:2: runtime error: shift exponent 99 is too large", "undefined-shift"),
        ("a.c:1:2: runtime error: load of null pointer of type 'int'", "null-dereference"),
        ("a.c:1:2: runtime error: something new", "undefined-behavior"),
    ],
)
def test_a_kind(line: str, kind: str) -> None:
    found = parsed(f"x\n==1== {line}\n")
    assert found.kind == kind
    assert "\n" in line or found.summary.startswith("==1== ")


@pytest.mark.parametrize("name", SANITIZERS)
def test_a_sanitizer_of_any_name_is_seen(name: str) -> None:
    one, other = (f"x\n==1==ERROR: {name}: {kind} on unknown address 0x1 (pc 0x1 T0)\n" for kind in ("SEGV", "FPE"))
    assert [key(parsed(text + "    #0 0x1 in f\n")) for text in (one, other)] == ["SEGV | f", "FPE | f"]
    summary = f"SUMMARY: {name}: SEGV a.c:1 in f"
    assert parsed(one + summary).summary == summary


@pytest.mark.parametrize(
    ("line", "access"),
    [
        ("READ of size 4 at 0x1 thread T0", "READ 4"),
        ("WRITE of size 17 at 0x1", "WRITE 17"),
        ("==1==The signal is caused by a WRITE memory access.", "WRITE"),
        ("  Write of size 8 at 0x1 by thread T1:", "WRITE 8"),
        ("READ of size 9999999999999999999999", ""),
        ("", ""),
    ],
)
def test_how_memory_was_accessed(line: str, access: str) -> None:
    assert parsed(f"ERROR: AddressSanitizer: SEGV on unknown address\n{line}\n    #0 0x1 in f\n").access == access


def test_undefined_behaviour_after_which_the_target_goes_on_hides_no_crash() -> None:
    undefined = "a.c:1:2: runtime error: division by zero\n    #0 0x1 in f\n"
    signal = "ERROR: libFuzzer: deadly signal\n    #0 0x1 in {}\n    #1 0x1 in g\n"
    assert key(parsed(undefined)) == "divide-by-zero | f"
    assert key(parsed(undefined + signal.format("abort"))) == "deadly signal | g"
    assert key(parsed(undefined + signal.format("__ubsan_handle_shift_abort"))) == "divide-by-zero | g"
    assert key(parsed(signal.format("__ubsan_handle_shift_abort"))) == "deadly signal | g"


@pytest.mark.parametrize(
    "sign", ["#2\tINITED cov: 1 exec/s: 0 rss: 1Mb", "Done 1 runs in 0 second(s)", "Executed data/in/unit in 3 ms"]
)
def test_undefined_behaviour_after_which_the_target_went_on_is_no_crash(sign: str) -> None:
    undefined = "a.c:1:2: runtime error: division by zero\n    #0 0x1 in f\n"
    assert parse(f"{undefined}{sign}\n".encode()) is None
    assert key(parsed(f"{undefined}{sign}\n{undefined.replace('division by zero', 'shift')}")) == "undefined-shift | f"


def test_slow_units_are_no_artifacts() -> None:
    slow = "artifact_prefix='a/'; Test unit written to a/slow-unit-1\nBase64: c2xvdw==\n"
    crash = (
        "artifact_prefix='a/'; Test unit written to /the store/crash-1\n{}ERROR: libFuzzer: timeout after 9 seconds\n"
    )
    assert parsed(slow + crash.format("Base64: Y3Jhc2g=\n")).artifacts == ("crash-1",)
    assert parsed(slow + crash.format("Base64: Y3Jhc2g=\n")).base64 == b"crash"
    assert parsed(slow + crash.format("Base64: \n")).base64 == b""
    assert parsed(slow + crash.format("")).base64 is None


@pytest.mark.parametrize("text", ["=", "a", "é", "YQ==YQ==", base64.b64encode(bytes(4097)).decode(), "A" * 100_000])
def test_base64_that_cannot_be_an_input_is_none(text: str) -> None:
    found = parsed(f"Test unit written to a/crash-1\nBase64: {text}\nERROR: libFuzzer: deadly signal\n")
    assert found.base64 is None
    assert found.artifacts == ("crash-1",)


def test_the_largest_input() -> None:
    text = base64.b64encode(bytes(report.MOST_INPUT)).decode()
    found = parsed(f"ERROR: libFuzzer: deadly signal\nTest unit written to a/crash-1\nBase64: {text}\n")
    assert found.base64 == bytes(report.MOST_INPUT)


def test_of_a_long_output_both_ends_are_looked_at() -> None:
    error, filler = b"\nERROR: libFuzzer: deadly signal\n", b"filler\n" * 200_000
    assert parse(error + filler + filler) is not None
    assert parse(filler + filler + error) is not None
    assert parse(filler + error + filler) is None


def test_what_a_go_program_says() -> None:
    text = """panic: runtime error: index out of range [{}] with length 3

goroutine 1 [running]:
panic({{0x4b0, 0xc0}})
\t/usr/go/src/runtime/panic.go:884 +0x212
github.com/x/y.(*Parser).read({{0xc0000b2000, 0x5, 0x5}}, 0x1)
\t/src/y/parser.go:{} +0x1d
github.com/x/y.Map[...](...)
\t/src/y/map.go:7
main.LLVMFuzzerTestOneInput(0x1)
\t_cgo_gotypes.go:41 +0x2a

goroutine 2 [select]:
main.other()
\t/src/y/other.go:1 +0x1
"""
    found = parsed(text.format(5, 12))
    assert key(found) == "index out of range | y.Parser.read | y.Map | main.LLVMFuzzerTestOneInput"
    assert key(found) == key(parsed(text.format(9, 14) + "ERROR: AddressSanitizer: ABRT on unknown address 0x1\n"))
    assert found.frames[1] == Frame("github.com/x/y.(*Parser).read", "/src/y/parser.go", 12)


def test_rust_that_ran_out_of_memory() -> None:
    signal = (
        "ERROR: libFuzzer: deadly signal\n    #0 0x1 in abort\n    #1 0x1 in rust_oom a.rs:1\n    #2 0x1 in f b.rs:2\n"
    )
    assert key(parsed(signal)) == "out-of-memory | f"


def test_a_cast_that_was_bad_is_told_by_its_types() -> None:
    line = "a.cc:1:2: runtime error: downcast of address 0x1 which does not point to an object of type 'B'\n"
    frames = "    #0 0x1 in f a.cc:1\n"
    assert key(parsed(f"{line}0x1: note: object is of type 'A'\n{frames}")) == "bad-cast | Bad-cast to B from A | f"
    assert key(parsed(f"{line}0x1: note: object has invalid vptr\n{frames}")) == (
        "bad-cast | Bad-cast to B from invalid vptr | f"
    )


def test_an_injection_is_told_by_what_found_it() -> None:
    found = parsed("===BUG DETECTED: Shell injection===\n==1== ERROR: libFuzzer: deadly signal\n    #0 0x1 in system\n")
    assert key(found) == "shell injection | system"


def test_where_the_stack_is_cut_off_who_freed_the_memory_counts() -> None:
    text = (
        "ERROR: AddressSanitizer: heap-use-after-free on address 0x1\n    #0 0x1 in f\n{}\nfreed by thread T0 here:\n"
    )
    freed = "    #0 0x1 in __interceptor_free\n    #1 0x1 in g\n"
    assert key(parsed(text.format("") + freed)) == "heap-use-after-free | f | g"
    assert key(parsed(text.format("    #1 0x1 in LLVMFuzzerTestOneInput\n") + freed)) == (
        "heap-use-after-free | f | LLVMFuzzerTestOneInput"
    )


def test_without_names_modules_and_offsets_count() -> None:
    lines = ["libclang_rt.asan.so+0x1", "fuzzer+0x2", "libc.so.6+0x3", "fuzzer+0x4", "fuzzer+0x5"]
    frames = "".join(f"    #{number} 0x1  (/lib/{place})\n" for number, place in enumerate(lines))
    assert key(parsed("ERROR: libFuzzer: deadly signal\n" + frames)) == "deadly signal | fuzzer+0x4 | fuzzer+0x5"


SLUG = re.compile(r"[a-z0-9_-]{1,80}")

words = st.sampled_from(
    [
        b"ERROR: ", b"libFuzzer: ", b"AddressSanitizer: ", b"deadly signal", b"SEGV on unknown address ",
        b": runtime error: ", b"shift", b"    #0 0x1 in ", b"f", b" a.c:1:2", b" (m+0x1)", b" <m>+0x1",
        b"Assertion ", b"failed", b"Check failed: ", b"panic: ", b"Sanitizer:DEADLYSIGNAL", b"\n\ngoroutine 1 ",
        b"READ of size 4", b"SUMMARY: ", b"\n", b"\n", b"Test unit written to ", b"crash-1",
        b"\nBase64: ", b"YQ==", b"\xff", b"\x1b[", b"\0", b"\r",
    ]
)  # fmt: skip


@given(st.binary() | st.lists(words).map(b"".join))
def test_parsing_never_fails_and_gives_only_what_can_be_printed(output: bytes) -> None:
    found = parse(output)
    if found is not None:
        assert "\n" not in found.summary
        assert SLUG.fullmatch(slug(found))
        shown = [found.kind, found.access, found.summary, *found.artifacts, *key_frames(found)]
        assert not re.search("[\0-\x08\x0b-\x1f]", "".join(shown))
