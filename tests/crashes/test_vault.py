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

from pipeline.crashes import report as reports
from pipeline.crashes import vault as vaults
from pipeline.crashes.report import CrashReport, parse
from pipeline.crashes.stack import Frame
from pipeline.crashes.vault import OTHERS, OUTPUT_LIMIT, SERIAL_LIMIT, Crash, Group, Vault
from pipeline.errors import StoreError
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
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path, now=lambda: SEEN)


def other(number: int) -> Crash:
    """A crash of the same group with another input."""
    return replace(CRASH, input=str(number).encode())


def elsewhere(function: str) -> Crash:
    return replace(CRASH, report=replace(REPORT, frames=(Frame(function),)))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_frozen_samples_are_what_is_written_and_understood(vault: Vault) -> None:
    stored = vault.add(CRASH)
    assert stored.directory == vault.root / SLUG / "1"
    assert json.loads((vault.root / SLUG / "group.json").read_bytes()) == GROUP_SAMPLE
    assert json.loads((stored.directory / "crash.json").read_bytes()) == CRASH_SAMPLE
    assert vault.groups() == [Group(SLUG, "SEGV", ("f",), SEEN, SEEN, 1, ("example-fuzzers/a",), 1)]


def test_a_crash_of_before_there_were_messages_is_understood(vault: Vault) -> None:
    written = json.dumps(CRASH_SAMPLE).replace('"message": "", ', "")
    assert "message" not in written
    (vault.root / SLUG / "1").mkdir(parents=True)
    (vault.root / SLUG / "1" / "crash.json").write_text(written)
    assert vault.groups() == [Group(SLUG, "SEGV", ("f",), SEEN, SEEN, 1, ("example-fuzzers/a",), 1)]


def test_what_is_kept_of_a_crash(vault: Vault) -> None:
    directory = vault.add(CRASH).directory
    assert directory is not None
    assert names(directory) == ["crash.json", "input", "output.txt", "serial.txt"]
    assert (directory / "input").read_bytes() == b"HI!"
    assert (directory / "output.txt").read_text() == "it crashed\n"
    assert (directory / "serial.txt").read_text() == "the console\n"
    assert names(vault.root / SLUG) == ["1", "group.json"]
    assert names(vault.directory) == ["crashes", "crashes.lock"]


def test_one_group_in_time(tmp_path: Path) -> None:
    times = iter(["1", "2", "3"])
    vault = Vault(tmp_path, now=lambda: next(times))
    assert [vault.add(other(number)).new for number in range(2)] == [True, False]
    vault.add(replace(other(2), fuzzer="another"))
    assert vault.groups() == [Group(SLUG, "SEGV", ("f",), "1", "3", 3, ("another", "example-fuzzers/a"), 3)]


def test_the_same_input_is_only_counted(vault: Vault) -> None:
    first, again = vault.add(CRASH), vault.add(CRASH)
    assert (first.new, first.same, again.new, again.same) == (True, False, False, True)
    assert again.directory == first.directory
    assert names(vault.root / SLUG) == ["1", "group.json"]
    assert vault.groups()[0].count == 2
    assert not vault.add(elsewhere("g")).same


def test_of_many_crashes_some_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    vault = Vault(tmp_path, kept=2)
    kept = [vault.add(other(number)).directory for number in range(4)]
    assert kept == [vault.root / SLUG / "1", vault.root / SLUG / "2", None, None]
    assert vault.groups()[0].count == 4
    assert vault.add(other(0)).same


def test_what_a_person_deletes_makes_room(tmp_path: Path) -> None:
    vault = Vault(tmp_path, kept=2)
    for number in range(3):
        vault.add(other(number))
    for file in (vault.root / SLUG / "2").iterdir():
        file.unlink()
    (vault.root / SLUG / "2").rmdir()
    assert vault.add(other(3)).directory == vault.root / SLUG / "3"
    assert vault.groups()[0].count == 4


def test_of_many_groups_the_further_ones_are_counted_together(tmp_path: Path) -> None:
    vault = Vault(tmp_path, groups=2, now=lambda: SEEN)
    stored = [vault.add(elsewhere(function)) for function in ("f", "g", "h", "i", "f")]
    assert [one.group for one in stored][2:] == [OTHERS, OTHERS, SLUG]
    assert [one.directory for one in stored][2:4] == [None, None]
    last = Group(OTHERS, OTHERS, (), SEEN, SEEN, 2, ("example-fuzzers/a",))
    assert {group.slug: group.count for group in vault.groups()} == {stored[1].group: 1, SLUG: 2, OTHERS: 2}
    assert last in vault.groups()
    assert names(vault.root / OTHERS) == ["group.json"]


