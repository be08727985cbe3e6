"""The ledger: nothing that was written is lost or changed, whatever ends the writer."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.campaign.ledger import (
    Closed,
    Crashed,
    Ended,
    Harvested,
    LedgerEntry,
    Merged,
    Seeded,
    Started,
    Subject,
    decode,
    encode,
    opened,
    read,
)
from pipeline.errors import InstanceBusy, StoreError
from tests.waiting import SOON

SUBJECT = Subject("example-fuzzers/crash_fuzzer", "b3:build", "b3:plan")
FROZEN = (
    b'{"arguments": ["-max_len=16", "data/corpus"], "at": "2026-11-25T14:00:00Z", "attempt": 1, "boot_id": "6ed5", '
    b'"instance": "pool-0", "kind": "started", "schema": 1, "seed": 4711, "slice": 3, "subject": {"build": "b3:build", '
    b'"fuzzer": "example-fuzzers/crash_fuzzer", "plan": "b3:plan"}}\n'
)
STARTED = Started(SUBJECT, 3, 1, "pool-0", "6ed5", 4711, ("-max_len=16", "data/corpus"))

FROZEN_SEEDED = (
    b'{"at": "2026-11-29T06:00:00Z", "fuzzer": "example-fuzzers/crash_fuzzer", "kind": "seeded", '
    b'"names": ["66b27417d37e024c46526c2f6d358a754fc552f3"], "new": 1, "schema": 1}\n'
)
SEEDED = Seeded(SUBJECT.fuzzer, ("66b27417d37e024c46526c2f6d358a754fc552f3",), 1)

FROZEN_MERGED = (
    b'{"accepted": true, "after": 2, "at": "2026-11-29T06:00:00Z", "before": 9, "confirmed_by": "6ed5", '
    b'"features_after": 31, "features_before": 30, "kind": "merged", "reason": "", "schema": 1, "seconds": 4.5, '
    b'"subject": {"build": "b3:build", "fuzzer": "example-fuzzers/crash_fuzzer", "plan": "b3:plan"}}\n'
)
MERGED = Merged(SUBJECT, 9, 2, 30, 31, True, "", 4.5, "6ed5")

numbers = st.integers(0, 10**18)
seconds = st.floats(0, 1e9)
subjects = st.builds(Subject, st.text(), st.text(), st.text())
points = st.tuples(seconds, numbers, numbers, numbers, numbers)
entries: st.SearchStrategy[LedgerEntry] = st.one_of(
    st.builds(Started, subjects, numbers, numbers, st.text(), st.text(), numbers, st.lists(st.text()).map(tuple)),
    st.builds(Harvested, subjects, numbers, numbers, seconds, numbers, numbers, numbers, numbers),
    st.builds(Crashed, subjects, numbers, numbers, st.text(), st.booleans(), st.text()),
    st.builds(Closed, subjects, numbers, st.text()),
    st.builds(Seeded, st.text(), st.lists(st.text()).map(tuple), numbers),
    st.builds(
        Ended,
        *(subjects, numbers, numbers, st.sampled_from(["done", "crash"]), st.text(), seconds, numbers, numbers),
        *(numbers, numbers, numbers, numbers, st.lists(points).map(tuple)),
    ),
)


def test_frozen_lines() -> None:
    assert encode(STARTED, "2026-11-25T14:00:00Z") == FROZEN
    assert decode(FROZEN) == STARTED
    assert encode(SEEDED, "2026-11-29T06:00:00Z") == FROZEN_SEEDED
    assert decode(FROZEN_SEEDED) == SEEDED
    assert encode(MERGED, "2026-11-29T06:00:00Z") == FROZEN_MERGED
    assert decode(FROZEN_MERGED) == MERGED
    assert decode(FROZEN_MERGED.replace(b'"confirmed_by": "6ed5", ', b"")) == msgspec.structs.replace(
        MERGED, confirmed_by=""
    )


@given(entries)
def test_what_is_read_is_what_was_written(entry: LedgerEntry) -> None:
    line = encode(entry, "")
    assert decode(line) == entry
    assert line.count(b"\n") == 1


@pytest.mark.parametrize("kind", ["opened", "booted", "seeded", "started", "harvested", "crashed", "ended", "closed"])
def test_what_a_line_lacks_is_told(kind: str) -> None:
    with pytest.raises(ValueError, match="a field is missing or wrong: Object missing required field"):
        decode(json.dumps({"kind": kind, "schema": 1}).encode())


def test_a_ledger_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "deep/ledger.jsonl"
    for number in range(3):
        with opened(path) as book:
            book.append(Closed(SUBJECT, number, "time"))
            assert len(list(read(path))) == number + 1
    assert list(read(path)) == [Closed(SUBJECT, number, "time") for number in range(3)]


def test_none_has_no_entries(tmp_path: Path) -> None:
    assert list(read(tmp_path / "ledger.jsonl")) == []


@pytest.mark.parametrize("cut", range(1, len(FROZEN)))
def test_a_line_that_was_cut_off_counts_as_not_written(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(FROZEN + FROZEN[:cut])
    assert list(read(path)) == [STARTED]
    with opened(path) as book:
        book.append(STARTED)
    assert list(read(path)) == [STARTED, STARTED]


@pytest.mark.parametrize(
    "line",
    [
        b"no json\n",
        b"[]\n",
        b"{}\n",
        FROZEN.replace(b'"schema": 1', b'"schema": 2'),
        FROZEN.replace(b'"started"', b'"unheard of"'),
        FROZEN.replace(b'"seed"', b'"sede"'),
        b"[" * 100_000 + b"\n",
        b"\xff\n",
    ],
)
def test_a_line_that_is_no_entry_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(FROZEN + line)
    with pytest.raises(StoreError, match=r"ledger\.jsonl:2: ") as caught:
        list(read(path))
    assert "another name" in caught.value.hint


def test_two_processes_do_not_share_one(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with opened(path), pytest.raises(InstanceBusy), opened(path, limit=0.1):
        pass


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with opened(path) as book:

        def write(writer: int) -> None:
            for number in range(50):
                book.append(Closed(Subject(f"f/{writer}", "b" * 5000, ""), number, ""))

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
    written = [entry for entry in read(path) if isinstance(entry, Closed)]
    for writer in range(4):
        assert [entry.slice for entry in written if entry.subject.fuzzer == f"f/{writer}"] == list(range(50))


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.jsonl"
    real = os.write

    def full(descriptor: int, data: Any) -> int:
        if len(data) > 100:
            return real(descriptor, data[:100])
        raise OSError(28, "No space left on device")

    with opened(path) as book:
        book.append(STARTED)
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(StoreError, match="writing the ledger: No space left"):
            book.append(STARTED)
        monkeypatch.undo()
        book.append(STARTED)
    assert path.read_bytes().count(b"\n") == 2
    assert list(read(path)) == [STARTED, STARTED]


def test_whoever_comes_too_late_writes_nowhere(tmp_path: Path) -> None:
    with opened(tmp_path / "ledger.jsonl") as book:
        book.append(STARTED)
    with (tmp_path / "another").open("wb"), pytest.raises(StoreError, match="it is closed"):
        book.append(STARTED)
    assert (tmp_path / "another").read_bytes() == b""


WRITER = """
import sys
from pathlib import Path
from pipeline.campaign.ledger import Closed, Subject, opened
with opened(Path(sys.argv[1])) as book:
    number = 0
    while True:
        book.append(Closed(Subject("a/b", "x" * 3000, ""), number, ""))
        print(number, flush=True)
        number += 1
"""


@pytest.mark.parametrize("after", [0, 3, 40])
def test_what_was_written_survives_a_kill(tmp_path: Path, after: int) -> None:
    path = tmp_path / "ledger.jsonl"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        for _ in range(after + 1):
            last = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        told = [last, *map(int, writer.stdout.read().split())]
    with opened(path):
        numbers = [entry.slice for entry in read(path) if isinstance(entry, Closed)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > told[-1]
    assert all(json.loads(line)["schema"] == 1 for line in path.read_bytes().splitlines())
