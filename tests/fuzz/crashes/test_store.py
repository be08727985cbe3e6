"""The crashes of a campaign, on the disk."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StoreError
from pipeline.fuzz.crashes import report as reports
from pipeline.fuzz.crashes import store as vaults
from pipeline.fuzz.crashes.report import CrashReport, parse
from pipeline.fuzz.crashes.stack import Frame
from pipeline.fuzz.crashes.store import OTHERS, OUTPUT_LIMIT, SERIAL_LIMIT, Bucket, Crash, CrashStore
from tests.waiting import SOON

REPORT = CrashReport(
    "SEGV", "READ", (Frame("f", "a.c", 1, "m+0x1"), Frame("abort")), "SUMMARY: it", ("crash-1",), b"in"
)
CRASH = Crash(
    fuzzer="example-fuzzers/a",
    slice=3,
    attempt=1,
    boot_id="6ed5",
    seed=4711,
    options=("-max_len=16", "data/corpus"),
    builds={"fuzzer": "b3:12ab"},
    artifact="crash-1",
    input=b"HI!",
    output=b"it crashed\n",
    serial=b"the console\n",
    report=REPORT,
)
SLUG = "segv-f-e68419017049"
SEEN = "2026-11-25T14:00:00Z"

GROUP_SAMPLE = {
    "schema": 1,
    "kind": "SEGV",
    "frames": ["f"],
    "first_seen": SEEN,
    "last_seen": SEEN,
    "count": 1,
    "fuzzers": ["example-fuzzers/a"],
    "last": 1,
}
"""Frozen, as the next one: what earlier versions have written must be understood."""

CRASH_SAMPLE = {
    "schema": 1,
    "seen": SEEN,
    "fuzzer": "example-fuzzers/a",
    "slice": 3,
    "attempt": 1,
    "boot_id": "6ed5",
    "seed": 4711,
    "options": ["-max_len=16", "data/corpus"],
    "builds": {"fuzzer": "b3:12ab"},
    "artifact": "crash-1",
    "sha256": "b60eaf09e14454fe5135c8fd9aeca44a49115f5c9ed8d54db7add6ce58e6d529",
    "size": 3,
    "frames": ["f"],
    "report": {
        "kind": "SEGV",
        "access": "READ",
        "summary": "SUMMARY: it",
        "artifacts": ["crash-1"],
        "message": "",
        "frames": [
            {"function": "f", "file": "a.c", "line": 1, "place": "m+0x1"},
            {"function": "abort", "file": "", "line": 0, "place": ""},
        ],
    },
}


@pytest.fixture
def crash_store(tmp_path: Path) -> CrashStore:
    return CrashStore(tmp_path, now=lambda: SEEN)


def other(number: int) -> Crash:
    """A crash of the same group with another input."""
    return replace(CRASH, input=str(number).encode())


def elsewhere(function: str) -> Crash:
    return replace(CRASH, report=replace(REPORT, frames=(Frame(function),)))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_frozen_samples_are_what_is_written_and_understood(crash_store: CrashStore) -> None:
    stored = crash_store.add(CRASH)
    assert stored.directory == crash_store.root / SLUG / "1"
    assert json.loads((crash_store.root / SLUG / "group.json").read_bytes()) == GROUP_SAMPLE
    assert json.loads((stored.directory / "crash.json").read_bytes()) == CRASH_SAMPLE
    assert crash_store.buckets() == [Bucket(SLUG, "SEGV", ("f",), SEEN, SEEN, 1, ("example-fuzzers/a",), 1)]


def test_a_crash_of_before_there_were_messages_is_understood(crash_store: CrashStore) -> None:
    written = json.dumps(CRASH_SAMPLE).replace('"message": "", ', "")
    assert "message" not in written
    (crash_store.root / SLUG / "1").mkdir(parents=True)
    (crash_store.root / SLUG / "1" / "crash.json").write_text(written)
    assert crash_store.buckets() == [Bucket(SLUG, "SEGV", ("f",), SEEN, SEEN, 1, ("example-fuzzers/a",), 1)]


def test_what_is_kept_of_a_crash(crash_store: CrashStore) -> None:
    directory = crash_store.add(CRASH).directory
    assert directory is not None
    assert names(directory) == ["crash.json", "input", "output.txt", "serial.txt"]
    assert (directory / "input").read_bytes() == b"HI!"
    assert (directory / "output.txt").read_text() == "it crashed\n"
    assert (directory / "serial.txt").read_text() == "the console\n"
    assert names(crash_store.root / SLUG) == ["1", "group.json"]
    assert names(crash_store.directory) == ["crashes", "crashes.lock"]


def test_one_group_in_time(tmp_path: Path) -> None:
    times = iter(["1", "2", "3"])
    crash_store = CrashStore(tmp_path, now=lambda: next(times))
    assert [crash_store.add(other(number)).new for number in range(2)] == [True, False]
    crash_store.add(replace(other(2), fuzzer="another"))
    assert crash_store.buckets() == [Bucket(SLUG, "SEGV", ("f",), "1", "3", 3, ("another", "example-fuzzers/a"), 3)]


def test_the_same_input_is_only_counted(crash_store: CrashStore) -> None:
    first, again = crash_store.add(CRASH), crash_store.add(CRASH)
    assert (first.new, first.same, again.new, again.same) == (True, False, False, True)
    assert again.directory == first.directory
    assert names(crash_store.root / SLUG) == ["1", "group.json"]
    assert crash_store.buckets()[0].count == 2
    assert not crash_store.add(elsewhere("g")).same


def test_of_many_crashes_some_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    crash_store = CrashStore(tmp_path, kept=2)
    kept = [crash_store.add(other(number)).directory for number in range(4)]
    assert kept == [crash_store.root / SLUG / "1", crash_store.root / SLUG / "2", None, None]
    assert crash_store.buckets()[0].count == 4
    assert crash_store.add(other(0)).same


def test_what_a_person_deletes_makes_room(tmp_path: Path) -> None:
    crash_store = CrashStore(tmp_path, kept=2)
    for number in range(3):
        crash_store.add(other(number))
    for file in (crash_store.root / SLUG / "2").iterdir():
        file.unlink()
    (crash_store.root / SLUG / "2").rmdir()
    assert crash_store.add(other(3)).directory == crash_store.root / SLUG / "3"
    assert crash_store.buckets()[0].count == 4


def test_of_many_groups_the_further_ones_are_counted_together(tmp_path: Path) -> None:
    crash_store = CrashStore(tmp_path, buckets=2, now=lambda: SEEN)
    stored = [crash_store.add(elsewhere(function)) for function in ("f", "g", "h", "i", "f")]
    assert [one.bucket for one in stored][2:] == [OTHERS, OTHERS, SLUG]
    assert [one.directory for one in stored][2:4] == [None, None]
    last = Bucket(OTHERS, OTHERS, (), SEEN, SEEN, 2, ("example-fuzzers/a",))
    assert {bucket.slug: bucket.count for bucket in crash_store.buckets()} == {stored[1].bucket: 1, SLUG: 2, OTHERS: 2}
    assert last in crash_store.buckets()
    assert names(crash_store.root / OTHERS) == ["group.json"]


def test_what_would_come_to_too_many_bytes_is_only_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    least = OUTPUT_LIMIT + SERIAL_LIMIT + len(CRASH.input)
    crash_store = CrashStore(tmp_path, size=least + 1000)
    assert crash_store.add(CRASH).directory is not None
    large = replace(CRASH, input=bytes(1000))
    assert [crash_store.add(large).directory, crash_store.add(large).directory] == [None, None]
    assert [bucket.count for bucket in crash_store.buckets()] == [3]
    (told,) = caplog.messages
    assert "and no room for more crashes ([campaign] crash_size): further ones are only counted" in told
    again = CrashStore(tmp_path, size=least + 1000)  # what is there counts
    assert again.add(replace(CRASH, input=bytes(500))).directory is None
    assert again.add(CRASH).same


def test_the_first_crash_of_a_group_is_kept_whatever_the_others_take(tmp_path: Path) -> None:
    crash_store = CrashStore(tmp_path, size=1)
    kept = [crash_store.add(elsewhere(function)).directory for function in ("f", "g")]
    assert [directory and (directory / "input").read_bytes() for directory in kept] == [CRASH.input] * 2
    assert crash_store.add(replace(elsewhere("f"), input=b"another")).directory is None


def test_causes_that_one_fuzzer_makes_up_hide_nothing_of_another(tmp_path: Path) -> None:
    crash_store = CrashStore(tmp_path, buckets=20, size=1)
    for number in range(50):
        crash_store.add(replace(elsewhere(f"made_up_{number}"), fuzzer="example-fuzzers/liar"))
    real = crash_store.add(elsewhere("real"))
    assert real.new
    assert real.directory
    assert (real.directory / "input").read_bytes() == CRASH.input
    assert len(crash_store.buckets()) == 20 + 2


def test_groups_come_in_the_order_in_which_they_were_seen_first(tmp_path: Path) -> None:
    times = iter("3124")
    crash_store = CrashStore(tmp_path, now=lambda: next(times))
    for function in ("a", "b", "c", "a"):
        crash_store.add(elsewhere(function))
    assert [bucket.frames for bucket in crash_store.buckets()] == [("b",), ("c",), ("a",)]


def test_nothing_is_made_to_look(crash_store: CrashStore) -> None:
    assert crash_store.buckets() == []
    assert names(crash_store.directory) == []


def test_a_crash_without_report_is_kept_too(crash_store: CrashStore) -> None:
    stored = crash_store.add(replace(CRASH, report=None, input=b""))
    assert stored.bucket.startswith("unknown-example-fuzzers-a-")
    assert stored.directory is not None
    assert json.loads((stored.directory / "crash.json").read_bytes())["report"] is None
    assert (crash_store.buckets()[0].kind, crash_store.buckets()[0].frames) == ("unknown", ())


def test_of_long_output_both_ends_are_kept_and_of_the_console_the_end(crash_store: CrashStore) -> None:
    half, end = vaults.OUTPUT_LIMIT // 2, vaults.SERIAL_LIMIT
    long = replace(CRASH, output=b"a" * half + b"left out" + b"b" * half, serial=b"no" + b"c" * end)
    directory = crash_store.add(long).directory
    assert directory is not None
    assert (directory / "output.txt").read_text() == "a" * half + "\n[8 bytes are left out here]\n" + "b" * half
    assert (directory / "serial.txt").read_text() == "c" * end


def test_what_is_stored_is_understood_as_what_came(crash_store: CrashStore) -> None:
    output = (Path(__file__).parent / "outputs/fuzz-parser.txt").read_bytes()
    directory = crash_store.add(replace(CRASH, output=output, report=parse(output))).directory
    assert directory is not None
    assert parse((directory / "output.txt").read_bytes()) == parse(output)


def test_text_of_the_guest_is_cleaned(crash_store: CrashStore) -> None:
    bad = "\x1b[31m\n\ud800" + "x" * 9999
    report = CrashReport(bad, bad, (Frame(bad, bad, 1, bad),), bad, (bad,))
    stored = crash_store.add(replace(CRASH, artifact=bad, output=b"\x1b[31mred\0", serial=b"\xff\x1bc", report=report))
    assert stored.directory is not None
    for file in ("crash.json", "output.txt", "serial.txt", "../group.json"):
        text = (stored.directory / file).read_text()
        assert not {"\x1b", "\0"} & set(text)
        assert len(text) < 20_000
    assert stored.directory.parent.parent == crash_store.root


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"schema": 2}', b'{"schema": 1}', b"[" * 100_000, b"\xff"]
)
def test_a_damaged_file_is_counted_anew(crash_store: CrashStore, content: bytes) -> None:
    for number in range(3):
        crash_store.add(other(number))
    (crash_store.root / SLUG / "group.json").write_bytes(content)
    assert [bucket.count for bucket in crash_store.buckets()] == [3]
    (crash_store.root / SLUG / "2/crash.json").write_bytes(content)
    assert not crash_store.add(other(3)).new
    bucket = crash_store.buckets()[0]
    assert (bucket.count, bucket.frames, bucket.first_seen, bucket.last_seen) == (4, ("f",), SEEN, SEEN)


def test_a_crash_that_is_not_counted_is_counted_next_time(crash_store: CrashStore) -> None:
    crash_store.add(CRASH)
    counted = (crash_store.root / SLUG / "group.json").read_bytes()
    crash_store.add(other(1))
    (crash_store.root / SLUG / "group.json").write_bytes(counted)
    assert crash_store.buckets()[0].count == 2
    assert crash_store.add(other(2)).directory == crash_store.root / SLUG / "3"
    assert crash_store.buckets()[0].count == 3


def test_a_first_crash_that_is_not_counted_is_one(crash_store: CrashStore) -> None:
    crash_store.add(CRASH)
    buckets = crash_store.buckets()
    (crash_store.root / SLUG / "group.json").unlink()
    assert crash_store.buckets() == buckets
    assert crash_store.add(CRASH).same
    assert crash_store.buckets()[0].count == 2


def test_what_killed_ones_have_left_goes_away(crash_store: CrashStore) -> None:
    crash_store.add(CRASH)
    for remains in (".7.abcd1234.tmp", ".group.json.abcd1234.tmp"):
        (crash_store.root / SLUG / remains / "x").mkdir(parents=True)
    (crash_store.root / "empty").mkdir()
    assert [bucket.count for bucket in crash_store.buckets()] == [1]
    CrashStore(crash_store.directory).add(elsewhere("g"))
    assert names(crash_store.root / SLUG) == ["1", "group.json"]
    assert sum(bucket.count for bucket in crash_store.buckets()) == 2


def test_a_disk_that_takes_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "crashes").write_bytes(b"")
    with pytest.raises(StoreError, match="storing a crash"):
        CrashStore(tmp_path).add(CRASH)
    with pytest.raises(StoreError, match="reading the crashes"):
        CrashStore(tmp_path).buckets()


ADDING = """
import sys
from pathlib import Path
from tests.fuzz.crashes.test_store import other
from pipeline.fuzz.crashes.store import CrashStore
for number in range(100_000):
    CrashStore(Path(sys.argv[1]), kept=100_000).add(other(number))
    print(number, flush=True)
