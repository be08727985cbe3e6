"""What the fuzzers of a campaign are: of what they are made, whatever is booted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.builds.build import Build, Resource
from pipeline.builds.targets.listing import ListedTarget, TargetsListing
from pipeline.builds.targets.places import TargetsPlaces
from pipeline.campaign import subjects
from pipeline.campaign.plan.definition import Budget, Definition, FuzzerPlan
from pipeline.errors import NotSupported, SettingsError
from pipeline.fuzz.targets import FuzzTargets
from pipeline.settings import Store
from pipeline.store.digests import digest
from tests.fuzz.test_targets import v2

A, B, CANARY = "fuzzers/a", "fuzzers/b", "fuzzers/canary"
LISTS = ("fuzzers.json", "tests.json")


class Guest:
    """The Linux guest's parts, made of nothing, and a build that boots them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.places = TargetsPlaces("fuzzers", root / "source", Store(root), build="linux-fuzzers")
        self.places.made.mkdir(parents=True)
        self.places.image.write_text("image")
        (root / "libraries").mkdir()
        (root / "libraries/libc.so.6").write_text("libc")
        names = {"zbi": "initramfs.cpio", "blk": "fvm.blk", "kernel": "vmlinux"}
        for name in (*names.values(), "system.cpio"):
            (root / name).write_text(name)
        self.program({A: "a", B: "b", CANARY: "c"})
        resources = {key: Resource(key, root / name, "") for key, name in names.items()}
        self.build = Build(
            "linux", "x64", "linux-fuzzers", "a test", resources, made=frozenset(names), targets=self.places
        )

    def program(self, programs: dict[str, str]) -> None:
        """What the disk with targets has: the digests of all targets, by their full names."""
        pairs = {name: name.partition("/") for name in programs}
        targets = [ListedTarget(package, own, programs[name], f"/{name}") for name, (package, _, own) in pairs.items()]
        self.places.listing.write_text(json.dumps(TargetsListing(tuple(targets)).encode()))

    @staticmethod
    def list(path: Path, *names: str) -> None:
        path.write_text(json.dumps([v2(*name.split("/")) for name in names]))

    def replaced(self, key: str) -> Path:
        """A file of the user's in the place of one of the Linux guest's, as `[build]` names it."""
        mine = self.root / f"my-{key}"
        mine.write_text("[]" if key in LISTS else f"my {key}")
        resources = {**self.build.resources, key: Resource(key, mine, "")}
        self.build = replace(self.build, resources=resources, made=self.build.made - {key})
        return mine

    def found(self, *names: str) -> subjects.Subjects:
        plans = tuple(FuzzerPlan(name, Budget(5), 5) for name in names)
        return subjects.find(Definition("n", 1, "gain", plans), self.build, self.root, digest, (CANARY,))

    def builds(self) -> dict[str, str]:
        return {name: one.build for name, one in self.found(A, B).of.items()}


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


def test_each_of_the_demo_guest_has_a_digest_of_its_own(guest: Guest) -> None:
    before = guest.builds()
    guest.program({A: "a", B: "new", CANARY: "c"})
    after = guest.builds()
    assert (after[A] == before[A], after[B] == before[B]) == (True, False)


def test_another_libc_of_the_guest_makes_all_of_them_others(guest: Guest) -> None:
    before = guest.builds()
    (guest.root / "libraries/libc.so.6").write_text("another")
    after = guest.builds()
    assert all(after[name] != before[name] for name in before)


def test_of_an_image_of_the_users_the_whole_counts(guest: Guest) -> None:
    mine = guest.replaced("zbi")
    guest.list(guest.replaced("tests.json"), "fuzzers/mine", A)
    found = guest.found("fuzzers/mine", A)
    assert {one.build for one in found.of.values()} == {found.build}
    mine.write_text("another")
    assert guest.found("fuzzers/mine", A).build != found.build


@pytest.mark.parametrize("key", ["blk", "kernel"])
def test_another_disk_or_kernel_leaves_the_fuzzers_what_they_are(guest: Guest, key: str) -> None:
    before = guest.builds()
    guest.replaced(key)
    assert guest.builds() == before


@pytest.mark.parametrize("key", LISTS)
def test_a_list_of_the_users_is_the_only_one(guest: Guest, key: str) -> None:
    mine = guest.replaced(key)
    if key == "tests.json":
        guest.list(mine, B)
    else:
        mine.write_text(json.dumps([{"label": "//b", "package": "fuzzers", "fuzzer": "b"}]))
    assert [target.full_name for target in FuzzTargets.of(guest.build).all] == [B]


def test_a_fuzzer_that_is_only_in_the_list_is_refused(guest: Guest) -> None:
    guest.list(guest.replaced("tests.json"), A, "fuzzers/gone", "fuzzers/too")
    for name in ("require", "find"):
        plans = tuple(FuzzerPlan(one, Budget(5), 5) for one in (A, "fuzzers/gone", "fuzzers/too"))
        more = () if name == "require" else (guest.root, digest)
        with pytest.raises(
            SettingsError, match=r"the Linux guest has no fuzzers/gone and 1 more, which .*my-tests\.json"
        ):
            getattr(subjects, name)(Definition("n", 1, "gain", plans), guest.build, *more)


def test_variables_are_refused_before_anything_boots_where_nobody_takes_them(guest: Guest) -> None:
    definition = Definition("n", 1, "gain", (FuzzerPlan(A, Budget(5), 5, environment=(("MODE", "x"),)),))
    subjects.require(definition, guest.build)
    guest.list(guest.root / "tests.json", A)
    mine = Resource("tests.json", guest.root / "tests.json", "")
    with pytest.raises(NotSupported, match=f"{A} cannot be given MODE"):
        subjects.require(definition, replace(guest.build, kind="local", targets=None, resources={"tests.json": mine}))


def test_what_the_canary_was_found_with(guest: Guest) -> None:
    """It holds whatever becomes of the other fuzzers, but not for another system, disk, kernel, or canary."""
    seen = [guest.found(A).boot]
    guest.program({A: "new", B: "new", CANARY: "c"})
    assert guest.found(A).boot == seen[0]
    for change in (
        lambda: guest.program({A: "a", B: "b", CANARY: "new"}),
        lambda: (guest.root / "system.cpio").write_text("new"),
        lambda: guest.replaced("kernel"),
        lambda: guest.replaced("blk"),
        lambda: guest.replaced("zbi"),
    ):
        change()
        seen.append(guest.found(A).boot)
    assert len(set(seen)) == len(seen)
