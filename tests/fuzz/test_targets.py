"""The lists of fuzzers, by the tags of the Go tests."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.builds.build import Build, Resource
from pipeline.builds.targets.listing import ListedOmission, ListedTarget, TargetsListing
from pipeline.builds.targets.places import TargetsPlaces
from pipeline.campaign.plan.draft import Pattern
from pipeline.errors import MissingResource, ResourceDamaged, UnknownFuzzer
from pipeline.fuzz.targets import FuzzTarget, FuzzTargets
from pipeline.settings import Store

V2_URL = "fuchsia-pkg://fuchsia.com/{}#meta/{}.cm"


def build(root: Path, first: object = None, second: object = None, kind: str = "clusterfuzz") -> Build:
    """A build with these files; text is written as it is, None not at all."""
    resources = {}
    for key, content in (("fuzzers.json", first), ("tests.json", second)):
        if content is not None:
            (root / key).write_text(content if isinstance(content, str) else json.dumps(content))
        resources[key] = Resource(key, root / key, f"correct {key}")
    return Build(kind, "x64", "test", "a test", resources)  # type: ignore[arg-type]


def v2(package: str, name: str) -> dict[str, object]:
    url = V2_URL.format(package, name)
    return {"environments": [], "test": {"build_rule": "fuchsia_fuzzer_package", "package_url": url}}


def label(label: str, **facts: str) -> dict[str, str]:
    return {"label": label, **facts}


def of_linux(root: Path, listing: TargetsListing) -> Build:
    """A build of the Linux guest whose disk has these targets."""
    places = TargetsPlaces("mine", root / "source", Store(root), build="linux-mine")
    places.made.mkdir(parents=True)
    places.listing.write_text(json.dumps(listing.encode()))
    return Build("linux", "x64", "linux-mine", "a test", {}, targets=places)


LISTED = ListedTarget("mine", "made", "b3:1", "/targets/files/mine/made", flags={"max_len": "7"})
CANARY = ListedTarget("example-fuzzers", "crash_fuzzer", "b3:2", "/targets/files/example-fuzzers/crash_fuzzer")
BROKEN = ListedOmission("mine", "broken.c", "broken", "it does not compile", "mend broken.c")


def test_the_targets_of_the_linux_guest_are_those_on_its_disk(tmp_path: Path) -> None:
    targets = FuzzTargets.of(of_linux(tmp_path, TargetsListing((CANARY, LISTED), (BROKEN,))))
    assert targets.names == ["mine/made"]
    assert [target.full_name for target in targets.listed] == ["mine/made"]
    assert targets.find("mine/made").listed == LISTED
    assert targets.find("example-fuzzers/crash_fuzzer").listed == CANARY, "found, though nothing tells of it"
    with pytest.raises(UnknownFuzzer, match=r"^no such fuzzer: mine/broken$") as caught:
        targets.find("mine/broken")
    assert caught.value.hint == "it does not compile; mend broken.c"
    assert Pattern("*/br*", ()).hint(targets.names, targets.missing) == "it does not compile; mend broken.c"
    assert Pattern("*/mad", ()).hint(targets.names, targets.missing) == "did you mean mine/made?"


def test_a_list_of_the_users_counts_instead_of_the_disk_of_the_linux_guest(tmp_path: Path) -> None:
    linux = of_linux(tmp_path, TargetsListing((LISTED,)))
    (tmp_path / "tests.json").write_text(json.dumps([v2("mine", "other")]))
    own = replace(linux, resources={"tests.json": Resource("tests.json", tmp_path / "tests.json", "")})
    assert FuzzTargets.of(own).names == ["mine/other"]


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 2}', '{"schema": 1, "targets": 3}'])
def test_a_list_of_the_disk_that_is_damaged_or_missing(tmp_path: Path, content: str) -> None:
    linux = of_linux(tmp_path, TargetsListing(()))
    assert linux.targets is not None
    linux.targets.listing.write_text(content)
    with pytest.raises(ResourceDamaged, match=r"targets\.json: ") as caught:
        FuzzTargets.of(linux)
    assert "luigi --module tasks TargetsImage" in caught.value.hint
    linux.targets.listing.unlink()
    with pytest.raises(MissingResource, match="the list of the guest's targets is not there"):
        FuzzTargets.of(linux)


def test_b1_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match=r"neither fuzzers\.json nor tests\.json") as caught:
        FuzzTargets.of(build(tmp_path))
    assert caught.value.hint == "correct tests.json"


def test_b1_a_build_that_knows_no_lists(tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match="the demo build has no list of fuzzers"):
        FuzzTargets.of(Build("demo", "x64", "demo", "a test", {}))


def test_b1_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    made = build(tmp_path, [])
    (tmp_path / "tests.json").mkdir()
    with pytest.raises(MissingResource, match=r"tests\.json cannot be read: .*Is a directory"):
        FuzzTargets.of(made)


@pytest.mark.parametrize("text", ["", "not json", "[", "[" * 100_000, '"\\ud800'], ids=lambda text: text[:8])
@pytest.mark.parametrize("which", [0, 1])
def test_b2_no_json_is_an_error(tmp_path: Path, text: str, which: int) -> None:
    first, second = (text, []) if which == 0 else ([], text)
    with pytest.raises(ResourceDamaged, match="it is no JSON"):
        FuzzTargets.of(build(tmp_path, first, second))


@pytest.mark.parametrize("files", [([], None), (None, []), ([], [])])
def test_b3_empty_lists_have_no_fuzzers(tmp_path: Path, files: tuple[object, object]) -> None:
    assert FuzzTargets.of(build(tmp_path, *files)) == FuzzTargets(())


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (label("//a", package="p"), "//a has no fuzzer"),
        (label("//a", fuzzer="f"), "//a has no package"),
        (label("//a", fuzzer="f", package=""), "//a has no package"),
        ({"package": "p", "fuzzer": "f"}, "an entry has no label"),
        (label("", package="p", fuzzer="f"), "an entry has no label"),
        ({"label": "//a", "package": 1}, "a value is no text"),
        ("text", "an entry is no object"),
    ],
)
def test_b4_an_entry_that_lacks_something_is_an_error(tmp_path: Path, entry: object, problem: str) -> None:
    with pytest.raises(ResourceDamaged, match=problem) as caught:
        FuzzTargets.of(build(tmp_path, [entry]))
    assert str(tmp_path / "fuzzers.json") in str(caught.value)


@pytest.mark.parametrize("content", [{}, 3, "null"], ids=repr)
def test_b4_what_is_no_list_is_an_error(tmp_path: Path, content: object) -> None:
    with pytest.raises(ResourceDamaged, match="it is no list"):
        FuzzTargets.of(build(tmp_path, content))


def test_b6_entries_of_a_label_are_one_fuzzer_and_generations_are_told_apart(tmp_path: Path) -> None:
    first = [
        label("//foo", fuzzer="foo_fuzzer", package="old"),
        label("//bar", package="bar_pkg"),
        label("//foo", package="foo_pkg", corpus="x"),
        label("//bar", fuzzer="bar_fuzzer", package=""),
        label("//foo", package="", manifest="m"),
    ]
    targets = FuzzTargets.of(build(tmp_path, first, [v2("new", "cff_fuzzer")]))
    assert targets.all == (
        FuzzTarget("bar_pkg", "bar_fuzzer", "v1"),
        FuzzTarget("foo_pkg", "foo_fuzzer", "v1"),
        FuzzTarget("new", "cff_fuzzer", "v2"),
    )


def test_b6_two_of_the_second_generation(tmp_path: Path) -> None:
    targets = FuzzTargets.of(build(tmp_path, None, [v2("z", "b"), v2("a", "c"), {"test": {"name": "no fuzzer"}}, {}]))
    assert [target.full_name for target in targets.all] == ["a/c", "z/b"]


def test_the_second_generation_overrides_the_first(tmp_path: Path) -> None:
    first = [label("//a", package="p", fuzzer="f")]
    assert FuzzTargets.of(build(tmp_path, first, [v2("p", "f")])).all == (FuzzTarget("p", "f", "v2"),)


@pytest.mark.parametrize(
    "url",
    [
        "fuchsia-pkg://fuchsia.com/p#meta/f.cmx", "fuchsia-pkg://fuchsia.com/p#meta/a.b.cm", "http://x/p#meta/f.cm", "",
        "fuchsia-pkg:///p#meta/f.cm", "fuchsia-pkg://fuchsia.com/p#meta/f.cm\n", "fuchsia-pkg://fuchsia.com/#meta/f.cm",
    ],
)  # fmt: skip
def test_an_unexpected_url_is_an_error(tmp_path: Path, url: str) -> None:
    entry = {"test": {"build_rule": "fuchsia_fuzzer_package", "package_url": url}}
    with pytest.raises(ResourceDamaged, match="found test with unexpected url"):
        FuzzTargets.of(build(tmp_path, None, [entry]))


def test_the_host_of_the_url_is_thrown_away(tmp_path: Path) -> None:
    entry = {"test": {"build_rule": "fuchsia_fuzzer_package", "package_url": "fuchsia-pkg://x.y/p#meta/f.cm"}}
    target = FuzzTargets.of(build(tmp_path, None, [entry])).find("p/f")
    assert target.url == "fuchsia-pkg://fuchsia.com/p#meta/f.cm"
    assert target.package_url == "fuchsia-pkg://fuchsia.com/p"
    assert FuzzTarget("p", "f", "v1").url == "fuchsia-pkg://fuchsia.com/p#meta/f.cmx"


def test_b7_examples_are_not_listed_but_found(tmp_path: Path) -> None:
    names = ["noop_fuzzer", "out_of_memory_fuzzer", "toy_example_arbitrary"]
    targets = FuzzTargets.of(build(tmp_path, None, [v2("example-fuzzers", name) for name in names] + [v2("p", "f")]))
    assert [target.full_name for target in targets.listed] == [
        "example-fuzzers/out_of_memory_fuzzer", "example-fuzzers/toy_example_arbitrary", "p/f",
    ]  # fmt: skip
    assert targets.find("example-fuzzers/noop_fuzzer") in targets.all


def test_b7_missing_tests_json_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "topcoat"):
        targets = FuzzTargets.of(build(tmp_path, [label("//a", package="p", fuzzer="f")]))
    assert len(targets.all) == 1
    assert "no tests.json" in caplog.text


def test_missing_fuzzers_json_is_nothing_special(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(FuzzTargets.of(build(tmp_path, None, [v2("p", "f")])).all) == 1
    assert caplog.text == ""


def test_f1_examples_are_known_by_their_package() -> None:
    assert not FuzzTarget("foo", "bar").is_example
    assert FuzzTarget("example-fuzzers", "noop_fuzzer").is_example


@pytest.mark.parametrize("name", ["", "p", "p/", "f", "p/fuzzer", "P/F"])
def test_an_unknown_name_is_an_error_that_tells_of_others(tmp_path: Path, name: str) -> None:
    targets = FuzzTargets.of(build(tmp_path, None, [v2("p", "f")]))
    with pytest.raises(UnknownFuzzer, match=f"^no such fuzzer: {name}$") as caught:
        targets.find(name)
    assert caught.value.hint == "the build has p/f"


def test_an_unknown_name_where_there_are_none() -> None:
    with pytest.raises(UnknownFuzzer) as caught:
        FuzzTargets(()).find("p/f")
    assert caught.value.hint == "the build has no fuzzers at all"


@pytest.mark.parametrize("name", ["..", ".", "../..", "a/b", "-rf", "a\nb", "\033[31m", "x" * 201, "ä", "a\0b", "a b"])
def test_what_cannot_be_a_name_is_no_fuzzer(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    """What a fuzzer is called becomes directories that are deleted, and lines on a terminal."""
    first = [label("//a", package="sound", fuzzer=name), label("//b", package=name, fuzzer="sound")]
    found = FuzzTargets.of(build(tmp_path, first, [v2(name, "sound"), v2("sound", "also_sound")]))
    assert found.all == (FuzzTarget("sound", "also_sound"),)
    told = [record.message for record in caplog.records if "is left out" in record.message]
    assert len(told) == 3
    assert all(line.isprintable() for line in told)
