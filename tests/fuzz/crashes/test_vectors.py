"""Real crash outputs, read by ClusterFuzz and by us; shared/vectors/stacks/README.md explains them."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipeline.fuzz.crashes import functions
from pipeline.fuzz.crashes.report import CrashReport, parse
from pipeline.fuzz.crashes.rules import decide, key_frames, slug
from pipeline.fuzz.crashes.stack import Frame

ROOT = Path(__file__).resolve().parents[4] / "shared/vectors/stacks"

FROZEN = json.loads((Path(__file__).parent / "keys.json").read_text())["vectors"]

Case = dict[str, Any]

# Our kinds, and the types that ClusterFuzz gives to the same crashes. It tells dereferences of null from others by the
# address, and joins what we keep apart (an allocation that is too large is out of memory, a panic is an assertion).
TYPES = {
    "ABRT": "Abrt",
    "BUS": "Bus",
    "FPE": "Floating-point-exception",
    "ILL": "Ill",
    "SEGV": "UNKNOWN|Null-dereference|Segv on unknown address",
    "access-violation": "UNKNOWN|Null-dereference",
    "unknown-crash": "UNKNOWN|Null-dereference",
    "deadly signal": "Fatal-signal",
    "fuzz target exited": "Unexpected-exit",
    "allocation-size-too-big": "Out-of-memory",
    "assertion failure": "ASSERT",
    "panic": "ASSERT",
    "check failure": "CHECK failure",
    "bad-free": "Invalid-free",
    "double-free": "Heap-double-free",
    "memory leak": "Direct-leak|Indirect-leak",
    "control-flow-integrity": "Bad-cast",
}
WENT_ON = "the target survived it: the last line is libFuzzer's `Executed … in 3782 ms`; what is survived is no crash"

OTHER_KIND = {"ubsan_pointer_overflow_null_zero_offset.txt": WENT_ON}
"""Why ours is right where ClusterFuzz's is another."""

OTHER_FRAMES = {
    "ubsan_pointer_overflow_null_zero_offset.txt": WENT_ON,
    "asan_stack_overflow.txt": (
        "five calls recur in a ring. ClusterFuzz begins with the one that came last (#1 Load), so that an overflow one "
        "call earlier (#2 GetColorSpace) would be another bug; ours begins with that whose name is the first in order"
    ),
    "asan_stack_overflow3.txt": (
        "as asan_stack_overflow.txt: three calls recur in a ring, two of them of begin_parse_string, and which of them "
        "is on top is by chance"
    ),
    "fuchsia_ignore.txt": (
        "#14.1 DispatchNextDueMessage was inlined into #14 async::TestLoop::Run. ClusterFuzz's expression for a frame "
        "knows no number with a dot, and so leaves out on Fuchsia what it takes on Linux, where inlined calls have "
        "numbers of their own: its frames depend on what the compiler has inlined"
    ),
    "libfuzzer_timeout.txt": (
        "where in a loop the alarm finds the target is by chance (CFX_ImageTransformer::Continue), so ours are the "
        "calls above the entry, from which the loop was begun. ClusterFuzz's own tests put the target's name there"
    ),
    "rust_oom.txt": (
        "`_$LT$mp4parse..BMFFBox… as mp4parse..fallible..TryRead…::try_read_to_end` is mp4parse's own. ClusterFuzz "
        "leaves out all methods of traits (`^_\\$LT\\$`), not only those of Rust's library"
    ),
    "unknown_crash_and_timeout.txt": (
        "ClusterFuzz's frames are those of another process, android.hardware.bluetooth, whose crash is in the system "
        "log below; the report is of a timeout in GrpcGraph::handleConfigPhase"
    ),
}
"""Why ours are right where ClusterFuzz's are others."""

OTHER_TOOLS = {
    "android_asan_null_dereference_write.txt": "Android",
    "android_asan_unknown_read.txt": "Android",
    "unknown_crash_and_timeout.txt": "Android",
}
"""No report of C, C++, Rust or Go on a system of ours. They are read all the same."""


def cases() -> list[Case]:
    found: list[Case] = json.loads((ROOT / "stacks.json").read_text()) if ROOT.is_dir() else []
    return found


pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason=f"the recorded outputs are not there: {ROOT}")


@cache
def ours(name: str) -> CrashReport | None:
    return parse((ROOT / name).read_bytes())


def types(report: CrashReport) -> set[str]:
    """What ClusterFuzz could call it."""
    return set(TYPES.get(report.kind, report.kind.capitalize()).split("|"))


def spelled(frame: Frame) -> str:
    """As ClusterFuzz spells a frame (_filter_stack_frame and filter_addresses_and_numbers of stacktraces/__init__.py).

    The entry goes by its file, or, if that is not known, not at all.
    """
    if functions.name(frame) == functions.ENTRY:
        return frame.file.rpartition("/")[2]
    text = frame.function
    for words in ("non-virtual thunk to ", "(anonymous namespace)::", "`anonymous namespace'::"):
        text = text.replace(words, "")
    match = re.match(r"(.+?)[(\[]", text)
    text = match[1].strip() if match else text.split(" ")[0]
    return re.sub(r"\+0x[0-9a-f]+$", "", text)[:80]


def state(report: CrashReport) -> list[str]:
    """As ClusterFuzz spells what tells the crash from others."""
    return [part for part in (report.message, *map(spelled, decide(report).telling)) if part]


def expected(case: Case, key: str) -> list[Any]:
    """What is right, by the package or by its tests."""
    return [case[key], case.get("upstream_tests_say", case)[key]]


def same_kind(case: Case, report: CrashReport | None) -> bool:
    """Whether both call it the same, and say the same of how memory was accessed, where ClusterFuzz says it."""
    if report is None:
        return False
    size = re.sub(r"\d{3,}|1[7-9]|[2-9]\d", "{*}", report.access)
    names = {f"{name}{access}" for name in types(report) for access in ("", f" {report.access}", f"\n{size}")}
    return not names.isdisjoint(expected(case, "crash_type"))


def same_frames(case: Case, report: CrashReport | None) -> bool:
    theirs = [[frame for frame in frames if frame != "NULL"] for frames in expected(case, "crash_state")]
    return report is not None and state(report) in theirs


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["file"])
def test_keys_are_frozen(case: Case) -> None:
    """If this fails for a good reason, raise RULES_VERSION: buckets that exist get other names."""
    report = ours(case["file"])
    assert FROZEN[case["file"]] == (report and slug(report, "package/fuzzer"))


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["file"])
def test_kind(case: Case) -> None:
    assert same_kind(case, ours(case["file"])) == (case["file"] not in OTHER_KIND), ours(case["file"])


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["file"])
def test_frames(case: Case) -> None:
    assert same_frames(case, ours(case["file"])) == (case["file"] not in OTHER_FRAMES), ours(case["file"])


def test_few_differ() -> None:
    ran = [case for case in cases() if case["file"] not in OTHER_TOOLS]
    kinds = sum(same_kind(case, ours(case["file"])) for case in ran)
    frames = sum(same_frames(case, ours(case["file"])) for case in ran)
    assert len(ran) == 76
    assert kinds >= 0.95 * len(ran)
    assert frames >= 0.9 * len(ran)


def test_all_that_is_told_can_be_printed() -> None:
    for case in cases():
        if report := ours(case["file"]):
            shown = [report.kind, report.access, report.summary, *key_frames(report), slug(report)]
            assert not re.search("[\0-\x1f\x7f-\x9f]", "".join(shown)), case["file"]
