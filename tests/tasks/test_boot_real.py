"""The main job with the real QEMU and the real Linux guest."""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.builds import ssh_keys
from pipeline.store.digests import digest
from tests.conftest import Workspace, qemus_of
from tests.waiting import SOON


def test_from_nothing_to_a_guest_that_answers(workspace: Workspace) -> None:
    done = workspace.luigi("BootInstance")
    assert done.status == 0, done.text
    assert "build: demo" in done.text
    for task in ("SSHKeyPair", "InitrdWithKey", "ExtendedBlk", "DemoKernel", "DemoInitramfs", "DemoDisk"):
        assert f"{task}: made" in done.text
    assert workspace.topcoat("ssh", "i0", "--", "uname", "-s").stdout == b"Linux\n"
    assert (workspace.store.keys / "sshid").stat().st_mode & 0o777 == 0o600
    log = workspace.instance().serial_log.read_text()
    assert "disk vda has 3221225472 bytes, FVM magic: yes" in log, "the guest sees the disk that was prepared"
    assert log.count("{{{reset}}}") == 1
    assert "failed" not in log


def test_a_second_run_boots_nothing_and_the_images_outlive_a_stop(demo: Workspace) -> None:
    assert demo.luigi("BootInstance").status == 0
    first = demo.instance().live_handle()
    again = demo.luigi("BootInstance")
    assert (again.status, demo.instance().live_handle()) == (0, first)
    assert "i0 is running" in again.text
    assert "made" not in again.text

    assert demo.topcoat("stop", "i0").stdout == b"i0: stopped\n"
    assert qemus_of(demo.directory) == []
    assert demo.instance().live_handle() is None

    third = demo.luigi("BootInstance")
    assert third.status == 0
    assert "made" not in third.text
    second = demo.instance().live_handle()
    assert first
    assert second
    assert first.boot_id != second.boot_id


def test_two_instances_run_side_by_side_from_the_same_images(demo: Workspace) -> None:
    with ThreadPoolExecutor(2) as pool:
        boots = list(pool.map(lambda name: demo.luigi("BootInstance", "--name", name), ["a", "b"]))
    assert [boot.status for boot in boots] == [0, 0], [boot.text for boot in boots]
    for name in ("a", "b"):
        assert demo.topcoat("ssh", name, "--", "hostname").stdout.decode().strip() == name
    demo.topcoat("ssh", "a", "--", "echo only in a > /dev/vda")
    assert demo.topcoat("ssh", "b", "--", "head -c 8 /dev/vda").stdout == b"FVM PART", "each has a disk of its own"
    listed = json.loads(demo.topcoat("instances", "--json").stdout)["instances"]
    assert [row["state"] for row in listed] == ["running", "running"]
    assert len({row["port"] for row in listed}) == 2
    assert demo.topcoat("stop", "--all").stdout == b"a: stopped\nb: stopped\n"
    assert qemus_of(demo.directory) == []


def test_the_prepared_image_is_never_written(demo: Workspace) -> None:
    image = demo.store.images("demo") / "extended-fvm.blk"
    before = (image.stat().st_mtime_ns, digest(image))
    booted = demo.luigi("BootInstance")
    assert booted.status == 0, booted.text
    assert demo.topcoat("ssh", "i0", "--", "dd if=/dev/urandom of=/dev/vda bs=1M count=4 && sync").status == 0
    assert demo.topcoat("stop", "i0").status == 0
    assert (image.stat().st_mtime_ns, digest(image)) == before


def test_a_guest_that_powers_itself_off_counts_as_stopped_and_can_be_booted_again(demo: Workspace) -> None:
    assert demo.luigi("BootInstance").status == 0
    handle = demo.instance().live_handle()
    assert handle
    demo.topcoat("ssh", "i0", "--", "poweroff -f")
    assert handle.process.wait(SOON)
    rows = json.loads(demo.topcoat("instances", "--json").stdout)["instances"]
    assert rows[0]["state"] == "stopped"
    assert demo.luigi("BootInstance").status == 0


def test_a_lost_key_remakes_key_and_initrd_but_not_the_disk(demo: Workspace) -> None:
    (demo.store.keys / "sshid.pub").unlink()
    done = demo.luigi("BootInstance")
    assert done.status == 0, done.text
    assert "SSHKeyPair: made" in done.text
    assert "InitrdWithKey: made" in done.text
    assert "ExtendedBlk: made" not in done.text
    assert demo.topcoat("ssh", "i0", "--", "true").status == 0


