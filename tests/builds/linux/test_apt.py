"""The guest's packages by the host's real apt, from an archive on this machine."""

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.builds.linux.initramfs import collect
from pipeline.builds.linux.packages import Packages
from pipeline.errors import PackageError, ToolMissing
from pipeline.store.publish import replacing
from tests.builds.linux import debs
from tests.builds.linux.archives import METAPACKAGE, Archive, HostApt, served
from tests.conftest import Workspace
from tests.tasks.runs import in_a_namespace

LONG = 100.0
NEEDS_APT = pytest.mark.skipif(shutil.which("apt-get") is None, reason="this host has no apt")


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with served(tmp_path / "archive") as archive:
        archive.publish()
        yield archive


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: Archive) -> HostApt:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    host = HostApt(tmp_path / "host", monkeypatch)
    host.sources(archive.source())
    return host


def fetched(home: Path) -> Packages:
    """As the task does."""
    with replacing((home / "packages",)) as (made,):
        collect(made, None, home / "apt", timeout=LONG)
    return Packages(home / "packages")


def names(packages: Packages) -> list[str]:
    return [path.name for path in packages.files()]


def files(version: str = "1") -> list[str]:
    return sorted(f"{name}_{version}_amd64.deb" for name in debs.CONTENTS)


@NEEDS_APT
class TestFetching:
    @pytest.mark.parametrize("place", ["demo", "a b,c%d'e"])
    def test_the_packages_come_with_what_their_programs_load_and_nothing_else(
        self, host: HostApt, archive: Archive, tmp_path: Path, place: str
    ) -> None:
        assert names(fetched(tmp_path / place)) == files()
        assert archive.asked_for(".deb") == files()
        assert sorted(path.name for path in (tmp_path / place).iterdir()) == ["apt", "apt.lock", "packages"]

    @pytest.mark.slow
    def test_lists_are_fetched_once(self, host: HostApt, archive: Archive, tmp_path: Path) -> None:
        fetched(tmp_path)
        archive.asked_for("")
        assert names(fetched(tmp_path)) == files()
        assert archive.asked_for("") == files()

    @pytest.mark.slow
    def test_new_lists_are_fetched_when_the_files_of_the_old_ones_are_gone(
        self, host: HostApt, archive: Archive, tmp_path: Path
    ) -> None:
        fetched(tmp_path)
        archive.publish(version="2")
        assert names(fetched(tmp_path)) == files("2")

    @pytest.mark.slow
    def test_by_new_lists_another_kernel_is_found(
        self, host: HostApt, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fetched(tmp_path)
        newer = debs.KERNEL_NAME.replace("-9-", "-10-")
        monkeypatch.setitem(debs.CONTENTS, newer, debs.CONTENTS[debs.KERNEL_NAME])
        monkeypatch.delitem(debs.CONTENTS, debs.KERNEL_NAME)
        archive.publish(depends={METAPACKAGE: (newer,)})
        assert names(fetched(tmp_path)) == files()

    @pytest.mark.slow
    def test_new_lists_are_fetched_for_another_source(self, host: HostApt, archive: Archive, tmp_path: Path) -> None:
        fetched(tmp_path)
        archive.publish("next", version="3")
        host.sources(archive.source("next"))
        assert names(fetched(tmp_path)) == files("3")

    @pytest.mark.slow
    def test_several_at_a_time_share_the_lists(self, host: HostApt, archive: Archive, tmp_path: Path) -> None:
        fetched(tmp_path)
        archive.publish(version="2")
        with ThreadPoolExecutor(3) as workers:
            jobs = [
                workers.submit(collect, tmp_path / f"packages-{number}", None, tmp_path / "apt", timeout=LONG)
                for number in range(3)
            ]
            assert [names(job.result()) for job in jobs] == [files("2")] * 3


@NEEDS_APT
class TestTheHostDoesNotMatter:
    def test_what_is_installed(self, host: HostApt, tmp_path: Path) -> None:
        host.installed({"libc6": "9", "zlib1g": "1", debs.KERNEL_NAME: "9", METAPACKAGE: "9"})
        assert names(fetched(tmp_path)) == files()

    def test_what_is_pinned(self, host: HostApt, tmp_path: Path) -> None:
        host.pin("Package: *\nPin: release n=stable\nPin-Priority: -1\n")
        host.configure('APT::Default-Release "potato";')
        assert names(fetched(tmp_path)) == files()

    def test_what_is_pinned_in_a_directory(self, host: HostApt, tmp_path: Path) -> None:
        parts = tmp_path / "parts"
        parts.mkdir()
        (parts / "all").write_text("Package: *\nPin: release n=stable\nPin-Priority: -1\n")
        host.configure(f'Dir::Etc::PreferencesParts "{parts}";')
        assert names(fetched(tmp_path)) == files()

    def test_where_it_keeps_packages_and_that_they_are_there_already(
        self, host: HostApt, archive: Archive, tmp_path: Path
    ) -> None:
        kept = tmp_path / "kept"
        kept.mkdir()
        for name in files():
            shutil.copy(archive.directory / "stable" / name, kept)
        host.configure(f'Dir::Cache::archives "{kept}";')
        assert names(fetched(tmp_path)) == files()
        assert sorted(path.name for path in kept.iterdir()) == files()

    def test_what_is_done_after_an_update(self, host: HostApt, tmp_path: Path) -> None:
        host.configure(f'APT::Update::Post-Invoke {{ "touch {tmp_path}/done; exit 1"; }};')
        assert names(fetched(tmp_path)) == files()
        assert not (tmp_path / "done").exists()

    def test_other_architectures_and_a_source_that_is_broken(
        self, host: HostApt, archive: Archive, tmp_path: Path
    ) -> None:
        host.configure('APT::Architectures { "amd64"; "arm64"; };')
        host.sources(archive.source(), archive.source("gone"))
        assert names(fetched(tmp_path)) == files()

    def test_newer_packages_of_another_release_than_the_hosts(
        self, host: HostApt, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        played(monkeypatch, {"ID": "debian", "VERSION_CODENAME": "stable"})
        archive.publish("unstable", version="5")
        host.sources(archive.source(), archive.source("unstable"))
        assert names(fetched(tmp_path)) == files()


@NEEDS_APT
class TestFailing:
    def test_an_archive_that_is_gone(self, host: HostApt, archive: Archive, tmp_path: Path) -> None:
        shutil.rmtree(archive.directory)
        with pytest.raises(PackageError, match=r"^apt could not fetch its package lists") as caught:
            fetched(tmp_path)
        assert "root" not in caught.value.hint
        assert "404" in caught.value.detail
        assert "Unable to locate package" in caught.value.detail
        assert not (tmp_path / "packages").exists()

    def test_a_full_disk(self, host: HostApt, archive: Archive, workspace: Workspace) -> None:
        workspace.environment["APT_CONFIG"] = os.environ["APT_CONFIG"]
        mount = 'mkdir "$ROOT" && mount -t tmpfs -o size=40k none "$ROOT"'
        status, said = in_a_namespace(workspace, mount, "luigi --module tasks DemoPackages")
        assert status == 30, said
        assert "error: apt could not fetch " in said
        assert "hint: free some space on that disk, or move the store: [store] root or TOPCOAT_ROOT" in said

    def test_a_package_that_is_not_there(self, host: HostApt, archive: Archive, tmp_path: Path) -> None:
        archive.publish(without=["dropbear-bin"])
        with pytest.raises(PackageError, match=r"^apt could not fetch the packages of the Linux guest") as caught:
            fetched(tmp_path)
        assert "Unable to locate package dropbear-bin" in caught.value.detail

    def test_packages_that_do_not_fit_together(self, host: HostApt, archive: Archive, tmp_path: Path) -> None:
        archive.publish(depends={"dropbear-bin": ("libc6 (>= 7)",)})
        with pytest.raises(PackageError) as caught:
            fetched(tmp_path)
        assert " dropbear-bin : Depends: libc6 (>= 7) but 1 is to be installed" in caught.value.detail

    def test_a_library_that_no_package_depends_on(self, host: HostApt, archive: Archive, tmp_path: Path) -> None:
        archive.publish(depends={"dropbear-bin": ("libc6", "libtommath1")})
        with pytest.raises(
            PackageError, match=r"^1 packages of the Linux guest are missing in Debian's archive"
        ) as caught:
            fetched(tmp_path)
        assert caught.value.detail == "put the package that has it there, for libz.so.1"

    def test_on_another_system_the_hint_is_of_that(
        self, host: HostApt, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        played(monkeypatch, {"ID": "ubuntu", "PRETTY_NAME": "Ubuntu 26.04", "VERSION_CODENAME": "resolute"})
        archive.publish(without=[METAPACKAGE])
        with pytest.raises(PackageError) as caught:
            fetched(tmp_path)
        assert caught.value.hint.startswith("this is Ubuntu 26.04: run Topcoat on Debian 12 or 13, or in a container")


def played(monkeypatch: pytest.MonkeyPatch, release: Mapping[str, str]) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: dict(release))


def test_without_apt_the_system_and_the_setting_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    played(monkeypatch, {"ID": "fedora", "PRETTY_NAME": "Fedora Linux 43"})
    with pytest.raises(ToolMissing, match=r"there is no apt to fetch them: this is Fedora Linux 43$") as caught:
        fetched(tmp_path)
    assert caught.value.detail == (
        "busybox-static, dropbear-bin, openssh-sftp-server, linux-image-VERSION-cloud-amd64, libc6, libgcc-s1, "
        "libstdc++6, and the packages of the libraries that they load"
    )
    assert "[demo] packages" in caught.value.hint


def test_another_machine_cannot_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(PackageError, match="this is a aarch64 machine") as caught:
        fetched(tmp_path)
    assert "[demo] packages" in caught.value.hint
