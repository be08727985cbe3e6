"""The files that are kept of a target that has crashed."""

import json
from pathlib import Path

import pytest

from pipeline.builds.build import Build
from pipeline.builds.targets.listing import ListedTarget, TargetsListing
from pipeline.builds.targets.places import TargetsPlaces
from pipeline.campaign import own_files
from pipeline.campaign.ledger import Subject
from pipeline.campaign.subjects import Subjects
from pipeline.errors import MissingResource
from pipeline.settings import Store

A, B = "mine/a", "mine/b"


@pytest.fixture
def places(tmp_path: Path) -> TargetsPlaces:
    """Two targets with a library, and one of another package."""
    places = TargetsPlaces("mine", tmp_path / "source", Store(tmp_path), build="linux-mine")
    for name in ("mine/a", "mine/b", "mine/lib/libx.so", "example-fuzzers/crash_fuzzer"):
        (places.files / name).parent.mkdir(parents=True, exist_ok=True)
        (places.files / name).write_text(name)
    (places.files / "mine/link").symlink_to("a")
    write(places, "b3:a")
    return places


def write(places: TargetsPlaces, digest: str) -> None:
    targets = [
        ListedTarget("mine", "a", digest, "/targets/files/mine/a"),
        ListedTarget("mine", "b", "b3:b", "/targets/files/mine/b"),
    ]
    places.listing.write_text(json.dumps(TargetsListing(tuple(targets)).encode()))


def subjects(build: str = "b3:whole a") -> Subjects:
    return Subjects({A: Subject(A, build, "b3:plan")}, "b3:whole", targets={A: "b3:a", B: "b3:b"})


def build(places: TargetsPlaces | None) -> Build:
    return Build("linux", "x64", "linux-mine", "a test", {}, targets=places)


def test_they_are_its_program_and_the_libraries_beside_it(places: TargetsPlaces) -> None:
    found = own_files.of(build(places), subjects())(A, "b3:whole a")
    assert found == {
        "/targets/files/mine/a": places.files / "mine/a",
        "/targets/files/mine/lib/libx.so": places.files / "mine/lib/libx.so",
    }


def test_once_it_was_built_again_they_are_of_another_build(places: TargetsPlaces) -> None:
    tell = own_files.of(build(places), subjects())
    write(places, "b3:anew")
    assert tell(A, "b3:whole a") == {}


def test_of_other_builds_other_fuzzers_and_fuchsia_none_are_known(places: TargetsPlaces) -> None:
    tell = own_files.of(build(places), subjects())
    assert tell(A, "b3:another build") == tell(B, "b3:b") == {}
    assert own_files.of(build(None), subjects())(A, "b3:whole a") == {}


def test_a_list_that_is_gone_is_told(places: TargetsPlaces) -> None:
    places.listing.unlink()
    with pytest.raises(MissingResource):
        own_files.of(build(places), subjects())(A, "b3:whole a")
