"""Crashes that tests make up."""

from dataclasses import replace
from pathlib import Path

from pipeline.fuzz.crashes import verdicts
from pipeline.fuzz.crashes.crash import Crash
from pipeline.fuzz.crashes.report import CrashReport
from pipeline.fuzz.crashes.stack import Frame
from pipeline.fuzz.crashes.store import CrashStore
from pipeline.fuzz.crashes.verdicts import CrashVerdict, InputVerdict
from pipeline.store.publish import publish_json

FUZZER = "example-fuzzers/a"
BUILD = "b3:12ab"
REPORT = CrashReport(
    "SEGV", "READ", (Frame("f", "a.c", 1, "m+0x1"), Frame("abort")), "SUMMARY: it", ("crash-1",), b"in"
)
CRASH = Crash(
    fuzzer=FUZZER,
    build=BUILD,
    campaign="nightly",
    slice=3,
    attempt=1,
    boot_id="6ed5",
    seed=4711,
    options=("-max_len=16", "data/corpus"),
    environment={"ASAN_OPTIONS": "symbolize=0"},
    artifact="crash-1",
    input=b"HI!",
    output=b"it crashed\n",
    serial=b"the console\n",
    report=REPORT,
)
SLUG = "segv-f-e68419017049"
"""The bucket of CRASH."""

SEEN = "2026-11-25T14:00:00Z"


def other(number: int) -> Crash:
    """A crash of the same bucket with another input, of always the same size."""
    return replace(CRASH, input=f"{number:09}".encode())


def sized(size: int) -> Crash:
    """A crash of the same bucket whose input has this size."""
    return replace(CRASH, input=b"x" * size)


def elsewhere(function: str) -> Crash:
    """A crash in another function."""
    return replace(CRASH, report=replace(REPORT, frames=(Frame(function),)))


def names(directory: Path) -> list[str]:
    """The names in a directory, sorted."""
    return sorted(path.name for path in directory.iterdir())


def judge(crash_store: CrashStore, slug: str, build: str, one: InputVerdict, fuzzer: str = FUZZER) -> Path:
    """Write a verdict with what came of one input, as whoever tries it with a build does. Returns the path."""
    crash_store.note_build(fuzzer, build)
    path = verdicts.path_of(crash_store.directory(fuzzer, slug), build)
    publish_json(path, CrashVerdict(fuzzer, slug, build, "default/1", 1, one.tries, (one,), made=SEEN).encode())
    return path
