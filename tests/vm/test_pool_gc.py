"""`topcoat gc` and the guests of the pool."""

from pipeline.settings import Store
from pipeline.upkeep import gc
from pipeline.upkeep.leftover import Leftover
from pipeline.vm.keepalive import KeepAlive
from pipeline.vm.qemu.stopping import stop
from tests.fakes.pools import World, killed_owner, use, world

__all__ = ["world"]


def items(world: World) -> list[Leftover]:
    return gc.items(Store(world.root))


def kinds(world: World) -> list[tuple[str, str]]:
    return [(item.kind, item.why) for item in items(world)]


def test_what_a_killed_process_has_left_is_nobodys(world: World) -> None:
    killed_owner(world)
    (item,) = items(world)
    assert (item.kind, item.why) == ("process", "pool-0 is of the pool, which no process uses")
    assert item.what == str(world.running()[0].pid)
    outcome = gc.reclaim(item)
    assert (outcome.error, outcome.spared) == (None, "")
    assert world.running() == []
    assert world.state() == "none"
    assert kinds(world) == []
    assert use(world.pool()).new


def test_while_a_process_uses_the_pool_its_guests_are_in_use(world: World) -> None:
    pool = world.pool()
    use(pool)
    assert kinds(world) == []


def test_a_pool_that_is_opened_meanwhile_spares_them(world: World) -> None:
    _, boot_id = killed_owner(world, after="pass")
    (item,) = items(world)
    pool = world.pool()
    assert gc.reclaim(item).spared == "a process uses the pool by now"
    assert use(pool).handle.boot_id == boot_id


def test_what_somebody_has_booted_for_himself_is_his(world: World) -> None:
    killed_owner(world)
    instance = world.slot().instance
    stop(instance, 3)
    world.guests.launcher(instance, KeepAlive(world.root / "x")).start()
    assert kinds(world) == []
