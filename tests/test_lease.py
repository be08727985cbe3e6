"""The lease of an instance's sockets."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import lease
from pipeline.errors import InstanceBusy, StoreError
from tests.waiting import SOON, eventually

SAMPLE = {"schema": 1, "instance": "/the store/日本語/instances/i0", "boot_id": "6ed5b97c4d0d497abbc50ccdd8f53e66"}
"""Frozen: what earlier versions have written must be understood. A change of the format is a new schema."""

I0 = Path(str(SAMPLE["instance"]))


def take(directory: Path) -> None:
    with lease.held(directory, I0, "x"):
        pass


def test_the_frozen_sample_is_what_is_written_and_understood(tmp_path: Path) -> None:
    with lease.held(tmp_path, I0, str(SAMPLE["boot_id"])):
        pass
    file = tmp_path / "lease"
    assert json.loads(file.read_bytes()) == SAMPLE
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text(json.dumps(SAMPLE))
    assert lease.instance_of(tmp_path) == I0


def test_it_is_held_during_the_body_and_no_longer(tmp_path: Path) -> None:
    assert not lease.is_held(tmp_path)
    with lease.held(tmp_path, I0, "x"):
        assert lease.is_held(tmp_path)
        assert lease.instance_of(tmp_path) == I0
    assert not lease.is_held(tmp_path)
    assert lease.instance_of(tmp_path) == I0


def test_nobody_else_gets_it(tmp_path: Path) -> None:
    with lease.held(tmp_path, I0, "x") as descriptor:
        assert not os.get_inheritable(descriptor)
        for taking in (lease.held(tmp_path, Path("/i1"), "y"), lease.seized(tmp_path)):
            with pytest.raises(InstanceBusy, match=f"still runs \\({I0}\\)") as refusal, taking:
                pass
            assert "fuser" in refusal.value.hint
    take(tmp_path)


def test_a_later_boot_says_who_it_is(tmp_path: Path) -> None:
    take(tmp_path)
    with lease.held(tmp_path, Path("/i"), "y"):
        assert lease.instance_of(tmp_path) == Path("/i")


def test_a_child_that_inherits_it_holds_it_on(tmp_path: Path) -> None:
    with lease.held(tmp_path, I0, "x") as descriptor:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[descriptor])
    with child:
        assert lease.is_held(tmp_path)
        tmp_path.rename(moved := tmp_path.with_name("moved"))
        assert lease.is_held(moved)
        moved.rename(tmp_path)
        with pytest.raises(InstanceBusy):
            take(tmp_path)
        child.kill()
        child.wait(SOON)
        assert not lease.is_held(tmp_path)
    take(tmp_path)


def test_a_child_outlives_its_killed_parent_with_it(tmp_path: Path) -> None:
    program = (
        "import os, subprocess, sys; from pathlib import Path; from pipeline import lease\n"
        "with lease.held(Path(sys.argv[1]), Path('/i0'), 'x') as descriptor:\n"
        "    child = subprocess.Popen(['cat'], stdout=-3, stderr=-3, pass_fds=[descriptor])\n"
        "    print(child.pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    reader, writer = os.pipe()
    parent = subprocess.run([sys.executable, "-c", program, tmp_path], stdin=reader, capture_output=True, check=False)
    os.close(reader)
    assert parent.returncode == -9, parent.stderr
    assert lease.is_held(tmp_path)
    os.close(writer)  # cat ends with its input
    eventually(lambda: not lease.is_held(tmp_path))


def test_a_holder_of_a_moment_is_waited_for(tmp_path: Path) -> None:
    """As gc is, or somebody who only asks."""
    seized = threading.Event()

    def seize() -> None:
        with lease.seized(tmp_path):
            seized.set()
            time.sleep(0.1)

    thread = threading.Thread(target=seize)
    thread.start()
    assert seized.wait(SOON)
    take(tmp_path)
    thread.join()


def test_a_lease_deleted_while_it_was_being_taken_does_not_count(tmp_path: Path) -> None:
    with lease.seized(tmp_path):
        (tmp_path / "lease").unlink()
        with lease.held(tmp_path, I0, "x"):
            assert lease.is_held(tmp_path)
    assert not lease.is_held(tmp_path)


def test_seizing_leaves_what_it_says(tmp_path: Path) -> None:
    take(tmp_path)
    with lease.seized(tmp_path):
        assert lease.is_held(tmp_path)
        assert lease.instance_of(tmp_path) == I0


def test_without_the_directory_there_is_no_lease(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert not lease.is_held(gone)
    assert lease.instance_of(gone) is None
    for taking in (lease.held(gone, I0, "x"), lease.seized(gone)):
        with pytest.raises(StoreError, match="taking the lease"), taking:
            pass
    assert not gone.exists()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lease").symlink_to("/etc/hostname")
    with pytest.raises(StoreError):
        take(tmp_path)
    with pytest.raises(StoreError):
        lease.is_held(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        *("", "{", "[]", "null", "{}", "1", '{"schema": 1}', "[" * 50000),
        *(json.dumps({**SAMPLE, **change}) for change in ({"schema": 2}, {"instance": "i0"}, {"instance": 7})),
    ],
)
def test_a_damaged_lease_says_nothing(tmp_path: Path, damage: str) -> None:
    (tmp_path / "lease").write_text(damage)
    assert lease.instance_of(tmp_path) is None
    assert not lease.is_held(tmp_path)


@given(st.binary(max_size=100))
def test_no_content_does_harm(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    directory = tmp_path_factory.mktemp("leases")
    (directory / "lease").write_bytes(content)
    assert lease.instance_of(directory) is None
    take(directory)
    assert lease.instance_of(directory) == I0


def test_a_path_of_any_bytes_survives(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(b"/store/\xff\n/i0"))
    with lease.held(tmp_path, odd, "x"):
        assert lease.instance_of(tmp_path) == odd


def hammer(directory: Path, rounds: int, counter: Path) -> None:
    """Take the lease again and again; nobody else may be inside at the same time."""
    for _ in range(rounds):
        try:
            with lease.held(directory, I0, "x"):
                os.close(os.open(counter, os.O_CREAT | os.O_EXCL))
                counter.unlink()
                (directory / "lease").unlink()  # as gc does
        except InstanceBusy:
            continue


def test_only_one_has_it_at_any_time(tmp_path: Path) -> None:
    (directory := tmp_path / "sockets").mkdir()
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=hammer, args=(directory, 200, tmp_path / "inside")) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join(SOON)
        assert other.exitcode == 0