"""


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_whoever_is_killed_leaves_what_the_next_one_understands(tmp_path: Path, after: int) -> None:
    root = Path(__file__).parents[3]
    child = subprocess.Popen([sys.executable, "-c", ADDING, str(tmp_path)], stdout=subprocess.PIPE, cwd=root)
    with child:
        assert child.stdout is not None
        for _ in range(after):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        told = after + len(child.stdout.readlines())
    crash_store = CrashStore(tmp_path, kept=100_000)
    before = sum(bucket.count for bucket in crash_store.buckets())
    assert before in (told, told + 1)
    crash_store.add(replace(CRASH, input=b"the next one"))
    bucket = crash_store.buckets()[0]
    assert (bucket.count, bucket.last) == (before + 1, before + 1)
    assert names(crash_store.root / SLUG) == sorted([*map(str, range(1, before + 2)), "group.json"])


class Killed(BaseException):
    """What ends an add, after which nothing is tidied up."""


def killed_at(step: int, crash_store: CrashStore, crash: Crash) -> bool:
    """Add a crash, and end that before the disk is waited for this often. Returns whether it has come so far."""
    real, steps = os.fsync, count()

    def fsync(descriptor: int) -> None:
        if next(steps) == step:
            raise Killed
        real(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        try:
            crash_store.add(crash)
        except Killed:
            return True
    return False


def test_whatever_was_done_last_before_a_kill_the_next_one_goes_on(tmp_path: Path) -> None:
    before = 0
    for step in count():
        crash_store = CrashStore(tmp_path, kept=100)
        killed = killed_at(step, crash_store, other(step))
        after = sum(bucket.count for bucket in crash_store.buckets())
        assert after in ((before, before + 1) if killed else (before + 1,))
        before = after
        if not killed:
            break
    assert step > 8
    assert CrashStore(tmp_path, kept=100).add(CRASH).directory == tmp_path / "crashes" / SLUG / str(before + 1)
    assert names(tmp_path / "crashes" / SLUG) == sorted([*map(str, range(1, before + 2)), "group.json"])


def add_some(directory: Path, start: int) -> None:
    for number in range(start, start + 10):
        CrashStore(directory).add(replace(other(number), fuzzer=f"f{start}"))


def test_threads_and_processes_lose_no_count(tmp_path: Path) -> None:
    spawning = multiprocessing.get_context("spawn")
    workers: list[threading.Thread | BaseProcess] = [
        *(threading.Thread(target=add_some, args=(tmp_path, start)) for start in (0, 100)),
        *(spawning.Process(target=add_some, args=(tmp_path, start)) for start in (200, 300)),
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(SOON)
    bucket = CrashStore(tmp_path).buckets()[0]
    assert (bucket.count, bucket.last, bucket.fuzzers) == (40, 10, ("f0", "f100", "f200", "f300"))


texts = st.text(max_size=50)


@settings(max_examples=30)  # each waits for the disk
@given(texts, st.lists(st.builds(Frame, texts, texts, st.integers(0, 9), texts), max_size=4), texts)
def test_whatever_was_reported_is_stored_below_the_vault(
    tmp_path_factory: pytest.TempPathFactory, kind: str, frames: list[Frame], fuzzer: str
) -> None:
    crash_store = CrashStore(tmp_path_factory.mktemp("crashes"))
    report = CrashReport(kind, frames=tuple(frames))
    stored = crash_store.add(replace(CRASH, fuzzer=fuzzer, report=report))
    assert stored.bucket == reports.slug(report, fuzzer)
    assert stored.directory == crash_store.root / stored.bucket / "1"
    assert [bucket.count for bucket in crash_store.buckets()] == [1]
