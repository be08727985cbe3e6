"""The pool: guests that are lent to one piece of work after another, so that not every piece waits for a boot.

All processes that use the store run at most `[pool] size` guests at once (pipeline/vm/slot.py), and `[pool] spares`
more, which wait for a lease. A guest that goes wrong is ended when it is given back, and the next lease gets a new one;
`[pool] fresh` says when else. The guests of a killed process are taken over by whoever uses the pool next, or ended by
their keepers (see pipeline/vm/keepalive.py).
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Protocol, Self

from pipeline.errors import BootError, GuestDied, InstanceBusy, StopError, TopcoatError
from pipeline.host.deadline import Deadline
from pipeline.host.resources import available_memory, resident
from pipeline.host.worker import Worker
from pipeline.settings import Settings
from pipeline.vm import launcher
from pipeline.vm.capacity import shortage
from pipeline.vm.handle import Handle
from pipeline.vm.instance import Instance
from pipeline.vm.keepalive import GRACE, KeepAlive
from pipeline.vm.launcher import Launcher
from pipeline.vm.lease import Boot, Lease
from pipeline.vm.slot import Slot, State, Use, users_file
from pipeline.vm.slots import NoSlotError, Slots, Wait

log = logging.getLogger("topcoat")

_NONE = "there was none"
_POLL = 0.1  # seconds; there is no way to wait for memory but to poll
_MOMENT = 0.5  # seconds; a child may hold a slot for so long, until its exec(2), without having a lease
_CLOSE_LIMIT = 30.0  # seconds; ending a guest takes KILL_LIMIT at most, but longer on a disk that stalls


class GuestFactory(Protocol):
    """The kind of guests that a pool has: how they are booted and ended."""

    @property
    def memory(self) -> int:
        """Bytes of memory that one guest may take."""

    def cloned(self) -> bool:
        """Whether a new guest would be a clone, which takes little time, and not a boot."""

    def launcher(self, instance: Instance, keepalive: KeepAlive) -> Launcher:
        """What boots a guest from today's images and settings; it will not outlive the users of `keepalive`.

        Raises TopcoatError.
        """

    def abandon(self, instance: Instance) -> None:
        """End the guest that this process boots in another thread, where the boot then fails. Raises StopError."""

    def end(self, instance: Instance) -> None:
        """End the guest, whatever its state, and release all that it holds but its logs. See `Launcher.kill`."""

    def fits(self, handle: Handle) -> str | None:
        """Why the running guest is not what a boot would make today; None if it is. Raises TopcoatError."""


class Pool:
    """The guests of one store, as this process uses them; for any number of threads, and it must be closed.

    While it is open, guests of the pool that nobody has leased run on, also those that other processes have booted.
    """

    def __init__(
        self,
        settings: Settings,
        guests: GuestFactory,
        *,
        work: str = "",
        refill: bool = True,
        grace: float = GRACE,
        available: Callable[[], int] = available_memory,
    ) -> None:
        """Open the pool. Raises StoreError or InstanceBusy.

        `work` says what the guests are wanted for; others who wait for one are told. `refill` says whether clones are
        made ahead for leases to come. `grace` is how many seconds guests run on if this process is killed. `available`
        returns the bytes of free memory.
        """
        store = settings.store
        self.size = settings.pool.size or len(os.sched_getaffinity(0))
        self._fresh, self._attempts = settings.pool.fresh, settings.boot.attempts
        self._guests, self._available = guests, available
        wants_spares = self._fresh in ("auto", "always") and guests.cloned()
        self._spares, self._refills = settings.pool.spares if wants_spares else 0, refill
        slots = [Slot(store, number) for number in range(self.size + self._spares)]
        self._slots = Slots(slots, self.size, self._let_go)
        self._changed, self._closed = self._slots.changed, self._slots.closed
        # `_changed` must be held to read or change what follows
        self._makers: list[Worker] = []  # of spares
        self._booting: set[Slot] = set()
        self._boot_ids: dict[Slot, str] = {}  # of the guests that this pool has lent and not ended
        self._ended: dict[Slot, str] = {}  # why the slot's last guest was ended, until the next boot
        self._boots: list[Boot] = []
        self._work = work
        self._keepalive = KeepAlive(users_file(store), grace)
        self._tied = ExitStack()
        self._tied.enter_context(self._keepalive.held())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            self.close()
        except TopcoatError as failure:
            if error is None:
                raise
            log.error("%s", failure.explain())  # logged, not raised: it must not hide the error that led here

    @property
    def boots(self) -> tuple[Boot, ...]:
        """All boots that this pool has tried so far, in the order in which they ended."""
        with self._changed:
            return tuple(self._boots)

    @contextmanager
    def lease(self, deadline: Deadline, anew: str = "") -> Iterator[Lease]:
        """Lend a guest for the body: one that runs and is free, else a new one, as soon as there may be one more.

        `anew`, if not empty, says why the guest must be a new one; one that runs and is free is then ended first.
        `deadline` limits the wait for a free slot and for room; a boot has limits of its own. Any exception that leaves
        the body, also KeyboardInterrupt, spoils the guest: what the body has begun in it may still run. Errors while
        the guest is given back are logged, and the next lease deals with what they leave.

        Raises InstanceBusy if the deadline passes or the pool is closed; HostFault or StoreError if there is no room
        even for a single guest; and whatever the boot raises, most likely BootError. Then nothing is left running.
        """
        with ExitStack() as held:
            lease = self._lease(Wait(deadline), held, anew)
            try:
                self._refill()
                yield lease
            except BaseException as error:
                lease.spoil(f"{type(error).__name__} in its work")
                raise
            finally:
                self._give_back(lease)

    def _lease(self, wait: Wait, held: ExitStack, anew: str) -> Lease:
        while True:
            with ExitStack() as attempt:
                slot = attempt.enter_context(self._slots.lent(wait))
                try:
                    lease = self._guest(slot, anew)
                    held.push(attempt.pop_all())
                    return lease
                except _ShortError as short:
                    problem = short.error
            # The slot is free meanwhile: a guest that is given back can then be had without a boot
            wait.go_on(problem.message, problem.hint)
            self._closed.wait(wait.deadline.within(_POLL))

    def _guest(self, slot: Slot, anew: str) -> Lease:
        """The guest of a slot that was seized, ready for work. Raises _ShortError if other guests must end first."""
        handle, use = slot.instance.live_handle(), slot.use()
        unused = use is not None and use.state == "spare"
        why = self._why_new(slot, handle, use) or ("" if unused else anew) or None
        if handle is None or why is not None:
            handle = self._anew(slot, why or _NONE)
        self._note(slot, "leased", handle)
        return Lease(slot, handle, unused or why is not None)

    def _note(self, slot: Slot, state: State, handle: Handle) -> None:
        """Note what becomes of a slot's guest, which is ended with the pool from then on."""
        try:
            slot.note(state, handle.boot_id, self._work)
        except BaseException:
            self._end(slot, "its use could not be noted")
            raise
        with self._changed:
            self._boot_ids[slot] = handle.boot_id
            self._ended.pop(slot, None)

    def _why_new(self, slot: Slot, handle: Handle | None, use: Use | None) -> str | None:
        """Why the guest of a slot cannot be handed out as it is; None if it can."""
        if handle is None:
            if slot.instance.state() == "broken":
                return "its QEMU lives, but its handle cannot be relied upon"
            return _NONE if use is None else "its QEMU has ended"
        if use is None or use.boot_id != handle.boot_id:
            return "nobody knows what was done with it"
        if use.state == "leased":
            return f"who had it (pid {use.owner.pid}) has died in the middle of its work"
        if line := slot.instance.halt():
            return f"its kernel has halted: {line}"
        return (self._why_fresh() if use.state == "idle" else "") or self._guests.fits(handle)

    def _why_fresh(self) -> str:
        """Why each lease gets a guest of its own; "" if guests are lent again."""
        if self._fresh == "auto" and self._guests.cloned():
            return "each lease gets a clone of its own"
        return "[pool] fresh is always" if self._fresh == "always" else ""

    def _anew(self, slot: Slot, why: str) -> Handle:
        """End what is left of the slot's guest, and boot a new one."""
        if why != _NONE:
            self._end(slot, why)
        with self._room_for(slot):
            with self._changed:
                why = self._ended.get(slot, why)
            log.info("%s: booting: %s", slot.instance.name, why)
            return self._boot(slot.instance, why, self._guests.launcher(slot.instance, self._keepalive))

    def _boot(self, instance: Instance, why: str, guest: Launcher) -> Handle:
        began = time.monotonic()
        try:
            launcher.start(guest, self._attempts).close()
            handle = instance.live_handle()
            if handle is None:
                raise GuestDied(
                    f"{instance.name} was ready, and ended at once",
                    stage="ready",
                    hint=f"see its last words: topcoat logs {instance.name}",
                    cause="ended at once",
                )
        except TopcoatError as error:
            cause = error.cause if isinstance(error, BootError) else ""
            self._count(Boot(instance.name, why, time.monotonic() - began, failure=cause or type(error).__name__))
            raise
        self._count(Boot(instance.name, why, time.monotonic() - began, handle.boot_id, cloned=handle.is_clone))
        return handle

    def _count(self, boot: Boot) -> None:
        with self._changed:
            self._boots.append(boot)

    @contextmanager
    def _room_for(self, slot: Slot) -> Iterator[None]:
        """Reserve memory for a guest that is booted in the body.

        Raises _ShortError if other guests take the room; else HostFault or StoreError if there is too little.
        """
        with self._changed:
            others = self._wanted_by_others(slot)
            short = shortage(slot.instance, self._guests.memory, self._available() - sum(others))
            if short is None:
                self._booting.add(slot)
        if short is not None:
            raise _ShortError(short) if others else short
        try:
            yield
        finally:
            with self._changed:
                self._booting.discard(slot)

    def _wanted_by_others(self, slot: Slot) -> list[int]:
        """For each guest in another slot, running or booting, the bytes of memory that it may still take."""
        wanted = []
        for other in self._slots.all:
            if other != slot and (handle := other.instance.live_handle()):
                wanted.append(max(0, self._guests.memory - resident(handle.process)))
            elif other != slot and (other in self._booting or other.instance.state() == "booting"):
                wanted.append(self._guests.memory)
        return wanted

    def _give_back(self, lease: Lease) -> None:
        """End the guest, or leave it to the next lease. If neither works, it stays "leased": the next lease ends it."""
        try:
            if why := self._why_end(lease):
                self._end(lease.slot, why)
            else:
                lease.slot.note("idle", lease.handle.boot_id, self._work)
        except TopcoatError as error:  # logged, not raised: the work has been done
            log.error("%s", error.about(lease.instance.name).explain())

    def _why_end(self, lease: Lease) -> str:
        if line := lease.instance.halt():
            return f"the last one went wrong: its kernel has halted: {line}"
        if lease.dead or (lease.problem and self._fresh != "never"):
            return f"the last one went wrong: {lease.problem}"
        if lease.retired:
            return lease.retired
        return "the pool was closed" if self._closed.is_set() else self._why_fresh()

    def expect(self, count: int) -> None:
        """Have guests made ahead, all at once, until there are `count` for leases that will soon be wanted.

        It returns without waiting. What goes wrong is left for those leases to find out.
        """
        states: tuple[State, ...] = ("spare",) if self._why_fresh() else ("spare", "idle")
        with self._changed:
            self._make_ahead(min(count, self.size) - self._slots.ready(*states) - self._slots.making)

    def _refill(self) -> None:
        """Have clones made ahead until there are as many spares as there should be; boots would take too much."""
        if self._refills and self._spares and self._guests.cloned():
            with self._changed:
                self._make_ahead(self._spares - self._slots.ready("spare") - self._slots.making)

    def _make_ahead(self, count: int) -> None:
        self._makers = [worker for worker in self._makers if not worker.join(0) or worker.failure]
        for _ in range(0 if self._closed.is_set() else count):
            self._slots.making += 1
            try:
                self._makers.append(Worker("spare", self._make_spare))
            except RuntimeError as error:  # the host gives no more threads: the lease makes its guest itself
                self._slots.making -= 1
                log.debug("no guest is made ahead: %s", error)

    def _make_spare(self) -> None:
        """Make a guest that waits for a lease, in a slot that has none."""
        try:
            with self._slots.empty() as slot:
                self._note(slot, "spare", self._anew(slot, _NONE))
        except (NoSlotError, _ShortError) as why:
            log.debug("no guest is made ahead: %s", why)
        except StopError:
            raise  # `close` tells of it
        except TopcoatError as error:  # a lease that meets the same error raises it
            log.debug("no guest is made ahead: %s", error.explain())
        finally:
            with self._changed:
                self._slots.making -= 1
                self._changed.notify_all()

    def _end(self, slot: Slot, why: str) -> None:
        self._guests.end(slot.instance)
        slot.forget()
        with self._changed:
            self._boot_ids.pop(slot, None)
            self._ended[slot] = why

    def close(self) -> None:
        """End the guests that this pool has lent and that nobody has now; all who wait for a guest get InstanceBusy.

        A guest that is still lent ends when it is given back; those of other processes stay. A second call does
        nothing. Raises the first error, most likely StopError, after it has tried to end all of them.
        """
        with self._changed:
            if self._closed.is_set():
                return
            self._closed.set()
            self._changed.notify_all()
        deadline = Deadline(_CLOSE_LIMIT)
        self._end_makers(deadline)
        with self._changed:
            idle = [(slot, boot_id) for slot, boot_id in self._boot_ids.items() if slot not in self._slots.taken]
        workers = self._makers + [
            Worker(f"end {slot.instance.name}", partial(self._end_idle, slot, boot_id)) for slot, boot_id in idle
        ]
        late = [worker for worker in workers if not worker.join(deadline.remaining)]
        with self._changed:
            self._let_go()
        for worker in workers:
            if worker.failure is not None:
                raise worker.failure
        if late:
            raise StopError(
                f"{len(late)} guests still start or end", hint="does the disk answer? see: topcoat instances"
            )

    def _end_makers(self, deadline: Deadline) -> None:
        """End the guests that are being made ahead: a boot may take long."""
        for maker in self._makers:
            while not maker.join(deadline.within(_MOMENT)) and not deadline.expired:
                with self._changed:
                    booting = tuple(self._booting)
                for slot in booting:
                    try:
                        self._guests.abandon(slot.instance)
                    except StopError as error:  # logged, not raised: the other guests are to be ended too
                        log.error("%s", error.about(slot.instance.name).explain())

    def _let_go(self) -> None:
        """Release the keepalive, once the pool is closed and the last guest has been given back."""
        if self._closed.is_set() and not self._slots.taken:
            self._tied.close()

    def _end_idle(self, slot: Slot, boot_id: str) -> None:
        with ExitStack() as held:
            try:
                held.enter_context(slot.taken(_MOMENT))
            except InstanceBusy:
                return  # another process has it
            use = slot.use()
            if use is not None and use.boot_id == boot_id:
                self._end(slot, "the pool was closed")


class _ShortError(Exception):
    """There is no room for one more guest until another one ends; `error` says why."""

    def __init__(self, error: TopcoatError) -> None:
        super().__init__(error.message)
        self.error = error
