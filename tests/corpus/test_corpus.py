"""The corpus of a fuzzer: what comes into it, what goes, what it says on the disk."""

import hashlib
import json
import logging
import multiprocessing
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus import Added, Corpus, Coverage, Limits, Manifest, Merge, Unit
from pipeline.corpus.quarantine import Quarantine
from pipeline.errors import StoreError, UsageError

FUZZER = "example-fuzzers/crash_fuzzer"
AB, XYZ = "da23614e02469a0d7c7bd1bdab5c9c474b1904dc", "66b27417d37e024c46526c2f6d358a754fc552f3"

SAMPLE = f"""{{
  "merges": {{
    "count": 1,
    "last": {{
      "after": {{
        "edges": 20,
        "features": 31
      }},
      "at": "2026-11-25T14:00:00Z",
      "before": {{
        "edges": 20,
        "features": 30
      }},
      "units_after": 2,
      "units_before": 9
    }}
  }},
  "schema": 1,
  "units": {{
    "{XYZ}": {{
      "added": "2026-11-25T13:00:00Z",
      "bytes": 3,
      "source": "seed"
    }},
    "{AB}": {{
      "added": "2026-11-25T13:30:00Z",
      "bytes": 1,
      "source": "example-fuzzers/crash_fuzzer#3.1"
    }}
  }}
}}
"""
"""Frozen: what earlier versions have written must be understood. A change of the format is a new schema."""

MEANING = Manifest(
    units={
        XYZ: Unit(XYZ, 3, "2026-11-25T13:00:00Z", "seed"),
        AB: Unit(AB, 1, "2026-11-25T13:30:00Z", "example-fuzzers/crash_fuzzer#3.1"),
    },
    merges=1,
    last_merge=Merge("2026-11-25T14:00:00Z", 9, 2, Coverage(20, 30), Coverage(20, 31)),
)

SOME = Coverage(10, 100)
HOSTILE = [b"-rf", b"a b", b"\n", b"\xff\xfe", b"\x1b]0;x\x07", b"manifest.json", b"..x", b"d" * 255, b"DEADBEEF" * 5]


