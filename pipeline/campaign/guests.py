"""The guests of a campaign: leased from the pool, with a way into each, and a note of what it has of each fuzzer."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from pipeline.campaign.guest_fuzzer import BuiltWith, GuestFuzzer, OverSsh
from pipeline.errors import CampaignError, CommandError, ConnectError, TopcoatError
from pipeline.fuzz.fuzzer import Fuzzer
from pipeline.fuzz.targets import FuzzTarget
from pipeline.host.deadline import Deadline
from pipeline.ssh.connector import Connector, Retries
from pipeline.ssh.landing import TransferLimits
from pipeline.store.digest_cache import DigestCache
from pipeline.text.printable import one_line
from pipeline.vm.capsule import CrashedProcess
from pipeline.vm.handle import DISK, Handle
from pipeline.vm.lease import Boot, Lease
from pipeline.vm.pool import Pool
from pipeline.vm.qemu.capturing import NotCapturedError, capture
from pipeline.vm.qemu.pooled import QemuGuests

log = logging.getLogger("topcoat")

SERIAL_TAIL = 64 << 10
"""Bytes from the end of the serial log that are stored with a crash."""

LIMITS = TransferLimits(bytes=512 << 20, entries=30_000, depth=1)
"""What one transfer from a guest may come to."""

RETRIES = Retries(attempts=3, pause=1.0, limit=30.0)
"""Retries for a guest that does not answer: few, as it has answered before, and another one can be booted."""


@dataclass
class GuestWorkspace:
    """What a campaign has of one fuzzer in one guest."""

    guest_fuzzer: GuestFuzzer
    used: bool = False
    """Whether the fuzzer may have run here since its data were deleted, so that it may have a corpus."""
    known: set[str] = field(default_factory=set)
    """Names of files in the guest's corpus that need not be fetched: the host has them, or does not want them."""
    lost: set[str] = field(default_factory=set)
    """Names of units in the guest's corpus that were not whole when a run had ended, and were reported then."""
    built_with: BuiltWith | None = None
    """What the fuzzer was built with. It does not change during a boot, so it is looked up once; None until then."""


class Guest(Protocol):
    """A leased guest."""

    instance: str
    boot_id: str
    memory: int
    """The memory of the guest, in MiB."""

    def workspace(self, fuzzer: str) -> GuestWorkspace:
        """The fuzzer's workspace in this guest, prepared if it is asked for the first time in this boot.

        Raises what GuestFuzzer.prepare raises.
        """

    def serial(self) -> bytes:
        """The end of the guest's serial log."""

    def ending(self) -> str:
        """Why the guest cannot answer, if the host knows: its kernel has halted, or its QEMU has ended; else empty."""

    def capture(self, crashed: CrashedProcess, directory: Path, most: int) -> None:
        """Stop the process that sleeps, so that nothing wakes it, and save the guest into a capsule.

        See pipeline.vm.qemu.capturing.capture. A guest that does not go on after that is spoilt. Raises StoreError,
        NotCapturedError, also if there is no such process, and ConnectError or CommandError if the guest does not
        answer.
        """

    def spoil(self, reason: str) -> None:
        """Tell that the guest has died or hung, or is in doubt, so that the next lease boots it anew."""

    def retire(self, reason: str) -> None:
        """Keep the guest from being leased again, although nothing is known to be wrong with it."""


class Guests(Protocol):
    """The source of a campaign's guests."""

    def lease(self, limit: float, anew: str = "") -> AbstractContextManager[Guest]:
        """Lease a guest for the body. Raises BootError, StoreError, or InstanceBusy after `limit` seconds.

        `anew` is the reason why it must be booted for the body; empty if any guest will do.
        """

    @property
    def boots(self) -> Sequence[Boot]:
        """All boots so far, including those that failed."""

    def expect(self, count: int) -> None:
        """Have so many guests made ahead, at once, for leases that will soon be wanted."""


HOLD_LIMIT = 10.0
"""Seconds that stopping one process may take: it does not wait for us."""

HOLD = """kill -STOP {0} 2>/dev/null
for try in 1 2 3 4 5 6 7 8 9 10; do
  case $(cat /proc/{0}/stat 2>/dev/null) in
    *") T "*) echo held; break ;;
    *") "[ZX]*|"") break ;;
  esac
  sleep 0.1
done"""
"""A script that stops the process with this pid, and prints `held` once it stands still; nothing if it has ended.

libFuzzer's timer would wake a process that sleeps within -timeout seconds, and then it would end.
"""


def spoil_if_short(guest: Guest, fuzzer: str) -> bool:
    """Spoil a guest that this fuzzer has left with too little disk: the next one would lose what it finds.

    Returns whether the guest was spoilt. One that does not answer is not: its next work will tell.
    """
    try:
        shortage = guest.workspace(fuzzer).guest_fuzzer.shortage()
    except (ConnectError, CommandError) as error:
        log.debug("%s: %s", guest.instance, one_line(str(error)))
        return False
    if shortage:
        guest.spoil(f"{fuzzer}: {shortage}")
        log.warning("%s, after %s: %s", guest.instance, fuzzer, shortage)
    return bool(shortage)


def with_ending(guest: Guest, error: TopcoatError) -> str:
    """What went wrong, on one line, after what the host knows of the guest's end."""
    return "; ".join(filter(None, (guest.ending(), one_line(str(error)))))


