"""`topcoat gc` and the guests of the pool."""

from pipeline import gc
from pipeline.settings import Store
from pipeline.tie import Tie
from tests.fakes.pools import World, killed_owner, use, world

__all__ = ["world"]


def kinds(world: World) -> list[tuple[str, str]]:
    return [(item.kind, item.why) for item in gc.items(Store(world.root))]


def test_what_a_killed_process_has_left_is_nobodys(world: World) -> None:
    killed_owner(world)
    (item,) = gc.items(Store(world.root))
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
    (item,) = gc.items(Store(world.root))
    pool = world.pool()
    assert gc.reclaim(item).spared == "a process uses the pool by now"
    assert use(pool).handle.boot_id == boot_id


def test_what_somebody_has_booted_for_himself_is_his(world: World) -> None:
    killed_owner(world)
    instance = world.slot().instance
    instance.stop(3)
    world.guests.launcher(instance, Tie(world.root / "x")).start()
    assert kinds(world) == []
