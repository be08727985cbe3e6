"""Pools whose guests are clones: each lease has one of its own, and some are made ahead."""

import threading
from pathlib import Path

import pytest

from pipeline.errors import GuestDied, HostFault, InstanceBusy, StopError
from pipeline.host.deadline import Deadline
from pipeline.settings import Fresh
from pipeline.vm.instance import Instance
from tests.fakes.pools import World, soon, threads, use, whys, world
from tests.waiting import SOON, eventually

__all__ = ["world"]

pytestmark = pytest.mark.slow


@pytest.fixture
def clones(world: World) -> World:
    world.guests.clones = True
    return world


def spares(world: World) -> int:
    return sum(world.state(number) == "spare" for number in range(9))


def test_each_lease_has_a_guest_that_nobody_else_has_used(clones: World) -> None:
    pool = clones.pool(fresh="auto")
    leases = [use(pool) for _ in range(5)]
    assert len({lease.handle.boot_id for lease in leases}) == 5
    assert all(lease.new for lease in leases)


def test_booted_guests_are_lent_again(world: World) -> None:
    pool = world.pool(fresh="auto")
    first, second = use(pool), use(pool)
    assert (first.handle.boot_id == second.handle.boot_id, first.new, second.new) == (True, True, False)
    assert whys(pool) == ["there was none"]
    assert spares(world) == 0


def test_one_is_made_ahead_and_the_next_lease_gets_it(clones: World) -> None:
    pool = clones.pool(fresh="auto")
    use(pool)
    eventually(lambda: spares(clones) == 1)
    (waits,) = clones.running()
    lease = use(pool)
    assert lease.handle.process == waits
    eventually(lambda: spares(clones) == 1)
    assert len(clones.running()) == 1, "what was used is gone"


def test_who_wants_a_new_guest_gets_the_one_that_was_made_ahead(clones: World) -> None:
    pool = clones.pool(fresh="auto")
    use(pool)
    eventually(lambda: spares(clones) == 1)
    with pool.lease(soon(), anew="it is to be new") as lease:
        assert lease.new
    assert clones.guests.starts.count(lease.instance.name) == 1


def test_no_more_are_lent_than_the_size_says(clones: World) -> None:
    pool = clones.pool(size=2, fresh="auto")
    with pool.lease(soon()), pool.lease(soon()):
        eventually(lambda: spares(clones) == 1)
        with pytest.raises(InstanceBusy, match="all 2 are in use"), pool.lease(Deadline(0.1)):
            pass
    assert len(clones.running()) <= 1


@pytest.mark.parametrize("fresh", ["on_crash", "never"])
def test_where_guests_are_lent_again_none_is_made_ahead(clones: World, fresh: Fresh) -> None:
    pool = clones.pool(fresh=fresh)
    first, second = use(pool), use(pool)
    assert first.handle.boot_id == second.handle.boot_id
    pool.expect(1)
    pool.close()
    assert len(clones.guests.starts) == 1, "what is idle is what was expected"


def test_several_processes_lend_no_more_than_the_size_says(clones: World) -> None:
    pools = [clones.pool(size=2, fresh="auto") for _ in range(3)]
    with (
        pools[0].lease(soon()),
        pools[1].lease(soon()),
        pytest.raises(InstanceBusy, match="all 2 are in use"),
        pools[2].lease(Deadline(0.3)),
    ):
        pass
    use(pools[2])


def test_all_that_are_expected_are_made_at_once(clones: World) -> None:
    together = threading.Barrier(3, timeout=SOON)
    clones.guests.while_booting = lambda _: together.wait()
    pool = clones.pool(size=3, fresh="auto")
    pool.expect(3)
    eventually(lambda: spares(clones) == 3)
    assert len(clones.guests.starts) == 3


def test_a_lease_waits_for_a_guest_that_is_being_made(clones: World) -> None:
    """Instead of making one more."""
    go_on = threading.Event()
    clones.guests.while_booting = lambda _: go_on.wait(SOON)
    pool = clones.pool(size=2, fresh="auto")
    pool.expect(2)
    with threads(2, lambda: use(pool)):
        eventually(lambda: len(clones.guests.starts) == 2)
        go_on.set()
    eventually(lambda: spares(clones) == 1)
    pool.close()
    assert len(pool.boots) <= 4


def test_what_was_expected_in_vain_is_made_by_the_lease(clones: World) -> None:
    clones.guests.failures = [GuestDied("it died", stage="marker", hint="wait", cause="kernel panic")]
    pool = clones.pool(fresh="auto")
    pool.expect(1)
    eventually(lambda: pool.boots)
    assert use(pool).handle
    assert [boot.failure for boot in pool.boots][:2] == ["kernel panic", ""]


def test_a_pool_that_is_closed_leaves_none_that_were_being_made(clones: World) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly(_: Instance) -> None:
        begun.set()
        go_on.wait(SOON)

    clones.guests.while_booting = slowly
    pool = clones.pool(fresh="auto")
    pool.expect(1)
    assert begun.wait(SOON)
    closing = threading.Thread(target=pool.close)
    closing.start()
    go_on.set()
    closing.join(SOON)
    assert not closing.is_alive()
    assert clones.running() == []


def test_a_boot_that_takes_long_is_ended_when_the_pool_is_closed(
    clones: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = threading.Event(), threading.Event()

    def hangs(_: Instance) -> None:
        begun.set()
        assert ended.wait(SOON)
        raise HostFault("somebody ended QEMU", stage="marker", hint="wait", cause="QEMU stopped")

    clones.guests.while_booting = hangs

    def survives_once(_: Instance) -> None:
        if clones.guests.abandoned:
            ended.set()
        clones.guests.abandoned.append("pool-0")
        raise StopError("QEMU survived SIGKILL", hint="wait")

    monkeypatch.setattr(clones.guests, "abandon", survives_once)
    pool = clones.pool(fresh="auto")
    pool.expect(1)
    assert begun.wait(SOON)
    pool.close()
    assert clones.running() == []


def test_the_spare_of_one_process_serves_another(clones: World) -> None:
    first, second = clones.pool(fresh="auto"), clones.pool(fresh="auto")
    use(first)
    eventually(lambda: spares(clones) == 1)
    (waits,) = clones.running()
    with second.lease(soon()) as lease:
        assert lease.handle.process == waits


def test_a_spare_that_is_stale_or_dead_is_replaced(clones: World) -> None:
    pool = clones.pool(fresh="auto")
    use(pool)
    eventually(lambda: spares(clones) == 1)
    clones.guests.version = "2"
    assert use(pool).handle.made_of.task == "2"
    assert "version 1 -> 2" in whys(pool)


def test_many_leases_by_many_threads_end_with_nothing_left(clones: World, tmp_path: Path) -> None:
    pool = clones.pool(size=3, fresh="auto")
    owners: list[str] = []
    both = threading.Lock()

    def work() -> None:
        for _ in range(8):
            with pool.lease(soon()) as lease, both:
                assert lease.handle.boot_id not in owners, "two owners"
                owners.append(lease.handle.boot_id)

    with threads(6, work) as raised:
        pass
    assert raised == []
    assert len(owners) == 48
    pool.close()
    assert clones.running() == []
