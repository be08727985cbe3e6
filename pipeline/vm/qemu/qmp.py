"""QEMU's monitor protocol (QMP), as far as Topcoat needs it: one command after the other, each with a time limit.

The format is in QEMU's docs/interop/qmp-spec. QEMU's own client is not used: all of Topcoat is synchronous, while that
brings asyncio, which costs 80 ms of every boot, and it fails by an assertion if QEMU ends during the connecting.
"""

import json
import re
import select
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from uuid import UUID

from pipeline.host.deadline import Deadline
from pipeline.host.process import Process
from pipeline.text.printable import printable
from pipeline.vm import sockets

_FORWARD = re.compile(r"HOST_FORWARD\]\s+\d+\s+\S+\s+(\d+)\s")
_UCRED = struct.Struct("iII")  # struct ucred: pid, uid, gid
_LONGEST = 1 << 20  # bytes of one message
_MOST_EVENTS = 1000  # a guest can make QEMU send some kinds of events without end
_RETRY = 0.005  # seconds


class MonitorError(Exception):
    """QEMU's monitor did not answer, or not as expected; the caller must know what that means."""


class MonitorGoneError(MonitorError):
    """There is no connection to QEMU's monitor: it cannot be made, or was closed."""


def quit_qemu(path: Path, limit: float) -> None:
    """Ask QEMU to end itself. Raises MonitorError if it does not accept that within `limit` seconds."""
    with Monitor(path, limit) as monitor, suppress(MonitorGoneError):  # QEMU may end before it has answered
        monitor.execute("quit")


def power_down(path: Path, limit: float) -> None:
    """Press the guest's power button. Raises MonitorError if QEMU does not accept that within `limit` seconds."""
    with Monitor(path, limit) as monitor:
        monitor.execute("system_powerdown")


class Monitor:
    """A connection to the monitor socket at `path`, to be used as a context manager.

    Connecting, and each command, may take `limit` seconds. With the `process` that will listen there, connecting fails
    at once if that has ended. Connecting and commands raise MonitorError.
    """

    def __init__(self, path: Path, limit: float, process: Process | None = None) -> None:
        self.events: list[str] = []
        """The events that QEMU has sent, in their order, each with its reason: "SHUTDOWN guest-reset", "STOP"."""
        self._path = path
        self._limit = limit
        self._process = process
        self._deadline = Deadline(limit)
        self._socket = socket.socket(socket.AF_UNIX)
        self._received = b""

    def __enter__(self) -> Self:
        try:
            self._connect()
            if "QMP" not in self._message():
                raise MonitorError("it gives no greeting")
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor of the socket, which is readable when there is something to `collect`."""
        return self._socket.fileno()

    @property
    def peer(self) -> int:
        """The pid of the process that listens at the other end."""
        pid, _, _ = _UCRED.unpack(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return int(pid)

    def ssh_port(self) -> int:
        """The port of the host that QEMU chose to forward to the guest's port 22."""
        text = self.execute("human-monitor-command", {"command-line": "info usernet"})
        match = _FORWARD.search(str(text))
        if match is None:
            raise MonitorError(f"QEMU forwards no port: {str(text)[:200]}")
        return int(match[1])

    def version(self) -> str:
        """QEMU's version, such as "7.2.22", with what its distributor calls the package."""
        answer = self.execute("query-version")
        try:
            major, minor, micro = (int(answer["qemu"][part]) for part in ("major", "minor", "micro"))
            return printable(f"{major}.{minor}.{micro} {answer['package']}").strip()
        except (KeyError, TypeError, ValueError) as error:
            raise MonitorError(f"query-version: {str(answer)[:200]}") from error

    def boot_id(self) -> str:
        """The id that Topcoat gave to this boot; QEMU has it as the machine's UUID."""
        answer = self.execute("query-uuid")
        try:
            return UUID(answer["UUID"]).hex
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MonitorError(f"query-uuid: {str(answer)[:200]}") from error

    def status(self, limit: float | None = None) -> str:
        """The run state of the guest, in QEMU's words (RunState): "running", "paused", "io-error" and others.

        The answer may take `limit` seconds, by default as long as each command.
        """
        answer = self.execute("query-status", limit=limit)
        return str(answer.get("status")) if isinstance(answer, dict) else ""

    def _connect(self) -> None:
        while True:
            try:
                return sockets.connect(self._limited(), self._path)
            except ConnectionRefusedError as error:  # between QEMU's bind and its listen, or nobody listens any more
                if self._deadline.expired:
                    raise MonitorGoneError("nobody listens") from error
                if self._process and self._process.wait(0):
                    raise MonitorGoneError("QEMU has ended") from error
                time.sleep(_RETRY)
            except OSError as error:
                raise MonitorGoneError(f"cannot connect: {error.strerror or error}") from error

    def execute(self, command: str, arguments: dict[str, object] | None = None, limit: float | None = None) -> Any:
        """Run a command and return its result. Events that come in between are kept."""
        self._deadline = Deadline(self._limit if limit is None else limit)
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        try:
            self._limited().sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise MonitorGoneError(f"it is gone: {error.strerror or error}") from error
        while "event" in (answer := self._message()):
            self._keep(answer)
        if "error" in answer:
            raise MonitorError(f"{command}: {answer['error']}")
        return answer.get("return")

    def collect(self) -> None:
        """Keep the events that have come, without waiting. Raises MonitorGoneError at the end of the connection."""
        self._deadline = Deadline(self._limit)
        while b"\n" in self._received or select.select([self._socket], [], [], 0)[0]:
            self._keep(self._message())

    def wait_for(self, *wanted: str, limit: float) -> None:
        """Wait until QEMU has sent one of these events, as they stand in `events`.

        Raises MonitorError after `limit` seconds.
        """
        self._deadline = Deadline(limit)
        while not set(wanted) & set(self.events):
            self._keep(self._message())

    def _keep(self, message: dict[str, Any]) -> None:
        if "event" in message and len(self.events) < _MOST_EVENTS:
            self.events.append(_told(message))

    def _message(self) -> dict[str, Any]:
        while b"\n" not in self._received:
            self._receive()
        line, _, self._received = self._received.partition(b"\n")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MonitorError(f"its answer is no JSON: {line[:80]!r}") from error
        if not isinstance(message, dict):
            raise MonitorError(f"its answer is no object: {line[:80]!r}")
        return message

    def _receive(self) -> None:
        late = f"no answer within {self._deadline.seconds:g} s"
        if self._deadline.expired:
            raise MonitorError(late)
        try:
            chunk = self._limited().recv(65536)
        except TimeoutError as error:
            raise MonitorError(late) from error
        except OSError as error:
            raise MonitorGoneError(f"it is gone: {error.strerror or error}") from error
        if not chunk:
            raise MonitorGoneError("it closed the connection")
        if len(self._received) > _LONGEST:
            raise MonitorError("its answer has no end")
        self._received += chunk

    def _limited(self) -> socket.socket:
        self._socket.settimeout(max(0.001, self._deadline.remaining))
        return self._socket


def _told(event: dict[str, Any]) -> str:
    """An event with its reason, on one line, printable."""
    data = event.get("data")
    facts = data if isinstance(data, dict) else {}
    reason = facts.get("reason") or facts.get("status") or ("nospace" if facts.get("nospace") else "")
    return printable(f"{event.get('event')} {reason}".strip())[:200]
