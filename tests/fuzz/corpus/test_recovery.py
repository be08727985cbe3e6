"""What is lost, damaged or left over on the disk."""

import logging
import os

import pytest

from pipeline.fuzz.corpus import Added, Corpus, Manifest
from tests.fuzz.corpus.conftest import FUZZER, XYZ, contents, files, merge, name_of


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