def test_what_would_come_to_too_many_bytes_is_only_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    least = OUTPUT_LIMIT + SERIAL_LIMIT + len(CRASH.input)
    vault = Vault(tmp_path, size=least + 1000)
    assert vault.add(CRASH).directory is not None
    large = replace(CRASH, input=bytes(1000))
    assert [vault.add(large).directory, vault.add(large).directory] == [None, None]
    assert [group.count for group in vault.groups()] == [3]
    (told,) = caplog.messages
    assert "and no room for more crashes ([campaign] crash_size): further ones are only counted" in told
    again = Vault(tmp_path, size=least + 1000)  # what is there counts
    assert again.add(replace(CRASH, input=bytes(500))).directory is None
    assert again.add(CRASH).same


def test_the_first_crash_of_a_group_is_kept_whatever_the_others_take(tmp_path: Path) -> None:
    vault = Vault(tmp_path, size=1)
    kept = [vault.add(elsewhere(function)).directory for function in ("f", "g")]
    assert [directory and (directory / "input").read_bytes() for directory in kept] == [CRASH.input] * 2
    assert vault.add(replace(elsewhere("f"), input=b"another")).directory is None


def test_causes_that_one_fuzzer_makes_up_hide_nothing_of_another(tmp_path: Path) -> None:
    vault = Vault(tmp_path, groups=20, size=1)
    for number in range(50):
        vault.add(replace(elsewhere(f"made_up_{number}"), fuzzer="example-fuzzers/liar"))
    real = vault.add(elsewhere("real"))
    assert real.new
    assert real.directory
    assert (real.directory / "input").read_bytes() == CRASH.input
    assert len(vault.groups()) == 20 + 2


def test_groups_come_in_the_order_in_which_they_were_seen_first(tmp_path: Path) -> None:
    times = iter("3124")
    vault = Vault(tmp_path, now=lambda: next(times))
    for function in ("a", "b", "c", "a"):
        vault.add(elsewhere(function))
    assert [group.frames for group in vault.groups()] == [("b",), ("c",), ("a",)]


def test_nothing_is_made_to_look(vault: Vault) -> None:
    assert vault.groups() == []
    assert names(vault.directory) == []


def test_a_crash_without_report_is_kept_too(vault: Vault) -> None:
    stored = vault.add(replace(CRASH, report=None, input=b""))
    assert stored.group.startswith("unknown-example-fuzzers-a-")
    assert stored.directory is not None
    assert json.loads((stored.directory / "crash.json").read_bytes())["report"] is None
    assert (vault.groups()[0].kind, vault.groups()[0].frames) == ("unknown", ())


def test_of_long_output_both_ends_are_kept_and_of_the_console_the_end(vault: Vault) -> None:
    half, end = vaults.OUTPUT_LIMIT // 2, vaults.SERIAL_LIMIT
    long = replace(CRASH, output=b"a" * half + b"left out" + b"b" * half, serial=b"no" + b"c" * end)
    directory = vault.add(long).directory
    assert directory is not None
    assert (directory / "output.txt").read_text() == "a" * half + "\n[8 bytes are left out here]\n" + "b" * half
    assert (directory / "serial.txt").read_text() == "c" * end


def test_what_is_stored_is_understood_as_what_came(vault: Vault) -> None:
    output = (Path(__file__).parent / "outputs/fuzz-parser.txt").read_bytes()
    directory = vault.add(replace(CRASH, output=output, report=parse(output))).directory
    assert directory is not None
    assert parse((directory / "output.txt").read_bytes()) == parse(output)


def test_text_of_the_guest_is_cleaned(vault: Vault) -> None:
    bad = "\x1b[31m\n\ud800" + "x" * 9999
    report = CrashReport(bad, bad, (Frame(bad, bad, 1, bad),), bad, (bad,))
    stored = vault.add(replace(CRASH, artifact=bad, output=b"\x1b[31mred\0", serial=b"\xff\x1bc", report=report))
    assert stored.directory is not None
    for file in ("crash.json", "output.txt", "serial.txt", "../group.json"):
        text = (stored.directory / file).read_text()
        assert not {"\x1b", "\0"} & set(text)
        assert len(text) < 20_000
    assert stored.directory.parent.parent == vault.root


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"schema": 2}', b'{"schema": 1}', b"[" * 100_000, b"\xff"]
)
def test_a_damaged_file_is_counted_anew(vault: Vault, content: bytes) -> None:
    for number in range(3):
        vault.add(other(number))
    (vault.root / SLUG / "group.json").write_bytes(content)
    assert [group.count for group in vault.groups()] == [3]
    (vault.root / SLUG / "2/crash.json").write_bytes(content)
    assert not vault.add(other(3)).new
    group = vault.groups()[0]
    assert (group.count, group.frames, group.first_seen, group.last_seen) == (4, ("f",), SEEN, SEEN)


