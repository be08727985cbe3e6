"""Directories of sockets that no guest uses."""

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import gc, lease
from pipeline.garbage import sockets
from pipeline.gc import Outcome
from pipeline.process import Process
from pipeline.publish import locked
from tests.garbage.conftest import DAY, World, handle, listen, make_old, spared


class TestSockets:
    def make(self, world: World, name: str = "0123456789ab") -> Path:
        made = world.temporary / f"topcoat-{os.getuid()}" / name
        made.mkdir(mode=0o700, parents=True)
        made.parent.chmod(0o700)
        listen(made / "qmp").close()
        return made

    def leased(self, world: World, instance: Path) -> Path:
        made = self.make(world)
        with lease.held(made, instance, "b"):
            pass
        return made

    def test_those_of_a_store_that_is_gone(self, world: World, tmp_path: Path) -> None:
        made = self.leased(world, tmp_path / "gone/instances/i0")
        (item,) = gc.items(world.store, DAY)
        assert (item.kind, item.what) == ("sockets", str(made))
        assert item.why == f"its instance is gone: {tmp_path}/gone/instances/i0"
        assert gc.reclaim(item) == Outcome(item)
        assert not made.exists()
        assert not (tmp_path / "gone").exists()
        assert gc.reclaim(item).spared == "it is gone already"

    def test_not_those_of_another_store(self, world: World, tmp_path: Path) -> None:
        made = self.leased(world, tmp_path)
        make_old(made, DAY)
        assert world.listed() == {}

    def test_those_of_a_dead_instance_wherever_they_are(
        self, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        instance = world.dead()
        there = instance.sockets
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr(sockets, "_SHARED", tmp_path)
        assert instance.sockets != there
        assert [item.what for item in gc.items(world.store, DAY)] == [str(there), str(instance.overlay)]
        assert spared(world.collect()) == ["", ""]
        assert not there.exists()

    def test_without_a_lease_only_after_an_hour(self, world: World) -> None:
        made = self.make(world)
        assert world.listed() == {}
        make_old(made, 3500)
        assert world.listed() == {}
        make_old(made, 3700)
        (item,) = gc.items(world.store, DAY)
        assert item.why == "nobody listens, and nobody has for an hour"
        assert gc.reclaim(item) == Outcome(item)
        assert not made.exists()

    @pytest.mark.parametrize("damage", ["", "{", '{"schema": 7}', '{"schema": 1, "instance": "/a\\u0000b"}'])
    def test_a_damaged_lease_is_none(self, world: World, damage: str) -> None:
        made = self.make(world)
        (made / "lease").write_text(damage)
        assert world.listed() == {}
        make_old(made, 3700)
        assert spared(world.collect()) == [""]

    def test_an_instance_of_an_older_version_is_known_by_its_path(self, world: World) -> None:
        instance = world.dead()
        (instance.sockets / "lease").unlink()
        assert world.listed()["TMP" + str(instance.sockets).removeprefix(str(world.temporary))] == "sockets"

    def test_those_of_an_older_version_that_runs(self, world: World) -> None:
        instance = world.live()
        (instance.sockets / "lease").unlink()
        make_old(instance.sockets, DAY)
        assert world.listed() == {}

    def test_those_of_a_live_instance_whatever_the_lease_says(self, world: World) -> None:
        instance = world.live()
        (instance.sockets / "lease").unlink()
        with lease.held(instance.sockets, Path("/gone"), "b"):
            pass
        assert world.listed() == {}

    def test_a_held_lease_is_not_touched(self, world: World) -> None:
        made = self.make(world)
        with lease.held(made, Path("/gone/instances/i0"), "b"):
            make_old(made, DAY)
            assert world.listed() == {}
        (item,) = gc.items(world.store, DAY)
        with lease.held(made, Path("/gone/instances/i0"), "b"):
            assert gc.reclaim(item).spared == "a guest uses it"
        assert made.exists()

    def test_on_which_somebody_listens(self, world: World) -> None:
        made = self.leased(world, Path("/gone/instances/i0"))
        (item,) = gc.items(world.store, DAY)
        with listen(made / "serial") as server:
            server.listen(0)
            # A second connection would have to wait for the first to be served
            for _ in range(3):
                assert world.listed() == {}
            assert gc.reclaim(item).spared == "a guest uses it"
        assert gc.reclaim(item) == Outcome(item)

    def test_an_instance_that_came_back_has_its_own(self, world: World, tmp_path: Path) -> None:
        made = self.leased(world, tmp_path / "gone/instances/i0")
        (item,) = gc.items(world.store, DAY)
        with locked(tmp_path / "gone/instances/i0"):
            assert gc.reclaim(item).spared == "a guest uses it"
        (tmp_path / "gone/instances/i0").mkdir()
        assert gc.reclaim(item).spared == "a guest uses it"
        assert made.exists()

    def test_two_gcs_do_not_trip_over_each_other(self, world: World) -> None:
        made = [self.make(world, f"{number:012x}") for number in range(300)]
        for path in made[::2]:
            with lease.held(path, Path("/gone/instances/i0"), "b"):
                pass
        make_old(made[0].parent, DAY)
        spared(world.collect_at_once(3))
        assert not any(map(Path.exists, made))

    def test_who_takes_the_lease_while_it_is_being_removed_keeps_it(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = self.leased(world, Path("/gone/instances/i0"))
        (found,) = gc.items(world.store, DAY)
        delete_lease = Path.unlink

        def unlink(path: Path) -> None:
            delete_lease(path)
            if path.name == "lease":
                held.enter_context(lease.held(made, Path("/gone/instances/i0"), "c"))

        with ExitStack() as held:
            monkeypatch.setattr(Path, "unlink", unlink)
            assert gc.reclaim(found).spared == "somebody uses it by now"
            assert lease.is_held(made)

    @pytest.mark.parametrize("name", ["short", "0123456789AB", "0123456789abc", ".23456789abc"])
    def test_what_is_named_otherwise_is_not_ours(self, world: World, name: str) -> None:
        make_old(self.make(world, name), DAY)
        assert world.listed() == {}

    def test_links_and_what_others_may_write_to_are_not_ours(self, world: World, tmp_path: Path) -> None:
        made = self.make(world)
        (made.parent / "ffffffffffff").symlink_to(tmp_path)
        made.chmod(0o777)
        make_old(made.parent, DAY)
        assert world.listed() == {}
        made.chmod(0o700)
        assert len(world.listed()) == 1
        made.parent.chmod(0o777)
        assert world.listed() == {}

    def test_a_handle_cannot_point_gc_elsewhere(self, world: World, tmp_path: Path) -> None:
        instance = world.dead()
        process = Process(1, 1, "x")
        for path in (tmp_path / "0123456789ab", Path("/\0"), Path(f"/topcoat-{os.getuid()}/../{tmp_path}/x")):
            instance.publish_handle(replace(handle(instance, process), sockets=str(path)))
            assert set(world.listed().values()) == {"sockets", "disk"}
            assert len(world.listed()) == 2
