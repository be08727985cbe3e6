"""Where the canary was found: a proof holds for all campaigns of a store, on this host, with the same guest and canary.

canary.json, in the store, has one entry for each::

    {"schema": 1, "proofs": {"b3:5d1c…": {"at": "2026-11-25T14:00:00Z", "build": "b3:77ab…", "campaign": "nightly",
     "clean": "example-fuzzers/noop_fuzzer", "crash": "example-fuzzers/crash_fuzzer", "host": "bot-7"}}}

The key is a digest of host, build, crash and clean, so what it was proved for can be told from it. Only what was found
is in it: what was not found is looked for again. A file that cannot be understood proves nothing, and is replaced.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.deadline import utc_now
from pipeline.publish import locked, publish_json
from pipeline.settings import Campaign

SCHEMA = 1
"""Tests hold a frozen sample."""

MOST = 100
"""Proofs that are kept, the latest."""

_LOCK_LIMIT = 60.0  # to replace a small file
_LONGEST = 1 << 20  # bytes that are read


@dataclass(frozen=True)
class Claim:
    """What is to be proved: that on this host, with such guests, a crash would be found."""

    host: str
    build: str
    """Digest of all on which the way of the canary depends, see pipeline.campaign.subjects."""
    crash: str
    """The fuzzer that must crash."""
    clean: str
    """The one that must not."""

    @classmethod
    def of(cls, host: str, build: str, chosen: Campaign) -> "Claim":
        """The claim, for the canary of the settings."""
        return cls(host, build, chosen.canary_crash, chosen.canary_clean)

    @property
    def key(self) -> str:
        """A digest of it."""
        from blake3 import blake3

        return f"b3:{blake3(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()}"


@dataclass(frozen=True)
class Proofs:
    """Those of a store."""

    file: Path

    def find(self, claim: Claim) -> str | None:
        """Which campaign has proved it, and when; None if none has."""
        found = self._read().get(claim.key)
        return f"{found.get('campaign')}, {found.get('at')}" if found else None

    def add(self, claim: Claim, campaign: str) -> None:
        """Note that a campaign has proved it. Raises StoreError, and InstanceBusy."""
        with locked(self.file, _LOCK_LIMIT):
            known = self._read() | {claim.key: {**asdict(claim), "at": utc_now(), "campaign": campaign}}
            latest = sorted(known, key=lambda key: known[key].get("at", ""))[-MOST:]
            publish_json(self.file, {"schema": SCHEMA, "proofs": {key: known[key] for key in latest}})

    def _read(self) -> dict[str, dict[str, str]]:
        with suppress(OSError, ValueError, RecursionError, AttributeError, KeyError), self.file.open("rb") as stream:
            data = json.loads(stream.read(_LONGEST))
            if data.get("schema") == SCHEMA:
                return {str(key): dict(value) for key, value in data["proofs"].items() if isinstance(value, dict)}
        return {}
