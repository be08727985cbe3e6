"""The disk with targets: what is on it, what the host keeps, and what the list says."""

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.builds import elf
from pipeline.builds.linux.compiler import Compiler
from pipeline.builds.targets import image, listing
from pipeline.builds.targets.image import MadeFrom
from pipeline.builds.targets.libraries import FoundLibraries
from pipeline.builds.targets.listing import ListedOmission, ListedTarget, TargetsListing
from pipeline.errors import SettingsError, StoreError
from pipeline.store.publish import publish_json
from tests.builds.elves import LIBFUZZER, Elf
from tests.builds.targets.archives import named, zipped
from tests.builds.targets.packages import Package, library, target

DEBUG = b" and its debug information"
LONG = 30.0


@dataclass(frozen=True)
class PlayedCompiler(Compiler):
    """Its file systems are directories, and what has no debug information lacks the bytes DEBUG."""

    stripped: list[str] = field(default_factory=list)

    def squash(self, directory: Path, image: Path, *, timeout: float) -> None:
        shutil.copytree(directory, image, symlinks=True)

    def strip_debug(self, program: Path, output: Path, *, timeout: float) -> None:
        self.stripped.append(program.name)
        output.write_bytes(program.read_bytes().replace(DEBUG, b""))


def with_debug(*needed: str, build_id: str = "") -> bytes:
    """A target with debug information."""
    made = Elf(
        needed=(*needed, "libc.so.6"), build_id=build_id, text=LIBFUZZER, unloaded=DEBUG, sections=(".debug_info",)
    )
    return bytes(made)


class Disk:
    """A disk that is made of packages, again and again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.compiler = PlayedCompiler(root)

    def make(self, *packages: Package | MadeFrom) -> dict[str, ListedTarget]:
        """Make it of these packages anew. Returns what the list says, by full name."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        made = [each if isinstance(each, MadeFrom) else MadeFrom(each.contents(), None) for each in packages]
        image.make(made, self.compiler, elf.read, self.root / "image", self.root / "made", LONG)
        return {one.full_name: one for one in self.listing.targets}

    @property
    def listing(self) -> TargetsListing:
        return listing.read(self.root / "made/targets.json")

    @property
    def image(self) -> Path:
        return self.root / "image"

    def files(self, part: str) -> dict[str, bytes]:
        """The files below a part of what was made, by their paths; without links."""
        top = self.root / part
        return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if _is_file(path)}


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return Package(tmp_path)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "disk")


