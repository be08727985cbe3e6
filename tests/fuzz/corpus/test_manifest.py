"""The manifest: what is written is understood, and nothing else is."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import StoreError
from pipeline.fuzz.corpus import Corpus, Coverage, Manifest, MergeRecord, Unit
from tests.fuzz.corpus.conftest import XYZ, contents, merge, name_of

AB = "da23614e02469a0d7c7bd1bdab5c9c474b1904dc"

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
    last_merge=MergeRecord("2026-11-25T14:00:00Z", 9, 2, Coverage(20, 30), Coverage(20, 31)),
)


def test_the_frozen_sample_is_what_is_written_and_understood(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Manifest.decode(SAMPLE.encode()) == MEANING
    corpus.add([b"z", b"xyz"], "any")
    file = corpus.directory / "manifest.json"
    file.write_text(SAMPLE)
    assert corpus.manifest() == MEANING
    monkeypatch.setattr("pipeline.fuzz.corpus.intake.utc_now", lambda: "2026-11-25T15:00:00Z")
    corpus.add([b"new"], "import")
    content = json.loads(SAMPLE)
    content["units"][AB]["bytes"] = 1
    del content["units"][AB]  # its file is not there
    content["units"][name_of(b"new")] = {"added": "2026-11-25T15:00:00Z", "bytes": 3, "source": "import"}
    assert file.read_text() == json.dumps(content, indent=2, sort_keys=True) + "\n"


def test_what_counts_as_covered_is_remembered(corpus: Corpus) -> None:
    """An earlier version has no such key, and reads a manifest that has it."""
    corpus.add([b"a", b"b"], "seed")
    corpus.count_value_profile(0)
    assert "value_profile" not in json.loads((corpus.directory / "manifest.json").read_text())
    corpus.count_value_profile(2)
    corpus.count_value_profile(1)
    assert merge(corpus, [b"a", b"b"], [b"a"])
    corpus.add([b"c"], "x")
    assert corpus.recover() == 2
    content = json.loads((corpus.directory / "manifest.json").read_text())
    assert content["value_profile"] == corpus.manifest().value_profile == 3
    assert Manifest.decode(json.dumps(json.loads(SAMPLE) | {"value_profile": 1}).encode()) == replace(
        MEANING, value_profile=1
    )


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
    {"value_profile": "x"},
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
