"""The pool, with guests that are quick and do what they are told."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import pool as module
from pipeline import settings
from pipeline.deadline import Deadline
from pipeline.errors import BootTimeout, GuestDied, HostFault, InstanceBusy, StopError, StoreError
from pipeline.instance import Instance
from pipeline.pool import Boot, Lease, Pool
from pipeline.process import Process
from pipeline.publish import is_locked
from pipeline.room import RESERVE
from pipeline.settings import Fresh, Settings
from pipeline.slot import Slot
from pipeline.tie import Tie
from tests.conftest import qemus_of
from tests.fakes.guests import MEMORY, FakeGuests, kill

PLENTY = 1 << 40
ROOT = Path(__file__).parent.parent


def settings_for(root: Path, size: int = 1, fresh: Fresh = "on_crash", attempts: int = 1) -> Settings:
    found = settings.load({"TOPCOAT_ROOT": str(root)}, Path("/"))
    return replace(found, pool=settings.Pool(size, fresh), boot=replace(found.boot, attempts=attempts))


class World:
    """A store, the guests that are booted in it, and the pools that use it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.guests = FakeGuests()
        self.opened: list[Pool] = []

    def pool(self, size: int = 1, fresh: Fresh = "on_crash", attempts: int = 1, available: int = PLENTY) -> Pool:
        """Another one, as another process would have."""
        found = settings_for(self.root, size, fresh, attempts)
        self.opened.append(Pool(found, self.guests, available=lambda: available))
        return self.opened[-1]

    def slot(self, number: int = 0) -> Slot:
        return Slot(settings.Store(self.root), number)

    def state(self, number: int = 0) -> str:
        use = self.slot(number).use()
        return use.state if use else "none"

    def running(self) -> list[Process]:
        return qemus_of(self.root)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "out")
    yield made
    for pool in made.opened:
        pool.close()
    for instance in Instance.all(settings.Store(made.root)):
        instance.stop(10)


def soon() -> Deadline:
    return Deadline(30)


def use(pool: Pool) -> Lease:
    """Lease a guest and give it back."""
    with pool.lease(soon()) as lease:
        return lease


def whys(pool: Pool) -> list[str]:
    return [boot.why for boot in pool.boots]


