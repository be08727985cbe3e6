"""The pool: guests that are lent to one piece of work after another, so that not each of them waits for a boot.

At most `[pool] size` guests run at once, of all processes that use the store (see pipeline/slot.py). A guest that goes
wrong is ended when it is given back, and the next lease boots; `[pool] fresh` says when else. What a process that is
killed leaves is taken over by whoever uses the pool next, or ended by its keepers (see pipeline/tie.py).
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

from pipeline import launcher
from pipeline.deadline import Deadline
from pipeline.errors import BootError, GuestDied, InstanceBusy, StopError, TopcoatError
from pipeline.host import available_memory, resident
from pipeline.instance import Handle, Instance
from pipeline.launcher import KILL_LIMIT, Launcher
from pipeline.room import shortage
from pipeline.settings import Settings
from pipeline.slot import Slot, users_file
from pipeline.text import one_line
from pipeline.tie import GRACE, Tie
from pipeline.worker import Worker

log = logging.getLogger("topcoat")

_NONE = "there was none"
_MORE = "wait for it to end, or have more guests at once: [pool] size; what runs is told by: topcoat instances"
_POLL = 0.1  # neither a flock of another process nor memory can be waited for
_MOMENT = 0.5  # who has a place for less, such as a child before its exec(2), has no lease
_CLOSE_LIMIT = 30.0  # ending takes KILL_LIMIT at most; on a disk that stalls, longer


class Guests(Protocol):
    """What the pool's guests are, and how they come to be."""

    @property
    def memory(self) -> int:
        """Bytes that one guest may take."""

    def launcher(self, instance: Instance, tie: Tie) -> Launcher:
        """What boots a guest as it would be today, that does not outlive the users of `tie`. Raises TopcoatError."""

    def fits(self, handle: Handle) -> str | None:
        """Why the running guest is not what a boot would make today; None if it is. Raises TopcoatError."""


@dataclass(frozen=True)
class Boot:
    """A boot that the pool has tried."""

    instance: str
    why: str
    """Why it was needed, in one clause."""
    seconds: float
    """What it took, whatever came out."""
    boot_id: str = ""
    """Empty if it failed."""
    failure: str = ""
    """The cause of the failure (see BootError), or the class of the error. Empty if the guest became ready."""


@dataclass
class Lease:
    """A guest, for one piece of work."""

    slot: Slot
    handle: Handle
    """Of the guest as it was when it was handed out: it may die at any moment."""
    new: bool
    """Whether it was booted for this lease."""
    problem: str = field(default="", init=False)
    """What went wrong, if anything did: the first thing that was said."""
    dead: bool = field(default=False, init=False)

    @property
    def instance(self) -> Instance:
        """The guest's instance."""
        return self.slot.instance

    def spoil(self, reason: str) -> None:
        """The guest may not be what it was: nobody else gets it, unless `[pool] fresh` is never."""
        self.problem = self.problem or one_line(reason)

    def died(self, reason: str) -> None:
        """The guest is of no use any more, whether its QEMU runs or not: nobody else gets it."""
        self.spoil(reason)
        self.dead = True


