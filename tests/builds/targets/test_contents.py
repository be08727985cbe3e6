"""What the guest gets of a package: found and compiled targets, what they load and open, and what is left out."""

import os
import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from pipeline.builds import demo, elf
from pipeline.builds.targets import compiling, contents, sources
from pipeline.builds.targets.contents import CANARY, LeftOutTarget, PackageContents, sources_of
from pipeline.builds.targets.places import OWN_PACKAGE, TargetsPlaces
from pipeline.errors import SettingsError
from pipeline.settings import Store
from pipeline.store.digests import digest
from tests.builds.targets.packages import Package, library, target

COMPILED = '[[target]]\nname = "parse"\n'


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return Package(tmp_path)


def names(found: PackageContents) -> list[str]:
    return [one.name for one in found.targets]


def files(found: PackageContents) -> list[str]:
    return sorted(map(str, found.files))


def changed(package: Package, before: dict[str, str]) -> list[str]:
    """The entries of `inputs` that have changed."""
    after = digests(package)
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def digests(package: Package) -> dict[str, str]:
    """For each entry of `inputs` its paths and the digests of its files, as text."""
    found = package.contents().inputs()
    return {name: repr({path: digest(file) for path, file in files.items()}) for name, files in found.items()}


class TestFound:
    """A directory of targets as their user built them."""

    def test_all_of_it_gets_into_the_guest(self, package: Package) -> None:
        package.program("a")
        package.program("sub/b")
        for name in ("a.dict", "a.options", "a_seed_corpus.zip", "a_seed_corpus/1", "data/x.bin", "libx.so", "a.o"):
            package.put(name)
        found = package.contents()
        assert found.package == "expat"
        assert names(found) == ["a", "b"]
        assert {str(path): file for path, file in found.files.items()} == {
            name: package.directory / name for name in ("a", "sub/b", "a.dict", "data/x.bin", "libx.so")
        }
        assert (found.lacking, found.loads) == ({}, {"a": ("libc.so.6",), "b": ("libc.so.6",)})
        assert found.left_out == (LeftOutTarget("a.o", "a.o", "it is an object file, not a program", "", broken=False),)

    def test_patterns_count_only_in_a_directory_of_sources(self, package: Package) -> None:
        package.program("a")
        package.put("data/x")
        package.says('files = ["nothing"]')
        found = package.contents()
        assert files(found) == ["a", "data/x"]
        assert found.left_out == ()

    def test_a_directory_that_is_not_there(self, package: Package) -> None:
        package.directory.rmdir()
        with pytest.raises(SettingsError, match=r"the directory of targets cannot be read: .*/expat: No such file"):
            package.contents()

    def test_an_omission_has_the_name_that_the_target_would_have(self, package: Package) -> None:
        package.put("suite@Some.test", target())
        (left,) = package.contents().left_out
        assert (left.name, left.path, left.broken) == ("suite@Some.test", "suite@Some.test", True)
        assert (left.reason, left.hint) == ("it may not be executed", "chmod +x suite@Some.test")