@contextmanager
def threads(count: int, work: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Run `work` in so many threads beside the body. What they raised is there after it."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  the test looks at it
            raised.append(error)

    made = [threading.Thread(target=run) for _ in range(count)]
    for thread in made:
        thread.start()
    yield raised
    for thread in made:
        thread.join(60)
        assert not thread.is_alive()


def waiting(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    """Return when somebody waits for a guest."""
    limit = time.monotonic() + 20
    while "waiting for a guest of the pool" not in caplog.text:
        assert time.monotonic() < limit, pool.boots
        time.sleep(0.01)


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

    def test_a_child_of_its_user_does_not_inherit_the_place(self, world: World) -> None:
        with world.pool().lease(soon()):
            child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
        with child:
            assert not is_locked(world.slot().path)

    def test_without_a_size_there_is_one_for_each_core(self, world: World) -> None:
        found = settings_for(world.root)
        with Pool(replace(found, pool=settings.Pool()), world.guests) as pool:
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
    def test_twenty_threads_share_three_guests(self, world: World) -> None:
        pool, inside, most = world.pool(size=3), set[str](), 0

        def work() -> None:
            nonlocal most
            for _ in range(3):
                with pool.lease(soon()) as lease:
                    assert lease.instance.name not in inside
                    inside.add(lease.instance.name)
                    most = max(most, len(inside))
                    time.sleep(0.005)
                    inside.remove(lease.instance.name)

        with threads(20, work) as raised:
            pass
        assert raised == []
        assert most == 3
        assert len(world.running()) == 3
        assert [boot.instance for boot in sorted(pool.boots, key=lambda boot: boot.instance)] == [
            *("pool-0", "pool-1", "pool-2")
        ]

    def test_four_processes_share_as_many_as_the_largest_pool_has(self, world: World, tmp_path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        sizes = (2, 2, 3, 3)
        others = [context.Process(target=hammer, args=(world.root, size, tmp_path)) for size in sizes]
        for other in others:
            other.start()
        for other in others:
            other.join(90)
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
                with pytest.raises(InstanceBusy, match=r"within 0\.3 s: all 1 are in use") as busy:
                    place.lease(Deadline(0.3)).__enter__()
                assert "fuser -v" in busy.value.hint
                assert "[pool] size" in busy.value.hint
        assert caplog.text.count("waiting for a guest of the pool: all 1 are in use") == 2, "once each"
        with pool.lease(Deadline(0)):
            pass

    def test_a_guest_that_comes_back_wakes_who_waits(
        self, world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In one process at once, without a look now and then."""
        caplog.set_level(logging.INFO, "topcoat")
        monkeypatch.setattr(module, "_POLL", 3600)
        pool = world.pool()
        with pool.lease(soon()) as lease:
            held = threads(1, lambda: got.append(use(pool)))
            got: list[Lease] = []
            raised = held.__enter__()
            waiting(pool, caplog)
        held.__exit__(None, None, None)
        assert raised == []
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
        thread.join(20)
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
                assert len(qemus_of(root)) <= 3
                time.sleep(0.01)
                inside.unlink()
                had.append(lease.instance.name)
    (notes / f"had-{os.getpid()}").write_text(" ".join(had))


class TestFresh:
    def test_on_crash_only_after_one_that_went_wrong(self, world: World) -> None:
        pool = world.pool(fresh="on_crash")
        with pool.lease(soon()) as first:
            first.spoil("the fuzzer\n\x1b[31mhangs")
            first.spoil("later")
        assert world.running() == [], "it is ended at once"
        assert world.state() == "none"
        second, third = use(pool), use(pool)
        assert (second.new, third.new) == (True, False)
        assert second.handle.boot_id != first.handle.boot_id
        assert whys(pool) == ["there was none", "the last one went wrong: the fuzzer\\nhangs"]

    def test_always_each_time(self, world: World) -> None:
        pool = world.pool(fresh="always")
        assert use(pool).new
        assert world.running() == []
        assert use(pool).new
        assert whys(pool) == ["there was none", "[pool] fresh is always"]

    def test_always_does_not_take_what_another_process_has_left(self, world: World) -> None:
        first = use(world.pool())
        pool = world.pool(fresh="always")
        second = use(pool)
        assert second.new
        assert second.handle.boot_id != first.handle.boot_id
        assert whys(pool) == ["[pool] fresh is always"]

    def test_never_keeps_what_lives(self, world: World) -> None:
        pool = world.pool(fresh="never")
        with pool.lease(soon()) as first:
            first.spoil("it hangs")
        assert use(pool).handle == first.handle

    def test_never_boots_where_its_user_says_that_it_lives_no_more(self, world: World) -> None:
        pool = world.pool(fresh="never")
        with pool.lease(soon()) as first:
            first.died("it does not answer")
        assert world.running() == []
        assert use(pool).new
        assert whys(pool)[1] == "the last one went wrong: it does not answer"

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_an_exception_spoils(self, world: World, error: type[BaseException]) -> None:
        pool = world.pool()
        with pytest.raises(error, match="in the body"), pool.lease(soon()):
            raise error("in the body")
        assert use(pool).new
        assert whys(pool)[1] == f"the last one went wrong: {error.__name__} in its work"


FRESH: list[Fresh] = ["on_crash", "always", "never"]


class TestWhy:
    """Why the guest that is there is not handed out: it is ended, and another one booted, with a line that says so."""

    @pytest.fixture(params=FRESH)
    def pool(self, world: World, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Pool:
        caplog.set_level(logging.INFO, "topcoat")
        return world.pool(fresh=request.param)

    def booted(self, world: World, pool: Pool, why: str, caplog: pytest.LogCaptureFixture) -> Lease:
        caplog.clear()
        lease = use(pool)
        assert lease.new
        assert whys(pool)[-1] == why
        assert [record.getMessage() for record in caplog.records if "booting" in record.getMessage()] == [
            f"pool-0: booting: {why}"
        ]
        assert len(world.running()) <= 1
        return lease

    def idle(self, world: World) -> Lease:
        return use(world.pool())

    def test_its_qemu_has_ended(self, world: World, pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
        kill(self.idle(world).handle.process)
        self.booted(world, pool, "its QEMU has ended", caplog)

    def test_it_died_while_it_was_lent_and_nobody_noticed(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "topcoat")
        pool = world.pool()
        with pool.lease(soon()) as lease:
            kill(lease.handle.process)
        self.booted(world, pool, "its QEMU has ended", caplog)

    def test_it_is_stale(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "topcoat")
        pool = world.pool(fresh="never")
        first = self.idle(world)
        world.guests.version = "2"
        lease = self.booted(world, pool, "version 1 -> 2", caplog)
        assert not first.handle.process.alive
        assert use(pool).handle == lease.handle

    def test_its_handle_was_edited(self, world: World, pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
        first = self.idle(world)
        file = first.instance.handle_file
        file.write_text(file.read_text().replace("fake", "other"))
        self.booted(world, pool, "its QEMU lives, but its handle cannot be relied upon", caplog)
        assert not first.handle.process.alive

    def test_it_was_booted_by_somebody_else(self, world: World, pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
        instance = world.slot().instance
        world.guests.launcher(instance, Tie(world.root / "x")).start()
        self.booted(world, pool, "nobody knows what was done with it", caplog)

    def test_it_was_booted_anew_by_somebody_else(
        self, world: World, pool: Pool, caplog: pytest.LogCaptureFixture
    ) -> None:
        first = self.idle(world)
        first.instance.stop(3)
        world.guests.launcher(first.instance, Tie(world.root / "x")).start()
        self.booted(world, pool, "nobody knows what was done with it", caplog)

    def test_its_state_is_damaged(self, world: World, pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
        self.idle(world)
        world.slot().file.write_text("{")
        self.booted(world, pool, "nobody knows what was done with it", caplog)

    def test_who_had_it_was_killed(self, world: World, pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
        owner, boot_id = killed_owner(world)
        assert (world.state(), len(world.running())) == ("leased", 1)
        why = f"who had it (pid {owner}) has died in the middle of its work"
        lease = self.booted(world, pool, why, caplog)
        assert lease.handle.boot_id != boot_id

    def test_it_was_given_back_before_its_process_was_killed(self, world: World) -> None:
        _, boot_id = killed_owner(world, after="pass")
        pool = world.pool()
        assert use(pool).handle.boot_id == boot_id
        assert pool.boots == ()


def killed_owner(world: World, after: str = "os.kill(os.getpid(), 9)") -> tuple[int, str]:
    """A process that is killed while it has a lease, or `after` that. Returns its pid and the guest's boot id."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom pipeline.deadline import Deadline\n"
        "from tests.fakes.guests import FakeGuests\nfrom tests.test_pool import Pool, settings_for\n"
        "pool = Pool(settings_for(Path(sys.argv[1])), FakeGuests(), available=lambda: 1 << 40)\n"
        "with pool.lease(Deadline(30)) as lease:\n"
        "    print(os.getpid(), lease.handle.boot_id, flush=True)\n"
        f"    {after}\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, world.root], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid, boot_id = done.stdout.decode().split()
    return int(pid), boot_id


class TestFailure:
    def error(self) -> BootTimeout:
        return BootTimeout("it was not ready", hint="wait longer", stage="marker", cause="stalled")

    def test_a_boot_that_fails_frees_the_place(self, world: World) -> None:
        pool = world.pool()
        world.guests.failures = [self.error()]
        with pytest.raises(BootTimeout, match="it was not ready"):
            use(pool)
        assert not is_locked(world.slot().path)
        assert world.state() == "none"
        assert use(pool).new
        failed, made = pool.boots
        assert (failed.failure, failed.boot_id) == ("stalled", "")
        assert (made.failure, made.why) == ("", "there was none")
        assert made.boot_id

    def test_it_is_tried_as_often_as_the_settings_say(self, world: World) -> None:
        pool = world.pool(attempts=2)
        world.guests.failures = [self.error()]
        assert use(pool).new
        assert world.guests.starts == ["pool-0", "pool-0"]
        assert len(pool.boots) == 1

    def test_a_guest_that_ends_as_soon_as_it_is_ready(self, world: World) -> None:
        pool = world.pool()
        world.guests.after_boot = kill
        with pytest.raises(GuestDied, match="ended at once"):
            use(pool)
        assert [boot.failure for boot in pool.boots] == ["ended at once"]
        world.guests.after_boot = lambda _: None
        assert use(pool).new

    def test_an_interrupted_boot_frees_the_place(self, world: World) -> None:
        def interrupt(_: Instance) -> None:
            raise KeyboardInterrupt

        pool = world.pool()
        world.guests.while_booting = interrupt
        with pytest.raises(KeyboardInterrupt):
            use(pool)
        assert not is_locked(world.slot().path)
        world.guests.while_booting = lambda _: None
        assert use(pool).new

    def test_a_guest_that_cannot_be_ended_harms_no_work_that_was_done(
        self, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = world.pool()
        with monkeypatch.context() as patched:
            patched.setattr(Instance, "stop", survives)
            with pool.lease(soon()) as first:
                first.spoil("it hangs")
            assert "pool-0: QEMU survived SIGKILL" in caplog.text
            assert world.state() == "leased"
            with pytest.raises(StopError):
                use(pool)
        assert use(pool).handle.boot_id != first.handle.boot_id
        assert not first.handle.process.alive


def survives(*_: object) -> None:
    raise StopError("QEMU survived SIGKILL", hint="wait")


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
        thread.join(20)
        assert [lease.handle for lease in got] == [first.handle]
        assert len(pool.boots) == 1

    def test_a_guest_that_is_being_booted_counts_too(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "topcoat")
        pool, begun, go_on = world.pool(size=2, available=self.ENOUGH_FOR_ONE), threading.Event(), threading.Event()

        def booting(_: Instance) -> None:
            begun.set()
            assert go_on.wait(20)

        world.guests.while_booting = booting
        with threads(1, lambda: use(pool)) as raised:
            assert begun.wait(20)
            with threads(1, lambda: use(pool)) as others:
                waiting(pool, caplog)
                go_on.set()
        assert (raised, others) == ([], [])
        assert world.guests.starts == ["pool-0"]

    def test_a_full_disk(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        pool = world.pool(size=2)
        with pool.lease(soon()):
            monkeypatch.setattr("pipeline.qemu.launcher.free_bytes", lambda _: 0)
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

    def test_it_leaves_the_idle_guests_of_others(self, world: World) -> None:
        pool, other = world.pool(size=2), world.pool(size=2)
        with pool.lease(soon()), other.lease(soon()) as second:
            pass
        pool.close()
        assert world.running() == [second.handle.process]

    def test_it_leaves_what_another_has_booted_in_its_place(self, world: World) -> None:
        pool, other = world.pool(), world.pool()
        use(pool).instance.stop(3)
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
            (tie,) = world.guests.ties
            assert (tie.file, tie.grace) == (world.root / "pool/users.lock", 7.0)
            assert tie.in_use()
            pool.close()
            assert tie.in_use()
        assert not tie.in_use()

    def test_all_are_tried_and_the_first_error_is_told(
        self, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool, stop = world.pool(size=2), Instance.stop

        def first_survives(instance: Instance, limit: float) -> object:
            if instance.name == "pool-0":
                raise StopError("QEMU survived SIGKILL", hint="wait")
            return stop(instance, limit)

        with pool.lease(soon()), pool.lease(soon()):
            pass
        with monkeypatch.context() as patched:
            patched.setattr(Instance, "stop", first_survives)
            with pytest.raises(StopError):
                pool.close()
        assert len(world.running()) == 1
        again = world.pool(size=2)
        use(again)
        with monkeypatch.context() as patched:
            patched.setattr(Instance, "stop", first_survives)
            with pytest.raises(ValueError, match="of the body"), again:
                raise ValueError("of the body")
        assert "survived SIGKILL" in caplog.text

    def test_a_store_that_cannot_be_written(self, world: World) -> None:
        world.root.write_text("a file")
        with pytest.raises(StoreError):
            world.pool()
