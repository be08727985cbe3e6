"""The leases of a campaign: a guest for each piece of work, and a ledger entry for each boot that this takes."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.campaign.guests import Guest, Guests
from pipeline.campaign.ledger import Booted, LedgerEntry
from pipeline.errors import BootError

LEASE_LIMIT = 1800.0
"""Seconds to wait for a guest: others may be using the pool."""

BOOT_FAILURES = 3
"""After so many failed boots in a row the campaign ends: its fuzzers are not at fault."""


class Leases:
    """Leases guests for all workers of one campaign."""

    def __init__(self, guests: Guests, note: Callable[[LedgerEntry], object]) -> None:
        """`note` adds an entry to the ledger."""
        self._guests, self._note = guests, note
        self._lock = threading.Lock()
        self._noted = 0
        """The number of boots that the ledger has."""
        self._failures = 0
        """The number of failed boots since the last lease that got a guest."""

    @contextmanager
    def one(self, anew: str = "") -> Iterator[Guest]:
        """Lease a guest for the body, and note each boot that this took, also if it failed.

        `anew` is the reason why nothing may have been done in the guest before; empty if any will do. Raises what a
        lease raises.
        """
        try:
            with self._guests.lease(LEASE_LIMIT, anew) as guest:
                self._note_boots()
                with self._lock:
                    self._failures = 0
                yield guest
        except BootError:
            self._note_boots()
            raise

    def _note_boots(self) -> None:
        with self._lock:
            boots = self._guests.boots
            for boot in boots[self._noted :]:
                what = (boot.instance, boot.boot_id, round(boot.seconds, 3), boot.why, boot.failure, boot.cloned)
                self._note(Booted(*what))
            self._noted = len(boots)

    def failed(self, error: BootError) -> None:
        """Count a failed boot. Raises `error` if BOOT_FAILURES have failed in a row."""
        with self._lock:
            self._failures += 1
            if self._failures >= BOOT_FAILURES:
                raise error