class TestCompiled:
    """A directory of sources."""

    def test_only_the_target_and_what_lies_beside_it(self, package: Package) -> None:
        for name in ("parse.c", "parse.dict", "parse.options", "parse_seed_corpus/1", "README", "other.dict"):
            package.put(name)
        package.put("parse_seed_corpus.tar.gz")
        package.says(COMPILED)
        program = package.compile("parse")
        found = package.contents()
        assert found.files == {
            PurePosixPath("parse"): program,
            PurePosixPath("parse.dict"): package.directory / "parse.dict",
        }
        (one,) = found.targets
        assert (one.name, str(one.program), one.bytes) == ("parse", "parse", program.stat().st_size)
        assert (str(one.dictionary), str(one.options)) == ("parse.dict", "parse.options")
        assert list(map(str, one.seeds)) == ["parse_seed_corpus", "parse_seed_corpus.tar.gz"]
        assert found.left_out == ()

    def test_it_stands_beside_those_that_were_found(self, package: Package) -> None:
        package.says(COMPILED)
        package.program("zip")
        package.program("a")
        program = package.compile("parse")
        found = package.contents()
        assert names(found) == ["a", "parse", "zip"]
        assert found.files[PurePosixPath("parse")] == program
        assert found.files[PurePosixPath("a")] == package.directory / "a"

    def test_of_two_with_one_name_the_compiled_one_counts(self, package: Package) -> None:
        package.says(COMPILED)
        package.program("out/parse")
        package.program("out/other")
        program = package.compile("parse")
        found = package.contents()
        assert names(found) == ["other", "parse"]
        assert {str(path): file for path, file in found.files.items()} == {
            "out/other": package.directory / "out/other",
            "parse": program,
        }
        assert found.left_out == (
            LeftOutTarget(
                "parse",
                "out/parse",
                "topcoat-targets.toml has a target of the same name, which is compiled",
                "rename one of them",
            ),
        )

    def test_one_that_was_not_compiled_yet_costs_only_itself(self, package: Package) -> None:
        package.says(f'{COMPILED}[[target]]\nname = "more"\nsources = ["fuzz/more.cc"]\n')
        package.compile("parse")
        found = package.contents()
        assert names(found) == ["parse"]
        hint = "compile it: luigi --module tasks TargetsImage"
        assert found.left_out == (LeftOutTarget("more", "fuzz/more.cc", "it has not been compiled yet", hint),)

    def test_one_that_does_not_compile(self, package: Package) -> None:
        package.says(COMPILED)
        package.compile("parse").unlink()
        said = package.compiled / "parse.txt"
        said.write_text("parse.c:1:1: error: unknown type name 'x'\n")
        failure = compiling.failure(sources.read(package.directory).targets[0], said)
        assert failure
        assert package.contents().left_out == (LeftOutTarget("parse", "parse.c", "it does not compile", failure.hint),)
        assert package.contents().targets == ()

    @pytest.mark.parametrize(
        ("patterns", "taken"),
        [
            ('"testdata"', ["testdata/a", "testdata/deep/b"]),
            ('"testdata/"', ["testdata/a", "testdata/deep/b"]),
            ('"testdata/*"', ["testdata/a", "testdata/deep/b"]),
            ('"testdata/a", "x.dtd"', ["testdata/a", "x.dtd"]),
            ('"*.dtd"', ["x.dtd"]),
            ('"**/*.dtd"', ["sub/y.dtd", "x.dtd"]),
            ('"."', ["parse.c", "sub/testdata/c", "sub/y.dtd", "testdata/a", "testdata/deep/b", "x.dtd"]),
        ],
    )
    def test_which_files_patterns_take(self, package: Package, patterns: str, taken: list[str]) -> None:
        for name in ("parse.c", "testdata/a", "testdata/deep/b", "sub/testdata/c", "x.dtd", "sub/y.dtd"):
            package.put(name)
        package.says(f"files = [{patterns}]\n{COMPILED}")
        package.compile("parse")
        found = package.contents()
        assert files(found) == sorted(["parse", *taken])
        assert found.left_out == ()

    def test_a_pattern_that_means_nothing_is_told(self, package: Package) -> None:
        package.put("testdata/a")
        package.says(f'files = ["tesdata", "testdata"]\n{COMPILED}')
        package.compile("parse")
        found = package.contents()
        assert files(found) == ["parse", "testdata/a"]
        assert found.left_out == (
            LeftOutTarget(
                "tesdata",
                "tesdata",
                "it stands among files in topcoat-targets.toml, and there is no such file",
                "correct it, or make that file",
            ),
        )

    @pytest.mark.parametrize("other", ["parse", "parse/testdata/a"])
    def test_a_target_called_like_something_that_the_guest_gets(self, package: Package, other: str) -> None:
        package.put(other)
        package.says(f'files = ["parse"]\n{COMPILED}')
        package.compile("parse")
        found = package.contents()
        assert found.targets == ()
        assert files(found) == [other]
        reason = "the guest gets another file, or a directory, of the same name"
        assert found.left_out == (LeftOutTarget("parse", "parse", reason, "rename the target in topcoat-targets.toml"),)

    def test_a_target_called_like_a_directory_that_the_guest_does_not_get(self, package: Package) -> None:
        package.put("parse/parse.c")
        package.says(COMPILED)
        package.compile("parse")
        assert files(package.contents()) == ["parse"]

    def test_what_lies_beside_it_must_be_files(self, package: Package) -> None:
        package.says(COMPILED)
        package.compile("parse")
        for name in ("parse.dict", "parse.options"):
            (package.directory / name).mkdir()
        os.mkfifo(package.directory / "parse_seed_corpus.zip")
        (one,) = package.contents().targets
        assert (one.dictionary, one.options, one.seeds) == (None, None, ())


