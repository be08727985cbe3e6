"""What ELF files say is remembered by their content."""

import json
import logging
import os
import shutil
import sys
from pathlib import Path

import pytest

from pipeline.builds import elf
from pipeline.builds.elf import DamagedElfError, ElfFacts
from pipeline.builds.targets import facts
from pipeline.builds.targets.facts import ElfCache
from pipeline.store.digests import digest
from tests.builds.elves import LIBFUZZER, Elf

PROGRAM = Elf(needed=("libz.so.1", "libc.so.6"), runpath="$ORIGIN/lib", build_id="ab" * 20, text=LIBFUZZER)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "program").write_bytes(bytes(PROGRAM))
    return tmp_path / "program"


@pytest.fixture
def cache_file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "elf.json"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read."""
    names: list[str] = []
    read = elf.read

    def reading(path: Path) -> ElfFacts | None:
        names.append(path.name)
        return read(path)

    monkeypatch.setattr(elf, "read", reading)
    return names


def remembered(cache_file: Path) -> list[str]:
    return list(json.loads(cache_file.read_text())["facts"])


def test_a_file_is_read_once_whatever_its_name(program: Path, cache_file: Path, reads: list[str]) -> None:
    fresh = elf.read(program)
    reads.clear()
    cache = ElfCache(cache_file, digest)
    copy = Path(shutil.copy(program, program.with_name("copy")))
    assert [cache.of(program), cache.of(copy), cache.of(program)] == [fresh] * 3
    cache.save()
    assert ElfCache(cache_file, digest).of(copy) == fresh
    assert reads == ["program"]


def test_all_that_a_real_program_says_comes_back(cache_file: Path) -> None:
    python = Path(sys.executable).resolve()
    cache = ElfCache(cache_file, digest)
    fresh = cache.of(python)
    cache.save()
    assert ElfCache(cache_file, digest).of(python) == fresh == elf.read(python)


def test_that_a_file_is_no_elf_file_is_remembered_too(tmp_path: Path, cache_file: Path, reads: list[str]) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n")
    cache = ElfCache(cache_file, digest)
    assert cache.of(tmp_path / "script") is None
    cache.save()
    assert ElfCache(cache_file, digest).of(tmp_path / "script") is None
    assert reads == ["script"]


def test_another_content_is_another_file(program: Path, cache_file: Path) -> None:
    cache = ElfCache(cache_file, digest)
    first = cache.of(program)
    program.write_bytes(bytes(Elf(machine=183)))
    second = cache.of(program)
    assert first
    assert second
    assert (first.machine, second.machine) == ("x86-64", "AArch64")


def test_a_file_that_changes_while_it_is_read_is_not_remembered(program: Path, cache_file: Path) -> None:
    digests = iter(["b3:1", "b3:2", "b3:1", "b3:1"])
    cache = ElfCache(cache_file, lambda _: next(digests))
    assert cache.of(program)
    cache.save()
    assert not cache_file.exists()
    assert cache.of(program)
    cache.save()
    assert remembered(cache_file) == ["b3:1"]


def test_a_damaged_file_is_refused_every_time(program: Path, cache_file: Path) -> None:
    program.write_bytes(bytes(PROGRAM)[:100])
    cache = ElfCache(cache_file, digest)
    for _ in range(2):
        with pytest.raises(DamagedElfError):
            cache.of(program)
    cache.save()
    assert not cache_file.exists()


def test_what_others_have_saved_meanwhile_stays(tmp_path: Path, cache_file: Path) -> None:
    caches = []
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(bytes(Elf(soname=name)))
        caches.append(ElfCache(cache_file, lambda path: path.name))
        caches[-1].of(tmp_path / name)
    for cache in caches:
        cache.save()
    assert remembered(cache_file) == ["one", "two"]


def test_nothing_is_written_when_nothing_is_new(program: Path, cache_file: Path) -> None:
    cache = ElfCache(cache_file, digest)
    cache.of(program)
    cache.save()
    cache_file.unlink()
    cache.save()
    assert not cache_file.exists()


def test_the_most_that_is_remembered_is_what_was_asked_for_last(
    program: Path, cache_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "MOST_ENTRIES", 3)
    names = iter("aabbccaadd")
    for _ in range(3):
        cache = ElfCache(cache_file, lambda _: next(names))
        cache.of(program)
        cache.save()
    assert remembered(cache_file) == ["a", "b", "c"]
    cache = ElfCache(cache_file, lambda _: next(names))
    cache.of(program)  # a is known, so its digest is asked for once
    next(names)
    cache.of(program)
    cache.save()
    assert remembered(cache_file) == ["c", "a", "d"]


def test_the_file_stays_short(program: Path, cache_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(f"{number // 2:03}" for number in range(100))
    cache = ElfCache(cache_file, lambda _: next(names))
    for _ in range(50):
        cache.of(program)
    monkeypatch.setattr(facts, "_LONGEST", 5000)
    cache.save()
    assert 4000 < cache_file.stat().st_size <= 5000
    kept = remembered(cache_file)
    assert kept == [f"{number:03}" for number in range(50 - len(kept), 50)]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', '{"schema": 1, "facts": {"b3:1": {"bits": 64}}}'])
def test_a_damaged_cache_is_begun_anew(
    program: Path, cache_file: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    cache_file.parent.mkdir()
    cache_file.write_text(content)
    cache = ElfCache(cache_file, digest)
    with caplog.at_level(logging.WARNING):
        assert cache.of(program)
        assert cache.of(program)
        cache.save()
    assert ["begun anew" in record.message for record in caplog.records] == [True]
    assert remembered(cache_file) == [digest(program)]


def test_the_cache_of_another_version_is_begun_anew(
    program: Path, cache_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache_file.parent.mkdir()
    cache_file.write_text('{"schema": 0}')
    cache = ElfCache(cache_file, digest)
    assert cache.of(program)
    cache.save()
    assert caplog.records == []
    assert remembered(cache_file) == [digest(program)]


def test_a_cache_that_cannot_be_written_is_no_error(program: Path, tmp_path: Path) -> None:
    (tmp_path / "place").write_bytes(b"")
    cache = ElfCache(tmp_path / "place" / "elf.json", digest)
    assert cache.of(program)
    cache.save()


def test_a_cache_without_a_file(program: Path, reads: list[str]) -> None:
    cache = ElfCache(None, digest)
    assert cache.of(program) == cache.of(program)
    cache.save()
    assert reads == ["program"]


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ElfCache(None, digest).of(tmp_path / "none")


SAMPLE = {
    "schema": 1,
    "facts": {
        "b3:1": {
            "machine": "x86-64",
            "bits": 64,
            "kind": "program",
            "interpreter": "",
            "needed": ["libc.so.6"],
            "search": ["$ORIGIN"],
            "inherited": False,
            "soname": "",
            "build_id": "ab",
            "sanitizers": ["address"],
            "engine": "libFuzzer",
            "target": True,
            "debug": False,
            "glibc": "2.34",
        },
        "b3:2": None,
    },
}
"""The format: it stays readable, or the schema rises."""


def test_the_format_is_what_it_was(cache_file: Path) -> None:
    cache_file.parent.mkdir()
    cache_file.write_text(json.dumps(SAMPLE))
    found = ElfCache(cache_file, lambda _: "b3:1").of(Path(os.devnull))
    assert found == ElfFacts(
        "x86-64",
        64,
        "program",
        "",
        ("libc.so.6",),
        ("$ORIGIN",),
        False,
        "",
        "ab",
        ("address",),
        "libFuzzer",
        True,
        False,
        "2.34",
    )
    assert ElfCache(cache_file, lambda _: "b3:2").of(Path(os.devnull)) is None
