import bz2
import lzma
from pathlib import Path

import pytest

from pipeline.demo.packages import LIBRARIES, PROGRAMS, Packages, collect, collected_in, fetch, opened
from pipeline.errors import PackageError, ToolMissing
from tests.demo import debs

LONG = 30.0
NAMES = ("linux-image-VERSION-cloud-amd64", *PROGRAMS, *LIBRARIES)


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


@pytest.mark.parametrize("how", ["xz", "zst"])
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


def test_packages_are_found_by_name_the_last_of_several(tmp_path: Path) -> None:
    for version in ("1", "2"):
        debs.write(tmp_path, "libc6", {}, version=version)
        debs.write(tmp_path, f"linux-image-6.{version}-cloud-amd64", {})
    debs.write(tmp_path, "libc6-dev", {}, version="3")
    debs.write(tmp_path, "linux-image-cloud-amd64", {})
    packages = Packages(tmp_path)
    assert packages.find("libc6").name == "libc6_2_amd64.deb"
    assert packages.kernel().name == "linux-image-6.2-cloud-amd64_1_amd64.deb"


def test_all_packages_are_used_and_listed(tmp_path: Path) -> None:
    names = debs.write_all(tmp_path)
    (tmp_path / "more_1_amd64.deb").touch()
    packages = Packages(tmp_path)
    packages.check()
    assert sorted(path.name for path in packages.files()) == names
    listed = packages.listing()["packages"]
    assert isinstance(listed, dict)
    assert sorted(listed) == names
    assert len(set(listed.values())) == len(names)


def test_check_lists_all_that_is_missing(tmp_path: Path) -> None:
    debs.write(tmp_path, "busybox-static", {})
    with pytest.raises(PackageError, match=f"^{len(NAMES) - 1} packages of the demo guest are missing in ") as caught:
        Packages(tmp_path).check()
    lines = caught.value.detail.splitlines()
    assert [line.split()[1].split("_")[0] for line in lines] == [name for name in NAMES if name != "busybox-static"]
    assert "[demo] packages" in caught.value.hint


@pytest.mark.parametrize("name", ["libc6", "kernel"])
def test_a_missing_package_is_named(tmp_path: Path, name: str) -> None:
    packages = Packages(tmp_path)
    with pytest.raises(PackageError, match=f"there is no (package )?{name} in {tmp_path}"):
        packages.kernel() if name == "kernel" else packages.find(name)


def test_collect_copies_what_is_needed_and_drops_what_was_there(tmp_path: Path) -> None:
    names = debs.write_all(tmp_path / "mine")
    (tmp_path / "mine/notes.txt").touch()
    old = collected_in(tmp_path / "demo").directory
    old.mkdir(parents=True)
    (old / "old_1_amd64.deb").touch()
    packages = collect(tmp_path / "demo", tmp_path / "mine", timeout=LONG)
    assert packages == collected_in(tmp_path / "demo")
    assert sorted(path.name for path in packages.directory.iterdir()) == names
    assert packages.find("libc6").read_bytes() == (tmp_path / "mine/libc6_1_amd64.deb").read_bytes()


def test_collect_from_an_incomplete_directory_collects_nothing(tmp_path: Path) -> None:
    debs.write(tmp_path / "mine", "libc6", {})
    with pytest.raises(PackageError, match=f"are missing in {tmp_path}/mine"):
        collect(tmp_path / "demo", tmp_path / "mine", timeout=LONG)
    assert list((tmp_path / "demo").iterdir()) == []


class Apt:
    """Scripts in PATH in place of apt-get and apt-cache. `lists`: whether there are package lists from the start."""

    DOWNLOAD = 'for name; do case "$name" in -*|download|update) ;; *) : >"${name}_1_amd64.deb" ;; esac; done'
    DEPENDS = f"echo linux-image-cloud-amd64; echo '  Depends: {debs.KERNEL_NAME}'"

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bin, self.log = directory / "bin", directory / "log"
        self.bin.mkdir()
        monkeypatch.setenv("PATH", str(self.bin))
        monkeypatch.setattr("platform.machine", lambda: "x86_64")

    def play(self, *, lists: bool = True, get: str = DOWNLOAD, depends: str = DEPENDS) -> None:
        known = "echo 'linux-image-cloud-amd64 | 6.1'" if lists else ":"
        self._script("apt-get", get)
        self._script("apt-cache", f'case "$*" in madison*) {known} ;; *depends*) {depends} ;; esac')

    def _script(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\necho {name} \"$*\" >>'{self.log}'\n{text}\n")
        path.chmod(0o755)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apt:
    return Apt(tmp_path, monkeypatch)


