"""Reports of crashes, and which crashes are the same."""

import base64
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.crashes import report
from pipeline.crashes.report import CrashReport, identity, key, key_frames, parse, slug
from pipeline.crashes.stack import Frame
from pipeline.demo.fuzzers.planted import PLANTED, Planted

OUTPUTS = Path(__file__).parent / "outputs"
"""What the demo guest's fuzzers said, but for the tables of shadow bytes, and the lower part of a deep stack."""

ENTRY = Frame("LLVMFuzzerTestOneInput")


def read(name: str) -> CrashReport:
    found = parse((OUTPUTS / f"{name}.txt").read_bytes())
    assert found is not None
    return found


def parsed(text: str) -> CrashReport:
    found = parse(text.encode())
    assert found is not None
    return found


def planted(bug: Planted) -> CrashReport:
    return read(f"{bug.fuzzer}-{bug.function}")


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: f"{bug.fuzzer} {bug.function}")
def test_a_planted_bug_is_told_by_its_kind_and_its_function(bug: Planted) -> None:
    found = planted(bug)
    assert found.kind == bug.report.partition(": ")[2].removeprefix("attempting ")
    assert key_frames(found)[0] == bug.function
    assert any(frame.file == f"pipeline/demo/fuzzers/{bug.fuzzer}.c" and frame.line for frame in found.frames)
    assert found.summary.startswith("SUMMARY: ")


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


def test_keys_are_frozen() -> None:
    assert key(read("parser_fuzzer-copy_text")) == (
        "heap-buffer-overflow | copy_text | record | LLVMFuzzerTestOneInput"
    )
    assert slug(read("parser_fuzzer-copy_text")) == "heap-buffer-overflow-copy_text-d6d4979a3e9a"
    assert slug(read("maze_fuzzer-endless_corridor")) == "timeout-endless_corridor-e9794a87ddc6"
    assert slug(read("parser_fuzzer-nested_list")) == "stack-overflow-nested_list-0dff6a3c5b58"


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
        ("ERROR: AddressSanitizer: \x1b[31m...", "unknown"),
        ("a.c:1:2: runtime error: signed integer overflow: 1 + 2", "integer-overflow"),
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
    assert found.summary.startswith("==1== ")


@pytest.mark.parametrize(
    ("line", "access"),
    [
        ("READ of size 4 at 0x1 thread T0", "READ 4"),
        ("WRITE of size 17 at 0x1", "WRITE 17"),
        ("==1==The signal is caused by a WRITE memory access.", "WRITE"),
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


def crash(kind: str, *functions: str) -> CrashReport:
    return CrashReport(kind, frames=tuple(map(Frame, functions)))


def test_lines_files_and_addresses_do_not_count() -> None:
    one = CrashReport("SEGV", "READ 1", (Frame("f(int)", "a.c", 1, "m+0x1"), ENTRY), "x", ("crash-1",), b"")
    other = CrashReport("SEGV", "READ 4", (Frame("void f<int>(char)", "b/a.c", 2, "m+0x2"), ENTRY), "y")
    assert key(one) == key(other)
    assert key(one) != key(CrashReport("FPE", frames=one.frames))


def test_only_the_upper_frames_count() -> None:
    assert key(crash("SEGV", "a", "b", "c", "d")) == key(crash("SEGV", "a", "b", "c", "e")) == "SEGV | a | b | c"
    assert key(crash("SEGV", "a", "b", "c"), frames=2) == "SEGV | a | b"


def test_of_a_timeout_the_lower_frames_count() -> None:
    slow = ("LLVMFuzzerTestOneInput", "fuzzer::Run()")
    assert key(crash("timeout", "deep", "loop", "parse", "all", *slow)) == key(
        crash("timeout", "memcpy", "deeper", "other", "loop", "parse", "all", *slow)
    )
    assert key(crash("timeout", "loop", *slow)) == "timeout | loop | LLVMFuzzerTestOneInput"


def test_of_a_stack_overflow_the_calls_that_recur_count() -> None:
    ring = ["a", "b", "c", "d"] * 10
    keys = {key(crash("stack-overflow", "leaf" * at, *ring[at:])) for at in range(4)}
    assert keys == {"stack-overflow | a | b | c"}
    assert key(crash("stack-overflow", "big", "caller")) == "stack-overflow | big | caller"


def test_the_entry_alone_is_told_by_its_file() -> None:
    one = CrashReport("SEGV", frames=(Frame("LLVMFuzzerTestOneInput", "/src/one.cc", 3), Frame("fuzzer::f")))
    assert key(one) == "SEGV | LLVMFuzzerTestOneInput one.cc"


def test_without_frames_the_fuzzer_stands_in() -> None:
    assert key(crash("timeout"), fuzzer="example-fuzzers/a") == "timeout | example-fuzzers/a"
    assert key(crash("timeout", "f"), fuzzer="example-fuzzers/a") == "timeout | f"
    assert slug(crash("timeout"), "example-fuzzers/a").startswith("timeout-example-fuzzers-a-")


def test_without_names_modules_and_offsets_count() -> None:
    lines = ["libclang_rt.asan.so+0x1", "fuzzer+0x2", "libc.so.6+0x3", "fuzzer+0x4", "fuzzer+0x5"]
    frames = "".join(f"    #{number} 0x1  (/lib/{place})\n" for number, place in enumerate(lines))
    assert key(parsed("ERROR: libFuzzer: deadly signal\n" + frames)) == "deadly signal | fuzzer+0x4 | fuzzer+0x5"


def test_an_identity_is_that_of_the_key() -> None:
    assert identity("a") != identity("b")
    assert re.fullmatch("[0-9a-f]{12}", identity("\ud800"))


SLUG = re.compile(r"[a-z0-9_-]{1,80}")

texts = st.text(max_size=100)
reports = st.builds(
    CrashReport, texts, texts, st.lists(st.builds(Frame, texts, texts, st.integers(0, 9), texts)).map(tuple), texts
)


@given(reports, texts)
def test_a_slug_is_always_one_name(one: CrashReport, fuzzer: str) -> None:
    assert SLUG.fullmatch(slug(one, fuzzer))
    assert slug(one, fuzzer).endswith(identity(key(one, fuzzer=fuzzer)))


words = st.sampled_from(
    [
        b"ERROR: ", b"libFuzzer: ", b"AddressSanitizer: ", b"deadly signal", b"SEGV on unknown address ",
        b": runtime error: ", b"shift", b"    #0 0x1 in ", b"f", b" a.c:1:2", b" (m+0x1)", b" <m>+0x1",
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
