"""A merge replaces what it was given, if it covers as much."""

from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.fuzz.corpus import Corpus, CorpusLimits, Coverage
from tests.fuzz.corpus.conftest import FUZZER, SOME, contents, landed, merge, name_of


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
    corpus = Corpus.of(tmp_path, FUZZER, CorpusLimits(unit_size=4, bytes=8))
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