class TestDictionaries:
    """The guest gets those that options name, too."""

    def test_of_a_directory_of_sources(self, package: Package) -> None:
        package.says(f'{COMPILED}[[target]]\nname = "more"\n')
        package.compile("parse")
        package.compile("more")
        for name in ("parse", "more"):
            package.put(f"{name}.options", b"[libfuzzer]\ndict = shared/x.dict\n")
        package.put("shared/x.dict")
        package.put("shared/y.dict")
        found = package.contents()
        assert files(found) == ["more", "parse", "shared/x.dict"]
        assert found.inputs()["all other files"] == {"shared/x.dict": package.directory / "shared/x.dict"}

    def test_of_another_target_which_the_guest_cannot_get(self, package: Package) -> None:
        package.program("a")
        package.put("a.options", b"[libfuzzer]\ndict = b.dict\n")
        package.program("b", target("libnew.so"))
        package.put("b.dict")
        package.put("libnew.so", library(glibc="2.99"))
        found = package.contents("2.36")
        assert names(found) == ["a"]
        assert files(found) == ["a", "b.dict", "libnew.so"]

    def test_one_that_is_not_there_or_leads_out(self, package: Package, tmp_path: Path) -> None:
        (tmp_path / "secret").touch()
        package.program("a")
        package.put("a.options", b"[libfuzzer]\ndict = x.dict\n")
        assert files(package.contents()) == ["a"]
        (package.directory / "x.dict").symlink_to(tmp_path / "secret")
        assert files(package.contents()) == ["a"]


class TestLibraries:
    def test_those_that_nobody_has(self, package: Package) -> None:
        package.program("a", target("libz.so.1", "libown.so"))
        package.program("b", target("libz.so.1", "libstdc++.so.6"))
        package.program("c")
        package.put("lib/libown.so", library("libssl.so.3"))
        found = package.contents()
        assert found.lacking == {"libssl.so.3": ("a",), "libz.so.1": ("a", "b")}
        assert found.loads["a"] == ("libc.so.6", "libown.so", "libssl.so.3", "libz.so.1")

    def test_targets_without_their_libraries_are_left_out(self, package: Package) -> None:
        package.program("a", target("libz.so.1", "libodd\n.so"))
        package.program("b", target("libz.so.1"))
        package.program("c")
        package.put("a.dict")
        whole = package.contents()
        found = whole.without(["libodd\n.so"])
        assert names(found) == ["b", "c"]
        assert files(found) == ["a.dict", "b", "c"], "its program would be useless"
        assert found.left_out == (
            LeftOutTarget(
                "a",
                "a",
                r"it loads libodd\n.so, which neither the directory nor a package of Debian has",
                "put the library beside it or into lib/, or name its package: packages = [...] in topcoat-targets.toml",
            ),
        )
        assert names(whole.without(["libz.so.1"])) == ["c"]
        assert whole.without([]) == whole

    def test_a_directory_of_sources_brings_those_that_its_targets_load(self, package: Package) -> None:
        package.put("lib/libown.so", library())
        package.put("lib/libother.so", library())
        package.says(COMPILED)
        package.compile("parse", target("libown.so"))
        assert files(package.contents()) == ["lib/libown.so", "parse"]


class TestGlibc:
    def test_a_library_that_is_newer_than_the_guest(self, package: Package) -> None:
        package.program("a", target("libnew.so", glibc="2.17"))
        package.program("b", target(glibc="2.36"))
        package.put("libnew.so", library(glibc="2.38"))
        found = package.contents("2.36")
        assert names(found) == ["b"]
        assert found.left_out == (
            LeftOutTarget(
                "a",
                "a",
                "a library that it loads needs glibc 2.38, and the guest has 2.36",
                "build it on a system that has glibc 2.36 or an older one",
            ),
        )
        assert files(found) == ["b", "libnew.so"]
        assert names(package.contents()) == ["a", "b"], "of an unknown guest nothing is too new"
        assert names(package.contents("2.38")) == ["a", "b"]


