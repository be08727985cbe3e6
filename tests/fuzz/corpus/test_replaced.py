"""What a merge takes out of a corpus is kept, and can be brought back."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.fuzz.corpus import Added, Corpus, CorpusLimits, Coverage
from pipeline.settings import DAY, CampaignSettings
from tests.fuzz.corpus.conftest import FUZZER, XYZ, contents, files, kept, make_old, merge, name_of

SAMPLE = f"""{{
  "merges": {{
    "count": 1,
    "last": {{
      "after": {{
        "edges": 10,
        "features": 99
      }},
      "at": "2026-11-25T15:00:00Z",
      "before": {{
        "edges": 10,
        "features": 100
      }},
      "units_after": 1,
      "units_before": 2
    }}
  }},
  "schema": 1,
  "units": {{
    "{XYZ}": {{
      "added": "2026-11-25T14:00:00Z",
      "bytes": 3,
      "source": "seed"
    }}
  }}
}}
"""
"""Frozen: what earlier versions have kept must come back."""


def test_the_frozen_sample_says_which_merge_took_what(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.fuzz.corpus.intake.utc_now", lambda: "2026-11-25T14:00:00Z")
    monkeypatch.setattr("pipeline.fuzz.corpus.corpus.utc_now", lambda: "2026-11-25T15:00:00Z")
    corpus.add([b"a", b"xyz"], "seed")
    assert merge(corpus, [b"a", b"xyz"], [b"a"], after=Coverage(10, 99))
    assert files(corpus.directory / "replaced/1") == {XYZ: b"xyz", "manifest.json": SAMPLE.encode()}
    (corpus.directory / "replaced/1/manifest.json").write_text(SAMPLE)
    assert corpus.restore() == Added(new=1)
    unit = corpus.units()[XYZ]
    assert (unit.bytes, unit.added, unit.source) == (3, "2026-11-25T14:00:00Z", "seed")


def test_all_that_merges_have_taken_comes_back(corpus: Corpus) -> None:
    corpus.add([b"a", b"b", b"c"], "seed")
    assert merge(corpus, [b"a", b"b", b"c"], [b"a", b"b"])
    corpus.add([b"d"], "harvest")
    assert merge(corpus, [b"a", b"b", b"d"], [], [b"all"])
    assert (contents(corpus), kept(corpus)) == ({b"all"}, {b"a", b"b", b"c", b"d"})
    assert corpus.restore() == Added(new=4)
    assert (contents(corpus), kept(corpus)) == ({b"all", b"a", b"b", b"c", b"d"}, set())
    assert list((corpus.directory / "replaced").iterdir()) == []
    assert corpus.restore() == Added()


def test_it_is_the_same_file_and_no_copy(corpus: Corpus) -> None:
    corpus.add([b"a", b"xyz"], "seed")
    inode = corpus.path(XYZ).stat().st_ino
    merge(corpus, [b"a", b"xyz"], [b"a"])
    assert [path.stat().st_ino for path in corpus.replaced()] == [inode]
    corpus.restore()
    assert (corpus.path(XYZ).stat().st_ino, corpus.path(XYZ).stat().st_nlink) == (inode, 1)


def test_where_there_are_no_links_it_is_a_copy(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, _: Path) -> None:
        raise OSError(errno.EPERM, "no links here", str(path))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    corpus.add([b"a", b"xyz"], "seed")
    merge(corpus, [b"a", b"xyz"], [b"a"])
    assert kept(corpus) == {b"xyz"}
    corpus.restore()
    assert contents(corpus) == {b"a", b"xyz"}


def test_a_merge_whose_units_cannot_be_kept_takes_nothing(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, _: Path) -> None:
        raise OSError(errno.ENOSPC, "no space", str(path))

    corpus.add([b"a", b"b"], "seed")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "hardlink_to", refuse)
        with pytest.raises(StoreError, match="no space"):
            merge(corpus, [b"a", b"b"], [b"a"])
    assert corpus.add([], "x") == Added()
    assert (contents(corpus), kept(corpus)) == ({b"a", b"b"}, set())
    assert list((corpus.directory / "replaced").iterdir()) == []


def test_what_comes_back_by_another_way_is_kept_no_longer(corpus: Corpus) -> None:
    corpus.add([b"a", b"b", b"c"], "seed")
    merge(corpus, [b"a", b"b", b"c"], [b"a"])
    corpus.add([b"b"], "import")
    assert kept(corpus) == {b"c"}
    merge(corpus, [b"a", b"b"], [b"a", b"b"])
    assert set(files(corpus.directory / "replaced/1")) == {name_of(b"c"), "manifest.json"}


def test_what_is_in_quarantine_does_not_come_back(corpus: Corpus) -> None:
    corpus.add([b"a", b"b", b"bad"], "seed")
    merge(corpus, [b"a", b"b", b"bad"], [b"a"])
    assert corpus.quarantine(b"bad", "it crashes")
    assert kept(corpus) == {b"b"}
    assert corpus.restore() == Added(new=1)
    assert contents(corpus) == {b"a", b"b"}


def test_what_is_beyond_the_limits_stays_kept(tmp_path: Path) -> None:
    corpus = Corpus.of(tmp_path, FUZZER, CorpusLimits(units=3))
    corpus.add([b"a", b"b", b"c"], "seed")
    merge(corpus, [b"a", b"b", b"c"], [b"a"])
    corpus.add([b"new"], "harvest")
    added = corpus.restore()
    assert (added.new, added.over_cap) == (1, 1)
    assert contents(corpus) | kept(corpus) == {b"a", b"b", b"c", b"new"}


def test_what_has_rotted_does_not_come_back(corpus: Corpus) -> None:
    corpus.add([b"a", b"b", b"xyz"], "seed")
    merge(corpus, [b"a", b"b", b"xyz"], [b"a"])
    (corpus.directory / "replaced/1" / XYZ).write_bytes(b"xy!")
    added = corpus.restore()
    assert (added.new, added.torn) == (1, 1)
    assert contents(corpus) == {b"a", b"b"}


@pytest.mark.parametrize("note", ["", "[]", '{"schema": 2}', "[" * 50000, None])
def test_names_need_no_note(corpus: Corpus, note: str | None) -> None:
    corpus.add([b"a", b"xyz"], "seed")
    merge(corpus, [b"a", b"xyz"], [b"a"])
    path = corpus.directory / "replaced/1/manifest.json"
    path.unlink() if note is None else path.write_text(note)
    assert corpus.restore() == Added(new=1)
    assert (contents(corpus), corpus.units()[XYZ].source) == ({b"a", b"xyz"}, "restored")


def test_a_lost_manifest_costs_nothing_that_is_kept(corpus: Corpus) -> None:
    corpus.add([b"a", b"b", b"c"], "seed")
    merge(corpus, [b"a", b"b", b"c"], [b"a", b"b"])
    (corpus.directory / "manifest.json").unlink()
    corpus.add([], "x")
    merge(corpus, [b"a", b"b"], [b"a"])
    assert (contents(corpus), kept(corpus)) == ({b"a"}, {b"b", b"c"})


class TestExpiry:
    def test_what_was_kept_for_its_time_goes_with_the_next_merge(self, tmp_path: Path) -> None:
        corpus = Corpus.of(tmp_path, FUZZER, CorpusLimits(kept=3 * DAY))
        corpus.add([b"a", b"b", b"c"], "seed")
        merge(corpus, [b"a", b"b", b"c"], [b"a", b"b"])
        merge(corpus, [b"a", b"b"], [b"a"])
        make_old(corpus, 1, 3 * DAY + 60)
        make_old(corpus, 2, 3 * DAY - 60)
        assert list(corpus.outdated()) == [corpus.directory / "replaced/1"]
        assert kept(corpus) == {b"b", b"c"}, "who reads changes nothing"
        corpus.add([b"new"], "x")
        assert kept(corpus) == {b"b", b"c"}, "who brings units waits for nothing"
        merge(corpus, [b"a", b"new"], [b"a", b"new"])
        assert (contents(corpus), kept(corpus)) == ({b"a", b"new"}, {b"b"})
        assert not (corpus.directory / "replaced/1").exists()

    def test_whoever_comes_late_and_asks_for_it_still_gets_it(self, corpus: Corpus) -> None:
        corpus.add([b"a", b"b"], "seed")
        merge(corpus, [b"a", b"b"], [b"a"])
        make_old(corpus, 1, 400 * DAY)
        assert corpus.restore() == Added(new=1)

    def test_it_is_a_month_unless_the_settings_say_otherwise(self) -> None:
        assert CorpusLimits.of(CampaignSettings()).kept == CorpusLimits().kept == 30 * DAY
        assert CorpusLimits.of(CampaignSettings(keep_replaced=5.0)).kept == 5.0

    @pytest.mark.parametrize("limits", [CorpusLimits(units=4), CorpusLimits(bytes=4)])
    def test_beside_the_last_merge_no_more_is_kept_than_a_corpus_may_have(
        self, tmp_path: Path, limits: CorpusLimits, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A guest can bring as much as a corpus takes again and again, and have it merged away."""
        corpus = Corpus.of(tmp_path, FUZZER, limits)
        corpus.add([b"a"], "seed")
        for some in ([b"1", b"2"], [b"3", b"4"], [b"5"], [b"6", b"7", b"8"]):
            corpus.add(some, "harvest")
            assert merge(corpus, [b"a", *some], [b"a"])
        assert (contents(corpus), kept(corpus)) == ({b"a"}, {b"3", b"4", b"5", b"6", b"7", b"8"})
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "later merges took so many that there is no room for them" in caplog.text

    def test_what_somebody_has_put_there_stays(self, tmp_path: Path) -> None:
        corpus = Corpus.of(tmp_path, FUZZER, CorpusLimits(kept=60.0))
        corpus.add([b"a", b"b"], "seed")
        merge(corpus, [b"a", b"b"], [b"a"])
        (corpus.directory / "replaced/README").write_text("mine")
        (corpus.directory / "replaced/1/README").write_text("mine")
        make_old(corpus, 1, 61.0)
        merge(corpus, [b"a"], [b"a"])
        assert (corpus.directory / "replaced/README").exists()
        assert files(corpus.directory / "replaced/1") == {"README": b"mine"}


