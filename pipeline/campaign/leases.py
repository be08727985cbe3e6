"""The leases of a campaign: a guest for each piece of work, and an account of every boot that this takes."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.campaign.guests import Guest, Guests
from pipeline.errors import BootError
from pipeline.ledger import Booted, Entry

LEASE_LIMIT = 1800.0
"""Seconds to wait for a guest: others may use the pool."""

BOOT_FAILURES = 3
"""So many boots that fail one after the other, and the campaign ends: it is not its fuzzers' fault."""


class Leases:
    """For all workers of one campaign."""

    def __init__(self, guests: Guests, note: Callable[[Entry], object]) -> None:
        """`note` adds an entry to the ledger."""
        self._guests, self._note = guests, note
        self._lock = threading.Lock()
        self._noted = 0
        """Boots."""
        self._failures = 0
        """Boots that failed since one was good."""

    @contextmanager
    def one(self) -> Iterator[Guest]:
        """A guest for the body. Its boot is noted; one that fails too. Raises what a lease raises."""
        try:
            with self._guests.lease(LEASE_LIMIT) as guest:
                self._note_boots()
                self._failures = 0
                yield guest
        except BootError:
            self._note_boots()
            raise

    def _note_boots(self) -> None:
        with self._lock:
            boots = self._guests.boots
            for boot in boots[self._noted :]:
                self._note(Booted(boot.instance, boot.boot_id, round(boot.seconds, 3), boot.why, boot.failure))
            self._noted = len(boots)

    def failed(self, error: BootError) -> None:
        """Count a boot that failed. Raises the error if it is one too many."""
        with self._lock:
            self._failures += 1
            if self._failures >= BOOT_FAILURES:
                raise error
