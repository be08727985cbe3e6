"""Packages from a directory: with the libraries that their programs load, or with the names of all that is missing."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.builds.linux.gathering import gather
from pipeline.builds.linux.initramfs import GUEST, collect
from pipeline.builds.linux.libraries import Libraries, Selection, likely
from pipeline.builds.linux.packages import Packages, file_for
from pipeline.errors import PackageError
from pipeline.store.publish import replacing
from tests.builds.linux import debs
from tests.builds.linux.debs import LIB, Content, Link, elf

LONG = 30.0
PROGRAM = Selection(packages=(), programs={"program": {"usr/bin/program": "program"}})


def gathered(tmp_path: Path, selection: Selection = PROGRAM) -> tuple[Packages, Libraries]:
    return gather(tmp_path / "made", selection, tmp_path / "debs", tmp_path / "apt", timeout=LONG)


def collected(tmp_path: Path) -> Packages:
    """As the task does."""
    with replacing((tmp_path / "demo/packages",)) as (made,):
        collect(made, tmp_path / "mine", tmp_path / "demo/apt", timeout=LONG)
    return Packages(tmp_path / "demo/packages")


def write(tmp_path: Path, name: str, files: Mapping[str, Content], *depends: str) -> None:
    debs.write(tmp_path / "debs", name, files, depends=depends)


def test_what_is_loaded_comes_whatever_its_package_is_called(tmp_path: Path) -> None:
    write(
        tmp_path, "program", {"bin/program": elf("libz.so.1", "liba_b.so.2")}, "zlib1g", "liba-b2t64 | liba-b2", "doc"
    )
    write(
        tmp_path,
        "zlib1g",
        {f"{LIB}/libz.so.1": Link("libz.so.1.2"), f"{LIB}/libz.so.1.2": elf("libdeep.so.1")},
        "libdeep1",
    )
    write(tmp_path, "libdeep1", {f"usr/{LIB}/libdeep.so.1": b"deep"})
    write(tmp_path, "liba-b2", {f"usr/{LIB}/liba_b.so.2": b"ab", f"usr/{LIB}/libunused.so.1": b""}, "unused")
    write(tmp_path, "unused", {f"usr/{LIB}/libz.so.1": b"another"})
    packages, found = gathered(tmp_path)
    assert [path.name.partition("_")[0] for path in packages.files()] == ["liba-b2", "libdeep1", "program", "zlib1g"]
    assert sorted(found.loaded()) == ["liba_b.so.2", "libdeep.so.1", "libz.so.1"]
    assert found.loaded()["libdeep.so.1"].read_bytes() == b"deep"
    assert sorted(found.programs()) == ["program"]


def test_what_is_likely_is_tried_first_and_the_rest_after_it(tmp_path: Path) -> None:
    write(tmp_path, "program", {"bin/program": elf("libx.so.1")}, "other", "libx1-data", "libx-dev", "odd")
    write(tmp_path, "libx1-data", {})
    write(tmp_path, "libx-dev", {})
    write(tmp_path, "other", {})
    write(tmp_path, "odd", {f"{LIB}/libx.so.1": b""})
    packages, found = gathered(tmp_path)
    assert [path.name.partition("_")[0] for path in packages.files()] == ["libx1-data", "odd", "other", "program"]
    assert sorted(found.loaded()) == ["libx.so.1"]


def test_libraries_that_load_each_other(tmp_path: Path) -> None:
    write(tmp_path, "program", {"bin/program": elf("liba.so.1")}, "liba1")
    write(tmp_path, "liba1", {f"{LIB}/liba.so.1": elf("libb.so.1")}, "libb1")
    write(tmp_path, "libb1", {f"{LIB}/libb.so.1": elf("liba.so.1", "libb.so.1")}, "liba1")
    assert sorted(gathered(tmp_path)[1].loaded()) == ["liba.so.1", "libb.so.1"]


def test_libraries_that_need_not_be_there(tmp_path: Path) -> None:
    write(tmp_path, "program", {"bin/program": elf("libc.so.6")}, "libc6")
    packages, found = gathered(
        tmp_path, Selection(PROGRAM.packages, PROGRAM.programs, without=frozenset(["libc.so.6"]))
    )
    assert len(packages.files()) == 1
    assert found.loaded() == {}


@pytest.mark.parametrize("library", [Link("libx.so.1.2"), Link("libx.so.1"), Link("../../../etc/passwd")])
def test_a_link_to_nothing_is_no_library(tmp_path: Path, library: Link) -> None:
    write(tmp_path, "program", {"bin/program": elf("libx.so.1")}, "libx1")
    write(tmp_path, "libx1", {f"{LIB}/libx.so.1": library})
    with pytest.raises(PackageError) as caught:
        gathered(tmp_path)
    assert caught.value.detail == "put the package that has it there, for libx.so.1"


def test_a_damaged_program_is_named_with_its_package(tmp_path: Path) -> None:
    write(tmp_path, "program", {"bin/program": elf("libx.so.1")[:100]})
    with pytest.raises(PackageError, match=r"^program of program is damaged: "):
        gathered(tmp_path)


def test_all_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    write(
        tmp_path,
        "program",
        {"bin/program": elf("libz.so.1", "libb.so.1", "libc.so.6", "libm.so.6")},
        "zlib1g",
        "libb1 (>= 2) | libb2",
        "libc6",
    )
    depends = ("zlib1g", "libb1", "libb2", "libc6")
    with pytest.raises(PackageError) as caught:
        gathered(tmp_path, Selection(("libx-[0-9]*-dev",), PROGRAM.programs))
    assert str(caught.value) == f"4 packages of the Linux guest are missing in {tmp_path}/debs"
    assert caught.value.detail.splitlines() == [
        "put libx-VERSION-dev_VERSION_amd64.deb of Debian there",
        "put libb1_VERSION_amd64.deb or libb2_VERSION_amd64.deb there, for libb.so.1",
        "put libc6_VERSION_amd64.deb there, for libc.so.6",
        f"put {' or '.join(map(file_for, depends))} there, for libz.so.1, libm.so.6",
    ]
    assert "[demo] packages" in caught.value.hint


@pytest.mark.parametrize(
    ("library", "package"),
    [
        ("libz3.so.4", "libz3-4"), ("libgcc_s.so.1", "libgcc-s1"), ("libstdc++.so.6", "libstdc++6"),
        ("libLLVM.so.19.1", "libllvm19"), ("libclang-cpp.so.19.1", "libclang-cpp19"), ("libicuuc.so.72", "other"),
    ],
)  # fmt: skip
def test_a_package_is_likely_by_its_name(library: str, package: str) -> None:
    others = ["libother1", "binutils"] if package != "other" else []
    assert likely(library, [*others, package]) == [package]


def test_collect_copies_what_is_needed_and_drops_what_was_there(tmp_path: Path) -> None:
    names = debs.write_all(tmp_path / "mine")
    (tmp_path / "mine/notes.txt").touch()
    debs.write(tmp_path / "mine", "another", {})
    debs.write(tmp_path / "demo/packages", "old", {})
    packages = collected(tmp_path)
    assert sorted(path.name for path in packages.directory.iterdir()) == names
    assert packages.find("libc6").read_bytes() == (tmp_path / "mine/libc6_1_amd64.deb").read_bytes()
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["packages"]


@pytest.mark.parametrize("name", sorted(debs.CONTENTS))
def test_collect_names_each_package_that_is_missing(tmp_path: Path, name: str) -> None:
    debs.write_all(tmp_path / "mine")
    (tmp_path / f"mine/{name}_1_amd64.deb").unlink()
    with pytest.raises(
        PackageError, match=rf"^\d packages of the Linux guest are missing in {tmp_path}/mine"
    ) as caught:
        collected(tmp_path)
    shown = "linux-image-VERSION-cloud-amd64" if name == debs.KERNEL_NAME else name
    assert f"put {shown}_VERSION_amd64.deb" in caught.value.detail
    assert not (tmp_path / "demo/packages").exists()


@pytest.mark.parametrize("name", sorted(GUEST.programs))
def test_a_package_without_its_program_is_refused(tmp_path: Path, name: str) -> None:
    debs.write_all(tmp_path / "mine")
    debs.write(tmp_path / "mine", name, {"usr/share/doc/x": b"doc"})
    with pytest.raises(PackageError, match=f"^{name} does not hold ") as caught:
        collected(tmp_path)
    assert caught.value.hint == "use the packages of Debian 12 or 13"
