"""The guests of a campaign: leased from the pool, with a way into each, and what it is known to hold of each fuzzer."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from pipeline.campaign.site import OverSsh, Site
from pipeline.deadline import Deadline
from pipeline.errors import CommandError, ConnectError, TopcoatError
from pipeline.fuzzer import Fuzzer
from pipeline.instance import Handle
from pipeline.pool import Boot, Lease, Pool
from pipeline.qemu.guests import QemuGuests
from pipeline.ssh import Connector, Limits, Retries
from pipeline.text import one_line

log = logging.getLogger("topcoat")

SERIAL_TAIL = 64 << 10
"""Bytes of the serial log that go with a crash."""

LIMITS = Limits(bytes=512 << 20, entries=30_000, depth=1)
"""Of one transfer from a guest."""

RETRIES = Retries(attempts=3, pause=1.0, limit=30.0)
"""A guest of the pool has answered before; if it does not any more, another one is booted."""


@dataclass
class Room:
    """A fuzzer's place in one guest."""

    site: Site
    known: set[str] = field(default_factory=set)
    """Names in its corpus there that are on the host too, or need not be."""
    lost: set[str] = field(default_factory=set)
    """Names in its corpus there of units that were not whole when the fuzzer had ended: that was told once."""
    package: frozenset[str] | None = None
    """The paths of the dictionary and the seeds that the fuzzer was built with, as far as there are any, once they were
    looked up: they do not change in a boot.
    """


class Guest(Protocol):
    """A guest that is leased."""

    instance: str
    boot_id: str
    memory: int
    """MiB"""

    def room(self, fuzzer: str) -> Room:
        """The fuzzer's place in it, prepared if this is the first time in this boot. Raises what that raises."""

    def serial(self) -> bytes:
        """The end of its serial log."""

    def ending(self) -> str:
        """Why it does not answer, as far as the host knows it: its kernel has halted, or its QEMU has ended."""

    def spoil(self, reason: str) -> None:
        """It has died or hung, or nobody knows: the next lease boots it anew."""


class Guests(Protocol):
    """Where guests come from."""

    def lease(self, limit: float) -> AbstractContextManager[Guest]:
        """A guest for the body. Raises BootError, StoreError, or InstanceBusy after `limit` seconds."""

    @property
    def boots(self) -> Sequence[Boot]:
        """All boots so far, and those that failed."""

    def close(self) -> None:
        """End those that nobody leases."""


def spoil_if_short(guest: Guest, fuzzer: str) -> bool:
    """Spoil a guest whose disk has too little left, after this fuzzer's work: the next one would lose what it finds.

    Returns whether it is. One that does not answer is judged by what it is to do next.
    """
    try:
        shortage = guest.room(fuzzer).site.shortage()
    except (ConnectError, CommandError) as error:
        log.debug("%s: %s", guest.instance, one_line(str(error)))
        return False
    if shortage:
        guest.spoil(f"{fuzzer}: {shortage}")
        log.warning("%s, after %s: %s", guest.instance, fuzzer, shortage)
    return bool(shortage)


def with_ending(guest: Guest, error: TopcoatError) -> str:
    """What went wrong, on one line, behind what the host knows of a guest that has ended."""
    return "; ".join(filter(None, (guest.ending(), one_line(str(error)))))


class PooledGuest:
    """A guest of the pool."""

    def __init__(self, lease: Lease, memory: int, rooms: dict[str, Room], make_site: Callable[[str], Site]) -> None:
        self.memory = memory
        self.instance = lease.instance.name
        self.boot_id = lease.handle.boot_id
        self._lease = lease
        self._rooms = rooms
        self._make_site = make_site

    def room(self, fuzzer: str) -> Room:
        """See Guest."""
        if fuzzer not in self._rooms:
            site = self._make_site(fuzzer)
            site.prepare()
            self._rooms[fuzzer] = Room(site)
        return self._rooms[fuzzer]

    def serial(self) -> bytes:
        """See Guest."""
        try:
            with self._lease.instance.serial_log.open("rb") as stream:
                stream.seek(max(0, stream.seek(0, 2) - SERIAL_TAIL))
                return stream.read(SERIAL_TAIL)
        except OSError as error:
            return f"the serial log cannot be read: {error.strerror}\n".encode()

    def ending(self) -> str:
        """See Guest."""
        if line := self._lease.instance.halt():
            return f"its kernel has halted: {line}"
        return "" if self._lease.handle.process.alive else "its QEMU has ended"

    def spoil(self, reason: str) -> None:
        """See Guest."""
        self._lease.spoil(reason)


class PooledGuests:
    """Guests of the pool, reached over SSH; a connection lasts as long as its guest."""

    def __init__(
        self, pool: Pool, guests: QemuGuests, variables: Mapping[str, Mapping[str, str]] = MappingProxyType({})
    ) -> None:
        """`variables`: of the environment of fuzzers, by their full names."""
        self._variables = variables
        settings, build = guests.settings, guests.build
        self._memory = guests.memory >> 20
        self._pool, self._settings, self._build = pool, settings, build
        self._lock = threading.Lock()
        self._connectors: dict[str, tuple[str, Connector]] = {}
        """By instance: the boot that it leads to, and the way."""
        self._rooms: dict[str, dict[str, Room]] = {}
        """By boot."""

    @contextmanager
    def lease(self, limit: float) -> Iterator[Guest]:
        """See Guests."""
        with self._pool.lease(Deadline(limit)) as lease:
            name, handle = lease.instance.name, lease.handle
            connector = self._connector(name, handle)

            def make_site(fuzzer: str) -> Site:
                return OverSsh(
                    Fuzzer.of(self._build, fuzzer, variables=self._variables.get(fuzzer, {})), connector, handle.process
                )

            yield PooledGuest(lease, self._memory, self._rooms[handle.boot_id], make_site)

    def _connector(self, name: str, handle: Handle) -> Connector:
        with self._lock:
            known = self._connectors.get(name)
            if known and known[0] == handle.boot_id:
                return known[1]
            if known:
                known[1].close()
                self._rooms.pop(known[0], None)
            timeouts = self._settings.boot.timeouts("kvm" if "-enable-kvm" in handle.argv else "tcg")
            made = Connector(handle.ssh, timeouts, RETRIES, LIMITS)
            self._connectors[name] = (handle.boot_id, made)
            self._rooms[handle.boot_id] = {}
            return made

    @property
    def boots(self) -> Sequence[Boot]:
        """See Guests."""
        return self._pool.boots

    def close(self) -> None:
        """See Guests."""
        with self._lock:
            for _, connector in self._connectors.values():
                connector.close()
            self._connectors.clear()
        self._pool.close()
