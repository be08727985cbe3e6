"""When the pool boots a new guest, and what becomes of boots that fail."""

import logging

import pytest

from pipeline.errors import BootTimeout, GuestDied, StopError
from pipeline.host.locks import is_locked
from pipeline.settings import Fresh
from pipeline.vm.instance import Instance
from pipeline.vm.keepalive import KeepAlive
from pipeline.vm.lease import Lease
from pipeline.vm.pool import Pool
from pipeline.vm.qemu.stopping import stop
from tests.fakes.guests import kill
from tests.fakes.pools import World, killed_owner, soon, survives, use, whys, world

__all__ = ["world"]


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

    @pytest.mark.parametrize("fresh", ["on_crash", "never"])
    def test_one_that_is_retired_is_ended_although_nothing_went_wrong(self, world: World, fresh: Fresh) -> None:
        pool = world.pool(fresh=fresh)
        with pool.lease(soon()) as first:
            first.retire("another boot\nis to tell")
        assert world.running() == []
        assert use(pool).handle.boot_id != first.handle.boot_id
        assert whys(pool) == ["there was none", "another boot\\nis to tell"]

    @pytest.mark.parametrize("fresh", ["on_crash", "never"])
    def test_who_wants_a_new_one_gets_it(self, world: World, fresh: Fresh) -> None:
        first, pool = use(world.pool(fresh=fresh)), world.pool(fresh=fresh)
        with pool.lease(soon(), "it must be new") as second:
            assert second.new
            assert second.handle.boot_id != first.handle.boot_id
        assert use(pool).handle == second.handle
        assert whys(pool) == ["it must be new"]

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
        world.guests.launcher(instance, KeepAlive(world.root / "x")).start()
        self.booted(world, pool, "nobody knows what was done with it", caplog)

    def test_it_was_booted_anew_by_somebody_else(
        self, world: World, pool: Pool, caplog: pytest.LogCaptureFixture
    ) -> None:
        first = self.idle(world)
        stop(first.instance, 3)
        world.guests.launcher(first.instance, KeepAlive(world.root / "x")).start()
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
            patched.setattr(world.guests, "end", survives)
            with pool.lease(soon()) as first:
                first.spoil("it hangs")
            assert "pool-0: QEMU survived SIGKILL" in caplog.text
            assert world.state() == "leased"
            with pytest.raises(StopError):
                use(pool)
        assert use(pool).handle.boot_id != first.handle.boot_id
        assert not first.handle.process.alive
