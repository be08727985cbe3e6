"""The corpus of a fuzzer: what it is asked, the names it takes, and many who add to it."""

import multiprocessing
import threading
from pathlib import Path
from typing import Protocol

import pytest

from pipeline.errors import UsageError
from pipeline.fuzz.corpus import Added, Corpus
from tests.fuzz.corpus.conftest import XYZ, contents, name_of
from tests.waiting import SOON


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


def test_what_a_guest_lacks_is_told_from_a_listing(corpus: Corpus) -> None:
    corpus.add([b"a", b"b", b"c"], "x")
    assert corpus.lacking([name_of(b"a"), name_of(b"b"), "../hostile"]) == [corpus.path(name_of(b"c"))]
    corpus.path(name_of(b"c")).unlink()
    assert corpus.lacking([name_of(b"a")]) == [corpus.path(name_of(b"b"))]


def test_what_is_no_file_is_no_example(corpus: Corpus) -> None:
    """Its content would be printed."""
    corpus.quarantine(b"secret", "it crashes")
    (reason,) = corpus.add([b"secret"], "a guest").reasons
    assert (reason.example, "secret" in str(reason)) == ("", False)


class Meeting(Protocol):
    def wait(self, timeout: float, /) -> int: ...


def add_many(corpus: Corpus, who: int, meeting: Meeting) -> None:
    meeting.wait(SOON)
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
        worker.join(SOON)
    own = {b"%d %d" % (who, number) for who in range(3) for number in range(20)}
    assert contents(corpus) == own | {b"shared %d" % number for number in range(20)}
