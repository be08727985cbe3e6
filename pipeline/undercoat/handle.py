"""The handle: the JSON file whose path `start_instance` prints, and by which every later call finds its guest.

Its form is that of the original, so that each program can read what the other has written. Under "Topcoat", the
identity of the guest is added, so that no other process is ever signalled; the original ignores that. The case of the
fields' names does not matter, as in Go. Nothing in a handle is trusted without being compared with what runs.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import BadHandle
from pipeline.host.aging import STICKY
from pipeline.host.faults import host_faults
from pipeline.host.locks import lock_of, locked
from pipeline.host.process import Process
from pipeline.host.trust import distrust
from pipeline.store.publish import publish_json, remove

LOCK_LIMIT = 10.0
"""Seconds to wait for another process that writes the same handle, or stops its guest."""

_LONGEST = 1 << 20
_CONNECTOR, _LAUNCHER = "SSHConnector", "QemuLauncher"


@dataclass(frozen=True)
class ConnectorPart:
    """The part of a handle that says how to reach the guest by SSH. What an old handle lacks is empty or 0."""

    host: str = ""
    port: int = 0
    key: str = ""
    """The path of the private SSH key."""
    directory: str = ""
    """The path of a directory for temporary files of the connection."""


@dataclass(frozen=True)
class LauncherPart:
    """The part of a handle that says what was started. What an old handle lacks is empty or 0."""

    pid: int = 0
    directory: str = ""
    """The path of the directory of all that belongs to this guest: the instance's, or the original's temporary one."""


@dataclass(frozen=True)
class UndercoatHandle:
    """The content of a handle."""

    connector: ConnectorPart = ConnectorPart()
    launcher: LauncherPart = LauncherPart()
    process: Process | None = None
    """The QEMU of the guest; None in a handle that the original has written."""
    boot_id: str = ""

    def encode(self) -> dict[str, object]:
        """The content as data for JSON, with the names of the original."""
        host, port, key, directory = vars(self.connector).values()
        data: dict[str, object] = {
            "ConnectorType": _CONNECTOR,
            "Connector": {"Host": host, "Port": port, "Key": key, "TmpDir": directory},
            "LauncherType": _LAUNCHER,
            "Launcher": {"Pid": self.launcher.pid, "TmpDir": self.launcher.directory},
        }
        if self.process is not None:
            data["Topcoat"] = {
                "BootId": self.boot_id,
                "StartTicks": self.process.start_ticks,
                "HostBootId": self.process.host_boot_id,
            }
        return data

    @classmethod
    def decode(cls, data: Any) -> "UndercoatHandle":
        """The content that decoded JSON holds; any field may be missing.

        Raises ValueError for a value of a wrong type, and for an unknown connector or launcher.
        """
        whole = _Fields(data)
        connector, launcher = whole.part("Connector", _CONNECTOR), whole.part("Launcher", _LAUNCHER)
        identity, pid = _Fields(whole.get("Topcoat")), launcher.number("Pid")
        ticks, host_boot_id = identity.number("StartTicks"), identity.text("HostBootId")
        return cls(
            ConnectorPart(
                connector.text("Host"), connector.number("Port"), connector.text("Key"), connector.text("TmpDir")
            ),
            LauncherPart(pid, launcher.text("TmpDir")),
            Process(pid, ticks, host_boot_id) if host_boot_id and pid > 0 else None,
            identity.text("BootId"),
        )

    def require_whole(self) -> None:
        """Raise BadHandle if the handle lacks anything that is needed to work with the guest."""
        facts = (
            ("host", self.connector.host),
            ("port", self.connector.port),
            ("key", self.connector.key),
            ("tmpDir", self.connector.directory),
            ("pid", self.launcher.pid),
            ("tmpdir", self.launcher.directory),
        )
        for name, value in facts:
            if not value:
                raise BadHandle(
                    f"{name} not found in handle", hint="start a new instance; this one can only be stopped"
                )


class _Fields:
    """A JSON object whose names are found in upper or lower case."""

    def __init__(self, data: Any) -> None:
        if not isinstance(data, dict | None):
            raise ValueError(f"{str(data)[:40]!r} is no object")
        self._data = {str(name).lower(): value for name, value in (data or {}).items()}

    def get(self, name: str) -> Any:
        return self._data.get(name.lower())

    def part(self, name: str, kind: str) -> "_Fields":
        found = self.text(f"{name}Type")
        if found not in ("", kind):
            raise ValueError(f"unknown {name.lower()} type: {found!r}")
        return _Fields(self.get(name) if found else None)

    def text(self, name: str) -> str:
        found: str = self._typed(name, str, "")
        return found

    def number(self, name: str) -> int:
        found: int = self._typed(name, int, 0)
        if isinstance(found, bool) or not 0 <= found < 1 << 63:
            raise ValueError(f"{name}: {found!r} cannot be")
        return found

    def _typed(self, name: str, kind: type[Any], default: Any) -> Any:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, kind):
            raise ValueError(f"{name}: {str(value)[:40]!r} is no {kind.__name__}")
        return value


@dataclass(frozen=True)
class HandleFile:
    """The file of a handle."""

    path: Path

    @classmethod
    def create(cls, handle: UndercoatHandle) -> "HandleFile":
        """Write a new file in TMPDIR, for the user alone, which systemd-tmpfiles does not delete. Raises StoreError."""
        with host_faults("making a handle"):
            descriptor, name = tempfile.mkstemp(prefix="undercoat_", suffix=".handle")
            with open(descriptor, "w") as stream:
                stream.write("{}")
        made = cls(Path(name))
        made.write(handle)
        return made

    def read(self) -> UndercoatHandle:
        """The content of the file. Raises BadHandle if it is missing, damaged, or not to be trusted."""
        try:
            with open(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as stream:
                if why := distrust(os.fstat(stream.fileno()), root=False):
                    raise ValueError(f"it is not followed, as {why}")
                return UndercoatHandle.decode(json.loads(stream.read(_LONGEST)))
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise BadHandle(
                f"Bad handle: {self.path}: {reason}",
                hint="is it the whole line that start_instance has printed, and has nobody stopped it yet?",
            ) from error

    def write(self, handle: UndercoatHandle) -> None:
        """Replace the content of the file. Raises BadHandle if it has been released meanwhile."""
        with self.alone():
            if not self.path.exists():
                raise BadHandle(f"Bad handle: {self.path}: it was released", hint="start a new instance")
            publish_json(self.path, handle.encode(), mode=0o600 | STICKY)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others from writing the file or stopping its guest during the body. Raises BadHandle, InstanceBusy."""
        self.read()  # before anything is made beside it
        with locked(self.path, LOCK_LIMIT):
            try:
                yield
            finally:
                remove(lock_of(self.path))

    def release(self) -> None:
        """Delete the file. Does nothing if it is already gone."""
        remove(self.path)