def test_a_crash_that_is_not_counted_is_counted_next_time(vault: Vault) -> None:
    vault.add(CRASH)
    counted = (vault.root / SLUG / "group.json").read_bytes()
    vault.add(other(1))
    (vault.root / SLUG / "group.json").write_bytes(counted)
    assert vault.groups()[0].count == 2
    assert vault.add(other(2)).directory == vault.root / SLUG / "3"
    assert vault.groups()[0].count == 3


def test_a_first_crash_that_is_not_counted_is_one(vault: Vault) -> None:
    vault.add(CRASH)
    groups = vault.groups()
    (vault.root / SLUG / "group.json").unlink()
    assert vault.groups() == groups
    assert vault.add(CRASH).same
    assert vault.groups()[0].count == 2


def test_what_killed_ones_have_left_goes_away(vault: Vault) -> None:
    vault.add(CRASH)
    for remains in (".7.abcd1234.tmp", ".group.json.abcd1234.tmp"):
        (vault.root / SLUG / remains / "x").mkdir(parents=True)
    (vault.root / "empty").mkdir()
    assert [group.count for group in vault.groups()] == [1]
    Vault(vault.directory).add(elsewhere("g"))
    assert names(vault.root / SLUG) == ["1", "group.json"]
    assert sum(group.count for group in vault.groups()) == 2


def test_a_disk_that_takes_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "crashes").write_bytes(b"")
    with pytest.raises(StoreError, match="storing a crash"):
        Vault(tmp_path).add(CRASH)
    with pytest.raises(StoreError, match="reading the crashes"):
        Vault(tmp_path).groups()


ADDING = """
import sys
from pathlib import Path
from tests.crashes.test_vault import other
from pipeline.crashes.vault import Vault
for number in range(100_000):
    Vault(Path(sys.argv[1]), kept=100_000).add(other(number))
    print(number, flush=True)
"""


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_whoever_is_killed_leaves_what_the_next_one_understands(tmp_path: Path, after: int) -> None:
    root = Path(__file__).parent.parent.parent
    child = subprocess.Popen([sys.executable, "-c", ADDING, str(tmp_path)], stdout=subprocess.PIPE, cwd=root)
    with child:
        assert child.stdout is not None
        for _ in range(after):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        told = after + len(child.stdout.readlines())
    vault = Vault(tmp_path, kept=100_000)
    before = sum(group.count for group in vault.groups())
    assert before in (told, told + 1)
    vault.add(replace(CRASH, input=b"the next one"))
    group = vault.groups()[0]
    assert (group.count, group.last) == (before + 1, before + 1)
    assert names(vault.root / SLUG) == sorted([*map(str, range(1, before + 2)), "group.json"])


class Killed(BaseException):
    """What ends an add, after which nothing is tidied up."""


def killed_at(step: int, vault: Vault, crash: Crash) -> bool:
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
            vault.add(crash)
        except Killed:
            return True
    return False


def test_whatever_was_done_last_before_a_kill_the_next_one_goes_on(tmp_path: Path) -> None:
    before = 0
    for step in count():
        vault = Vault(tmp_path, kept=100)
        killed = killed_at(step, vault, other(step))
        after = sum(group.count for group in vault.groups())
        assert after in ((before, before + 1) if killed else (before + 1,))
        before = after
        if not killed:
            break
    assert step > 8
    assert Vault(tmp_path, kept=100).add(CRASH).directory == tmp_path / "crashes" / SLUG / str(before + 1)
    assert names(tmp_path / "crashes" / SLUG) == sorted([*map(str, range(1, before + 2)), "group.json"])


def add_some(directory: Path, start: int) -> None:
    for number in range(start, start + 10):
        Vault(directory).add(replace(other(number), fuzzer=f"f{start}"))


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
    group = Vault(tmp_path).groups()[0]
    assert (group.count, group.last, group.fuzzers) == (40, 10, ("f0", "f100", "f200", "f300"))


texts = st.text(max_size=50)


@settings(max_examples=30)  # each waits for the disk
@given(texts, st.lists(st.builds(Frame, texts, texts, st.integers(0, 9), texts), max_size=4), texts)
def test_whatever_was_reported_is_stored_below_the_vault(
    tmp_path_factory: pytest.TempPathFactory, kind: str, frames: list[Frame], fuzzer: str
) -> None:
    vault = Vault(tmp_path_factory.mktemp("vault"))
    report = CrashReport(kind, frames=tuple(frames))
    stored = vault.add(replace(CRASH, fuzzer=fuzzer, report=report))
    assert stored.group == reports.slug(report, fuzzer)
    assert stored.directory == vault.root / stored.group / "1"
    assert [group.count for group in vault.groups()] == [1]
