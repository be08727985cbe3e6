"""The list of what is on the disk with targets, and where all of it is."""

import json
from pathlib import Path

import pytest

from pipeline.builds.targets.listing import SCHEMA, ListedOmission, ListedTarget, TargetsListing, read
from pipeline.builds.targets.places import IMAGE_FILES, TargetsPlaces
from pipeline.errors import MissingResource, ResourceDamaged
from pipeline.settings import Store

FROZEN = """{
  "schema": 1,
  "targets": [
    {
      "package": "expat",
      "name": "parse_fuzzer",
      "digest": "b3:00",
      "program": "/targets/files/expat/parse_fuzzer",
      "dictionary": "/targets/files/expat/xml.dict",
      "seeds": "/targets/files/expat/parse_fuzzer_seed_corpus",
      "flags": {"max_len": "random(1, 9)"},
      "environment": {"ASAN_OPTIONS": "detect_leaks=0"},
      "sanitizers": ["address", "undefined"],
      "problems": ["its dictionary x.dict is larger than 1 MiB, and passed over"]
    },
    {"package": "expat", "name": "zip", "digest": "b3:01", "program": "/targets/files/expat/sub/zip",
     "dictionary": null, "seeds": null, "flags": {}, "environment": {}, "sanitizers": [], "problems": []}
  ],
  "left_out": [
    {"package": "expat", "path": "sub/b", "name": "b", "reason": "it may not be executed", "hint": "chmod +x sub/b"}
  ]
}"""
VALUE = TargetsListing(
    targets=(
        ListedTarget(
            package="expat",
            name="parse_fuzzer",
            digest="b3:00",
            program="/targets/files/expat/parse_fuzzer",
            dictionary="/targets/files/expat/xml.dict",
            seeds="/targets/files/expat/parse_fuzzer_seed_corpus",
            flags={"max_len": "random(1, 9)"},
            environment={"ASAN_OPTIONS": "detect_leaks=0"},
            sanitizers=("address", "undefined"),
            problems=("its dictionary x.dict is larger than 1 MiB, and passed over",),
        ),
        ListedTarget("expat", "zip", "b3:01", "/targets/files/expat/sub/zip"),
    ),
    left_out=(ListedOmission("expat", "sub/b", "b", "it may not be executed", "chmod +x sub/b"),),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "targets.json"
    path.write_text(FROZEN)
    return path


def test_a_frozen_sample(path: Path) -> None:
    assert SCHEMA == 1
    assert read(path) == VALUE
    assert json.loads(json.dumps(VALUE.encode())) == json.loads(FROZEN)


def test_what_is_not_said_has_a_default(path: Path) -> None:
    short = {"package": "p", "name": "n", "digest": "d", "program": "/p", "later": "a field of another version"}
    path.write_text(json.dumps({"schema": 1, "targets": [short]}))
    assert read(path) == TargetsListing((ListedTarget("p", "n", "d", "/p"),))


def test_full_names_and_warnings() -> None:
    assert [target.full_name for target in VALUE.targets] == ["expat/parse_fuzzer", "expat/zip"]
    assert VALUE.left_out[0].full_name == "expat/b"
    assert VALUE.warnings() == [
        "expat: sub/b is left out: it may not be executed; chmod +x sub/b",
        "expat/parse_fuzzer: its dictionary x.dict is larger than 1 MiB, and passed over",
    ]
    assert TargetsListing(VALUE.targets[1:]).warnings() == []


def test_one_that_was_not_made_yet(tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match=r"targets is not there: .*/targets\.json: No such file") as caught:
        read(tmp_path / "targets.json")
    assert caught.value.hint == "make it: luigi --module tasks TargetsImage"
    assert not isinstance(caught.value, ResourceDamaged)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "Expecting value"),
        (FROZEN[:-1], "Expecting"),
        ("[]", "it is no JSON object with a schema"),
        (FROZEN.replace('"schema": 1', '"schema": 2'), "its schema is 2, not 1"),
        ('{"schema": 1}', "a field is missing or wrong: .*targets"),
        (FROZEN.replace('"name": "zip", ', ""), "a field is missing or wrong: .*name"),
        (FROZEN.replace('["address", "undefined"]', '"address"'), "a field is missing or wrong: .*sanitizers"),
        (FROZEN.replace('"random(1, 9)"', "9"), "a field is missing or wrong: .*flags"),
        ("[" * 100_000, "it is nested too deeply"),
        ("\udcff", "'utf-8' codec can't decode"),
    ],
)
def test_a_damaged_one(path: Path, content: str, said: str) -> None:
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ResourceDamaged, match=rf"^{path}: {said}") as caught:
        read(path)
    assert caught.value.hint == "delete it, and make it: luigi --module tasks TargetsImage"


def test_places(tmp_path: Path) -> None:
    places = TargetsPlaces("expat", tmp_path / "src", Store(tmp_path / "out"), "linux-expat")
    made = tmp_path / "out/images/linux-expat"
    assert places.compiled == tmp_path / "out/targets/expat/compiled"
    assert (places.image, places.made) == (made / "targets.squashfs", made / "targets")
    assert (places.listing, places.files) == (made / "targets/targets.json", made / "targets/files")
    assert places.build_ids == made / "targets/.build-id"
    assert str(IMAGE_FILES) == "/targets/files"
