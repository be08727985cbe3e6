"""A slot: one place of the pool, with at most one guest, the instance pool-N, that at most one user has at a time.

Whoever has the slot holds the flock of pool/slot-N.lock, which the kernel releases when its holder ends, however.
pool/slot-N.json beside it tells what was done with the guest last::

    {"schema": 1, "state": "leased", "boot_id": "6ed5…", "since": "2026-11-23T17:53:35Z", "work": "campaign nightly",
     "owner": {"pid": 7, "start_ticks": 123, "host_boot_id": "85b7…"}}

"leased" is written before the guest is handed out, "idle" once it is back in order; a guest that waits for its first
user is a "spare". So if nobody has the slot and it is
still "leased", whoever had it has died, and nobody knows what runs in that guest.
"""

import os
import re
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pipeline.host.deadline import utc_now
from pipeline.host.faults import entries
from pipeline.host.locks import locked
from pipeline.host.process import Process
from pipeline.settings import Store
from pipeline.store import document
from pipeline.store.publish import publish_json, remove
from pipeline.vm.instance import Instance

SCHEMA = 1
"""The version of the format of slot-N.json; a sample of it is frozen in the tests."""

State = Literal["leased", "idle", "spare"]

_FILE = re.compile(r"slot-(0|[1-9][0-9]{0,5})\.json")
_LONGEST = 1 << 16  # bytes of slot-N.json that are read


def pool_directory(store: Store) -> Path:
    """The directory of the pool's slots."""
    return store.root / "pool"


def users_file(store: Store) -> Path:
    """The file that ties the pool's guests to their users (see pipeline/vm/keepalive.py)."""
    return pool_directory(store) / "users.lock"


@dataclass(frozen=True)
class Use:
    """The last use of a slot's guest."""

    state: State
    boot_id: str
    """Which boot of the guest was used."""
    owner: Process
    """The process that has or had the guest."""
    since: str
    """When the state began: ISO 8601 in UTC."""
    work: str = ""
    """What the guest is or was wanted for; "" if that is not known."""

    def encode(self) -> dict[str, object]:
        """The use as data for JSON, with the schema."""
        return {"schema": SCHEMA, **asdict(self)}


@dataclass(frozen=True)
class Slot:
    """The slot with this number; only whoever has it, by `taken`, may call `note` and `forget`."""

    store: Store
    number: int

    @classmethod
    def noted(cls, store: Store) -> list["Slot"]:
        """All slots whose last use is noted, by number, also those beyond the pool's size now. Raises StoreError."""
        numbers = [_FILE.fullmatch(path.name) for path in entries(pool_directory(store))]
        return [cls(store, number) for number in sorted(int(match[1]) for match in numbers if match)]

    @property
    def instance(self) -> Instance:
        """The instance of the slot's guest, whether it exists or not."""
        return Instance.named(self.store, f"pool-{self.number}")

    @property
    def path(self) -> Path:
        """The path that `taken` locks."""
        return pool_directory(self.store) / f"slot-{self.number}"

    @property
    def file(self) -> Path:
        """The path of the file in which the last use is noted."""
        return Path(f"{self.path}.json")

    def taken(self, limit: float = 0.0) -> AbstractContextManager[None]:
        """Have the slot during the body. Raises StoreError, or InstanceBusy if another has it for `limit` seconds.

        A process that has the slot and starts a child shares it with the child for a moment, until exec(2).
        """
        return locked(self.path, limit)

    def use(self) -> Use | None:
        """The last use of the slot's guest; None if none is noted, or it cannot be understood."""
        with suppress(OSError, ValueError), self.file.open("rb") as stream:
            return document.decode(stream.read(_LONGEST), Use, SCHEMA)
        return None

    def note(self, state: State, boot_id: str, work: str = "") -> None:
        """Note what this process does with the guest from now on, and for which work. Raises StoreError."""
        ours = Process.find(os.getpid())
        assert ours is not None
        publish_json(self.file, Use(state, boot_id, ours, utc_now(), work).encode())

    def forget(self) -> None:
        """Delete the note of the last use, as the slot has no guest any more. Raises StoreError."""
        remove(self.file)
