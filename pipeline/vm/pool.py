"""The pool: guests that are lent to one piece of work after another, so that not every piece waits for a boot.

All processes that use the store run at most `[pool] size` guests at once (pipeline/vm/slot.py). A guest that goes wrong
is ended when it is given back, and the next lease boots a new one; `[pool] fresh` says when else. The guests of a
killed process are taken over by whoever uses the pool next, or ended by their keepers (see pipeline/vm/keepalive.py).
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, Self

from pipeline.errors import BootError, GuestDied, InstanceBusy, StopError, TopcoatError
from pipeline.host.deadline import Deadline
from pipeline.host.resources import available_memory, resident
from pipeline.host.worker import Worker
from pipeline.settings import Settings
from pipeline.text.printable import one_line
from pipeline.vm import launcher
from pipeline.vm.capacity import shortage
from pipeline.vm.handle import Handle
from pipeline.vm.instance import Instance
from pipeline.vm.keepalive import GRACE, KeepAlive
from pipeline.vm.launcher import Launcher
from pipeline.vm.slot import Slot, users_file

log = logging.getLogger("topcoat")

_NONE = "there was none"
_MORE = "wait for it to end, or have more guests at once: [pool] size; what runs is told by: topcoat instances"
_POLL = 0.1  # seconds; there is no way to wait for another process's flock, or for memory, but to poll
_MOMENT = 0.5  # seconds; a child may hold a slot for so long, until its exec(2), without having a lease
_CLOSE_LIMIT = 30.0  # seconds; ending a guest takes KILL_LIMIT at most, but longer on a disk that stalls


class GuestFactory(Protocol):
    """The kind of guests that a pool has: how they are booted and ended."""

    @property
    def memory(self) -> int:
        """Bytes of memory that one guest may take."""

    def launcher(self, instance: Instance, keepalive: KeepAlive) -> Launcher:
        """What boots a guest from today's images and settings; it will not outlive the users of `keepalive`.

        Raises TopcoatError.
        """

    def end(self, instance: Instance) -> None:
        """End the guest, whatever its state, and release all that it holds but its logs. See `Launcher.kill`."""

    def fits(self, handle: Handle) -> str | None:
        """Why the running guest is not what a boot would make today; None if it is. Raises TopcoatError."""


@dataclass(frozen=True)
class Boot:
    """A boot that the pool has tried, and its outcome."""

    instance: str
    """The name of the instance."""
    why: str
    """Why the boot was needed, in one clause."""
    seconds: float
    """How long the boot took, whether it failed or not."""
    boot_id: str = ""
    """The id of the boot; "" if it failed."""
    failure: str = ""
    """The cause of the failure (see BootError), or else the class of the error; "" if the guest became ready."""


@dataclass
class Lease:
    """A guest that is lent for one piece of work."""

    slot: Slot
    handle: Handle
    """The guest's handle as it was when the guest was handed out; the guest may die at any moment."""
    new: bool
    """Whether the guest was booted for this lease."""
    problem: str = field(default="", init=False)
    """The first problem that was reported by `spoil` or `died`; "" if there was none."""
    dead: bool = field(default=False, init=False)
    """Whether `died` was called."""
    retired: str = field(default="", init=False)
    """Why nobody else gets the guest although nothing went wrong; "" if `retire` was not called."""

    @property
    def instance(self) -> Instance:
        """The guest's instance."""
        return self.slot.instance

    def spoil(self, reason: str) -> None:
        """Report that the guest may be damaged: nobody else gets it, unless `[pool] fresh` is never."""
        self.problem = self.problem or one_line(reason)

    def retire(self, reason: str) -> None:
        """Have nobody else get the guest, whatever `[pool] fresh` says, although nothing went wrong."""
        self.retired = one_line(reason)

    def died(self, reason: str) -> None:
        """Report that the guest is of no use any more, whether its QEMU runs or not: nobody else gets it."""
        self.spoil(reason)
        self.dead = True


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
        grace: float = GRACE,
        available: Callable[[], int] = available_memory,
    ) -> None:
        """Open the pool. Raises StoreError or InstanceBusy.

        `work` says what the guests are wanted for; others who wait for one are told. `grace` is how many seconds guests
        run on if this process is killed. `available` returns the bytes of free memory.
        """
        store = settings.store
        self.size = settings.pool.size or len(os.sched_getaffinity(0))
        self._fresh, self._attempts = settings.pool.fresh, settings.boot.attempts
        self._guests, self._available = guests, available
        self._slots = [Slot(store, number) for number in range(self.size)]
        self._changed = threading.Condition()
        # `_changed` must be held to read or change what follows
        self._taken: set[Slot] = set()  # by this pool's leases
        self._booting: set[Slot] = set()
        self._boot_ids: dict[Slot, str] = {}  # of the guests that this pool has lent and not ended
        self._ended: dict[Slot, str] = {}  # why the slot's last guest was ended, until the next boot
        self._boots: list[Boot] = []
        self._closed = threading.Event()
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
            lease = self._lease(_Wait(deadline), held, anew)
            try:
                yield lease
            except BaseException as error:
                lease.spoil(f"{type(error).__name__} in its work")
                raise
            finally:
                self._give_back(lease)

    def _lease(self, wait: "_Wait", held: ExitStack, anew: str) -> Lease:
        while True:
            with ExitStack() as attempt:
                slot = attempt.enter_context(self._seized(wait))
                try:
                    lease = self._guest(slot, anew)
                    held.push(attempt.pop_all())
                    return lease
                except _ShortError as short:
                    problem = short.error
            # The slot is free meanwhile: a guest that is given back can then be had without a boot
            wait.go_on(problem.message, problem.hint)
            self._closed.wait(wait.deadline.within(_POLL))

    @contextmanager
    def _seized(self, wait: "_Wait") -> Iterator[Slot]:
        """Yield a slot that nobody else has during the body."""
        with ExitStack() as lock:
            slot = self._seize(wait, lock)
            try:
                yield slot
            finally:
                lock.close()
                with self._changed:
                    self._taken.discard(slot)
                    self._changed.notify_all()
                    self._let_go()

    def _seize(self, wait: "_Wait", lock: ExitStack) -> Slot:
        with self._changed:
            while not self._closed.is_set():
                for slot in sorted((slot for slot in self._slots if slot not in self._taken), key=_readiness):
                    try:
                        lock.enter_context(slot.taken())
                    except InstanceBusy:
                        continue
                    self._taken.add(slot)
                    return slot
                wait.go_on(self._in_use, _MORE)
                all_ours = len(self._taken) == self.size
                self._changed.wait(wait.deadline.remaining if all_ours else wait.deadline.within(_POLL))
        raise InstanceBusy("the pool was closed while its guests were still wanted", hint="run it again")

    def _in_use(self) -> str:
        """The message that all guests are in use: who has which of them, and since when the first."""
        users: dict[str, list[tuple[str, str]]] = {}
        for slot in self._slots:
            who, since = self._user(slot)
            users.setdefault(who, []).append((slot.instance.name, since))
        return f"all {self.size} are in use: " + "; ".join(
            f"{', '.join(name for name, _ in held)} by {who}{min(since for _, since in held)}"
            for who, held in users.items()
        )

    def _user(self, slot: Slot) -> tuple[str, str]:
        if slot in self._taken:
            return "this process", ""
        use = slot.use()
        if use is None or use.state != "leased" or not use.owner.alive:
            return "a process that has only just taken it", ""
        return f"{one_line(use.work) or 'other work'} (process {use.owner.pid}", f", since {one_line(use.since)})"

    def _guest(self, slot: Slot, anew: str) -> Lease:
        """The guest of a slot that was seized, ready for work. Raises _ShortError if other guests must end first."""
        handle = slot.instance.live_handle()
        why = self._why_new(slot, handle) or anew or None
        if handle is None or why is not None:
            handle = self._anew(slot, why or _NONE)
        try:
            slot.note("leased", handle.boot_id, self._work)
        except BaseException:
            self._end(slot, "its use could not be noted")
            raise
        with self._changed:
            self._boot_ids[slot] = handle.boot_id
            self._ended.pop(slot, None)
        return Lease(slot, handle, why is not None)

    def _why_new(self, slot: Slot, handle: Handle | None) -> str | None:
        """Why the guest of a slot cannot be handed out as it is; None if it can."""
        use = slot.use()
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
        return "[pool] fresh is always" if self._fresh == "always" else self._guests.fits(handle)

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
        self._count(Boot(instance.name, why, time.monotonic() - began, handle.boot_id))
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
        for other in self._slots:
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
        if self._fresh == "always":
            return "[pool] fresh is always"
        return "the pool was closed" if self._closed.is_set() else ""

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
            idle = [(slot, boot_id) for slot, boot_id in self._boot_ids.items() if slot not in self._taken]
        workers = [
            Worker(f"end {slot.instance.name}", partial(self._end_idle, slot, boot_id)) for slot, boot_id in idle
        ]
        deadline = Deadline(_CLOSE_LIMIT)
        late = [worker for worker in workers if not worker.join(deadline.remaining)]
        with self._changed:
            self._let_go()
        for worker in workers:
            if worker.failure is not None:
                raise worker.failure
        if late:
            raise StopError(f"{len(late)} guests still end", hint="does the disk answer? see: topcoat instances")

    def _let_go(self) -> None:
        """Release the keepalive, once the pool is closed and the last guest has been given back."""
        if self._closed.is_set() and not self._taken:
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


def _readiness(slot: Slot) -> int:
    """The sort key of a slot to seize: first guests that can be handed out, then those to be ended, then no guest."""
    use = slot.use()
    return 2 if use is None else ("idle", "leased").index(use.state)


class _ShortError(Exception):
    """There is no room for one more guest until another one ends; `error` says why."""

    def __init__(self, error: TopcoatError) -> None:
        super().__init__(error.message)
        self.error = error


class _Wait:
    """One wait for a guest, until its deadline."""

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self._told = False

    def go_on(self, problem: str | Callable[[], str], hint: str) -> None:
        """Log once what is waited for; must be called before each step of the wait.

        `problem` is the reason, or a function that returns the reason of that moment. Raises InstanceBusy once the
        deadline has passed.
        """
        if self._told and not self.deadline.expired:
            return
        told = problem if isinstance(problem, str) else problem()
        if self.deadline.expired:
            raise InstanceBusy(
                f"no guest of the pool was to be had within {self.deadline.seconds:g} s: {told}", hint=hint
            )
        if not self._told:
            log.info("waiting for a guest of the pool: %s", told)
            self._told = True
