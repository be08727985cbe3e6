import bz2
import lzma
from pathlib import Path

import pytest

from pipeline.builds.linux.packages import Packages, depends, members, opened
from pipeline.errors import PackageError
from tests.builds.linux import debs


def read_all(package: Path) -> dict[str, bytes]:
    found = {}
    with opened(package) as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isfile() else None
            found[member.name] = stream.read() if stream else b""
    return found


def written(directory: Path, content: bytes) -> Path:
    path = directory / "x_1_amd64.deb"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("how", ["xz", "zst", "gz"])
def test_the_files_of_a_package_are_read(tmp_path: Path, how: str) -> None:
    package = debs.write(tmp_path, "x", {"bin/x": b"odd", "etc/y": b"", "l": debs.Link("bin/x")}, how=how)
    assert read_all(package) == {"./bin/x": b"odd", "./etc/y": b"", "./l": b""}


def test_members_of_odd_size_are_padded(tmp_path: Path) -> None:
    archive = debs.ar({"debian-binary": b"2.0", "control.tar": b"x", "data.tar.xz": XZ})
    assert read_all(written(tmp_path, archive)) == {"./bin/x": b"content" * 1000}


TAR = debs.tar({"bin/x": b"content" * 1000})
XZ = lzma.compress(TAR)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"MZ", "it is no ar archive"),
        (b"", "it is no ar archive"),
        (debs.deb(XZ)[:-100], "it is cut off"),
        (debs.deb(XZ)[:100], "it is cut off"),
        (b"!<arch>\n", "it is cut off"),
        (debs.ar({"debian-binary": b"2.0\n"}), "it is cut off"),
        (debs.ar({"debian-binary": b"2.0\n"}).replace(b"4         `", b"four      `"), "it is cut off"),
        (debs.deb(bz2.compress(TAR), "data.tar.bz2"), "data.tar.bz2 is compressed in an unknown way"),
        (debs.deb(TAR, "data.tar"), "data.tar is compressed in an unknown way"),
        (debs.deb(XZ[:100] + b"\xff" * 8 + XZ[108:]), ""),
        (debs.deb(XZ[:-40]), "Compressed file ended before"),
        (debs.deb(lzma.compress(b"rubbish" * 1000)), ""),
        (debs.deb(debs.zstd(b"rubbish" * 1000), "data.tar.zst"), ""),
        (debs.deb(lzma.compress(TAR[:-8000])), "unexpected end of data"),
    ],
    ids=["no archive", "empty", "cut in data", "cut in control", "no members", "no data", "no size", "bzip2", "plain",
         "broken xz", "cut xz", "no tar", "no tar in zst", "cut tar"],
)  # fmt: skip
def test_a_damaged_package_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    package = written(tmp_path, content)
    with pytest.raises(PackageError) as caught:
        read_all(package)
    assert str(caught.value).startswith(f"x_1_amd64.deb is no sound Debian package: {why}")
    assert caught.value.hint == f"delete {package} and try again"


def test_a_damaged_zstd_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(PackageError):
        read_all(written(tmp_path, debs.deb(b"\x28\xb5\x2f\xfd" + b"\xff" * 100, "data.tar.zst")))


def test_what_a_package_depends_on_by_every_way_that_it_can_be_written(tmp_path: Path) -> None:
    control = (
        b"Package: x\nPre-Depends: libc6 (>= 2.36)\nRecommends: no\n"
        b"Depends: libz3-4 (>= 1:4.8~rc1), python3:any | python3.11 <!nocheck>,\n libstdc++6 [amd64],libgcc-s1\n"
        b"Description: x\n Depends: not-this\n"
    )
    package = written(tmp_path, debs.deb(XZ, control=control))
    assert depends(package) == ["libc6", "libz3-4", "python3", "python3.11", "libstdc++6", "libgcc-s1"]


def test_a_package_that_depends_on_nothing(tmp_path: Path) -> None:
    assert depends(debs.write(tmp_path, "x", {})) == []


def test_files_are_named_as_in_a_merged_usr(tmp_path: Path) -> None:
    files = {"bin/x": b"", "lib/y": b"", "lib64/z": b"", "sbin/s": b"", "usr/bin/u": b"", "etc/e": b"", "library": b""}
    with opened(debs.write(tmp_path, "x", files)) as archive:
        names = [name for name, _ in members(archive)]
    assert names == ["usr/bin/x", "usr/lib/y", "usr/lib64/z", "usr/sbin/s", "usr/bin/u", "etc/e", "library"]


def test_packages_are_found_by_name_the_last_of_several(tmp_path: Path) -> None:
    for version in ("1.9", "1.10"):
        debs.write(tmp_path, "libc6", {}, version=version)
        debs.write(tmp_path, f"linux-image-6.{version}-cloud-amd64", {})
    debs.write(tmp_path, "libc6-dev", {}, version="3")
    debs.write(tmp_path, "linux-image-cloud-amd64", {})
    packages = Packages(tmp_path)
    assert packages.find("libc6").name == "libc6_1.10_amd64.deb"
    assert packages.kernel().name == "linux-image-6.1.10-cloud-amd64_1_amd64.deb"
    assert packages.newest("zlib1g") is None


def test_all_packages_are_listed(tmp_path: Path) -> None:
    names = debs.write_all(tmp_path)
    packages = Packages(tmp_path)
    assert [path.name for path in packages.files()] == names
    listed = packages.listing()["packages"]
    assert isinstance(listed, dict)
    assert sorted(listed) == names
    assert len(set(listed.values())) == len(names)


@pytest.mark.parametrize(("name", "file"), [("libc6", "libc6_"), ("kernel", "linux-image-VERSION-cloud-amd64_")])
def test_a_missing_package_is_named(tmp_path: Path, name: str, file: str) -> None:
    packages = Packages(tmp_path)
    with pytest.raises(PackageError, match=f"there is no (package )?{name} in {tmp_path}") as caught:
        packages.kernel() if name == "kernel" else packages.find(name)
    assert caught.value.hint == f"put {file}VERSION_amd64.deb of Debian there"