def name_of(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def contents(corpus: Corpus) -> set[bytes]:
    """What the manifest lists. Nothing else is there, and each is what it should be."""
    found = files(corpus.directory / "units")
    assert {name: len(content) for name, content in found.items()} == {u.name: u.bytes for u in corpus.units().values()}
    assert all(name_of(content) == name for name, content in found.items())
    return set(found.values())


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def landed(directory: Path, *some: bytes) -> list[Path]:
    directory.mkdir(exist_ok=True)
    paths = [directory / name_of(content) for content in some]
    for path, content in zip(paths, some, strict=True):
        path.write_bytes(content)
    return paths


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus.of(tmp_path / "out", FUZZER)


def merge(
    corpus: Corpus, given: Iterable[bytes], kept: Iterable[bytes], new: Iterable[Path | bytes] = (), **facts: Coverage
) -> bool:
    old, stay = ([name_of(content) for content in some] for some in (given, kept))
    before, after = facts.get("before", SOME), facts.get("after", SOME)
    return corpus.replace(old, stay, new, before=before, after=after, tolerance=0.02, source="merge")


def test_the_frozen_sample_is_what_is_written_and_understood(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Manifest.decode(SAMPLE.encode()) == MEANING
    corpus.add([b"z", b"xyz"], "any")
    file = corpus.directory / "manifest.json"
    file.write_text(SAMPLE)
    assert corpus.manifest() == MEANING
    monkeypatch.setattr("pipeline.corpus.intake.utc_now", lambda: "2026-11-25T15:00:00Z")
    corpus.add([b"new"], "import")
    content = json.loads(SAMPLE)
    content["units"][AB]["bytes"] = 1
    del content["units"][AB]  # its file is not there
    content["units"][name_of(b"new")] = {"added": "2026-11-25T15:00:00Z", "bytes": 3, "source": "import"}
    assert file.read_text() == json.dumps(content, indent=2, sort_keys=True) + "\n"


def test_the_frozen_sample_of_a_note(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.corpus.quarantine.utc_now", lambda: "2026-11-25T15:00:00Z")
    corpus.add([b"xyz"], "seed")
    assert corpus.quarantine(XYZ, "time\x1b[31mout\n")
    assert (corpus.directory / "quarantine" / f"{XYZ}.json").read_text() == (
        '{\n  "at": "2026-11-25T15:00:00Z",\n  "bytes": 3,\n  "reason": "timeout\\\\n",\n'
        '  "schema": 1,\n  "source": "seed"\n}\n'
    )


def test_what_was_added_is_there_under_the_name_that_libfuzzer_would_give_it(corpus: Corpus) -> None:
    assert corpus.add([b"xyz", b"", b"xyz"], "seed") == Added(new=2, known=1)
    assert contents(corpus) == {b"xyz", b""}
    unit = corpus.units()[XYZ]
    assert (unit.name, unit.bytes, unit.source) == (XYZ, 3, "seed")
    assert corpus.path(XYZ).read_bytes() == b"xyz"
    assert corpus.total_bytes == 3


def test_a_corpus_that_is_not_there_is_empty_and_reading_makes_nothing(corpus: Corpus, tmp_path: Path) -> None:
    assert corpus.units() == {}
    assert corpus.lacking([]) == []
    assert corpus.quarantined() == {}
    assert corpus.export_directory(tmp_path / "exported") == 0
    assert not corpus.directory.exists()


def test_adding_nothing_new_does_not_write_the_manifest(corpus: Corpus) -> None:
    corpus.add([b"a"], "seed")
    before = (corpus.directory / "manifest.json").stat()
    assert corpus.add([b"a"], "import") == Added(known=1)
    after = (corpus.directory / "manifest.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize(
    "name",
    ["", "a", "a/", "/a", "a/b/c", "../b", "a/..", "./b", "a//b", "a/b\n", "a/ b", "a/ö", "a\0/b", ".hidden/b"],
)
def test_no_other_name_of_a_fuzzer_is_taken(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="name of a fuzzer"):
        Corpus.of(tmp_path, name)


@pytest.mark.parametrize("name", ["", "..", "../../manifest.json", XYZ.upper(), XYZ + "\n", XYZ[1:]])
def test_no_other_name_of_a_unit_is_made_a_path(corpus: Corpus, name: str) -> None:
    with pytest.raises(UsageError, match="name of a unit"):
        corpus.path(name)
    assert not corpus.quarantine(name, "hostile")


def test_files_are_taken_by_their_content_whatever_they_are_called(corpus: Corpus, tmp_path: Path) -> None:
    for number, name in enumerate(HOSTILE):
        (tmp_path / os.fsdecode(name)).write_bytes(b"%d" % number)
    paths = [tmp_path / os.fsdecode(name) for name in HOSTILE]
    assert corpus.add(paths, "hostile\n\udcff") == Added(new=len(HOSTILE))
    assert contents(corpus) == {b"%d" % number for number in range(len(HOSTILE))}
    assert {unit.source for unit in corpus.units().values()} == {"hostile\\n"}
    assert all(path.exists() for path in paths)


def test_what_is_no_regular_file_is_refused(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    (tmp_path / "file").write_bytes(b"secret")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        before = open_descriptors()
        odd = ["link", "dangling", "directory", "fifo", "socket", "vanished", "x" * 256, "file/below"]
        assert corpus.add([*(tmp_path / name for name in odd), Path("/dev/zero")], "x") == Added(refused=len(odd) + 1)
        assert open_descriptors() == before
    assert corpus.units() == {}


def test_a_file_that_was_fetched_while_it_was_written_is_left_for_later(corpus: Corpus, tmp_path: Path) -> None:
    (path,) = landed(tmp_path / "landing", b"whole")
    path.write_bytes(b"who")
    assert corpus.add([path], "x") == Added(torn=1)
    assert contents(corpus) == set()
    path.write_bytes(b"whole")
    assert corpus.add([path], "x") == Added(new=1)


def test_what_is_added_is_a_copy(corpus: Corpus, tmp_path: Path) -> None:
    (path,) = landed(tmp_path / "landing", b"one")
    with path.open("r+b") as stream:
        corpus.add([path], "x")
        stream.write(b"two")
    assert contents(corpus) == {b"one"}


def test_a_corpus_does_not_grow_past_its_limits(tmp_path: Path) -> None:
    corpus = Corpus.of(tmp_path, FUZZER, Limits(unit_size=4, bytes=10, units=3))
    (tmp_path / "large").write_bytes(b"12345")
    assert corpus.add([b"12345", tmp_path / "large", b"1234", b"123"], "x") == Added(new=2, too_large=2)
    assert corpus.add([b"abcd", b"abc", b"x", b"123"], "x") == Added(new=1, over_cap=2, known=1)
    assert contents(corpus) == {b"1234", b"123", b"abc"}
    other = Corpus.of(tmp_path, "a/other", Limits(bytes=5))
    assert other.add([b"1234", b"123", b"1", b"2"], "x") == Added(new=2, over_cap=2)
    assert Corpus.of(tmp_path, FUZZER, Limits(bytes=11)).add([b"yy", b"y"], "x") == Added(new=1, over_cap=1)


def test_no_more_content_is_in_memory_than_is_being_written(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def write(path: Path, content: bytes) -> None:
        path.write_bytes(content)
        written.append(path)

    def some() -> Iterator[bytes]:
        for number in range(500):
            assert number - len(written) <= 32
            yield b"%d" % number

    monkeypatch.setattr("pipeline.corpus.intake.write_new", write)
    assert corpus.add(some(), "x") == Added(new=500)


def test_when_contents_fail_nothing_is_added_and_the_corpus_goes_on(corpus: Corpus) -> None:
    def failing() -> Iterable[bytes]:
        yield b"new"
        raise KeyboardInterrupt

    corpus.add([b"old"], "x")
    with pytest.raises(KeyboardInterrupt):
        corpus.add(failing(), "x")
    assert list(corpus.units()) == [name_of(b"old")]
    corpus.add([], "x")
    assert contents(corpus) == {b"old"}


def test_a_full_disk_is_a_fault_of_the_store(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus.add([b"old"], "x")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="writing the corpus of example-fuzzers/crash_fuzzer: No space") as caught:
            corpus.add([b"new"], "x")
    assert "free some space" in caught.value.hint
    corpus.add([], "x")
    assert contents(corpus) == {b"old"}


def test_a_single_unit_that_cannot_be_written_fails_the_call(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, content: bytes) -> None:
        if content == b"2":
            raise OSError(5, "Input/output error")
        path.write_bytes(content)

    monkeypatch.setattr("pipeline.corpus.intake.write_new", write)
    with pytest.raises(StoreError, match="Input/output error"):
        corpus.add([b"1", b"2", b"3"], "x")
    assert corpus.units() == {}


def test_units_are_on_the_disk_before_the_manifest_lists_them(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    corpus.add([], "x")
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(str(Path(f"/proc/self/fd/{number}").readlink())))
    corpus.add([b"a", b"b"], "x")
    paths = {str(corpus.path(name_of(content))) for content in (b"a", b"b")}
    assert set(synced[:2]) == paths
    assert synced[2] == str(corpus.directory / "units")
    assert synced[3].endswith(".tmp/manifest.json")
    assert synced[4] == str(corpus.directory)


def test_what_a_guest_lacks_is_told_from_a_listing(corpus: Corpus) -> None:
    corpus.add([b"a", b"b", b"c"], "x")
    assert corpus.lacking([name_of(b"a"), name_of(b"b"), "../hostile"]) == [corpus.path(name_of(b"c"))]
    corpus.path(name_of(b"c")).unlink()
    assert corpus.lacking([name_of(b"a")]) == [corpus.path(name_of(b"b"))]


@pytest.mark.parametrize("by_name", [True, False])
def test_a_unit_in_quarantine_is_kept_and_never_comes_back(corpus: Corpus, by_name: bool) -> None:
    corpus.add([b"good", b"bad"], "seed")
    assert corpus.quarantine(name_of(b"bad") if by_name else b"bad", "it crashes")
    assert contents(corpus) == {b"good"}
    assert corpus.add([b"bad", b"good"], "x") == Added(quarantined=1, known=1)
    assert corpus.quarantine(name_of(b"bad"), "again")
    assert corpus.quarantined() == {name_of(b"bad"): "it crashes"}
    assert (corpus.directory / "quarantine" / name_of(b"bad")).read_bytes() == b"bad"


def test_what_was_never_added_can_be_quarantined_by_content_only(tmp_path: Path) -> None:
    corpus = Corpus.of(tmp_path, FUZZER, Limits(unit_size=4))
    assert not corpus.quarantine(name_of(b"bad"), "x")
    assert not corpus.quarantine(b"large", "x")
    assert corpus.quarantine(b"bad", "x")
    assert corpus.add([b"bad"], "x") == Added(quarantined=1)


def test_the_oldest_leave_the_quarantine(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, most=3)
    for number in range(5):
        content = b"%d" % number
        quarantine.put(name_of(content), content, "x", "seed")
        os.utime(tmp_path / f"{name_of(content)}.json", ns=(number, number))
    assert quarantine.names() == {name_of(b"2"), name_of(b"3"), name_of(b"4")}
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"schema": 2, "reason": "x"}', "[" * 50000])
def test_a_note_that_makes_no_sense_gives_no_reason_but_the_unit_stays_out(corpus: Corpus, note: str) -> None:
    corpus.quarantine(b"bad", "x")
    (corpus.directory / "quarantine" / f"{name_of(b'bad')}.json").write_text(note)
    assert corpus.quarantined() == {name_of(b"bad"): ""}
    assert corpus.add([b"bad"], "x") == Added(quarantined=1)


def test_a_merge_replaces_what_it_was_given_and_nothing_else(corpus: Corpus, tmp_path: Path) -> None:
    corpus.add([b"a", b"b", b"c"], "seed")
    corpus.add([b"later"], "harvest")
    assert merge(corpus, [b"a", b"b", b"c"], [b"a"], landed(tmp_path / "merged", b"a", b"b", b"new"))
    assert contents(corpus) == {b"a", b"b", b"new", b"later"}
    sources = {unit.name: unit.source for unit in corpus.units().values()}
    assert (sources[name_of(b"b")], sources[name_of(b"new")]) == ("seed", "merge")
    assert merge(corpus, [b"a", b"b", b"new"], [], [b"all"], after=Coverage(10, 98))
    now = corpus.manifest()
    assert contents(corpus) == {b"all", b"later"}
    assert now.merges == 2
    assert now.last_merge is not None
    assert (now.last_merge.units_before, now.last_merge.units_after) == (4, 2)
    assert (now.last_merge.before, now.last_merge.after) == (SOME, Coverage(10, 98))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (SOME, Coverage(10, 97)),
        (SOME, Coverage(9, 100)),
        (SOME, Coverage(0, 0)),
        (Coverage(0, 0), Coverage(0, 0)),
        (Coverage(0, 0), SOME),
    ],
)
def test_a_merge_that_covers_less_or_measured_nothing_is_refused(
    corpus: Corpus, before: Coverage, after: Coverage, caplog: pytest.LogCaptureFixture
) -> None:
    corpus.add([b"a", b"b"], "seed")
    was = corpus.manifest()
    assert not merge(corpus, [b"a", b"b"], [b"a"], [b"c"], before=before, after=after)
    assert corpus.manifest() == was
    assert contents(corpus) == {b"a", b"b"}
    assert "is not taken" in caplog.text


@pytest.mark.parametrize(
    "flaw", ["torn", "too large", "over the cap", "quarantined", "link", "kept unknown", "nothing"]
)
def test_a_merge_whose_result_is_not_to_be_had_is_refused(tmp_path: Path, flaw: str) -> None:
    corpus = Corpus.of(tmp_path, FUZZER, Limits(unit_size=4, bytes=8))
    corpus.add([b"a", b"b"], "seed")
    corpus.add([b"late"], "harvest")
    corpus.quarantine(b"bad", "x")
    (torn,) = landed(tmp_path / "landing", b"torn")
    torn.write_bytes(b"tor")
    (tmp_path / "link").symlink_to("/etc/hostname")
    new: dict[str, Path | bytes] = {"torn": torn, "too large": b"12345", "over the cap": b"1234", "quarantined": b"bad"}
    new["link"] = tmp_path / "link"
    kept = {"kept unknown": [b"a", b"unknown"], "nothing": []}.get(flaw, [b"a"])
    was = corpus.manifest()
    assert not merge(corpus, [b"a", b"b"], kept, [b"x", new[flaw]] if flaw in new else [])
    assert corpus.manifest() == was
    assert contents(corpus) == {b"a", b"b", b"late"}


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan")])
def test_a_tolerance_that_allows_to_lose_all_is_none(corpus: Corpus, tolerance: float) -> None:
    with pytest.raises(UsageError, match="tolerance"):
        corpus.replace([], [], [], before=SOME, after=SOME, tolerance=tolerance, source="x")


def test_a_directory_is_imported_as_libfuzzer_reads_it(corpus: Corpus, tmp_path: Path) -> None:
    for path in ("a", ".hidden-file", "below/b", "below/deeper/c", ".git/object"):
        (tmp_path / "seeds" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "seeds" / path).write_text(path)
    (tmp_path / "seeds/loop").symlink_to(".")
    assert corpus.import_directory(tmp_path / "seeds", "import") == Added(new=4)
    assert contents(corpus) == {b"a", b".hidden-file", b"below/b", b"below/deeper/c"}
    with pytest.raises(StoreError, match="imported"):
        corpus.import_directory(tmp_path / "nothing", "import")


@given(st.sets(st.binary(max_size=50), max_size=8))
def test_what_is_exported_and_imported_is_the_same(tmp_path_factory: pytest.TempPathFactory, some: set[bytes]) -> None:
    directory = tmp_path_factory.mktemp("corpora")
    one, other = Corpus.of(directory, "a/one"), Corpus.of(directory, "a/other")
    one.add(some, "x")
    assert one.export_directory(directory / "exported") == len(some)
    assert files(directory / "exported") == {name_of(content): content for content in some}
    assert other.import_directory(directory / "exported", "import") == Added(new=len(some))
    assert contents(other) == some
    assert other.export_directory(directory / "exported") == 0


def test_an_export_overwrites_nothing(corpus: Corpus, tmp_path: Path) -> None:
    corpus.add([b"a", b"b"], "x")
    (tmp_path / "secret").write_bytes(b"a")
    for kind in ("directory", "file", "link"):
        exported = tmp_path / kind
        exported.mkdir()
        there = exported / name_of(b"a")
        if kind == "directory":
            there.mkdir()
        elif kind == "file":
            there.write_bytes(b"x")
        else:
            there.symlink_to("../secret")
        with pytest.raises(UsageError, match="is not the unit"):
            corpus.export_directory(exported)
        assert list(exported.iterdir()) == [there]
    assert files(tmp_path / "file") == {name_of(b"a"): b"x"}


CHANGES: list[dict[str, object]] = [
    {"schema": 2},
    {"units": []},
    {"units": {"../x": {"added": "", "bytes": 1, "source": ""}}},
    {"units": {XYZ: {"added": "", "bytes": -1, "source": ""}}},
    {"units": {XYZ: {"added": "", "bytes": True, "source": ""}}},
    {"units": {XYZ: {"added": "", "bytes": "3", "source": ""}}},
    {"units": {XYZ: {"added": 7, "bytes": 3, "source": ""}}},
    {"units": {XYZ: {"bytes": 3}}},
    {"merges": None},
    {"merges": {"count": "x", "last": None}},
]
DAMAGES = [
    *("", "{", "[]", "null", "1", "{}", "\udcff", "[" * 50000),
    *(json.dumps({**json.loads(SAMPLE), **change}) for change in CHANGES),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_told_and_can_be_made_anew(corpus: Corpus, damage: str) -> None:
    corpus.add([b"a", b"xyz"], "seed")
    corpus.quarantine(b"bad", "x")
    file = corpus.directory / "manifest.json"
    file.write_text(damage, errors="surrogateescape")
    for attempt in (corpus.units, lambda: corpus.add([b"b"], "x"), lambda: corpus.quarantine(b"a", "x")):
        with pytest.raises(StoreError, match="cannot be understood") as caught:
            attempt()
        assert "move that file away" in caught.value.hint
    assert file.read_text(errors="surrogateescape") == damage
    assert corpus.recover() == 2
    assert contents(corpus) == {b"a", b"xyz"}
    assert {unit.source for unit in corpus.units().values()} == {"recovered"}


@given(st.binary(max_size=100) | st.integers(0, len(SAMPLE) - 2).map(lambda end: SAMPLE[:end].encode()))
def test_no_other_content_is_a_manifest(content: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Manifest.decode(content)


@pytest.mark.parametrize("reading", [True, False])
def test_a_manifest_that_is_gone_is_made_anew_by_who_comes_next(
    corpus: Corpus, reading: bool, caplog: pytest.LogCaptureFixture
) -> None:
    corpus.add([b"a", b"xyz", b"cut off"], "seed")
    corpus.quarantine(b"bad", "x")
    (corpus.directory / "manifest.json").unlink()
    corpus.path(name_of(b"cut off")).write_bytes(b"cut of")
    corpus.path(name_of(b"link")).symlink_to(corpus.path(XYZ))
    corpus.path(name_of(b"bad")).write_bytes(b"bad")
    if reading:
        assert set(corpus.units()) == {name_of(b"a"), XYZ}
    else:
        assert corpus.add([b"a", b"bad"], "x") == Added(known=1, quarantined=1)
    assert contents(corpus) == {b"a", b"xyz"}
    assert "had no manifest; units found: 2" in caplog.text


def test_recovery_keeps_what_is_known_and_finds_content_that_has_rotted(corpus: Corpus) -> None:
    corpus.add([b"a", b"b"], "seed")
    merge(corpus, [], [b"a"])
    was = corpus.manifest()
    corpus.path(name_of(b"b")).write_bytes(b"!")
    assert corpus.recover() == 1
    assert corpus.manifest() == Manifest({name_of(b"a"): was.units[name_of(b"a")]}, 1, was.last_merge)
    assert contents(corpus) == {b"a"}


@pytest.mark.parametrize("how", ["gone", "shorter", "a link", "a fifo"])
def test_a_unit_whose_file_is_lost_is_dropped_with_a_warning(
    corpus: Corpus, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    corpus.add([b"a", b"xyz"], "seed")
    path = corpus.path(XYZ)
    path.unlink()
    if how == "shorter":
        path.write_bytes(b"xy")
    elif how == "a link":
        path.symlink_to(corpus.path(name_of(b"a")))
    elif how == "a fifo":
        os.mkfifo(path)
    assert corpus.add([b"c"], "x") == Added(new=1)
    assert contents(corpus) == {b"a", b"c"}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"units lost from the corpus of {FUZZER}: 1, such as {XYZ}" in caplog.text
    assert corpus.add([b"xyz"], "x") == Added(new=1)
    assert contents(corpus) == {b"a", b"c", b"xyz"}


def test_leftovers_are_removed_and_what_a_person_has_put_there_is_not(corpus: Corpus) -> None:
    corpus.add([b"a"], "seed")
    (corpus.directory / "units/README").write_text("mine")
    (corpus.directory / "units" / name_of(b"directory")).mkdir()
    corpus.path(name_of(b"left")).write_bytes(b"le")
    (corpus.directory / "quarantine" / name_of(b"left")).write_bytes(b"le")
    (corpus.directory / f"quarantine/.{name_of(b'left')}.json.abcdefgh.tmp").mkdir()
    corpus.add([], "x")
    (corpus.directory / "units" / name_of(b"directory")).rmdir()
    assert files(corpus.directory / "units") == {name_of(b"a"): b"a", "README": b"mine"}
    assert files(corpus.directory / "quarantine") == {}


class Meeting(Protocol):
    def wait(self, timeout: float, /) -> int: ...


def add_many(corpus: Corpus, who: int, meeting: Meeting) -> None:
    meeting.wait(30)
    for number in range(20):
        added = corpus.add([b"%d %d" % (who, number), b"shared %d" % number], str(who))
        assert added.new + added.known == 2


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_who_adds_at_the_same_time_loses_nothing(corpus: Corpus, kind: str) -> None:
    context = multiprocessing.get_context("spawn")
    meeting = threading.Barrier(3) if kind == "threads" else context.Barrier(3)
    start = threading.Thread if kind == "threads" else context.Process
    workers = [start(target=add_many, args=(corpus, who, meeting)) for who in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    own = {b"%d %d" % (who, number) for who in range(3) for number in range(20)}
    assert contents(corpus) == own | {b"shared %d" % number for number in range(20)}