def test_a_corpus_that_somebody_hands_you_reaches_no_other_by_a_link(corpus: Corpus, tmp_path: Path) -> None:
    corpus.add([b"a", b"b"], "seed")
    other = Corpus.of(tmp_path, "another/fuzzer", CorpusLimits(kept=60.0))
    other.add([b"a"], "seed")
    (other.directory / "replaced").mkdir()
    (other.directory / "replaced/1").symlink_to(corpus.directory / "units")
    (other.directory / "replaced/2").touch()
    os.utime(corpus.directory / "units", (0, 0))
    other.add([b"new"], "x")
    assert other.restore() == Added()
    assert (contents(corpus), kept(other), other.outdated()) == ({b"a", b"b"}, set(), {})


def test_what_a_killed_merge_was_making_goes(corpus: Corpus) -> None:
    corpus.add([b"a", b"b"], "seed")
    merge(corpus, [b"a", b"b"], [b"a"])
    work = corpus.directory / "replaced/.2.abcdefgh.tmp"
    shutil.copytree(corpus.directory / "replaced/1", work)
    corpus.add([], "x")
    assert not work.exists()
    assert kept(corpus) == {b"b"}


@pytest.mark.parametrize("name", ["units", "quarantine", "replaced"])
def test_a_link_in_the_place_of_a_directory_is_refused(corpus: Corpus, tmp_path: Path, name: str) -> None:
    """As in a store that somebody hands you: what is not of this corpus would be deleted there."""
    victim = Corpus.of(tmp_path / "victim", "p/f")
    victim.add([b"precious"], "seed")
    corpus.add([b"a"], "seed")
    place = corpus.directory / name
    if place.exists():
        shutil.rmtree(place)
    place.symlink_to(victim.directory / "units")
    with pytest.raises(StoreError, match="is a link"):
        corpus.add([b"b"], "seed")
    assert contents(victim) == {b"precious"}


def test_a_file_in_the_place_of_a_merge_stops_none(corpus: Corpus) -> None:
    corpus.add([b"a", b"b"], "seed")
    (corpus.directory / "replaced").mkdir()
    (corpus.directory / "replaced/1").touch()
    assert merge(corpus, [b"a", b"b"], [b"a"])
    assert kept(corpus) == {b"b"}
