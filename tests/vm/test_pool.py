"""The pool, with guests that are quick and do what they are told: leases, bounds, room, and its end."""

import logging
import multiprocessing
import os
import re
import subprocess
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.errors import HostFault, InstanceBusy, StopError, StoreError
from pipeline.host.deadline import Deadline
from pipeline.host.locks import is_locked
from pipeline.host.process import Process
from pipeline.vm import pool as module
from pipeline.vm.capacity import RESERVE
from pipeline.vm.instance import Instance
from pipeline.vm.lease import Boot, Lease
from pipeline.vm.pool import Pool
from pipeline.vm.qemu.stopping import stop
from pipeline.vm.slot import Slot
from tests.conftest import qemus_of
from tests.fakes.guests import MEMORY, FakeGuests, kill
from tests.fakes.pools import PLENTY, World, settings_for, soon, threads, use, waiting, whys, world
from tests.waiting import SOON, eventually

__all__ = ["world"]


class TestLease:
    def test_one_guest_serves_one_after_the_other(self, world: World) -> None:
        pool = world.pool(size=2)
        first, second = use(pool), use(pool)
        assert (first.new, second.new) == (True, False)
        assert first.handle == second.handle
        assert first.instance.live_handle() == first.handle
        assert first.instance.name == "pool-0"
        (boot,) = pool.boots
        assert boot == Boot("pool-0", "there was none", boot.seconds, first.handle.boot_id)

    def test_what_is_done_with_it_is_noted_before_and_after(self, world: World) -> None:
        with world.pool().lease(soon()) as lease:
            noted = world.slot().use()
            assert noted
            assert (noted.state, noted.boot_id, noted.owner) == (
                "leased",
                lease.handle.boot_id,
                Process.find(os.getpid()),
            )
            assert is_locked(world.slot().path)
        assert world.state() == "idle"
        assert not is_locked(world.slot().path)

    def test_a_guest_of_another_process_that_is_idle_is_taken(self, world: World) -> None:
        first = use(world.pool())
        other = world.pool(size=2)
        with other.lease(soon()) as second:
            assert second.handle == first.handle
            with other.lease(soon()) as third:
                assert third.instance.name == "pool-1"
        assert whys(other) == ["there was none"]

    def test_an_idle_guest_comes_before_a_place_without_one(self, world: World) -> None:
        pool = world.pool(size=3)
        with pool.lease(soon()), pool.lease(soon()) as second:
            pass
        with world.slot(0).taken():
            assert use(pool).handle == second.handle
        assert len(pool.boots) == 2

    def test_a_guest_whose_kernel_has_halted_is_replaced(self, world: World) -> None:
        pool, panic = world.pool(), b"\r\nKernel panic - not syncing: x\r\n"
        use(pool).instance.serial_log.write_bytes(panic)
        with pool.lease(soon()) as second:
            assert second.new
            assert whys(pool)[1] == "its kernel has halted: Kernel panic - not syncing: x"
            second.instance.serial_log.write_bytes(panic)
        assert world.running() == [], "nor is it kept for the next"
        assert use(pool).new
        assert whys(pool)[2] == "the last one went wrong: its kernel has halted: Kernel panic - not syncing: x"

    def test_a_child_of_its_user_does_not_inherit_the_place(self, world: World) -> None:
        with world.pool().lease(soon()):
            child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
        with child:
            assert not is_locked(world.slot().path)

    def test_without_a_size_there_is_one_for_each_core(self, world: World) -> None:
        found = settings_for(world.root)
        with Pool(replace(found, pool=settings.PoolSettings()), world.guests) as pool:
            assert pool.size == len(os.sched_getaffinity(0))

    def test_what_cannot_be_noted_is_not_handed_out(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        pool = world.pool()

        def full(*_: object) -> None:
            raise StoreError("the disk is full", hint="free some")

        with monkeypatch.context() as patched:
            patched.setattr(Slot, "note", full)
            with pytest.raises(StoreError, match="the disk is full"):
                use(pool)
        assert world.running() == []
        assert use(pool).new


class TestBound:
    def test_twenty_threads_and_this_one_share_three_guests(self, world: World) -> None:
        pool, inside, most = world.pool(size=3), set[str](), 0
        three = threading.Barrier(3)

        def work() -> None:
            nonlocal most
            for turn in range(3):
                with pool.lease(soon()) as lease:
                    assert lease.instance.name not in inside
                    inside.add(lease.instance.name)
                    most = max(most, len(inside))
                    if turn == 0:
                        three.wait(SOON)
                    inside.remove(lease.instance.name)

        with threads(20, work) as raised:
            work()
        assert raised == []
        assert most == 3
        assert len(world.running()) == 3
        assert sorted(boot.instance for boot in pool.boots) == ["pool-0", "pool-1", "pool-2"]

    @pytest.mark.slow
    def test_four_processes_share_as_many_as_the_largest_pool_has(self, world: World, tmp_path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        sizes = (2, 2, 3, 3)
        others = [context.Process(target=hammer, args=(world.root, size, tmp_path)) for size in sizes]
        for other in others:
            other.start()
        for other in others:
            other.join(SOON)
            assert other.exitcode == 0
        names = [path.read_text().split() for path in tmp_path.glob("had-*")]
        assert len(names) == 4
        assert {name for had in names for name in had} <= {"pool-0", "pool-1", "pool-2"}
        assert sum("pool-2" in had for had in names) <= 2, "only those with three places"
        assert list(tmp_path.glob("inside-*")) == []

    def test_a_wait_ends_with_its_deadline(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "topcoat")
        pool = world.pool(size=1)
        with pool.lease(soon()):
            for place in (pool, world.pool()):
                caplog.clear()
                with pytest.raises(InstanceBusy, match=r"within 0\.3 s: all 1 are in use") as busy:
                    place.lease(Deadline(0.3)).__enter__()
                assert "topcoat instances" in busy.value.hint
                assert "[pool] size" in busy.value.hint
                told = caplog.text.count("waiting for a guest of the pool: all 1 are in use")
                assert told <= 1, "once; on a busy host the time can be up before"
        with pool.lease(Deadline(0)):
            pass

    def test_who_waits_is_told_who_has_the_guests(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        times = (f"2026-11-29T12:00:{second:02}Z" for second in range(60))
        monkeypatch.setattr("pipeline.vm.slot.utc_now", lambda: next(times))
        found = settings_for(world.root, size=3)
        with (
            Pool(found, world.guests, work="campaign nightly", available=lambda: PLENTY) as nightly,
            Pool(found, world.guests, available=lambda: PLENTY) as nameless,
            nightly.lease(soon()),
            nightly.lease(soon()),
            nameless.lease(soon()),
            pytest.raises(InstanceBusy) as busy,
        ):
            world.pool(size=3).lease(Deadline(0)).__enter__()
        told = re.sub(r"process \d+, since \S+:(\d\d)Z", r"process PID, since \1 s", str(busy.value))
        assert re.search(
            r"all 3 are in use: pool-0, pool-1 by campaign nightly \(process PID, since (\d\d) s\); "
            r"pool-2 by other work \(process PID, since (?!\1)\d\d s\)$",
            told,
        )

    def test_a_guest_that_comes_back_wakes_who_waits(
        self, world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In one process at once, without a look now and then."""
        caplog.set_level(logging.INFO, "topcoat")
        monkeypatch.setattr(module, "_POLL", 3600)
        pool, got = world.pool(), list[Lease]()
        with pool.lease(soon()) as lease:
            thread = threading.Thread(target=lambda: got.append(use(pool)))
            thread.start()
            waiting(pool, caplog)
        thread.join(SOON)
        assert [one.handle for one in got] == [lease.handle]

    def test_a_guest_that_comes_back_in_another_process_is_noticed(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "topcoat")
        pool, got = world.pool(), list[Lease]()
        with world.pool().lease(soon()) as lease:
            thread = threading.Thread(target=lambda: got.append(use(pool)))
            thread.start()
            waiting(pool, caplog)
        thread.join(SOON)
        assert [one.handle for one in got] == [lease.handle]


def hammer(root: Path, size: int, notes: Path) -> None:
    """Lease again and again; nobody else may be inside the same guest at the same time."""
    had = []
    with Pool(settings_for(root, size), FakeGuests(), available=lambda: PLENTY) as pool:
        for _ in range(8):
            with pool.lease(Deadline(60)) as lease:
                inside = notes / f"inside-{lease.instance.name}"
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                assert lease.instance.live_handle() == lease.handle
                eventually(lambda: len(qemus_of(root)) <= 3)  # what starts one has its command line for a moment
                time.sleep(0.01)
                inside.unlink()
                had.append(lease.instance.name)
    (notes / f"had-{os.getpid()}").write_text(" ".join(had))


class TestRoom:
    ENOUGH_FOR_ONE = RESERVE + MEMORY + MEMORY // 2

    def test_no_memory_for_a_single_guest(self, world: World) -> None:
        pool = world.pool(size=2, available=RESERVE + MEMORY - 1)
        with pytest.raises(HostFault, match="256 MiB of memory, and the host has 256 MiB for it") as fault:
            use(pool)
        assert fault.value.cause == "no memory"
        assert not is_locked(world.slot().path)
        assert world.guests.starts == []

    def test_what_the_other_guests_may_still_take_is_not_free(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The second one waits for the first, and gets it without a boot."""
        caplog.set_level(logging.INFO, "topcoat")
        pool, got = world.pool(size=2, available=self.ENOUGH_FOR_ONE), list[Lease]()
        with pool.lease(soon()) as first:
            with pytest.raises(InstanceBusy, match=r"within 0\.3 s: a guest takes 256 MiB"), pool.lease(Deadline(0.3)):
                pass
            assert caplog.text.count("waiting for a guest of the pool: a guest takes 256 MiB") == 1
            caplog.clear()
            thread = threading.Thread(target=lambda: got.append(use(pool)))
            thread.start()
            waiting(pool, caplog)
        thread.join(SOON)
        assert [lease.handle for lease in got] == [first.handle]
        assert len(pool.boots) == 1

    def test_a_guest_that_is_being_booted_counts_too(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "topcoat")
        pool, begun, go_on = world.pool(size=2, available=self.ENOUGH_FOR_ONE), threading.Event(), threading.Event()

        def booting(_: Instance) -> None:
            begun.set()
            assert go_on.wait(SOON)

        world.guests.while_booting = booting
        with threads(1, lambda: use(pool)) as raised:
            assert begun.wait(SOON)
            with threads(1, lambda: use(pool)) as others:
                waiting(pool, caplog)
                go_on.set()
        assert (raised, others) == ([], [])
        assert world.guests.starts == ["pool-0"]

    def test_a_full_disk(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        pool = world.pool(size=2)
        with pool.lease(soon()):
            monkeypatch.setattr("pipeline.vm.capacity.free_bytes", lambda _: 0)
            with pytest.raises(InstanceBusy, match=r"within 0 s: the disk of .* is full"), pool.lease(Deadline(0)):
                pass
        use(pool).spoil("not any more")
        kill(use(pool).handle.process)
        with pytest.raises(StoreError, match="is full"):
            use(pool)


class TestClose:
    def test_it_ends_what_it_has_lent(self, world: World) -> None:
        with world.pool(size=2) as pool, pool.lease(soon()), pool.lease(soon()):
            pass
        assert world.running() == []
        assert (world.state(0), world.state(1)) == ("none", "none")
        with pytest.raises(InstanceBusy, match="was closed"):
            use(pool)
        pool.close()

    def test_it_leaves_what_others_have_now(self, world: World) -> None:
        pool, other = world.pool(size=2), world.pool(size=2)
        use(pool)
        with other.lease(soon()) as lease:
            pool.close()
            assert lease.handle.process.alive
        assert use(other).handle == lease.handle
        other.close()
        assert world.running() == []

    def test_who_has_the_place_for_a_moment_has_no_lease(self, world: World) -> None:
        """As a child process that was started while the guest was lent, before its exec(2)."""
        pool = world.pool()
        use(pool)
        held = ExitStack()
        held.enter_context(world.slot().taken())
        with threads(1, pool.close) as raised:
            time.sleep(0.1)
            held.close()
        assert raised == []
        assert world.running() == []

    def test_it_leaves_the_idle_guests_of_others(self, world: World) -> None:
        pool, other = world.pool(size=2), world.pool(size=2)
        with pool.lease(soon()), other.lease(soon()) as second:
            pass
        pool.close()
        assert world.running() == [second.handle.process]

    def test_it_leaves_what_another_has_booted_in_its_place(self, world: World) -> None:
        pool, other = world.pool(), world.pool()
        stop(use(pool).instance, 3)
        lease = use(other)
        pool.close()
        assert lease.handle.process.alive

    def test_it_wakes_who_waits(
        self, world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        caplog.set_level(logging.INFO, "topcoat")
        monkeypatch.setattr(module, "_POLL", 3600)
        pool = world.pool()
        with pool.lease(soon()) as lease, threads(3, lambda: use(pool)) as raised:
            waiting(pool, caplog)
            pool.close()
        assert [str(error) for error in raised] == ["the pool was closed while its guests were still wanted"] * 3
        assert not lease.handle.process.alive, "it was lent, and is ended now that it is back"

    def test_its_guests_are_tied_to_it_until_the_last_is_back(self, world: World) -> None:
        found = settings_for(world.root)
        with Pool(found, world.guests, grace=7.0, available=lambda: PLENTY) as pool, pool.lease(soon()):
            (keepalive,) = world.guests.keepalives
            assert (keepalive.file, keepalive.grace) == (world.root / "pool/users.lock", 7.0)
            assert keepalive.in_use()
            pool.close()
            assert keepalive.in_use()
        assert not keepalive.in_use()

    def test_all_are_tried_and_the_first_error_is_told(
        self, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool, end = world.pool(size=2), world.guests.end

        def first_survives(instance: Instance) -> None:
            if instance.name == "pool-0":
                raise StopError("QEMU survived SIGKILL", hint="wait")
            end(instance)

        with pool.lease(soon()), pool.lease(soon()):
            pass
        with monkeypatch.context() as patched:
            patched.setattr(world.guests, "end", first_survives)
            with pytest.raises(StopError):
                pool.close()
        assert len(world.running()) == 1
        again = world.pool(size=2)
        use(again)
        with monkeypatch.context() as patched:
            patched.setattr(world.guests, "end", first_survives)
            with pytest.raises(ValueError, match="of the body"), again:
                raise ValueError("of the body")
        assert "survived SIGKILL" in caplog.text

    def test_a_store_that_cannot_be_written(self, world: World) -> None:
        world.root.write_text("a file")
        with pytest.raises(StoreError):
            world.pool()
