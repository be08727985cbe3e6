"""Disks and logs of instances that have ended."""

from pathlib import Path

import pytest

from pipeline.host.locks import lock_of, locked
from pipeline.upkeep import gc
from pipeline.upkeep.gc import Outcome
from tests.upkeep.conftest import DAY, World, make_old, spared


class TestDirectories:
    def test_what_an_instance_needed_goes_when_it_has_ended(self, world: World) -> None:
        instance = world.dead()
        instance.known_hosts.touch()
        items = {item.kind: item for item in gc.items(world.store, DAY)}
        assert items.keys() == {"disk"}
        assert items["disk"].what == str(instance.overlay)
        assert items["disk"].why == "i0 has ended"
        assert items["disk"].bytes >= 5000
        assert spared(world.collect()) == [""]
        assert world.left() == ["instances/i0/serial.log"]

    @pytest.mark.parametrize(
        "name", ["overlay.qcow2", "handle.json", "qemu.pid", "known_hosts", "sshid", "qmp", "serial"]
    )
    def test_also_if_it_is_one_file_only(self, world: World, name: str) -> None:
        (world.instance().directory / name).touch()
        assert world.listed() == {f"instances/i0/{name}": "disk"}
        assert spared(world.collect()) == [""]
        assert world.left() == ["instances/i0/serial.log"]

    def test_a_link_to_nothing_is_removed_and_none_is_followed(self, world: World, tmp_path: Path) -> None:
        instance = world.instance()
        (instance.directory / "kernel").symlink_to(tmp_path / "gone")
        (tmp_path / "precious").touch()
        instance.known_hosts.symlink_to(tmp_path / "precious")
        assert spared(world.collect()) == [""]
        assert world.left() == ["instances/i0/serial.log"]
        assert (tmp_path / "precious").exists()

    def test_old_logs_go_with_the_directory_but_not_the_lock(self, world: World) -> None:
        instance = world.instance()
        for name in ("serial.log.previous", "serial.log.1", "qemu.log", "timeline.jsonl", "overlay.qcow2"):
            (instance.directory / name).write_bytes(b"x" * 5000)
        (instance.directory / ".overlay.qcow2.abcdefgh.tmp").mkdir()
        with locked(instance.directory):
            pass
        make_old(instance.directory, DAY)
        assert world.listed(DAY + 60) == {
            "instances/i0/overlay.qcow2": "disk",
            "instances/i0/.overlay.qcow2.abcdefgh.tmp": "remains",
        }
        (item,) = gc.items(world.store, DAY)
        assert (item.kind, item.what) == ("logs", str(instance.directory))
        assert item.bytes >= 25000
        assert gc.reclaim(item) == Outcome(item)
        assert list(world.store.instances.iterdir()) == [lock_of(instance.directory)]

    def test_the_youngest_file_counts(self, world: World) -> None:
        instance = world.instance()
        make_old(instance.directory, DAY)
        instance.qemu_log.touch()
        assert world.listed() == {}

    def test_an_empty_directory_is_as_old_as_it_is(self, world: World) -> None:
        instance = world.instance(log=False)
        assert world.listed() == {}
        make_old(instance.directory, DAY)
        assert world.listed() == {"instances/i0": "logs"}

    def test_a_clock_that_was_wrong_deletes_nothing(self, world: World) -> None:
        make_old(world.instance().directory, -DAY)
        assert world.listed(0) == {}