def test_apt_downloads_all_packages(apt: Apt, tmp_path: Path) -> None:
    apt.play()
    packages = collect(tmp_path / "demo", None, timeout=LONG)
    packages.check()
    assert packages.kernel().name == f"{debs.KERNEL_NAME}_1_amd64.deb"
    madison, depends, download = apt.calls()
    assert madison == "apt-cache madison linux-image-cloud-amd64"
    assert depends == "apt-cache depends linux-image-cloud-amd64"
    wanted = " ".join((debs.KERNEL_NAME, *PROGRAMS, *LIBRARIES))
    assert download == f"apt-get -q -oAPT::Sandbox::User=root download {wanted}"
    assert not (tmp_path / "demo/apt").exists()


def test_without_package_lists_private_ones_are_fetched(apt: Apt, tmp_path: Path) -> None:
    apt.play(lists=False)
    lists = tmp_path / "private"
    (tmp_path / "debs").mkdir()
    fetch(tmp_path / "debs", lists, timeout=LONG)
    Packages(tmp_path / "debs").check()
    options = f"-oDir::State::lists={lists}/lists -oDir::Cache={lists}/cache -oDebug::NoLocking=1"
    _, update, depends, download = apt.calls()
    assert update == f"apt-get -q -oAPT::Sandbox::User=root {options} update"
    assert depends == f"apt-cache {options} depends linux-image-cloud-amd64"
    assert download.startswith(f"apt-get -q -oAPT::Sandbox::User=root {options} download {debs.KERNEL_NAME} ")
    assert (lists / "lists/partial").is_dir()
    assert (lists / "cache/archives/partial").is_dir()


def test_apt_fails(apt: Apt, tmp_path: Path) -> None:
    apt.play(get="echo 'E: Unable to fetch' >&2; exit 100")
    with pytest.raises(PackageError, match="apt could not fetch the packages of the demo guest") as caught:
        collect(tmp_path / "demo", None, timeout=LONG)
    assert caught.value.detail.endswith("E: Unable to fetch")
    assert list((tmp_path / "demo").iterdir()) == []


def test_apt_leaves_one_out(apt: Apt, tmp_path: Path) -> None:
    apt.play(get=f"{Apt.DOWNLOAD}; /bin/rm -f libc6_*")
    with pytest.raises(PackageError, match=r"^1 packages of the demo guest are missing") as caught:
        collect(tmp_path / "demo", None, timeout=LONG)
    assert caught.value.detail.startswith("put libc6_")
    assert not (tmp_path / "demo/packages").exists()


def test_apt_knows_no_kernel(apt: Apt, tmp_path: Path) -> None:
    apt.play(depends="echo 'linux-image-cloud-amd64'")
    with pytest.raises(PackageError, match="apt knows no kernel behind linux-image-cloud-amd64") as caught:
        fetch(tmp_path, tmp_path / "apt", timeout=LONG)
    assert "[demo] packages" in caught.value.hint


def test_apt_does_not_even_know_the_name(apt: Apt, tmp_path: Path) -> None:
    apt.play(depends="echo 'E: No packages found' >&2; exit 100")
    with pytest.raises(PackageError, match="apt knows no kernel behind linux-image-cloud-amd64"):
        fetch(tmp_path, tmp_path / "apt", timeout=LONG)


def test_without_apt_the_packages_and_the_setting_are_named(apt: Apt, tmp_path: Path) -> None:
    with pytest.raises(ToolMissing, match="there is no apt to fetch them") as caught:
        fetch(tmp_path, tmp_path / "apt", timeout=LONG)
    assert caught.value.detail == ", ".join(NAMES)
    assert "[demo] packages" in caught.value.hint


def test_another_machine_cannot_fetch(apt: Apt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt.play()
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(PackageError, match="this is a aarch64 machine") as caught:
        fetch(tmp_path, tmp_path / "apt", timeout=LONG)
    assert "[demo] packages" in caught.value.hint
    assert not apt.log.exists()
