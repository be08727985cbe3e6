"""Proofs that the canary was found. One holds for all campaigns of a store on a host with the same guests and canary.

canary.json, in the store, has one entry for each::

    {"schema": 1, "proofs": {"b3:5d1c…": {"at": "2026-11-25T14:00:00Z", "build": "b3:77ab…", "campaign": "nightly",
     "clean": "example-fuzzers/noop_fuzzer", "crash": "example-fuzzers/crash_fuzzer", "host": "bot-7"}}}

The key is a digest of host, build, crash and clean, which the entry repeats for people. Only what was found is in the
file: what was not found is looked for again. A file that cannot be understood proves nothing, and is replaced.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.host.deadline import utc_now
from pipeline.host.locks import locked
from pipeline.settings import CampaignSettings
from pipeline.store import document
from pipeline.store.publish import publish_json

SCHEMA = 1
"""The version of the file's format. Tests hold a frozen sample."""

MOST = 100
"""The number of proofs that are kept: the latest."""

_LOCK_LIMIT = 60.0  # seconds; others only replace a small file
_LONGEST = 1 << 20  # bytes that are read


@dataclass(frozen=True)
class Claim:
    """What is to be proved: that on this host, with such guests, a crash would be found."""

    host: str
    build: str
    """The digest of all that the canary depends on: see pipeline.campaign.subjects."""
    crash: str
    """The fuzzer that must crash."""
    clean: str
    """The fuzzer that must not crash."""

    @classmethod
    def of(cls, host: str, build: str, chosen: CampaignSettings) -> "Claim":
        """The claim for this host and build, with the canary of the settings."""
        return cls(host, build, chosen.canary_crash, chosen.canary_clean)

    @property
    def key(self) -> str:
        """A digest of the claim."""
        from blake3 import blake3

        return f"b3:{blake3(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()}"


@dataclass(frozen=True)
class _Proof(Claim):
    at: str
    campaign: str


@dataclass(frozen=True)
class _ProofsFile:
    proofs: Mapping[str, _Proof]


@dataclass(frozen=True)
class Proofs:
    """The proofs of a store; `file` is its canary.json."""

    file: Path

    def find(self, claim: Claim) -> str | None:
        """The campaign that has proved the claim, and when, as text; None if none has."""
        found = self._read().get(claim.key)
        return f"{found.campaign}, {found.at}" if found else None

    def add(self, claim: Claim, campaign: str) -> None:
        """Note that a campaign has proved the claim. Raises StoreError, and InstanceBusy if the file stays locked."""
        with locked(self.file, _LOCK_LIMIT):
            known = {**self._read(), claim.key: _Proof(**asdict(claim), at=utc_now(), campaign=campaign)}
            latest = sorted(known, key=lambda key: known[key].at)[-MOST:]
            publish_json(self.file, {"schema": SCHEMA, "proofs": {key: asdict(known[key]) for key in latest}})

    def _read(self) -> Mapping[str, _Proof]:
        with suppress(OSError, ValueError), self.file.open("rb") as stream:
            return document.decode(stream.read(_LONGEST), _ProofsFile, SCHEMA).proofs
        return {}
