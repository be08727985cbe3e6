"""What libFuzzer tells of its progress."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fuzz import stats
from pipeline.fuzz.lines import through
from pipeline.fuzz.stats import MOST, POINTS, PROBLEMS, Done, Final, MergeStats, ProgressScanner, Stats
from tests.fuzz.crashes.sanitizers import SANITIZERS
from tests.fuzz.cuts import cut, cuts

OUTPUTS = Path(__file__).parent / "crashes/outputs"


def scan(text: bytes) -> ProgressScanner:
    """A scanner that has seen `text`, in no time."""
    scanner = ProgressScanner(clock=lambda: 0.0)
    assert b"".join(through(scanner, iter([text]))) == text
    return scanner


def output(name: str) -> ProgressScanner:
    return scan((OUTPUTS / f"{name}.txt").read_bytes())


def state(scanner: ProgressScanner) -> tuple[object, ...]:
    return scanner.progress, scanner.curve, scanner.final, scanner.done, scanner.merge, scanner.problems


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            b'#1311\tNEW    cov: 6 ft: 7 corp: 5/9b lim: 11 exec/s: 4 rss: 32Mb L: 2/3 MS: 3 CMP- DE: "cov: 99"-',
            Stats(0, "NEW", 1311, 6, 7, 5, 9, 4, 32),
        ),
        (b"#2\tINITED cov: 2 ft: 2 corp: 1/1b exec/s: 0 rss: 31Mb", Stats(0, "INITED", 2, 2, 2, 1, 1, 0, 31)),
        (b"#9\tREDUCE ft: 3 corp: 12/34Kb exec/s: 1 rss: 3Mb", Stats(0, "REDUCE", 9, 0, 3, 12, 34 << 10, 1, 3)),
        (b"#9\tpulse  corp: 1/2MB exec/s: 1 rss: 3MB", Stats(0, "pulse", 9, 0, 0, 1, 2 << 20, 1, 3)),
        (b"#9\tDONE   corp: 1 focus: 1 lim: 2 units: 3 exec/s: 1 rss: 3Mb", Stats(0, "DONE", 9, 0, 0, 1, 0, 1, 3)),
        (b"#9\tINITED exec/s: 0 rss: 3Mb", Stats(0, "INITED", 9, 0, 0, 0, 0, 0, 3)),
        (
            b"#123: cov: 1 ft: 2 corp: 3 exec/s: 4 oom/timeout/crash: 0/0/0 time: 5s job: 1 dft_time: 0",
            Stats(0, "fork", 123, 1, 2, 3, 0, 4, 0),
        ),
        (b"#123: cov: 1 ft: 2 corp: 3 exec/s 4 oom/timeout/crash: 0/0/0", Stats(0, "fork", 123, 1, 2, 3, 0, 4)),
        (b"a target's words#7\tNEW    cov: 6 exec/s: 4 rss: 32Mb", Stats(0, "NEW", 7, 6, 0, 0, 0, 4, 32)),
        (b"#%d\tNEW    exec/s: 0" % MOST, Stats(0, "NEW", MOST)),
        (b"#1\tNEW    corp: 1/%dMb exec/s: 0" % MOST, Stats(0, "NEW", 1, units=1, size=MOST)),
    ],
)
def test_a_line_of_progress(line: bytes, expected: Stats) -> None:
    for text in (line, line + b"\n", b"x\n" + line + b"\nx\n"):
        scanner = scan(text)
        assert scanner.progress == expected
        assert scanner.curve == (expected,)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"#",
        b"#1",
        b"#1\tNEW",
        b"#x\tNEW    exec/s: 1",
        b"#-1\tNEW    exec/s: 1",
        b"#%d\tNEW    exec/s: 1" % (MOST + 1),
        b"#1\tNEW    exec/s: %d" % (MOST + 1),
        b"#1\tNEW    cov: %d exec/s: 1" % (MOST + 1),
        b"    #1 0x5556 in exec /s.c:1",
        b"stat::unheard_of: 1",
        b"stat::peak_rss_mb: x",
        b"Done x runs in 1 second(s)",
        b" Done 1 runs in 1 second(s)",
        b"error: AddressSanitizer: no",
    ],
)
def test_a_line_that_tells_nothing(line: bytes) -> None:
    assert state(scan(line + b"\n")) == state(scan(b""))


def test_a_run_that_ends_in_a_crash() -> None:
    scanner = output("fuzz-crash")
    assert scanner.progress == Stats(0, "REDUCE", 103, 6, 6, 5, 9, 0, 32)
    assert [point.event for point in scanner.curve] == ["INITED", "NEW", "REDUCE", "NEW", "NEW", "REDUCE"]
    assert scanner.final == Final(executions=2165, per_second=0, added=5, slowest=0, rss=33)
    assert scanner.problems == ("deadly signal",)
    assert scanner.done is None


def test_a_merge() -> None:
    scanner = output("merge")
    assert scanner.merge == MergeStats(6, 3, 0, attempts=1, finished=True)
    assert scanner.progress == Stats(0, "DONE", 6, 3, 3, 0, 0, 0, 32)
    more = scan(b"MERGE-OUTER: attempt 7\nMERGE-OUTER: 3 new files with 4 new features added; 5 new coverage edges\n")
    assert more.merge == MergeStats(attempts=7, finished=True, new_files=3, new_features=4, new_edges=5)
    assert scan(b"MERGE-OUTER: 3 new files with 4 new features added").merge == MergeStats(0, 0, 0, 0, True, 3, 4)
    assert scan(b"MERGE-OUTER: nothing to do, merge has been completed before").merge == MergeStats(finished=True)


def test_fork_mode() -> None:
    scanner = output("fork")
    assert scanner.progress == Stats(0, "fork", 82778, 6, 6, 5)
    assert scanner.problems == ("deadly signal",)


def test_a_run_that_ends_by_itself() -> None:
    text = b"#1000\tDONE   cov: 1 ft: 1 corp: 1/1b lim: 11 exec/s: 0 rss: 32Mb\nDone 1000 runs in 3 second(s)\n"
    assert scan(text).done == Done(1000, 3)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"==1== ERROR: libFuzzer: timeout after 3 seconds", "timeout after 3 seconds"),
        (
            b"==1== ERROR: libFuzzer: out-of-memory (used: 77Mb; limit: 64Mb)",
            "out-of-memory (used: 77Mb; limit: 64Mb)",
        ),
        (b"==1== ERROR: libFuzzer: fuzz target exited", "fuzz target exited"),
        (
            b"Scudo ERROR: invalid chunk state when deallocating address 0x7f",
            "Scudo ERROR: invalid chunk state when deallocating",
        ),
        (b"*** GWP-ASan detected a memory error ***", "GWP-ASan detected a memory error"),
        (
            b"==1==ERROR: AddressSanitizer: SEGV on unknown address 0x0 (pc 0x1 T0)",
            "AddressSanitizer: SEGV",
        ),
        (
            b"==1==ERROR: AddressSanitizer: heap-use-after-free on address 0x5 at pc 0x5",
            "AddressSanitizer: heap-use-after-free",
        ),
        (b"==1==ERROR: LeakSanitizer: detected memory leaks", "LeakSanitizer: detected memory leaks"),
        (
            b"==1==WARNING: MemorySanitizer: use-of-uninitialized-value",
            "MemorySanitizer: use-of-uninitialized-value",
        ),
        (
            b"a.c:1:2: runtime error: signed integer overflow: 1 + 2",
            "runtime error: signed integer overflow: 1 + 2",
        ),
        (b"ERROR: libFuzzer: \x1b[31mred\x00", "red"),
        (b"ERROR: libFuzzer: " + b"x" * 1000, "x" * 200),
    ],
)
def test_a_problem(line: bytes, problem: str) -> None:
    assert scan(line + b"\n" + line).problems == (problem,)


@pytest.mark.parametrize("name", SANITIZERS)
def test_a_sanitizer_of_any_name(name: str) -> None:
    line = f"==1==ERROR: {name}: SEGV on unknown address 0x0 (pc 0x1 T0)"
    assert scan(line.encode()).problems == (f"{name}: SEGV",)


def test_real_problems() -> None:
    assert output("parser_fuzzer-set_name").problems == ("AddressSanitizer: attempting double-free",)
    assert output("parser_fuzzer-average").problems == ("AddressSanitizer: FPE",)
    assert output("fuzz-oom").problems == ("out-of-memory (used: 77Mb; limit: 64Mb)",)


def test_of_many_problems_the_first_and_the_last_stay() -> None:
    problems = scan(b"".join(b"runtime error: %d\n" % number for number in range(1000))).problems
    assert len(problems) == PROBLEMS
    assert problems[0] == "runtime error: 0"
    assert problems[-2:] == (f"runtime error: {PROBLEMS - 2}", "runtime error: 999")


@given(st.integers(0, 3000))
def test_a_curve_is_thinned_and_keeps_both_ends(lines: int) -> None:
    curve = scan(b"".join(b"#%d\tNEW    exec/s: 0 rss: 1Mb\n" % number for number in range(lines))).curve
    numbers = [point.executions for point in curve]
    assert numbers == sorted(set(numbers))
    assert len(numbers) <= POINTS
    assert len(numbers) >= min(lines, POINTS // 2)
    assert lines == 0 or (numbers[0], numbers[-1]) == (0, lines - 1)


def test_seconds_are_those_since_the_scanner_was_made() -> None:
    times = iter([100.0, 101.5])
    scanner = ProgressScanner(clock=lambda: next(times))
    list(scanner.feed(b"#1\tNEW    exec/s: 0\n"))
    assert scanner.progress == Stats(1.5, "NEW", 1)


words = st.sampled_from(
    [
        b"#", b"12", b"\t", b"NEW  ", b"pulse ", b": ", b" cov: 1", b" ft: 2", b" corp: 3/4Kb", b" lim: 5",
        b" exec/s: 6", b" rss: 7Mb", b"stat::", b"peak_rss_mb: 8", b"Done 1 runs in 2 second(s)", b"MERGE-OUTER: ",
        b"attempt 9", b"1 new files with 2 new features added", b"ERROR: libFuzzer: ", b"ERROR: ",
        b"AddressSanitizer: ", b"timeout", b"runtime error: ", b" on address 0x1", b"\n", b"\n", b"\r\n",
        b"\xff", b"1" * 20,
    ]
)  # fmt: skip
lines = st.sampled_from(
    [line + b"\n" for line in (OUTPUTS / "fuzz-parser.txt").read_bytes().split(b"\n")[:40]]
    + [b"MERGE-OUTER: attempt 3\n", b"stat::peak_rss_mb:     33\n", b"==1==ERROR: LeakSanitizer: leaks\n"]
)
streams = st.lists(words | lines).map(b"".join) | st.binary()


@given(streams, cuts, st.sampled_from([12, 65536]))
def test_however_the_stream_is_cut_the_same_is_read_and_passes(text: bytes, places: list[int], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.fuzz.line_scanner.LIMIT", limit)
        scanner = ProgressScanner(clock=lambda: 0.0)
        assert b"".join(through(scanner, iter(cut(text, places)))) == text
        assert state(scanner) == state(scan(text))


@given(streams)
def test_no_number_goes_wild(text: bytes) -> None:
    scanner = scan(text)
    for value in (*scanner.curve, scanner.final, scanner.done, scanner.merge):
        numbers = [number for number in vars(value).values() if isinstance(number, int)] if value else []
        assert all(0 <= number <= stats.MOST for number in numbers)


@pytest.mark.parametrize(
    ("line", "pid"),
    [
        (b"==118==Sleeping for 8640000 second(s) before dying", 118),
        (b"\x1b[1m==9==Sleeping for 1 second(s) before dying", 9),
        (b"==118==Sleeping for 8640000 second(s) after init", None),
        (b"==0118118118118==Sleeping for 1 second(s) before dying", None),
        (b"==118==Sleeping for 8640000 second(s) before dying; not", None),
        (b"Sleeping for 8640000 second(s) before dying", None),
    ],
)
def test_a_process_that_sleeps_after_its_report(line: bytes, pid: int | None) -> None:
    scanner = ProgressScanner()
    passed = b"".join(scanner.feed(b"==118==ABORTING\n" + line + b"\n"))
    assert (passed, scanner.asleep) == (b"==118==ABORTING\n" + line + b"\n", pid)
