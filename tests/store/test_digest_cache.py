"""The cache of digests: when it is believed, and that it can be lost, shared and damaged."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.host.locks import locked
from pipeline.store import digest_cache
from pipeline.store.digest_cache import RACY, DigestCache
from pipeline.store.digests import digest
from tests.waiting import SOON

AGED = 10 * RACY


class Clock:
    """Now is `seconds` after the file was last changed."""

    def __init__(self, path: Path, ahead: int) -> None:
        facts = path.stat()
        self.now = max(facts.st_mtime_ns, facts.st_ctime_ns) + ahead

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"content")
    return tmp_path / "file"


def remembered(cache: Path) -> int:
    """How many files the cache knows."""
    lines = cache.read_text().splitlines()[1:] if cache.exists() else []
    return len({tuple(json.loads(line)[:2]) for line in lines})


@pytest.mark.parametrize(("ahead", "kept"), [(AGED, 1), (RACY + 1, 1), (RACY, 0), (0, 0), (-AGED, 0)])
def test_a_file_that_changed_just_now_or_in_the_future_is_not_remembered(
    tmp_path: Path, file: Path, ahead: int, kept: int
) -> None:
    digests = DigestCache(tmp_path / "cache/digests.jsonl", Clock(file, ahead))
    digests.of(file)
    digests.save()
    assert remembered(tmp_path / "cache/digests.jsonl") == kept


def aged(cache: Path, file: Path) -> DigestCache:
    return DigestCache(cache, Clock(file, AGED))


def test_what_is_remembered_is_believed_while_the_signature_stays(tmp_path: Path, file: Path) -> None:
    cache = tmp_path / "digests.jsonl"
    first = aged(cache, file)
    true = first.of(file)
    first.save()
    text = cache.read_text()
    cache.write_text(text.replace(true, "b3:remembered"))
    assert DigestCache(cache).of(file) == "b3:remembered"
    os.utime(file, (1, 1))
    assert DigestCache(cache).of(file) == true, "another time of modification"


def test_equal_size_and_time_of_modification_do_not_deceive(tmp_path: Path, file: Path) -> None:
    """The time of change cannot be set."""
    cache = tmp_path / "digests.jsonl"
    first = aged(cache, file)
    before = first.of(file)
    first.save()
    facts = file.stat()
    file.write_bytes(b"CONTENT")
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert DigestCache(cache).of(file) != before


HEAD = '{"schema": 2}\n'
DAMAGED = {
    "empty": "",
    "no JSON": "{",
    "the schema before": '{"schema": 1, "entries": {}}',
    "a newer schema": '{"schema": 3}\n',
    "half a line": HEAD + '[1,2,3,4,5,"b3:1"]\n[1,2,3',
    "another shape": HEAD + "7\n",
    "a short line": HEAD + '[1,2,3,"b3:1"]\n',
    "no digest": HEAD + "[1,2,3,4,5,6]\n",
    "another digest": HEAD + '[1,2,3,4,5,"md5:1"]\n',
    "a key that is none": HEAD + '[[],2,3,4,5,"b3:1"]\n',
    "a directory": None,
    "zeros, as after a power cut": HEAD + "\0" * 100,
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_cache_is_begun_anew_with_one_warning(
    tmp_path: Path, file: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, text = tmp_path / "digests.jsonl", DAMAGED[kind]
    if text is None:
        cache.mkdir()
    else:
        cache.write_text(text)
    warnings: list[str] = []
    monkeypatch.setattr("pipeline.store.digest_cache.log.warning", lambda text, *_: warnings.append(text))
    digests = aged(cache, file)
    assert digests.of(file) == digest(file)
    assert digests.of(file) == digest(file)
    assert warnings == ["the cache of digests is begun anew: %s: %s"]
    digests.save()
    if text is not None:
        assert remembered(cache) == 1


def test_a_damaged_cache_is_replaced_even_if_nothing_can_be_remembered(tmp_path: Path) -> None:
    cache = tmp_path / "digests.jsonl"
    cache.write_text("{")
    (tmp_path / "young").touch()
    digests = DigestCache(cache)
    digests.of(tmp_path / "young")
    digests.save()
    assert cache.read_text() == HEAD


def test_the_frozen_format(tmp_path: Path, file: Path) -> None:
    facts = file.stat()
    state = [facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
    line = json.dumps([*state, "b3:frozen"], separators=(",", ":"))
    (tmp_path / "digests.jsonl").write_text(f"{HEAD}{line}\n")
    assert DigestCache(tmp_path / "digests.jsonl").look(file) == ("b3:frozen", facts.st_size)
    written = aged(tmp_path / "new.jsonl", file)
    found = written.of(file)
    written.save()
    assert (tmp_path / "new.jsonl").read_text() == f"{HEAD}{line}\n".replace("b3:frozen", found)


def test_each_save_only_adds(tmp_path: Path, file: Path) -> None:
    cache = tmp_path / "digests.jsonl"
    for text in ("one", "another one"):
        file.write_text(text)
        digests = aged(cache, file)
        digests.of(file)
        digests.save()
        digests.save()
    lines = cache.read_text().splitlines()
    assert len(lines) == 3
    assert DigestCache(cache).of(file) == digest(file), "the last one counts"


def test_lines_that_were_overtaken_are_dropped_in_time(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest_cache, "_SPARE_LINES", 3)
    cache = tmp_path / "digests.jsonl"
    for size in range(20):
        file.write_bytes(bytes(size))
        digests = aged(cache, file)
        digests.of(file)
        digests.save()
        assert len(cache.read_text().splitlines()) <= 1 + 2 + 3 + 1
    assert remembered(cache) == 1


def test_of_very_many_files_the_oldest_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest_cache, "_MOST_ENTRIES", 3)
    cache, files = tmp_path / "digests.jsonl", [tmp_path / f"file{number}" for number in range(8)]
    for path in files:
        path.write_text(path.name)
        digests = aged(cache, path)
        digests.of(path)
        digests.save()
    kept = [json.loads(line)[1] for line in cache.read_text().splitlines()[1:]]
    assert kept == [path.stat().st_ino for path in files[5:]]


def test_somebody_who_holds_the_lock_for_long_is_not_waited_for(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest_cache, "_LOCK_LIMIT", 0.1)
    cache = tmp_path / "digests.jsonl"
    digests = aged(cache, file)
    digests.of(file)
    with locked(cache):
        digests.save()
    assert not cache.exists()
    digests.save()
    assert remembered(cache) == 1


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_only_files_have_digests(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A pipe in the place of an image must not be waited for."""
    make(tmp_path / "thing")
    with pytest.raises(OSError, match="it is not a file"):
        DigestCache(None).of(tmp_path / "thing")


def test_several_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from pipeline.store.digest_cache import DigestCache\n"
        "d = DigestCache(Path(sys.argv[1]), lambda: time.time_ns() + 10**11)\n"
        "for name in sys.argv[2:]: d.of(Path(name)); d.save()"
    )
    cache = tmp_path / "digests.jsonl"
    groups: list[list[Path]] = [[tmp_path / f"{group}-{number}" for number in range(10)] for group in range(4)]
    for path in itertools.chain.from_iterable(groups):
        path.write_text(path.name)
    running = [subprocess.Popen([sys.executable, "-c", program, cache, *group]) for group in groups]
    assert [process.wait(SOON) for process in running] == [0] * 4
    assert remembered(cache) == 40


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, file: Path) -> None:
    (tmp_path / "blocked").touch()
    digests = aged(tmp_path / "blocked/digests.jsonl", file)
    assert digests.of(file) == digest(file)
    digests.save()


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        DigestCache(None).of(tmp_path / "nothing")
