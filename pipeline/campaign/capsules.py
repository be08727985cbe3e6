"""The capsules that campaigns make: guests that were saved as they were at the first crash of each bucket.

A capsule lies in the directory of its crash. Making one never ends an attempt or a campaign: why there is none is only
logged.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.builds.build import Build
from pipeline.campaign.guests import Guest
from pipeline.campaign.result import from_here
from pipeline.errors import CommandError, ConnectError, InstanceBusy, NotSupported, StoreError
from pipeline.fuzz.crashes.crash import StoredCrash
from pipeline.fuzz.crashes.store import CrashStore
from pipeline.fuzz.fuzzer import Fuzzer
from pipeline.host.faults import host_faults
from pipeline.host.locks import locked
from pipeline.settings import CampaignSettings, Settings
from pipeline.store.publish import target_of_remains
from pipeline.text.printable import one_line
from pipeline.vm.capsule import FACTS, NAME, CrashedProcess, found_in
from pipeline.vm.qemu.capturing import NotCapturedError

log = logging.getLogger("topcoat")

LOCK = ".capsule"
"""Whoever makes a capsule holds the lock of this path in the directory of all crashes."""

_PATIENCE = 30.0  # seconds for others that make one; the run in which it crashed must not be over meanwhile


class Capsules:
    """Makes the capsules of one campaign. Any number of threads and processes may use it."""

    def __init__(self, store: CrashStore, chosen: CampaignSettings) -> None:
        """All campaigns of the store make at most `capsule_count` of `[campaign]`, of `capsule_size` bytes each."""
        self._root, self._most, self._size = store.root, chosen.capsule_count, chosen.capsule_size
        self._told = self._swept = False

    def keep(self, guest: Guest, crashed: CrashedProcess, stored: StoredCrash) -> None:
        """Save the guest for the crash that was just stored, if that is kept and its bucket has no capsule yet."""
        if stored.directory is None:
            return
        try:
            with locked(self._root / LOCK, _PATIENCE):
                self._sweep()
                if self._wanted(stored.directory):
                    guest.capture(crashed, stored.directory / NAME, self._size)
                    here = from_here(stored.directory)
                    log.info("%s: there is a capsule of its guest: topcoat open %s", stored.bucket, here)
        except InstanceBusy:
            log.warning("%s: no capsule is made: another one took more than %g s", stored.bucket, _PATIENCE)
        except (NotCapturedError, ConnectError, CommandError) as error:
            log.warning("%s: no capsule is made: %s", stored.bucket, one_line(str(error)))
        except StoreError as error:
            log.warning("%s: no capsule is made: %s; %s", stored.bucket, one_line(str(error)), error.hint)

    def _sweep(self) -> None:
        """Remove, once, what processes have left that were killed while they made a capsule."""
        if not self._swept:
            with host_faults("removing remains of capsules"):
                for work in self._root.glob("*/*/*/*/.*.tmp"):
                    if target_of_remains(work.name) == NAME:
                        shutil.rmtree(work)
            self._swept = True

    def _wanted(self, crash: Path) -> bool:
        if found_in(crash.parent):
            return False
        if len(list(self._root.glob(f"*/*/*/*/{NAME}/{FACTS}"))) < self._most:
            return True
        if not self._told:
            self._told = True
            log.warning(
                "no more capsules are made: %s has %d; to have more, raise [campaign] capsule_count, or delete some",
                *(from_here(self._root), self._most),
            )
        return False


def wanted(settings: Settings, build: Build, fuzzers: Sequence[str]) -> bool:
    """Whether capsules are to be made of crashes of these fuzzers. That they cannot be is logged with the reason."""
    if settings.campaign.capsule == "off":
        return False
    why = ""
    if settings.qemu.user is not None:
        why = "[qemu] user is set, and QEMU as another user cannot give us the state of a guest"
    try:
        for name in fuzzers:
            Fuzzer.of(build, name).lasting()
    except NotSupported as error:
        why = error.message
    if why:
        log.warning("no capsules are made ([campaign] capsule): %s", why)
    return not why
