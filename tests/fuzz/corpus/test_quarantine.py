"""Units in quarantine are kept and never come back."""

import os
from pathlib import Path

import pytest

from pipeline.fuzz.corpus import Added, Corpus, CorpusLimits
from pipeline.fuzz.corpus.quarantine import Quarantine
from tests.fuzz.corpus.conftest import FUZZER, XYZ, contents, name_of


def test_the_frozen_sample_of_a_note(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.fuzz.corpus.quarantine.utc_now", lambda: "2026-11-25T15:00:00Z")
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
    corpus = Corpus.of(tmp_path, FUZZER, CorpusLimits(unit_size=4))
    assert not corpus.quarantine(name_of(b"bad"), "x")
    assert not corpus.quarantine(b"large", "x")
    assert corpus.quarantine(b"bad", "x")
    assert corpus.add([b"bad"], "x") == Added(quarantined=1)


@pytest.mark.parametrize("limits", [CorpusLimits(units=5), CorpusLimits(bytes=5)])
def test_from_a_full_quarantine_goes_what_never_was_a_unit_then_the_oldest(
    tmp_path: Path, limits: CorpusLimits, caplog: pytest.LogCaptureFixture
) -> None:
    quarantine = Quarantine(tmp_path, limits)

    def put(content: bytes, source: str, age: int) -> str:
        quarantine.put(name_of(content), content, "x", source)
        os.utime(tmp_path / f"{name_of(content)}.json", ns=(age, age))
        return name_of(content)

    units = [put(b"%d" % number, "seed", number) for number in range(8)]
    inputs = [put(b"a", "", 20), put(b"b", "", 21)]
    more = [put(b"c", "seed", 22)]
    assert quarantine.names() == {*units, *more}
    assert caplog.messages == []
    assert inputs[0] not in quarantine.names()
    more += [put(b"d", "seed", 23)]
    assert caplog.messages == []
    more += [put(b"e", "seed", 24)]
    assert quarantine.names() == {*units[1:], *more}
    assert caplog.messages == [f"the quarantine {tmp_path} is full: units that were in the corpus are gone: 1"]
    assert len(list(tmp_path.iterdir())) == 2 * len(quarantine.names())


@pytest.mark.slow
def test_crashes_that_a_guest_makes_up_cost_no_corpus(tmp_path: Path) -> None:
    """Each moves a unit; a corpus as large as it may be fits into its quarantine."""
    corpus = Corpus.of(tmp_path, FUZZER, CorpusLimits(units=30))
    units = [b"%d" % number for number in range(30)]
    corpus.add(units, "seed")
    for number, unit in enumerate(units):
        corpus.quarantine(unit, "crash")
        for more in range(5):
            corpus.quarantine(b"made up %d %d" % (number, more), "crash")
    assert corpus.quarantined().keys() >= set(map(name_of, units))


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"schema": 2, "reason": "x"}', "[" * 50000])
def test_a_note_that_makes_no_sense_gives_no_reason_but_the_unit_stays_out(corpus: Corpus, note: str) -> None:
    corpus.quarantine(b"bad", "x")
    (corpus.directory / "quarantine" / f"{name_of(b'bad')}.json").write_text(note)
    assert corpus.quarantined() == {name_of(b"bad"): ""}
    assert corpus.add([b"bad"], "x") == Added(quarantined=1)
