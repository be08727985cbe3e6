"""When the packages of the Linux guest are collected again: small ones, from a directory."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builds.linux import debs
from tests.conftest import Workspace

LIBC = "libc6_1_amd64.deb"


@pytest.fixture
def collected(workspace: Workspace) -> Workspace:
    """A workspace with `[demo] packages`, which have been collected."""
    debs.write_all(workspace.directory / "debs")
    workspace.configure("[demo]\npackages = debs\n")
    assert reasons(workspace) == ["missing"]
    return workspace


def reasons(workspace: Workspace) -> list[str]:
    outcome = workspace.luigi("DemoPackages")
    assert outcome.status == 0, outcome.text
    said = [line.removeprefix("DemoPackages: ") for line in outcome.text.splitlines()]
    assert len([line for line in said if line.startswith("made packages.json and 10 others in ")]) == len(said) // 2
    return [line for line in said if not line.startswith("made")]


def test_they_are_collected_once(collected: Workspace) -> None:
    assert reasons(collected) == []


def test_a_provided_package_that_changes_is_collected_again(collected: Workspace) -> None:
    debs.write(collected.directory / "debs", "libc6", {**debs.CONTENTS["libc6"], "file": b"newer"})
    (reason,) = reasons(collected)
    assert reason.startswith(f"input {LIBC} changed: b3:")
    assert reasons(collected) == []


def test_a_newer_provided_package_is_collected(collected: Workspace) -> None:
    debs.write(collected.directory / "debs", "libc6", {**debs.CONTENTS["libc6"], "file": b"newer"}, version="2")
    (reason,) = reasons(collected)
    assert reason.startswith("input libc6_2_amd64.deb changed: none -> b3:")
    assert (collected.store.demo / "packages/libc6_2_amd64.deb").exists()
    assert not (collected.store.demo / "packages" / LIBC).exists()


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (Path.unlink, f"output {LIBC} missing"),
        (lambda path: path.write_bytes(b"x"), f"output {LIBC} changed"),
        (lambda path: shutil.copy(path, path.with_name("another.deb")), "output another.deb is new"),
    ],
)
def test_a_collected_package_that_is_touched_is_collected_again(
    collected: Workspace, edit: Callable[[Path], object], reason: str
) -> None:
    edit(collected.store.demo / "packages" / LIBC)
    assert reasons(collected) == [reason]
    assert reasons(collected) == []


def test_provided_packages_that_have_gone_are_asked_for(collected: Workspace) -> None:
    shutil.rmtree(collected.directory / "debs")
    outcome = collected.luigi("DemoPackages")
    assert outcome.status == 30
    assert "7 packages of the Linux guest are missing" in outcome.text
    assert "[demo] packages names the directory" in outcome.text
    assert "Traceback" not in outcome.text


def test_without_apt_one_message_says_what_to_do(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    outcome = workspace.luigi("DemoInitramfs", PATH=str(tmp_path / "bin"))
    assert outcome.status == 30
    assert outcome.text.count("error: ") == 1
    assert "there is no apt to fetch them: this is " in outcome.text
    assert "busybox-static, " in outcome.text
    assert " clang-19, " in outcome.text
    assert " squashfs-tools, " in outcome.text
    assert "run Topcoat on Debian 12 or 13, or in a container of one; or name a directory" in outcome.text
    assert workspace.files() == []
