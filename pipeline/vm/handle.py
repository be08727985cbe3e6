"""The handle of a running instance: the file handle.json, by which other processes find and control it."""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from pipeline.host.process import Process
from pipeline.settings import Accelerator
from pipeline.ssh.address import Address
from pipeline.store import document
from pipeline.store.freshness import Key

DISK = "targets"
"""The name of the disk with targets among the inputs of what a Linux guest was made of."""

SCHEMA = 3
"""The version of the format of handle.json; a sample of it is frozen in the tests."""


@dataclass(frozen=True)
class Handle:
    """All that another process needs to find and control a running instance; the content of handle.json."""

    name: str
    """The name of the instance."""
    boot_id: str
    """The id of the boot: 32 random hex digits, new with every boot."""
    build: str
    """The name of the build."""
    started: str
    """When the boot began: ISO 8601 in UTC."""
    argv: tuple[str, ...]
    """QEMU's command line."""
    process: Process
    """The QEMU process."""
    accelerator: Accelerator
    """What runs the guest's CPUs; limits for the guest depend on it."""
    ssh: Address
    """How to reach the guest over SSH."""
    made_of: Key
    """The images, the QEMU and the settings that the guest was booted with."""

    @property
    def is_clone(self) -> bool:
        """Whether the guest goes on from a saved one, as clones of a template do, and was not booted."""
        return "-incoming" in self.argv

    def encode(self) -> dict[str, object]:
        """The handle as data for JSON: the fields, the schema, and a seal by which an edited handle is noticed."""
        data = {"schema": SCHEMA, **asdict(self)}
        return {**data, "seal": _seal(data)}

    @classmethod
    def decode(cls, text: bytes) -> "Handle":
        """The handle in the content of handle.json.

        Raises UnsealedError if the seal does not fit the content, ValueError if it is no handle of this schema.
        """
        data = document.content(text, SCHEMA)
        if data.get("seal") != _seal(data):
            raise UnsealedError("its seal does not fit what it says")
        return document.convert(data, cls)


class UnsealedError(ValueError):
    """A handle has been changed since it was written: its seal does not fit its content."""


def _seal(data: dict[str, Any]) -> str:
    text = json.dumps({key: value for key, value in data.items() if key != "seal"}, sort_keys=True)
    return sha256(text.encode()).hexdigest()
