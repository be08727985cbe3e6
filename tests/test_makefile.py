"""`make` on hosts that lack something: with programs in PATH that play apt, root, and the host's Python."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
MAKE = shutil.which("make")

pytestmark = pytest.mark.skipif(MAKE is None, reason="this host has no make")

STALE = """\
case $1 in
    update) touch "$PLACE/fresh" ;;
    install) [ -e "$PLACE/fresh" ] || { echo "E: 404  Not Found"; exit 100; } ;;
esac"""
BROKEN = 'echo "E: $1 fails"; echo "E: Unable to correct problems" >&2; exit 100'


@dataclass
class Host:
    """A host with nothing but what was put in its PATH."""

    place: Path

    def has(self, name: str, text: str = ":") -> "Host":
        """A program; its calls are logged."""
        path = self.place / "bin" / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>"$PLACE/calls"\n{text}\n')
        path.chmod(0o755)
        return self

    def calls(self) -> list[str]:
        path = self.place / "calls"
        return [line for line in path.read_text().splitlines() if line.startswith("apt-get")] if path.exists() else []

    def make(self, *words: str, system: str = "Debian GNU/Linux 12") -> subprocess.CompletedProcess[str]:
        release = self.place / "os-release"
        if system:
            release.write_text(f'PRETTY_NAME="{system}"\n')
        assert MAKE is not None
        return subprocess.run(
            [MAKE, f"OS_RELEASE={release}", *words],
            cwd=PROJECT,
            env={"PATH": str(self.place / "bin"), "PLACE": str(self.place)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "bin").mkdir()
    for name in ("tail", "sed", "touch"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / "bin" / name).symlink_to(found)
    return Host(tmp_path).has("id", "echo 0")


INSTALL = "apt-get install -y --no-install-recommends qemu-system-x86 qemu-utils"


def test_qemu_that_is_there_is_left_alone(host: Host) -> None:
    done = host.has("qemu-system-x86_64").has("qemu-img").has("apt-get").make("qemu")
    assert (done.returncode, done.stdout, host.calls()) == (0, "", [])


def test_qemu_is_installed(host: Host) -> None:
    done = host.has("apt-get").make("qemu")
    assert (done.returncode, done.stdout) == (0, "installing QEMU\n")
    assert host.calls() == [INSTALL]


def test_package_lists_that_are_old_are_fetched_anew_once(host: Host) -> None:
    done = host.has("apt-get", STALE).make("qemu")
    assert (done.returncode, done.stdout, done.stderr) == (0, "installing QEMU\n", "")
    assert host.calls() == [INSTALL, "apt-get update -q", INSTALL]


def test_what_apt_said_at_last_is_told(host: Host) -> None:
    done = host.has("apt-get", BROKEN).make("qemu")
    assert done.returncode == 2
    assert "error: apt cannot install QEMU: qemu-system-x86 qemu-utils. It said at last:\n" in done.stderr
    assert "  | E: update fails\n" in done.stderr
    assert "  | E: Unable to correct problems\n" in done.stderr


def test_without_root_the_command_for_root_is_told(host: Host) -> None:
    done = host.has("apt-get").has("id", "echo 1000").make("qemu")
    assert done.returncode == 2
    assert "error: QEMU is missing. As root: apt-get update && apt-get install --no-install-recommends" in done.stderr
    assert host.calls() == []


@pytest.mark.parametrize(("system", "told"), [("Fedora Linux 43", "Fedora Linux 43"), ("", "a system")])
def test_a_system_without_apt_is_told_what_to_do(host: Host, system: str, told: str) -> None:
    done = host.make("qemu", system=system)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert line == (
        f"error: QEMU is missing, and this is {told} without apt. "
        "Install it, or run Topcoat on Debian 12 or 13, or in a container of one"
    )


class TestGdb:
    """Tests can do without it, so that it is nobody's duty."""

    def test_it_is_installed_if_we_may(self, host: Host) -> None:
        done = host.has("apt-get").make("gdb")
        assert (done.returncode, done.stdout, done.stderr) == (0, "installing gdb\n", "")
        assert host.calls() == ["apt-get install -y --no-install-recommends gdb gdbserver"]

    @pytest.mark.parametrize("there", [("gdb", "gdbserver"), ("id",)], ids=["it is there", "not root"])
    def test_else_nothing_happens(self, host: Host, there: tuple[str, ...]) -> None:
        for name in there:
            host.has(name, "echo 1000")
        done = host.has("apt-get").make("gdb")
        assert (done.returncode, done.stdout, done.stderr, host.calls()) == (0, "", "", [])

    def test_that_it_cannot_be_is_told(self, host: Host) -> None:
        done = host.has("apt-get", BROKEN).make("gdb")
        assert done.returncode == 0
        assert "error: apt cannot install gdb: gdb gdbserver. It said at last:\n" in done.stderr
        assert done.stderr.endswith("tests that need gdb are skipped\n")


@pytest.mark.parametrize("fits", ["python3", "python3.12"])
def test_the_first_python_that_fits_is_taken(host: Host, fits: str) -> None:
    for name in ("python3", "python3.12"):
        host.has(name, ":" if name == fits else "exit 1")
    done = host.make("CANDIDATES=missing python3 python3.12", "--eval", "shown: ; @{ echo $(PYTHON); }", "shown")
    assert done.stdout == f"{fits}\n"


def test_if_none_fits_the_usual_one_is_named(host: Host) -> None:
    done = host.has("python3", "exit 1").make("CANDIDATES=python3", "--eval", "shown: ; @{ echo $(PYTHON); }", "shown")
    assert done.stdout == "python3\n"


def test_a_campaign_ends_in_a_report() -> None:
    assert MAKE is not None
    done = subprocess.run([MAKE, "-n", "campaign"], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=True)
    assert "luigi --module tasks CampaignReport --file docs/demo-campaign.toml --workers 2\n" in done.stdout