class TestDisk:
    def test_everything_has_its_place(self, package: Package, disk: Disk) -> None:
        program = package.program("a").read_bytes()
        package.put("a.dict", b'"x"\n')
        package.put("a.options", b"[libfuzzer]\nmax_len = 9\n")
        package.program("sub/b", target(text=b"b"))
        package.put("data/x.bin", b"data")
        package.program("data/tool.sh", b"#!/bin/sh\n")
        package.put("lib/libx.so", library())
        disk.make(package)
        assert {name: content for name, content in disk.files("image").items() if "lib" not in name} == {
            "files/expat/a": program,
            "files/expat/a.dict": b'"x"\n',
            "files/expat/data/tool.sh": b"#!/bin/sh\n",
            "files/expat/data/x.bin": b"data",
            "files/expat/sub/b": target(text=b"b"),
        }
        modes = {str(path.relative_to(disk.image)): path.stat().st_mode & 0o777 for path in disk.image.rglob("*.*")}
        assert modes == {
            "files/expat/a.dict": 0o644,
            "files/expat/data/tool.sh": 0o755,
            "files/expat/data/x.bin": 0o644,
            "files/expat/lib/libx.so": 0o644,
        }
        assert (disk.image / "files/expat/a").stat().st_mode & 0o777 == 0o755
        assert sorted(path.name for path in disk.root.iterdir()) == ["image", "made"]

    def test_homes(self, package: Package, disk: Disk) -> None:
        package.program("a")
        package.program("sub/b")
        disk.make(package)
        homes = disk.image / "home"
        assert sorted(str(path.relative_to(homes)) for path in homes.rglob("*")) == [
            "expat",
            *("expat/a", "expat/a/data", "expat/a/pkg", "expat/a/tmp"),
            *("expat/b", "expat/b/data", "expat/b/pkg", "expat/b/tmp"),
        ]
        assert (homes / "expat/a/pkg").readlink() == Path("/targets/files/expat")
        assert (homes / "expat/b/pkg").readlink() == Path("/targets/files/expat/sub")

    def test_seeds_are_unpacked_where_a_target_may_look_for_them(self, package: Package, disk: Disk) -> None:
        package.program("sub/a")
        package.put("sub/a_seed_corpus/deep/1", b"one")
        zipped(package.directory / "sub/a_seed_corpus.zip", {"2": b"two", "../3": b"three"})
        found = disk.make(package)["expat/a"]
        assert found.seeds == "/targets/files/expat/sub/a_seed_corpus"
        assert disk.files("image/files/expat/sub/a_seed_corpus") == named(b"one", b"two", b"three")
        assert found.problems == ()

    def test_seeds_that_are_none(self, package: Package, disk: Disk) -> None:
        package.program("a")
        package.program("b")
        package.put("a_seed_corpus.zip", b"no zip")
        package.put("b_seed_corpus", b"no directory")
        (package.directory / "c_seed_corpus").mkdir()
        found = disk.make(package)
        assert (found["expat/a"].seeds, found["expat/b"].seeds) == (None, None)
        assert ["a_seed_corpus.zip" in problem for problem in found["expat/a"].problems] == [True]
        assert ["b_seed_corpus" in problem for problem in found["expat/b"].problems] == [True]
        assert sorted(disk.files("image/files")) == ["expat/a", "expat/b"]

    def test_libraries_out_of_packages(self, package: Package, disk: Disk, tmp_path: Path) -> None:
        package.program("a", target("libz.so.1"))
        (tmp_path / "libraries").mkdir()
        (tmp_path / "libraries/libz.so.1").write_bytes(b"zlib")
        disk.make(MadeFrom(package.contents(), tmp_path / "libraries"))
        assert disk.files("image/libraries") == {"libz.so.1": b"zlib"}

    def test_names_that_are_not_utf8(self, package: Package, disk: Disk) -> None:
        odd = os.fsdecode(b"\xff dir")
        package.program(f"{odd}/a")
        package.put(f"{odd}/\n.bin")
        found = disk.make(package)["expat/a"]
        assert found.program == f"/targets/files/expat/{odd}/a"
        assert sorted(disk.files("image/files/expat")) == [f"{odd}/\n.bin", f"{odd}/a"]
        before = found.digest
        package.put(f"{odd}/\n.bin", b"more")
        assert disk.make(package)["expat/a"].digest != before

    def test_a_full_disk(self, package: Package, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
        package.program("a")

        def copyfile(source: Path, target: Path) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

        monkeypatch.setattr("pipeline.builds.targets.image.shutil.copyfile", copyfile)
        with pytest.raises(StoreError, match="making the disk with targets: No space left on device: ") as caught:
            disk.make(package)
        assert caught.value.hint.startswith("free some space on that disk")


class TestKept:
    """What the host keeps of programs and libraries, for symbolizers."""

    def test_programs_come_without_debug_information(self, package: Package, disk: Disk) -> None:
        whole = with_debug(build_id="abcdef")
        package.program("sub/a", whole)
        package.put("libx.so", bytes(Elf(interpreter="", flags=0, unloaded=DEBUG, sections=(".debug_info",))))
        plain = package.program("b").read_bytes()
        disk.make(package)
        assert disk.files("image/files/expat")["sub/a"] == whole.replace(DEBUG, b"")
        assert disk.files("made/files/expat")["sub/a"] == whole
        assert disk.files("made/files/expat")["b"] == disk.files("image/files/expat")["b"] == plain
        assert sorted(disk.compiler.stripped) == ["a", "libx.so"]
        assert (disk.image / "files/expat/sub/a").stat().st_mode & 0o777 == 0o755

    def test_by_build_id(self, package: Package, disk: Disk) -> None:
        package.program("a", target(build_id="abcdef0123"))
        package.program("b", target(build_id="abcdef0123", text=b"the same id"))
        package.program("c", target(build_id="ab"))
        disk.make(package)
        links = [path for path in (disk.root / "made/.build-id").rglob("*") if path.is_symlink()]
        assert [str(link.relative_to(disk.root)) for link in links] == ["made/.build-id/ab/cdef0123.debug"]
        moved = disk.root.rename(disk.root.with_name("moved"))
        assert (moved / "made/.build-id/ab/cdef0123.debug").resolve() == moved / "made/files/expat/a"

    def test_data_is_not_changed(self, package: Package, disk: Disk) -> None:
        """Targets that read ELF files have some as data."""
        package.program("a")
        data = {
            "data/debug": bytes(Elf(unloaded=DEBUG, sections=(".debug_info",))),
            "data/other": bytes(Elf(machine=183, unloaded=DEBUG, sections=(".debug_info",))),
            "data/cut": with_debug()[:200],
            "data/short": b"\x7fELF",
        }
        for name, content in data.items():
            package.put(name, content, executable=name == "data/other")
        disk.make(package)
        assert {name: disk.files("image/files/expat").get(name) for name in data} == data
        assert disk.compiler.stripped == []

    def test_of_what_is_no_program_nothing_is_kept(self, package: Package, disk: Disk) -> None:
        package.program("a")
        package.put("data")
        disk.make(package)
        assert sorted(disk.files("made")) == ["files/expat/a", "targets.json"]


class TestDigests:
    """A target is another one if anything changed that it may notice; ledgers tell results apart by that."""

    @pytest.fixture
    def before(self, package: Package, disk: Disk) -> dict[str, str]:
        for name in ("a", "b"):
            package.program(name, target(f"lib{name}.so", "libboth.so"))
            package.put(f"lib{name}.so", library(f"lib{name}2.so"))
            package.put(f"{name}.dict", b'"x"\n')
            package.put(f"{name}.options", b"[libfuzzer]\nmax_len = 9\n")
            package.put(f"{name}_seed_corpus/1", b"seed")
            zipped(package.directory / f"{name}_seed_corpus.zip", {"2": b"another"})
        package.put("lib/liba2.so", library())
        package.put("libb2.so", library())
        package.put("libboth.so", library())
        package.put("libplugin.so", library())
        package.put("data/x", b"x")
        return digests(disk, package)

    def test_they_do_not_change_by_themselves(self, package: Package, disk: Disk, before: dict[str, str]) -> None:
        assert len(set(before.values())) == 2
        os.utime(package.directory / "a", (0, 0))
        assert digests(disk, package) == before

    @pytest.mark.parametrize(
        ("file", "content", "whose"),
        [
            ("a", target("liba.so", "libboth.so", text=b"more"), ["a"]),
            ("a.dict", b'"y"\n', ["a"]),
            ("a.dict", b"wrong\n", ["a"]),
            ("a.options", b"[libfuzzer]\nmax_len = 8\n", ["a"]),
            ("a_seed_corpus/1", b"other seed", ["a"]),
            ("a_seed_corpus/new", b"more seeds", ["a"]),
            ("a_seed_corpus/new", b"seed", []),
            ("liba.so", library("liba2.so", text=b"more"), ["a"]),
            ("lib/liba2.so", library(text=b"more"), ["a"]),
            ("libboth.so", library(text=b"more"), ["a", "b"]),
            ("libplugin.so", library(text=b"more"), ["a", "b"]),
            ("data/x", b"y", ["a", "b"]),
            ("data/new", b"", ["a", "b"]),
            ("c", target(), ["c"]),
        ],
    )
    def test_whose_changes(
        self, package: Package, disk: Disk, before: dict[str, str], file: str, content: bytes, whose: list[str]
    ) -> None:
        package.put(file, content, executable=file in ("a", "c"))
        after = digests(disk, package)
        assert [name for name in after if after[name] != before.get(name)] == whose

    def test_a_dictionary_that_two_name_is_everybodys(self, package: Package, disk: Disk) -> None:
        for name in ("a", "b", "c"):
            package.program(name)
            package.put(f"{name}.options", b"[libfuzzer]\ndict = shared.dict\n" if name != "c" else b"")
        package.put("shared.dict", b'"x"\n')
        before = digests(disk, package)
        package.put("shared.dict", b'"y"\n')
        after = digests(disk, package)
        assert {"a", "b"} <= {name for name in after if after[name] != before[name]}

    def test_libraries_out_of_packages(self, package: Package, disk: Disk, tmp_path: Path) -> None:
        package.program("a", target("libz.so.1"))
        package.program("b")
        libraries = tmp_path / "libraries"
        libraries.mkdir()

        def found(content: bytes) -> dict[str, str]:
            (libraries / "libz.so.1").write_bytes(content)
            return {name: one.digest for name, one in disk.make(MadeFrom(package.contents(), libraries)).items()}

        before, after = found(b"1"), found(b"2")
        assert [name for name in after if after[name] != before[name]] == ["expat/a"]

    def test_of_a_target_that_is_left_out_the_others_know_nothing(self, package: Package, disk: Disk) -> None:
        package.program("a")
        package.program("b", target("libgone.so"))
        before = disk.make(MadeFrom(package.contents().without(["libgone.so"]), None))
        package.program("b", target("libgone.so", text=b"more"))
        after = disk.make(MadeFrom(package.contents().without(["libgone.so"]), None))
        assert before["expat/a"].digest == after["expat/a"].digest
        assert list(after) == ["expat/a"]


def digests(disk: Disk, package: Package) -> dict[str, str]:
    return {one.name: one.digest for one in disk.make(package).values()}


class TestListing:
    def test_what_it_says_of_a_target(self, package: Package, disk: Disk) -> None:
        package.program("sub/a", target(text=b"AddressSanitizer", exported=("__asan_init",)))
        package.put("sub/a.dict", b'"x"\n')
        package.put("sub/a.options", b"[libfuzzer]\nmax_len = 9\nx\n[env]\nTZ = UTC\n[asan]\nx = 1\n")
        found = disk.make(package)["expat/a"]
        assert found == ListedTarget(
            package="expat",
            name="a",
            digest=found.digest,
            program="/targets/files/expat/sub/a",
            dictionary="/targets/files/expat/sub/a.dict",
            seeds=None,
            flags={"max_len": "9"},
            environment={"ASAN_OPTIONS": "x=1", "TZ": "UTC"},
            sanitizers=package.contents().targets[0].elf.sanitizers,
            problems=("a.options: line 3: x is passed over: it is not of the form NAME = VALUE",),
        )
        assert found.sanitizers

    def test_targets_are_sorted_by_their_full_names(self, disk: Disk, tmp_path: Path) -> None:
        own, other = Package(tmp_path, "zlib"), Package(tmp_path, "example-fuzzers")
        for package in (own, other):
            for name in ("b", "a"):
                package.program(name)
        assert list(disk.make(own, other)) == ["example-fuzzers/a", "example-fuzzers/b", "zlib/a", "zlib/b"]

    def test_what_was_left_out(self, package: Package, disk: Disk) -> None:
        package.program("a")
        package.program("x.so.1_fuzzer", b"no program")
        package.put("b_fuzzer", target())
        package.put("ordinary.o")
        disk.make(package)
        assert disk.listing.left_out == (
            ListedOmission("expat", "b_fuzzer", "b_fuzzer", "it may not be executed", "chmod +x b_fuzzer"),
        )

    def test_one_that_lacks_a_library_is_left_out_with_a_message(
        self, package: Package, disk: Disk, tmp_path: Path
    ) -> None:
        package.program("a", target("libz.so.1"))
        package.program("b", target("libodd.so"))
        (tmp_path / "libraries").mkdir()
        (tmp_path / "libraries/libz.so.1").touch()
        publish_json(tmp_path / "list", FoundLibraries({"libz.so.1": "zlib1g"}, ("libodd.so",)).encode())
        chosen = image.with_libraries(package.contents(), (tmp_path / "list", tmp_path / "libraries"))
        assert list(disk.make(chosen)) == ["expat/a"]
        (warning,) = disk.listing.warnings()
        assert warning == (
            "expat: b is left out: it loads libodd.so, which neither the directory nor a package of Debian has; "
            "put the library beside it or into lib/, or name its package: packages = [...] in topcoat-targets.toml"
        )
        assert image.with_libraries(package.contents(), None) == MadeFrom(package.contents(), None)


class TestDictionaries:
    @pytest.fixture
    def dictionary(self, package: Package, disk: Disk) -> Callable[[], tuple[str | None, tuple[str, ...]]]:
        package.program("sub/a")

        def told() -> tuple[str | None, tuple[str, ...]]:
            found = disk.make(package)["expat/a"]
            return found.dictionary, found.problems

        return told

    def test_its_own(self, package: Package, dictionary: Callable[[], object]) -> None:
        assert dictionary() == (None, ())
        package.put("sub/a.dict", b'name="x"\n')
        assert dictionary() == ("/targets/files/expat/sub/a.dict", ())

    def test_options_name_another_one(self, package: Package, dictionary: Callable[[], object]) -> None:
        package.put("sub/a.dict", b'"x"\n')
        package.put("sub/a.options", b"[libfuzzer]\ndict = ./more/b.dict\n")
        package.put("sub/more/b.dict", b'"y"\n')
        assert dictionary() == ("/targets/files/expat/sub/more/b.dict", ())
        (package.directory / "sub/more/b.dict").unlink()
        assert dictionary() == (None, ("its options name the dictionary ./more/b.dict, which is not there",))

    def test_of_a_directory_of_sources(self, package: Package, disk: Disk) -> None:
        package.says('[[target]]\nname = "parse"\n')
        package.compile("parse")
        package.put("parse.options", b"[libfuzzer]\ndict = shared/x.dict\n")
        package.put("shared/x.dict", b'"x"\n')
        assert disk.make(package)["expat/parse"].dictionary == "/targets/files/expat/shared/x.dict"

    def test_one_with_which_libfuzzer_would_not_start(self, package: Package, dictionary: Callable[[], object]) -> None:
        package.put("sub/a.dict", b'"x"\n' + b"wrong\n" * 5)
        wrong = "an entry of a dictionary is a text in double quotes"
        told = "its dictionary a.dict is passed over, as libFuzzer would not start: "
        assert dictionary() == (None, (f"{told}line 2: {wrong}; line 3: {wrong}; line 4: {wrong}",))

    def test_one_that_is_too_large(self, package: Package, dictionary: Callable[[], object]) -> None:
        package.put("sub/a.dict", b'"x"\n' + b"#" * ((1 << 20) - 4))
        assert dictionary() == ("/targets/files/expat/sub/a.dict", ())
        package.put("sub/a.dict", b'"x"\n' + b"#" * ((1 << 20) - 3))
        assert dictionary() == (None, ("its dictionary a.dict is larger than 1 MiB, and passed over",))


class TestNothing:
    def test_no_targets_at_all(self, package: Package, disk: Disk, tmp_path: Path) -> None:
        package.put("b_fuzzer", target())
        package.put("data")
        canary = Package(tmp_path, "example-fuzzers")
        canary.program("crash_fuzzer")
        with pytest.raises(SettingsError, match=rf"^there are no targets in {package.directory}$") as caught:
            disk.make(package, canary)
        assert caught.value.hint == "what is looked for, and what was found, tells: topcoat targets"
        assert caught.value.detail == "b_fuzzer: it may not be executed; chmod +x b_fuzzer"

    def test_an_empty_directory(self, package: Package, disk: Disk) -> None:
        with pytest.raises(SettingsError, match=r"^there are no targets in ") as caught:
            disk.make(package)
        assert caught.value.detail == ""

    def test_only_some_of_what_was_found_is_told(self, package: Package, disk: Disk) -> None:
        for number in range(20):
            package.put(f"{number:02}_fuzzer", target())
        with pytest.raises(SettingsError) as caught:
            disk.make(package)
        lines = caught.value.detail.splitlines()
        assert (len(lines), lines[0]) == (11, "00_fuzzer: it may not be executed; chmod +x 00_fuzzer")
        assert lines[-1] == "and 10 more"


def test_the_real_programs_make_a_disk(demo_parts: Path, package: Package, tmp_path: Path) -> None:
    """Compiled targets of ours lose their debug information; the same disk is made twice."""
    compiled = next((demo_parts / "targets/example-fuzzers/compiled").glob("crash_fuzzer/crash_fuzzer"))
    package.program("crash_fuzzer", compiled.read_bytes())
    package.put("data/elf", compiled.read_bytes()[:1000])
    images = []
    for part in ("1", "2"):
        place = tmp_path / part
        place.mkdir()
        compiler = Compiler(demo_parts / "demo/tools")
        image.make([MadeFrom(package.contents(), None)], compiler, elf.read, place / "image", place / "made", LONG)
        images.append((place / "image").read_bytes())
    assert images[0][:4] == b"hsqs"
    assert images[0] == images[1]
    kept = elf.read(tmp_path / "1/made/files/expat/crash_fuzzer")
    assert kept
    assert kept.debug
    link = tmp_path / "1/made/.build-id" / kept.build_id[:2] / f"{kept.build_id[2:]}.debug"
    assert link.resolve() == tmp_path / "1/made/files/expat/crash_fuzzer"
    assert len(images[0]) < compiled.stat().st_size
