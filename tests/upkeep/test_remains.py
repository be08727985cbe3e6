"""What killed processes were making."""

import pytest

from pipeline.host.locks import locked
from pipeline.store.publish import publish
from pipeline.upkeep import gc
from pipeline.upkeep.gc import Outcome
from tests.upkeep.conftest import DAY, World, make_old, spared


class TestRemains:
    @pytest.mark.parametrize(
        "place",
        [
            *("keys", "images/x", "templates/x", "demo", "demo/packages", "instances/i0", "images/x/deep/down"),
            *("campaigns/x/crashes/segv-f-00", "campaigns/x/crashes/segv-f-00/1"),
            *("crashes/p/f", "crashes/p/f/segv-f-00", "crashes/p/f/segv-f-00/1"),
        ],
    )
    def test_they_are_found_everywhere(self, world: World, place: str) -> None:
        world.instance()
        made = world.store.root / place / ".sshid.abcdefgh.tmp"
        made.mkdir(parents=True)
        (made / "sshid").write_bytes(b"x" * 5000)
        (made.parent / "kept.tmp").touch()
        before = set(world.left())
        (item,) = gc.items(world.store, DAY)
        assert (item.kind, item.what, item.why) == ("remains", str(made), "whoever was making sshid was killed")
        assert item.bytes >= 5000
        assert set(world.left()) == before
        assert gc.reclaim(item) == Outcome(item)
        assert not made.exists()
        assert (made.parent / "kept.tmp").exists()
        assert gc.reclaim(item).spared == "it is gone already"

    @pytest.mark.parametrize(
        ("place", "lock"),
        [
            *(("keys", "keys/sshid"), ("images/x", "images/x/ssh.zbi"), ("demo/packages", "demo/packages.json")),
            ("instances/i0", "instances/i0"),
            *(("campaigns/x/crashes/b/1", f"campaigns/x/crashes{lock}") for lock in ("", "/capsule")),
            *(("crashes/p/f/b/1", f"crashes/{lock}") for lock in ("p/f/builds.json", ".capsule")),
            ("crashes/.files", "crashes/.files"),
            ("campaigns/x", "campaigns/x/other"),
        ],
    )
    def test_what_is_being_made_is_not_touched(self, world: World, place: str, lock: str) -> None:
        world.instance()
        (world.store.root / place).mkdir(parents=True, exist_ok=True)
        with locked(world.store.root / lock), publish(world.store.root / place / "x.made.json") as made:
            assert world.listed() == {}
            made.touch()

    def test_who_begins_meanwhile_is_not_harmed(self, world: World) -> None:
        target = world.store.keys / "sshid"
        (world.store.keys / ".sshid.abcdefgh.tmp").mkdir(parents=True)
        with locked(target):
            pass
        (item,) = gc.items(world.store, DAY)
        with locked(target), publish(target) as made:
            made.touch()
            assert gc.reclaim(item).spared in ("another process works on it", "it is gone already")
        assert target.exists()

    def test_in_the_cache_not_all_is_made_under_a_lock(self, world: World) -> None:
        made = world.store.cache / ".kvm.json.abcdefgh.tmp"
        made.mkdir(parents=True)
        assert world.listed() == {}
        make_old(made, 3700)
        assert world.listed() == {"cache/.kvm.json.abcdefgh.tmp": "remains"}
        assert spared(world.collect()) == [""]

    def test_a_guest_that_runs_may_have_some_of_the_boot_before(self, world: World) -> None:
        instance = world.live()
        (instance.directory / ".handle.json.abcdefgh.tmp").mkdir()
        assert world.listed() == {"instances/i0/.handle.json.abcdefgh.tmp": "remains"}
        assert spared(world.collect()) == [""]
        assert instance.live_handle()
