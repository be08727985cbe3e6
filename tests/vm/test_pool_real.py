"""The pool with the real QEMU and the real Linux guest."""

import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.builds import build
from pipeline.host.deadline import Deadline
from pipeline.host.process import Process
from pipeline.settings import Timeouts
from pipeline.ssh.connector import Connector
from pipeline.store.freshness import Key
from pipeline.vm.pool import Pool
from pipeline.vm.qemu.pooled import QemuGuests
from tests.conftest import Workspace, qemus_of
from tests.waiting import SOON

ROOT = Path(__file__).parents[2]

KILLED = """
import os, sys
from pathlib import Path
from pipeline.host.deadline import Deadline
from tests.vm.test_pool_real import open_pool
pool = open_pool(Path(sys.argv[1]), float(sys.argv[2]))
with pool.lease(Deadline(60)) as lease:
    print(lease.handle.process.pid, lease.handle.boot_id, flush=True)
    os.kill(os.getpid(), 9)
"""


def open_pool(root: Path, grace: float, version: int = 1) -> Pool:
    found = settings.load({"TOPCOAT_ROOT": str(root)}, Path("/"))
    key = Key("Test", version, {}, {}, {})
    return Pool(found, QemuGuests(found, build.load(found, {}), "ssh", lambda: key), grace=grace)


def killed(demo: Workspace, grace: float) -> tuple[Process, str]:
    """A process that is killed while it has a lease. Returns its guest's QEMU and boot id."""
    words = [sys.executable, "-c", KILLED, str(demo.store.root), str(grace)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE) as owner:
        assert owner.stdout
        pid, boot_id = owner.stdout.readline().decode().split()
        process = Process.find(int(pid))
    assert owner.returncode == -signal.SIGKILL
    assert process
    return process, boot_id


def test_one_guest_is_lent_again_and_a_dead_one_is_replaced(demo: Workspace) -> None:
    with open_pool(demo.store.root, 60) as pool:
        with pool.lease(Deadline(60)) as first:
            assert first.new
            with closing(Connector(first.handle.ssh, Timeouts().scaled(5))) as guest:
                assert guest.run("hostname", 30).stdout == f"{first.instance.name}\n".encode()
        with pool.lease(Deadline(60)) as second:
            assert not second.new
            assert second.handle.boot_id == first.handle.boot_id
            second.handle.process.send(signal.SIGKILL)
            assert second.handle.process.wait(SOON)
        with pool.lease(Deadline(60)) as third:
            assert third.new
            assert third.handle.boot_id != first.handle.boot_id
        assert [boot.why for boot in pool.boots] == ["there was none", "its QEMU has ended"]
        assert len(qemus_of(demo.directory)) == 1
    assert qemus_of(demo.directory) == [], "after the close none runs"


def test_a_guest_whose_user_was_killed_is_ended_by_its_keeper(demo: Workspace) -> None:
    process, _ = killed(demo, grace=1)
    assert process.wait(SOON)
    assert "nobody has used this QEMU for 1 s, so it is ended" in demo.instance("pool-0").qemu_log.read_text()


def test_a_guest_whose_user_was_killed_is_replaced_by_the_next(demo: Workspace) -> None:
    process, boot_id = killed(demo, grace=600)
    with open_pool(demo.store.root, 600) as pool:
        with pool.lease(Deadline(60)) as lease:
            assert lease.handle.boot_id != boot_id
            assert not process.alive
        assert "has died in the middle of its work" in pool.boots[0].why
    assert qemus_of(demo.directory) == []


@pytest.mark.parametrize("version", [1, 2])
def test_an_idle_guest_serves_the_next_pool_unless_it_is_stale(demo: Workspace, version: int) -> None:
    first, second = open_pool(demo.store.root, 60), open_pool(demo.store.root, 60, version)
    with first, second:
        with first.lease(Deadline(60)) as lease:
            pass
        with second.lease(Deadline(60)) as again:
            assert again.new == (version == 2)
            assert (again.handle.boot_id == lease.handle.boot_id) == (version == 1)
        assert [boot.why for boot in second.boots] == (["version 1 -> 2"] if version == 2 else [])
    assert qemus_of(demo.directory) == []
