"""Boots and other runs of `topcoat gc` at the same time."""

import threading
from contextlib import ExitStack

import pytest

from pipeline.host.locks import locked
from pipeline.upkeep import gc, leftover, processes
from pipeline.upkeep.gc import Outcome
from pipeline.upkeep.leftover import Leftover, delete
from pipeline.vm.instance import Instance
from pipeline.vm.qemu.stopping import stop
from tests.upkeep.conftest import DAY, World, listen, make_old, spared
from tests.waiting import SOON


class TestMeanwhile:
    """What begins between the look and the reclaiming."""

    def everything(self, world: World) -> list[Leftover]:
        """Items of all kinds, all of i0 or i1."""
        dead, old = world.dead("i0"), world.dead("i1")
        (dead.directory / ".overlay.qcow2.abcdefgh.tmp").mkdir()
        make_old(old.directory, DAY)
        killed = world.killed_boot("i2")
        found = gc.items(world.store, DAY)
        kinds = [item.kind for item in found]
        assert kinds == ["process", "disk", "logs", "remains"]
        assert killed.pidfile.exists()
        return found

    def test_a_boot_that_has_begun_is_not_harmed(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(leftover, "_PATIENCE", 0.1)
        found = self.everything(world)
        before = world.left()
        with ExitStack() as held:
            for instance in Instance.all(world.store):
                held.enter_context(locked(instance.directory))
            outcomes = [gc.reclaim(item) for item in found]
        assert spared(outcomes) == ["another process works on it"] * len(found)
        assert world.left() == before
        assert processes.find(world.store)

    def test_a_boot_that_is_done_is_not_harmed(self, world: World) -> None:
        found = self.everything(world)
        for name in ("i0", "i1", "i2"):
            instance = Instance.named(world.store, name)
            stop(instance, 3)
            world.live(name)
        before = world.left()
        outcomes = [gc.reclaim(item) for item in found]
        assert all(spared(outcomes)[:-1])
        assert found[-1].kind == "remains"
        assert world.left() == before
        assert all(instance.live_handle() for instance in Instance.all(world.store))

    def test_what_is_gone_is_no_error(self, world: World) -> None:
        found = self.everything(world)
        for name in ("i0", "i1", "i2"):
            stop(Instance.named(world.store, name), 3)
        delete(world.store.root)
        outcomes = [gc.reclaim(item) for item in found]
        assert all(word in ("", "it is gone already") for word in spared(outcomes))
        assert not world.store.root.exists()

    def test_boots_go_on_undisturbed(self, world: World) -> None:
        """Again and again, as a boot does it, beside a gc that never rests."""
        instance, ended = world.instance(), threading.Event()
        outcomes: list[Outcome] = []

        def collect() -> None:
            while not ended.is_set():
                outcomes.extend(world.collect(0))

        thread = threading.Thread(target=collect)
        thread.start()
        try:
            for _ in range(200):
                with locked(instance.directory):
                    instance.directory.mkdir(exist_ok=True)
                    with listen(instance.qmp_socket):
                        instance.overlay.touch()
                        assert instance.qmp_socket.exists()
                        assert instance.overlay.exists()
        finally:
            ended.set()
            thread.join(SOON)
        spared(outcomes)
        assert any(not outcome.spared for outcome in outcomes)

    def test_two_at_once(self, world: World) -> None:
        for number in range(8):
            instance = world.dead(f"dead{number}")
            (instance.directory / ".x.abcdefgh.tmp").mkdir()
        for number in range(4):
            world.killed_boot(f"killed{number}")
            make_old(world.dead(f"old{number}").directory, DAY)
        live = world.live("live")
        spared(world.collect_at_once(2))
        assert live.live_handle()
        assert world.listed() == {}
        kept = [path for path in world.left() if "/live/" not in path and not path.startswith("TMP")]
        assert all(path.endswith("serial.log") for path in kept)
        assert len(kept) == 12
