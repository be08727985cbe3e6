"""Which libraries targets load, and who has them."""

import shutil
import sys
from pathlib import Path, PurePosixPath

import pytest

from pipeline.builds import elf
from pipeline.builds.elf import ElfFacts
from pipeline.builds.targets import closure
from pipeline.builds.targets.closure import Closure
from pipeline.builds.targets.directory import scan
from tests.builds.elves import LIBFUZZER, Elf

GUESTS = ("libc.so.6", "libm.so.6")


class Out:
    """A directory of targets that is being filled."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.read: list[str] = []

    def target(self, path: str, *needed: str, runpath: str = "", rpath: str = "", glibc: str = "") -> None:
        versions: dict[str, tuple[str, ...]] = {"libc.so.6": (f"GLIBC_{glibc}",)} if glibc else {}
        self._put(path, Elf(needed=needed, runpath=runpath, rpath=rpath, versions=versions, text=LIBFUZZER))

    def library(self, path: str, *needed: str, **more: str | int) -> None:
        name = Path(path).name
        self._put(path, Elf(**{"needed": needed, "interpreter": "", "flags": 0, "soname": name, **more}))  # type: ignore[arg-type]

    def _put(self, path: str, content: Elf) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(content))
        file.chmod(0o755)

    def facts(self, path: Path) -> ElfFacts | None:
        self.read.append(path.name)
        return elf.read(path)

    def find(self) -> Closure:
        return closure.find(scan(self.root, elf.read), self.facts)

    def own(self) -> list[str]:
        return [str(path) for path in self.find().own]


@pytest.fixture
def out(tmp_path: Path) -> Out:
    return Out(tmp_path)


def test_libraries_of_the_directory_and_of_others(out: Out) -> None:
    out.target("a", "libx.so.1", *GUESTS)
    out.target("b", "libc.so.6", "ld-linux-x86-64.so.2")
    out.target("c")
    out.library("lib/libx.so.1", "liby.so", "libz.so.1")
    out.library("liby.so", "libx.so.1")
    out.library("libunused.so", "libother.so")
    assert out.find() == Closure(
        own=(PurePosixPath("lib/libx.so.1"), PurePosixPath("liby.so")),
        lacking={"libc.so.6": ("a", "b"), "libm.so.6": ("a",), "libz.so.1": ("a",)},
        by_target={
            "a": ("libc.so.6", "libm.so.6", "libx.so.1", "liby.so", "libz.so.1"),
            "b": ("libc.so.6",),
            "c": (),
        },
        glibc={"a": "", "b": "", "c": ""},
    )


@pytest.mark.parametrize(
    ("search", "places"),
    [
        ("$ORIGIN/libs", ["sub/libs/libx.so"]),
        ("${ORIGIN}/libs", ["sub/libs/libx.so"]),
        ("/out:$ORIGIN/../top", ["top/libx.so"]),
        ("$ORIGIN/here", ["sub/here/libx.so"]),
        ("top", ["top/libx.so"]),
        ("/out/top:$OUT/top:$LIB/top:$ORIGIN/../../top:$ORIGINAL", []),
        ("$ORIGIN/none:$ORIGIN/here:$ORIGIN/libs", ["sub/here/libx.so"]),
    ],
)
@pytest.mark.parametrize("kind", ["runpath", "rpath"])
def test_where_a_target_says_that_its_libraries_are(out: Out, search: str, places: list[str], kind: str) -> None:
    out.target("sub/x", "libx.so", **{kind: search})
    for place in ("sub/here", "sub/libs", "top"):
        out.library(f"{place}/libx.so")
    found = out.find()
    assert [str(path) for path in found.own] == places
    assert list(found.lacking) == ([] if places else ["libx.so"])


@pytest.mark.parametrize("place", ["sub/", "sub/lib/", "", "lib/"])
def test_beside_a_program_that_lies_deeper_and_at_the_top(out: Out, place: str) -> None:
    out.target("sub/x", "libx.so")
    out.library(f"{place}libx.so")
    assert out.own() == [f"{place}libx.so"]


def test_the_order_of_places(out: Out) -> None:
    for place in ("", "lib/", "special/"):
        out.library(f"{place}libx.so")
    out.target("plain", "libx.so")
    assert out.own() == ["libx.so"]
    out.target("plain", "libx.so", runpath="$ORIGIN/special")
    assert out.own() == ["libx.so"]
    out.target("plain", "libx.so", rpath="$ORIGIN/special")
    assert out.own() == ["special/libx.so"]
    (out.root / "libx.so").unlink()
    out.target("plain", "libx.so")
    assert out.own() == ["lib/libx.so"]


@pytest.mark.parametrize(("kind", "inherited"), [("rpath", True), ("runpath", False)])
def test_libraries_inherit_an_rpath_only(out: Out, kind: str, inherited: bool) -> None:
    out.target("x", "libx.so", **{kind: "$ORIGIN/special"})
    out.library("special/libx.so", "liby.so")
    out.library("special/liby.so")
    assert out.own() == ["special/libx.so", *(["special/liby.so"] if inherited else [])]


def test_a_library_with_a_runpath_inherits_nothing_and_passes_on_what_it_got(out: Out) -> None:
    out.target("x", "libx.so", rpath="$ORIGIN/special")
    out.library("special/libx.so", "liby.so", "libother.so", runpath="/out:$ORIGIN/../more")
    out.library("special/libother.so")
    out.library("more/liby.so", "libz.so")
    out.library("special/libz.so")
    assert out.own() == ["more/liby.so", "special/libx.so", "special/libz.so"]
    assert out.find().lacking == {"libother.so": ("x",)}


def test_a_runpath_that_leads_nowhere_takes_the_effect_from_an_rpath_too(out: Out) -> None:
    out.target("x", "libx.so", rpath="$ORIGIN/special")
    out.library("special/libx.so", "liby.so", runpath="/out")
    out.library("special/liby.so")
    assert out.own() == ["special/libx.so"]


def test_an_rpath_is_looked_at_before_those_that_are_inherited(out: Out) -> None:
    out.target("x", "libx.so", rpath="$ORIGIN/special")
    out.library("special/libx.so", "liby.so", "libz.so", rpath="$ORIGIN/../more")
    for path in ("more/liby.so", "special/liby.so", "special/libz.so"):
        out.library(path)
    assert out.own() == ["more/liby.so", "special/libx.so", "special/libz.so"]


def test_the_first_who_needs_a_library_is_the_nearest_to_the_target(out: Out) -> None:
    out.target("x", "liba.so", "libb.so")
    out.library("liba.so", "libz.so", runpath="$ORIGIN/near")
    out.library("libb.so", "libdeep.so")
    out.library("libdeep.so", "libz.so", runpath="$ORIGIN/far")
    out.library("near/libz.so")
    out.library("far/libz.so")
    assert out.own() == ["liba.so", "libb.so", "libdeep.so", "near/libz.so"]


def test_the_origin_of_a_library_is_its_own_directory(out: Out) -> None:
    out.target("x", "libx.so", runpath="$ORIGIN/special")
    out.library("special/libx.so", "liby.so", runpath="$ORIGIN")
    out.library("special/liby.so")
    assert out.own() == ["special/libx.so", "special/liby.so"]


def test_the_origin_of_a_program_is_where_its_link_leads(out: Out) -> None:
    out.target("real/x", "libx.so", runpath="$ORIGIN")
    out.library("real/libx.so")
    (out.root / "y").symlink_to("real/x")
    assert out.find().lacking == {}
    assert list(out.find().by_target) == ["x", "y"]


def test_a_library_is_found_through_a_link(out: Out) -> None:
    out.target("x", "libx.so.1")
    out.library("lib/libx.so.1.2.3")
    (out.root / "lib" / "libx.so.1").symlink_to("libx.so.1.2.3")
    assert out.own() == ["lib/libx.so.1"]


def test_what_is_loaded_already_is_not_looked_for(out: Out) -> None:
    """The second needs what the first has loaded, and has no way of its own to it."""
    out.target("x", "libx.so", "libplugin.so", runpath="$ORIGIN/special:$ORIGIN/more")
    out.library("special/libx.so", soname="libx.so.1")
    out.library("more/libplugin.so", "libx.so.1", "libx.so")
    assert out.own() == ["more/libplugin.so", "special/libx.so"]
    assert out.find().lacking == {}
    assert out.find().by_target == {"x": ("libplugin.so", "libx.so")}


def test_names_that_are_paths(out: Out) -> None:
    out.target("sub/x", "./deep/libx.so", "/lib/liby.so", "../liby.so")
    out.library("deep/libx.so")
    out.library("lib/liby.so")
    out.library("liby.so")
    assert out.own() == ["deep/libx.so"]
    assert list(out.find().lacking) == ["../liby.so", "/lib/liby.so"]


def test_what_cannot_be_loaded_does_not_count(out: Out) -> None:
    out.target("x", "libarm.so", "libcut.so", "libtext.so", "libgone.so", "libc.so.6")
    out.library("libarm.so", machine=183)
    out.library("lib/libarm.so")
    for name in ("libcut.so", "libgone.so"):
        out.library(name)
    (out.root / "libcut.so").write_bytes((out.root / "libcut.so").read_bytes()[:-1])
    (out.root / "libtext.so").write_bytes(b"INPUT(libc.so.6)")
    found = scan(out.root, elf.read)
    (out.root / "libgone.so").unlink()
    assert closure.find(found, elf.read).own == (PurePosixPath("lib/libarm.so"),)
    assert list(closure.find(found, elf.read).lacking) == ["libc.so.6", "libcut.so", "libgone.so", "libtext.so"]


def test_libraries_in_circles_end(out: Out) -> None:
    out.target("x", "liba.so")
    out.library("liba.so", "libb.so", "liba.so")
    out.library("libb.so", "liba.so")
    assert out.find().by_target == {"x": ("liba.so", "libb.so")}


def test_a_library_is_read_once_for_all_targets(out: Out) -> None:
    for name in "abc":
        out.target(name, "libx.so", "libc.so.6")
    out.library("libx.so")
    assert out.find().lacking == {"libc.so.6": ("a", "b", "c")}
    assert out.read == ["libx.so"]


def test_the_glibc_that_a_target_needs_with_its_libraries(out: Out) -> None:
    out.target("a", "libx.so", glibc="2.9")
    out.target("b", "libc.so.6", glibc="2.9")
    out.library("libx.so", "libc.so.6", versions={"libc.so.6": ("GLIBC_2.38",)})  # type: ignore[arg-type]
    assert out.find().glibc == {"a": "2.38", "b": "2.9"}


def test_libraries_of_this_system_load_one_another(out: Out) -> None:
    """What Python loads is copied beside a target that needs the same: nothing lacks but the loader's own."""
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
    libraries = {Path(path).name: facts for path in mapped if (facts := elf.read(Path(path))) and facts.soname}
    for path in map(Path, mapped):
        facts = libraries.get(path.name)
        if facts and not facts.soname.startswith("ld-"):
            shutil.copyfile(path, out.root / facts.soname)
    python = elf.read(Path(sys.executable).resolve())
    assert python
    assert python.needed
    out.target("x", *python.needed)
    found = out.find()
    assert found.lacking == {}
    assert set(python.needed) <= set(found.by_target["x"])
    assert "libc.so.6" in found.by_target["x"]