def test_an_rsa_key_opens_the_guest_too(demo: Workspace) -> None:
    demo.configure("[SSHKeyPair]\ntype = rsa\n")
    (demo.store.keys / "sshid").unlink()
    assert demo.luigi("BootInstance").status == 0
    assert (demo.store.keys / "sshid").read_bytes().startswith(b"-----BEGIN RSA PRIVATE KEY-----\n")
    assert demo.topcoat("ssh", "i0", "--", "true").status == 0


def test_a_store_with_a_long_path_that_has_blanks_and_commas_boots(demo: Workspace) -> None:
    moved = demo.directory / ("my store, really" * 8)  # longer than the address of a socket can be
    demo.store.root.rename(moved)
    demo.environment["TOPCOAT_ROOT"] = str(moved)
    done = demo.luigi("BootInstance")
    try:
        assert done.status == 0, done.text
        assert "made" not in done.text, "moving a store makes nothing stale"
        assert demo.topcoat("ssh", "i0", "--", "true").status == 0
    finally:
        assert demo.topcoat("stop", "i0").status == 0


def test_a_guest_can_be_used_when_its_store_was_moved(demo: Workspace) -> None:
    assert demo.luigi("BootInstance").status == 0
    moved = demo.directory / "moved"
    demo.store.root.rename(moved)
    demo.environment["TOPCOAT_ROOT"] = str(moved)
    done = demo.topcoat("ssh", "i0", "--", "echo here")
    assert (done.status, done.stdout) == (0, b"here\n"), done.text
    assert demo.run("topcoat", "console", "i0", stdin=b"echo $((6*7))\n").status == 0
    assert demo.topcoat("stop", "i0").stdout == b"i0: stopped\n"
    assert not demo.instance().has_remains


def test_programs_in_a_relative_directory_of_path(demo: Workspace) -> None:
    """QEMU works in the directory of its instance, where that would be another one."""
    (demo.directory / "programs").mkdir()
    for name in ("qemu-system-x86_64", "qemu-img"):
        found = shutil.which(name)
        assert found
        (demo.directory / "programs" / name).symlink_to(found)
    demo.environment["PATH"] = f"programs:{demo.environment['PATH']}"
    done = demo.luigi("BootInstance")
    assert done.status == 0, done.text
    handle = demo.instance().live_handle()
    assert handle
    assert handle.argv[0] == str(demo.directory / "programs/qemu-system-x86_64")
    assert demo.topcoat("stop", "i0").status == 0


AT_FIRST = {
    "never": ["attempt", "spawn", "port", "first byte", "marker"],
    "auto": ["attempt", "spawn", "port", "restored", "renewed", "marker"],
}


@pytest.mark.parametrize("warm", AT_FIRST)
def test_the_timeline_tells_every_stage_in_order(demo: Workspace, warm: str) -> None:
    assert demo.luigi("BootInstance", "--warm", warm).status == 0
    lines = [json.loads(line) for line in demo.instance().timeline.read_text().splitlines()]
    assert lines[0]["schema"] == 2
    assert [line["event"] for line in lines[1:]] == [*AT_FIRST[warm], "tcp", "banner", "auth", "echo", "ready"]
    seconds = [line["seconds"] for line in lines[1:]]
    assert seconds == sorted(seconds)


def test_a_guest_that_refuses_the_key_is_not_called_ready(demo: Workspace) -> None:
    """Its tool puts in another key: the marker comes, the login is refused."""
    _, other = ssh_keys.generate("ed25519")
    (demo.directory / "other.pub").write_bytes(other)
    tool = demo.directory / "zbi"
    tool.write_text(
        f'#!/bin/sh\n{sys.executable} -m pipeline.images.cpio -o "$2" "$3" -e data/ssh/authorized_keys=other.pub\n'
    )
    tool.chmod(0o755)
    demo.configure("[build]\nzbitool = zbi\n[tools]\nproof = off\n")
    done = demo.luigi("BootInstance")
    assert done.status == 30
    assert "refuses the key" in done.text
    assert "hint: does its image hold this key?" in done.text
    assert "FVM magic: yes" in done.text, "the end of the console is shown"
    assert "Traceback" not in done.text
    assert qemus_of(demo.directory) == []
    assert demo.luigi("BootInstance", "--ready", "marker").status == 0, "who does not need SSH may have it"
