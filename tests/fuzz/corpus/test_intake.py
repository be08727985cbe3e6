"""What is added to a corpus: what is taken, what is refused, and what happens when it fails."""

import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.fuzz.corpus import Added, Corpus, CorpusLimits
from tests.descriptors import descriptors
from tests.fuzz.corpus.conftest import FUZZER, contents, landed, name_of

HOSTILE = [b"-rf", b"a b", b"\n", b"\xff\xfe", b"\x1b]0;x\x07", b"manifest.json", b"..x", b"d" * 255, b"DEADBEEF" * 5]


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
        before = descriptors()
        odd = ["link", "dangling", "directory", "fifo", "socket", "vanished", "x" * 256, "file/below"]
        assert corpus.add([*(tmp_path / name for name in odd), Path("/dev/zero")], "x") == Added(refused=len(odd) + 1)
        assert descriptors() <= before
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
    corpus = Corpus.of(tmp_path, FUZZER, CorpusLimits(unit_size=4, bytes=10, units=3))
    (tmp_path / "large").write_bytes(b"12345")
    assert corpus.add([b"12345", tmp_path / "large", b"1234", b"123"], "x") == Added(new=2, too_large=2)
    assert corpus.add([b"abcd", b"abc", b"x", b"123"], "x") == Added(new=1, over_cap=2, known=1)
    assert contents(corpus) == {b"1234", b"123", b"abc"}
    other = Corpus.of(tmp_path, "a/other", CorpusLimits(bytes=5))
    assert other.add([b"1234", b"123", b"1", b"2"], "x") == Added(new=2, over_cap=2)
    assert Corpus.of(tmp_path, FUZZER, CorpusLimits(bytes=11)).add([b"yy", b"y"], "x") == Added(new=1, over_cap=1)


def test_no_more_content_is_in_memory_than_is_being_written(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def write(path: Path, content: bytes) -> None:
        path.write_bytes(content)
        written.append(path)

    def some() -> Iterator[bytes]:
        for number in range(500):
            assert number - len(written) <= 32
            yield b"%d" % number

    monkeypatch.setattr("pipeline.fuzz.corpus.intake.write_new", write)
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

    monkeypatch.setattr("pipeline.fuzz.corpus.intake.write_new", write)
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