def test_a_store_in_the_directory_is_none_of_it(package: Package) -> None:
    package.program("a")
    (package.directory / "out").mkdir()
    shutil.copy2(package.directory / "a", package.directory / "out/b")
    inside = replace(package.source, store=package.directory / "out")
    assert names(contents.of(inside, elf.read)) == ["a"]
    assert names(contents.of(replace(inside, store=package.directory / "elsewhere"), elf.read)) == ["a", "b"]


class TestInputs:
    """A change of one target's file must not have the others made again."""

    @pytest.fixture
    def before(self, package: Package) -> dict[str, str]:
        for name in ("a", "b"):
            package.program(name)
            package.put(f"{name}.dict", b'"x"')
            package.put(f"{name}.options", b"[libfuzzer]\nmax_len = 9\n")
            package.put(f"{name}_seed_corpus/deep/1", b"seed")
            package.put(f"{name}_seed_corpus.zip", b"zip")
        package.put("data/x")
        package.put("libx.so", library())
        package.says("")
        return digests(package)

    @pytest.mark.parametrize(
        "file", ["a", "a.dict", "a.options", "a_seed_corpus/deep/1", "a_seed_corpus/2", "a_seed_corpus.zip"]
    )
    def test_a_file_of_one_target(self, package: Package, before: dict[str, str], file: str) -> None:
        package.put(file, target(text=b"more"), executable=file == "a")
        assert changed(package, before) == ["files of a"]

    @pytest.mark.parametrize("file", ["data/x", "data/new", "libx.so", "c.dict", "program"])
    def test_a_file_of_all(self, package: Package, before: dict[str, str], file: str) -> None:
        package.put(file, b"#!/bin/sh", executable=True)
        assert changed(package, before) == ["all other files"]

    @pytest.mark.parametrize("name", ["files", "nobody"])
    def test_no_name_of_a_target_is_in_the_way(self, package: Package, name: str) -> None:
        package.program(name)
        before = digests(package)
        package.put(name, target(text=b"more"), executable=True)
        assert changed(package, before) != []

    def test_what_goes_away(self, package: Package, before: dict[str, str]) -> None:
        (package.directory / "a_seed_corpus.zip").unlink()
        assert changed(package, before) == ["files of a"]
        (package.directory / "b").unlink()
        # Its dictionary is now anybody's file
        assert changed(package, before) == ["all other files", "files of a", "files of b"]

    def test_the_place_of_the_directory_does_not_matter(self, package: Package, before: dict[str, str]) -> None:
        package.directory = package.directory.rename(package.directory.with_name("moved"))
        package.says('package = "expat"')
        assert changed(package, before) == []

    def test_what_was_compiled_is_an_input_by_itself(self, package: Package, before: dict[str, str]) -> None:
        package.says(COMPILED)
        package.compile("parse")
        package.put("parse.dict")
        assert package.contents().inputs()["files of parse"] == {"parse.dict": package.directory / "parse.dict"}
        assert "parse" not in package.contents().inputs()["all other files"]

    def test_two_targets_with_one_dictionary(self, package: Package, before: dict[str, str]) -> None:
        package.program("a.exe")
        assert changed(package, before) == ["files of a.exe"]
        before = digests(package)
        package.put("a.dict", b'"y"')
        assert changed(package, before) == ["files of a", "files of a.exe"]


def test_sources_are_the_builds_and_those_of_the_canary(tmp_path: Path) -> None:
    package = Package(tmp_path)
    package.says(f'package = "xml"\n{COMPILED}')
    store = Store(tmp_path / "out")
    own, canary = sources_of(TargetsPlaces("xml", package.directory, store, "linux-xml"))
    assert (own.package, own.directory, own.compiled) == ("xml", package.directory, store.targets / "xml/compiled")
    assert [target.name for target in own.says.targets] == ["parse"]
    assert (canary.package, canary.directory) == (OWN_PACKAGE, demo.TARGETS)
    assert canary.compiled == store.targets / OWN_PACKAGE / "compiled"
    assert {target.name for target in canary.says.targets} == set(CANARY)


def test_the_demos_targets_are_the_canarys_too(tmp_path: Path) -> None:
    (only,) = sources_of(TargetsPlaces(OWN_PACKAGE, demo.TARGETS, Store(tmp_path / "out"), "demo"))
    assert {target.name for target in only.says.targets} > set(CANARY)