class Pool:
    """The guests of one store, as this process uses them. For any number of threads, and to be closed.

    While it is open, guests of the pool that nobody has leased run on, those of other processes too.
    """

    def __init__(
        self,
        settings: Settings,
        guests: Guests,
        *,
        work: str = "",
        grace: float = GRACE,
        available: Callable[[], int] = available_memory,
    ) -> None:
        """`work`: what its guests are wanted for, to be told to others who wait for one.

        `grace`: seconds that guests run on if this process is killed. `available` tells the bytes of free memory.
        Raises StoreError, InstanceBusy.
        """
        store = settings.store
        self.size = settings.pool.size or len(os.sched_getaffinity(0))
        self._fresh, self._attempts = settings.pool.fresh, settings.boot.attempts
        self._guests, self._available = guests, available
        self._slots = [Slot(store, number) for number in range(self.size)]
        self._changed = threading.Condition()
        # All below is looked at and changed with that held
        self._taken: set[Slot] = set()  # by this pool's leases
        self._booting: set[Slot] = set()
        self._boot_ids: dict[Slot, str] = {}  # of the guests that this pool has lent and not ended
        self._ended: dict[Slot, str] = {}  # why, until the next boot
        self._boots: list[Boot] = []
        self._closed = threading.Event()
        self._work = work
        self._tie = Tie(users_file(store), grace)
        self._tied = ExitStack()
        self._tied.enter_context(self._tie.held())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            self.close()
        except TopcoatError as failure:
            if error is None:
                raise
            log.error("%s", failure.explain())  # must not hide the error that led here

    @property
    def boots(self) -> tuple[Boot, ...]:
        """All boots so far, in the order in which they ended."""
        with self._changed:
            return tuple(self._boots)

    @contextmanager
    def lease(self, deadline: Deadline) -> Iterator[Lease]:
        """A guest for the body: one that runs and is free, else a new one, as soon as there may be one more.

        `deadline` limits the wait for that; a boot has limits of its own. Any exception that leaves the body spoils
        the guest, KeyboardInterrupt too: what the body has begun in it may still run. What goes wrong with the guest
        afterwards is logged, and mended by the next lease.

        Raises InstanceBusy if the deadline passes or the pool is closed; HostFault or StoreError if there is no room
        for a single guest; and whatever the boot raises, most likely a BootError. Then nothing is left running.
        """
        with ExitStack() as held:
            lease = self._lease(_Wait(deadline), held)
            try:
                yield lease
            except BaseException as error:
                lease.spoil(f"{type(error).__name__} in its work")
                raise
            finally:
                self._give_back(lease)

    def _lease(self, wait: "_Wait", held: ExitStack) -> Lease:
        while True:
            with ExitStack() as attempt:
                slot = attempt.enter_context(self._seized(wait))
                try:
                    lease = self._guest(slot)
                    held.push(attempt.pop_all())
                    return lease
                except _ShortError as short:
                    problem = short.error
            # The place is free meanwhile: if a guest is given back, it can be had without a boot
            wait.go_on(problem.message, problem.hint)
            self._closed.wait(wait.deadline.within(_POLL))

    @contextmanager
    def _seized(self, wait: "_Wait") -> Iterator[Slot]:
        """A place that nobody else has during the body."""
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
        """Who has which guests, and since when the first of them."""
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

    def _guest(self, slot: Slot) -> Lease:
        """The guest of a place that was seized, ready for work. Raises _ShortError if others must end first."""
        handle = slot.instance.live_handle()
        why = self._why_new(slot, handle)
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
        """Why the guest of a place cannot be handed out as it is; None if it can."""
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
        """End what is left of the place's guest, and boot a new one."""
        if why != _NONE:
            self._end(slot, why)
        with self._room_for(slot):
            with self._changed:
                why = self._ended.get(slot, why)
            log.info("%s: booting: %s", slot.instance.name, why)
            return self._boot(slot.instance, why, self._guests.launcher(slot.instance, self._tie))

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
        """Memory and disk for a guest that is booted in the body. Raises _ShortError, HostFault or StoreError."""
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
        """For each guest in another place, that runs or is being booted, the memory that it may still take."""
        wanted = []
        for other in self._slots:
            if other != slot and (handle := other.instance.live_handle()):
                wanted.append(max(0, self._guests.memory - resident(handle.process)))
            elif other != slot and (other in self._booting or other.instance.state() == "booting"):
                wanted.append(self._guests.memory)
        return wanted

    def _give_back(self, lease: Lease) -> None:
        """End the guest, or leave it to the next. If neither can be done it stays "leased": the next lease ends it."""
        try:
            if why := self._why_end(lease):
                self._end(lease.slot, why)
            else:
                lease.slot.note("idle", lease.handle.boot_id, self._work)
        except TopcoatError as error:  # the work has been done, whatever becomes of the guest
            log.error("%s", error.about(lease.instance.name).explain())

    def _why_end(self, lease: Lease) -> str:
        if line := lease.instance.halt():
            return f"the last one went wrong: its kernel has halted: {line}"
        if lease.dead or (lease.problem and self._fresh != "never"):
            return f"the last one went wrong: {lease.problem}"
        if self._fresh == "always":
            return "[pool] fresh is always"
        return "the pool was closed" if self._closed.is_set() else ""

    def _end(self, slot: Slot, why: str) -> None:
        slot.instance.stop(KILL_LIMIT)
        slot.forget()
        with self._changed:
            self._boot_ids.pop(slot, None)
            self._ended[slot] = why

    def close(self) -> None:
        """End the guests that this pool has lent and that nobody has now; wake all who wait for one, in vain.

        A guest that is still lent ends when it is given back; those of other processes stay. A second call does
        nothing. Raises the first error, most likely a StopError, after all was tried.
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
        """Of the tie: once the pool is closed and the last guest is back."""
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
    """Who comes first: a guest that can be handed out, then one that is to be ended, then none."""
    use = slot.use()
    return 2 if use is None else ("idle", "leased").index(use.state)


class _ShortError(Exception):
    """There is no room for one more guest, until another one ends."""

    def __init__(self, error: TopcoatError) -> None:
        super().__init__(error.message)
        self.error = error


class _Wait:
    """One wait for a guest."""

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self._told = False

    def go_on(self, problem: str | Callable[[], str], hint: str) -> None:
        """To be called before each step of the wait. Says once what it is for. Raises InstanceBusy at its end.

        `problem` can be what tells it, as it is at that moment.
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
