"""QEMU's monitor protocol, as far as Topcoat needs it: one command on a connection of its own, with a limit.

Format: QEMU, docs/interop/qmp-spec. Written out here because the whole of Topcoat is synchronous: QEMU's own client
brings asyncio, which costs 80 ms of every boot, and when QEMU ends in the midst of connecting it fails by assertion.
"""

import json
import re
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pipeline.deadline import Deadline

_FORWARD = re.compile(r"HOST_FORWARD\]\s+\d+\s+\S+\s+(\d+)\s")
_LONGEST = 1 << 20
_RETRY = 0.005


class MonitorError(Exception):
    """QEMU's monitor did not answer, or not as expected. Whoever asks knows what that means."""


class MonitorGoneError(MonitorError):
    """QEMU closed the connection."""


def ssh_port(path: Path, limit: float) -> int:
    """The host port that QEMU chose for the forward to the guest's port 22. Raises MonitorError."""
    with Monitor(path, limit) as monitor:
        text = monitor.execute("human-monitor-command", {"command-line": "info usernet"})
    match = _FORWARD.search(str(text))
    if match is None:
        raise MonitorError(f"QEMU forwards no port: {text}")
    return int(match[1])


def quit_qemu(path: Path, limit: float) -> None:
    """Ask QEMU to end itself. Raises MonitorError if it does not take the request."""
    with Monitor(path, limit) as monitor, suppress(MonitorGoneError):  # it may end before it has answered
        monitor.execute("quit")


class Monitor:
    """A connection to the monitor socket at `path`. All that happens on it must end within `limit` seconds."""

    def __init__(self, path: Path, limit: float) -> None:
        self._path = path
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

    def _connect(self) -> None:
        while True:
            try:
                return self._limited().connect(str(self._path))
            except ConnectionRefusedError as error:  # between QEMU's bind and its listen, or nobody listens any more
                if self._deadline.expired:
                    raise MonitorGoneError("nobody listens") from error
                time.sleep(_RETRY)
            except OSError as error:
                raise MonitorGoneError(f"cannot connect: {error.strerror or error}") from error

    def execute(self, command: str, arguments: dict[str, object] | None = None) -> Any:
        """Run a command and return what it returns. Events that come in between are passed over."""
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        try:
            self._limited().sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise MonitorGoneError(f"it is gone: {error.strerror or error}") from error
        while "event" in (answer := self._message()):
            pass
        if "error" in answer:
            raise MonitorError(f"{command}: {answer['error']}")
        return answer.get("return")

    def _message(self) -> dict[str, Any]:
        while b"\n" not in self._received:
            try:
                chunk = self._limited().recv(65536)
            except TimeoutError as error:
                raise MonitorError(f"no answer within {self._deadline.seconds:g} s") from error
            except OSError as error:
                raise MonitorGoneError(f"it is gone: {error.strerror or error}") from error
            if not chunk:
                raise MonitorGoneError("it closed the connection")
            if len(self._received) > _LONGEST:
                raise MonitorError("its answer has no end")
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError as error:
            raise MonitorError(f"its answer is no JSON: {line[:80]!r}") from error
        if not isinstance(message, dict):
            raise MonitorError(f"its answer is no object: {line[:80]!r}")
        return message

    def _limited(self) -> socket.socket:
        self._socket.settimeout(max(0.001, self._deadline.remaining))
        return self._socket
