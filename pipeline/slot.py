"""One place of the pool: at most one guest, the instance pool-N, and at most one piece of work at a time that has it.

Whoever has the place holds the flock of pool/slot-N.lock, which the kernel gives back when its holder ends, however.
pool/slot-N.json beside it tells what was done with the guest last::

    {"schema": 1, "state": "leased", "boot_id": "6ed5…", "since": "2026-11-23T17:53:35Z", "work": "campaign nightly",
     "owner": {"pid": 7, "start_ticks": 123, "host_boot_id": "85b7…"}}

"leased" is written before the guest is handed out, "idle" once it is back as it should be. So if nobody has the place
and it is "leased" still, whoever had it has died, and what runs in that guest is unknown.
"""

import json
import os
import re
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.deadline import utc_now
from pipeline.faults import entries
from pipeline.instance import Instance
from pipeline.process import Process
from pipeline.publish import locked, publish_json, remove
from pipeline.settings import Store

SCHEMA = 1
"""Tests hold a frozen sample."""

State = Literal["leased", "idle"]

_FILE = re.compile(r"slot-(0|[1-9][0-9]{0,5})\.json")
_LONGEST = 1 << 16  # bytes of a state that are read


def pool_directory(store: Store) -> Path:
    """Where the pool's places are."""
    return store.root / "pool"


def users_file(store: Store) -> Path:
    """What the pool's guests are tied to (see pipeline/tie.py)."""
    return pool_directory(store) / "users.lock"


@dataclass(frozen=True)
class Use:
    """What was done with a guest last."""

    state: State
    boot_id: str
    owner: Process
    """Who had it, or has it."""
    since: str
    """UTC, ISO 8601."""
    work: str = ""
    """What it was or is wanted for; empty if that is not known."""

    def encode(self) -> dict[str, object]:
        """As JSON."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def decode(cls, data: Any) -> "Use":
        """The reverse. Raises ValueError for anything else."""
        try:
            state, boot_id, owner = data["state"], data["boot_id"], Process(**data["owner"])
            if data["schema"] == SCHEMA and state in ("leased", "idle") and isinstance(boot_id, str):
                return cls(state, boot_id, owner, str(data["since"]), str(data.get("work", "")))
        except (KeyError, TypeError) as error:
            raise ValueError(f"a field is missing or wrong: {error}") from error
        raise ValueError("it is of another schema, or a field is wrong")


@dataclass(frozen=True)
class Slot:
    """The place of this number. All but `taken` and `use` is for who has it."""

    store: Store
    number: int

    @classmethod
    def noted(cls, store: Store) -> list["Slot"]:
        """All places whose guests' last use is noted, of whatever size the pool is now."""
        numbers = [_FILE.fullmatch(path.name) for path in entries(pool_directory(store))]
        return [cls(store, number) for number in sorted(int(match[1]) for match in numbers if match)]

    @property
    def instance(self) -> Instance:
        """The instance that is its guest, if there is one."""
        return Instance.named(self.store, f"pool-{self.number}")

    @property
    def path(self) -> Path:
        """What `taken` locks."""
        return pool_directory(self.store) / f"slot-{self.number}"

    @property
    def file(self) -> Path:
        """Where its last use is noted."""
        return Path(f"{self.path}.json")

    def taken(self, limit: float = 0.0) -> AbstractContextManager[None]:
        """Have the place during the body. Raises InstanceBusy if somebody has it for `limit` seconds, StoreError.

        A process that has it and starts another one shares it with that for a moment, until exec(2).
        """
        return locked(self.path, limit)

    def use(self) -> Use | None:
        """The last use; None if there is none, or it cannot be understood."""
        with suppress(OSError, ValueError, RecursionError), self.file.open("rb") as stream:
            return Use.decode(json.loads(stream.read(_LONGEST)))
        return None

    def note(self, state: State, boot_id: str, work: str = "") -> None:
        """Note what is done with the guest from now on, by this process, and what for. Raises StoreError."""
        ours = Process.find(os.getpid())
        assert ours is not None
        publish_json(self.file, Use(state, boot_id, ours, utc_now(), work).encode())

    def forget(self) -> None:
        """There is no guest any more. Raises StoreError."""
        remove(self.file)
