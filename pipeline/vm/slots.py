"""The slots of the pool as one process uses them: which it has, and how many leases there may be.

There are more slots than leases, for the guests that are made ahead. So a lease holds a permit too, the flock of
pool/permit-N.lock, of which there are as many as `[pool] size` says for all processes together.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline.errors import InstanceBusy
from pipeline.host.deadline import Deadline
from pipeline.host.locks import is_locked, locked
from pipeline.text.printable import one_line
from pipeline.vm.slot import Slot, State

log = logging.getLogger("topcoat")

_MORE = "wait for it to end, or have more guests at once: [pool] size; what runs is told by: topcoat instances"
_POLL = 0.1  # seconds; there is no way to wait for another process's flock but to poll


class NoSlotError(Exception):
    """All slots have guests, or are being used."""


class Slots:
    """All slots of a pool, for any number of threads of this process.

    At most `size` of them are lent at once. `released` is called whenever a slot is free again.
    """

    def __init__(self, slots: Sequence[Slot], size: int, released: Callable[[], object]) -> None:
        self.all = tuple(slots)
        self.changed = threading.Condition()
        """It must be held to read or change what follows."""
        self.taken: set[Slot] = set()
        """The slots that this process has."""
        self.making = 0
        """How many guests are being made ahead, for leases to come."""
        self.closed = threading.Event()
        """Whether nothing is lent any more; whoever sets it notifies `changed`."""
        self._permits = [slots[0].path.with_name(f"permit-{number}") for number in range(size)]
        self._on_release = released
        self._lent: set[Path] = set()  # the permits that this process has
        self._hoping = 0  # leases that wait for a guest that is being made ahead

    @contextmanager
    def lent(self, wait: "Wait") -> Iterator[Slot]:
        """Yield a slot that nobody else has during the body. Raises InstanceBusy."""
        with self._permitted(wait), ExitStack() as lock:
            slot = self._seize(wait, lock)
            with self._had(slot, lock):
                yield slot

    @contextmanager
    def empty(self) -> Iterator[Slot]:
        """Yield a slot that has no guest, and that nobody else has during the body. Raises NoSlotError."""
        with ExitStack() as lock:
            with self.changed:
                slot = self._take(lock, _is_empty)
            if slot is None:
                raise NoSlotError("none is free")
            with self._had(slot, lock):
                yield slot

    @contextmanager
    def _permitted(self, wait: "Wait") -> Iterator[None]:
        with ExitStack() as lock:
            with self.changed:
                while (permit := self._take_permit(lock)) is None:
                    self._require_open()
                    self._go_on(wait, all_ours=len(self._lent) == len(self._permits))
            try:
                yield
            finally:
                lock.close()
                with self.changed:
                    self._lent.discard(permit)
                    self.changed.notify_all()

    def _take_permit(self, lock: ExitStack) -> Path | None:
        for permit in self._permits:
            if permit not in self._lent:
                with suppress(InstanceBusy):
                    lock.enter_context(locked(permit, 0))
                    self._lent.add(permit)
                    return permit
        return None

    def _go_on(self, wait: "Wait", *, all_ours: bool) -> None:
        """Wait until something has changed: what this process has tells that itself."""
        wait.go_on(self._in_use, _MORE)
        self.changed.wait(wait.deadline.remaining if all_ours else wait.deadline.within(_POLL))

    @contextmanager
    def _had(self, slot: Slot, lock: ExitStack) -> Iterator[None]:
        try:
            yield
        finally:
            lock.close()
            with self.changed:
                self.taken.discard(slot)
                self.changed.notify_all()
                self._on_release()

    def _seize(self, wait: "Wait", lock: ExitStack) -> Slot:
        with self.changed:
            while True:
                self._require_open()
                hopes = self.making > self._hoping
                if slot := self._take(lock, (lambda slot: not _is_empty(slot)) if hopes else (lambda _: True)):
                    return slot
                if hopes and not wait.deadline.expired:
                    self._hope(wait)
                else:
                    self._go_on(wait, all_ours=len(self.taken) == len(self.all))

    def _hope(self, wait: "Wait") -> None:
        """Wait for a moment for a guest that is being made ahead."""
        self._hoping += 1
        try:
            self.changed.wait(wait.deadline.within(_POLL))
        finally:
            self._hoping -= 1

    def _take(self, lock: ExitStack, fits: Callable[[Slot], bool]) -> Slot | None:
        """Take a slot that nobody has, and that `fits`, under `lock`; None if there is none."""
        free = (slot for slot in self.all if slot not in self.taken and fits(slot))
        for slot in sorted(free, key=_readiness):
            with suppress(InstanceBusy):
                lock.enter_context(slot.taken())
                self.taken.add(slot)
                return slot
        return None

    def _require_open(self) -> None:
        if self.closed.is_set():
            raise InstanceBusy("the pool was closed while its guests were still wanted", hint="run it again")

    def ready(self, *states: State) -> int:
        """How many guests that this process has not taken are in one of these states."""
        uses = (slot.use() for slot in self.all if slot not in self.taken)
        return sum(1 for use in uses if use is not None and use.state in states)

    def _in_use(self) -> str:
        """The message that all guests are in use: who has which of them, and since when the first."""
        users: dict[str, list[tuple[str, str]]] = {}
        for slot in self.all:
            if slot in self.taken or is_locked(slot.path):
                who, since = self._user(slot)
                users.setdefault(who, []).append((slot.instance.name, since))
        return f"all {len(self._permits)} are in use: " + "; ".join(
            f"{', '.join(name for name, _ in held)} by {who}{min(since for _, since in held)}"
            for who, held in users.items()
        )

    def _user(self, slot: Slot) -> tuple[str, str]:
        if slot in self.taken:
            return "this process", ""
        use = slot.use()
        if use is None or use.state != "leased" or not use.owner.alive:
            return "a process that has only just taken it", ""
        return f"{one_line(use.work) or 'other work'} (process {use.owner.pid}", f", since {one_line(use.since)})"


def _is_empty(slot: Slot) -> bool:
    return slot.use() is None and slot.instance.state() == "stopped"


def _readiness(slot: Slot) -> int:
    """The sort key of a slot to seize: first guests that can be handed out, then those to be ended, then no guest."""
    use = slot.use()
    return 3 if use is None else ("spare", "idle", "leased").index(use.state)


class Wait:
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
