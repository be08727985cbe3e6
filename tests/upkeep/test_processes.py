"""QEMUs of killed boots."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import StopError
from pipeline.settings import Store
from pipeline.upkeep import gc
from pipeline.upkeep.gc import Outcome
from pipeline.upkeep.leftover import delete
from pipeline.vm.instance import Instance
from pipeline.vm.qemu.stopping import stop_qemu
from tests.children import child
from tests.needs import with_mounts
from tests.upkeep.conftest import DAY, World, handle, spared


class TestProcesses:
    @pytest.mark.parametrize("early", [False, True])
    def test_what_a_killed_boot_left_goes_and_its_logs_stay(self, world: World, early: bool) -> None:
        instance = world.instance() if early else world.killed_boot()
        process = world.qemu(instance.pidfile, early=True) if early else world.process_of(instance)
        (item,) = gc.items(world.store, DAY)
        assert (item.kind, item.what) == ("process", str(process.pid))
        assert item.why == "the boot of i0 was killed, and its QEMU runs on"
        assert (item.bytes >= 5000) != early
        assert gc.reclaim(item) == Outcome(item)
        assert not process.alive
        assert world.left() == ["instances/i0/serial.log"]
        assert gc.items(world.store, DAY) == []
        assert gc.reclaim(item).error is None

    def test_what_lives_is_not_touched(self, world: World) -> None:
        instance = world.live()
        assert world.listed(0) == {}
        assert instance.live_handle()

    @pytest.mark.parametrize("content", ["", "{", "{}", '{"schema": 99}'])
    def test_one_whose_handle_cannot_be_understood_is_somebody_s(self, world: World, content: str) -> None:
        instance = world.live()
        instance.handle_file.write_text(content)
        assert world.listed(0) == {}

    def test_so_is_one_whose_handle_is_of_another(self, world: World) -> None:
        instance = world.live()
        other = replace(world.process_of(instance), start_ticks=1)
        instance.publish_handle(handle(instance, other))
        assert world.listed(0) == {}

    def test_and_one_that_lost_its_pidfile_but_has_a_handle(self, world: World) -> None:
        instance = world.live()
        instance.pidfile.unlink()
        assert world.listed(0) == {}

    def test_one_whose_instance_was_deleted_is_found(self, world: World) -> None:
        instance = world.killed_boot()
        process = world.process_of(instance)
        delete(instance.directory)
        assert world.listed() == {str(process.pid): "process"}
        assert spared(world.collect()) == [""]
        assert not process.alive
        assert not instance.directory.exists()

    def test_a_store_may_have_two_names(self, world: World) -> None:
        killed, live = world.killed_boot("i0"), world.live("i1")
        process = world.process_of(killed)
        (world.directory / "link").symlink_to(world.store.root)
        real, world.store = world.store, Store(world.directory / "link")
        early = world.qemu(Instance.named(world.store, "i2").pidfile, early=True)
        for store in (real, world.store):
            assert sorted(item.what for item in gc.items(store, DAY)) == sorted(map(str, (process.pid, early.pid)))
        assert spared([gc.reclaim(item) for item in gc.items(real, DAY)]) == ["", ""]
        assert not process.alive
        assert not early.alive
        assert live.live_handle()

    def test_a_guest_of_a_moved_store_is_not_taken_for_one_of_the_new(self, world: World) -> None:
        moved = world.live()
        process = world.process_of(moved)
        world.store.root.rename(world.directory / "elsewhere")
        there = Store(world.directory / "elsewhere")
        assert gc.items(world.store, 0) == []
        fresh = world.instance()
        fresh.overlay.touch()
        early = world.qemu(fresh.pidfile, early=True)
        # What ends the second would end the first
        assert world.listed() == {"instances/i0/overlay.qcow2": "disk"}
        assert gc.items(there, 0) == []
        assert spared(world.collect(0)) == [""]
        assert process.alive
        assert Instance.named(there, "i0").live_handle()
        assert Instance.named(there, "i0").serial_socket.exists()
        assert early.alive

    def test_one_in_a_container_with_the_same_paths_is_not_ours(self, world: World) -> None:
        instance = world.instance()
        script = """mount -t tmpfs none "$1" && exec sh -c 'echo up; read _' qemu -pidfile "$2" """
        command = with_mounts(script, "sh", str(instance.directory), str(instance.pidfile))
        with child(*command) as popen:
            assert popen.stdout is not None
            assert popen.stdout.readline() == b"up\n"
            assert world.listed() == {}
            assert stop_qemu(instance.pidfile, instance.qmp_socket, 3) == "not running"
            assert popen.poll() is None

    def test_other_commands_with_a_pidfile_are_not_ours(self, world: World) -> None:
        for path in ("qemu.pid", "instances/qemu.pid", "instances/i0/other.pid", "instances/i 0/qemu.pid"):
            world.qemu(world.store.root / path, early=True)
        world.qemu(Path("/x/instances/i0/qemu.pid"), early=True)
        world.qemu(Path("instances/i0/qemu.pid"), early=True)
        assert gc.items(world.store, 0) == []

    def test_one_that_does_not_end_is_an_error_of_its_own(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        def stop(*_: object) -> None:
            raise StopError("QEMU survived", hint="x")

        world.killed_boot("i0")
        world.dead("i1")
        monkeypatch.setattr("pipeline.upkeep.processes.stop_qemu", stop)
        outcomes = {outcome.item.kind: outcome for outcome in world.collect()}
        assert isinstance(outcomes["process"].error, StopError)
        assert outcomes["disk"] == Outcome(outcomes["disk"].item)
        assert Instance.named(world.store, "i0").overlay.exists()
        assert not Instance.named(world.store, "i1").overlay.exists()
