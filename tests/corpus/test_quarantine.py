"""Units in quarantine are kept and never come back."""

import os
from pathlib import Path

import pytest

from pipeline.corpus import Added, Corpus, Limits
from pipeline.corpus.quarantine import Quarantine
from tests.corpus.conftest import FUZZER, XYZ, contents, name_of


def test_the_frozen_sample_of_a_note(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.corpus.quarantine.utc_now", lambda: "2026-11-25T15:00:00Z")
    corpus.add([b"xyz"], "seed")
    assert corpus.quarantine(XYZ, "time\x1b[31mout\n")
    assert (corpus.directory / "quarantine" / f"{XYZ}.json").read_text() == (
        '{\n  "at": "2026-11-25T15:00:00Z",\n  "bytes": 3,\n  "reason": "timeout\\\\n",\n'
        '  "schema": 1,\n  "source": "seed"\n}\n'
    )


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