class PooledGuest:
    """A leased guest of the pool."""

    def __init__(
        self,
        lease: Lease,
        memory: int,
        workspaces: dict[str, GuestWorkspace],
        make_guest_fuzzer: Callable[[str], GuestFuzzer],
        connector: Connector,
        qemu_img: Path,
    ) -> None:
        self.memory = memory
        self._connector, self._qemu_img = connector, qemu_img
        self.instance = lease.instance.name
        self.boot_id = lease.handle.boot_id
        self._lease = lease
        self._workspaces = workspaces
        self._make_guest_fuzzer = make_guest_fuzzer

    def workspace(self, fuzzer: str) -> GuestWorkspace:
        """See Guest.workspace."""
        if fuzzer not in self._workspaces:
            guest_fuzzer = self._make_guest_fuzzer(fuzzer)
            guest_fuzzer.prepare()
            self._workspaces[fuzzer] = GuestWorkspace(guest_fuzzer)
        return self._workspaces[fuzzer]

    def serial(self) -> bytes:
        """See Guest.serial."""
        try:
            with self._lease.instance.serial_log.open("rb") as stream:
                stream.seek(max(0, stream.seek(0, 2) - SERIAL_TAIL))
                return stream.read(SERIAL_TAIL)
        except OSError as error:
            return f"the serial log cannot be read: {error.strerror}\n".encode()

    def ending(self) -> str:
        """See Guest.ending."""
        if line := self._lease.instance.halt():
            return f"its kernel has halted: {line}"
        return "" if self._lease.handle.process.alive else "its QEMU has ended"

    def capture(self, crashed: CrashedProcess, directory: Path, most: int) -> None:
        """See Guest.capture."""
        held = self._connector.command(HOLD.format(crashed.pid), shell=True).output(HOLD_LIMIT)
        if held.strip() != b"held":
            raise NotCapturedError("the process that has crashed is not there any more")
        try:
            capture(self._lease.instance, self._lease.handle, crashed, directory, self._qemu_img, most=most)
        except NotCapturedError as error:
            if error.lost:
                self._lease.died(str(error))
                self._lease.handle.process.send(signal.SIGKILL)  # else whoever waits for its answer waits long
            raise

    def spoil(self, reason: str) -> None:
        """See Guest.spoil."""
        self._lease.spoil(reason)

    def retire(self, reason: str) -> None:
        """See Guest.retire."""
        self._lease.retire(reason)


class PooledGuests:
    """Guests of the pool, reached over SSH; a connection lasts as long as its guest."""

    def __init__(
        self, pool: Pool, guests: QemuGuests, variables: Mapping[str, Mapping[str, str]] = MappingProxyType({})
    ) -> None:
        """Take guests from `pool`; `variables` are the environment variables of fuzzers, by the fuzzers' full names."""
        self._variables = variables
        self._seen: dict[str, str | None] = {}
        """The digest that each target had when it was first run in this campaign."""
        settings, build = guests.settings, guests.build
        self._memory = guests.memory >> 20
        self._pool, self._settings, self._build = pool, settings, build
        self._digests = DigestCache(settings.store.digests)
        self._lock = threading.Lock()
        self._connectors: dict[str, tuple[str, Connector]] = {}
        """By instance name: the id of the boot that the connector leads to, and the connector."""
        self._workspaces: dict[str, dict[str, GuestWorkspace]] = {}
        """By boot id, then by the fuzzer's full name."""

    @contextmanager
    def lease(self, limit: float, anew: str = "") -> Iterator[Guest]:
        """See Guests.lease."""
        with self._pool.lease(Deadline(limit), anew) as lease:
            name, handle = lease.instance.name, lease.handle
            connector = self._connector(name, handle)

            def make_guest_fuzzer(fuzzer: str) -> GuestFuzzer:
                build = self._build.as_booted(handle.made_of.inputs.get(DISK), self._digests.of)
                found = Fuzzer.of(build, fuzzer, variables=self._variables.get(fuzzer, {}))
                self._require_same(found.target)
                return OverSsh(found, connector, handle.process)

            workspaces, qemu_img = self._workspaces[handle.boot_id], self._build.path("qemu-img")
            yield PooledGuest(lease, self._memory, workspaces, make_guest_fuzzer, connector, qemu_img)

    def _require_same(self, target: FuzzTarget) -> None:
        """Raise CampaignError if the target is another one than before: guests that are booted now have that.

        What they would find would count as the other's, of which the ledger tells.
        """
        digest = target.listed.digest if target.listed else None
        with self._lock:
            seen = self._seen.setdefault(target.full_name, digest)
        if seen != digest:
            raise CampaignError(
                f"{target.full_name} was made again while it was being fuzzed: guests have another one now",
                hint="run the campaign again: what has changed begins anew, and the rest goes on",
            )

    def _connector(self, name: str, handle: Handle) -> Connector:
        with self._lock:
            known = self._connectors.get(name)
            if known and known[0] == handle.boot_id:
                return known[1]
            if known:
                known[1].close()
                self._workspaces.pop(known[0], None)
            timeouts = self._settings.boot.timeouts(handle.accelerator)
            made = Connector(handle.ssh, timeouts, RETRIES, LIMITS)
            self._connectors[name] = (handle.boot_id, made)
            self._workspaces[handle.boot_id] = {}
            return made

    @property
    def boots(self) -> Sequence[Boot]:
        """See Guests.boots."""
        return self._pool.boots

    def expect(self, count: int) -> None:
        """See Guests.expect."""
        self._pool.expect(count)

    def disconnect(self) -> None:
        """Close all connections."""
        with self._lock:
            for _, connector in self._connectors.values():
                connector.close()
            self._connectors.clear()
