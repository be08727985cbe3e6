"""The guest's serial port, watched as it is written."""

import selectors
import socket
from collections.abc import Callable
from pathlib import Path

from pipeline.deadline import Deadline
from pipeline.errors import BootTimeout, QemuExited
from pipeline.process import Process
from pipeline.text import tail

MARKER = b"{{{reset}}}"
"""Fuchsia's first line of symbolizer context, printed when the first user process starts: early boot is over."""

_CHUNK = 1 << 20
_CHUNKS_AT_ONCE = 64
_KEPT = 1 << 16
_TICK = 0.5  # the log is read this often even if the socket is silent: a marker may be cut by the moment of connecting


class Scanner:
    """Finds the marker in a stream that comes in pieces, however it is cut."""

    def __init__(self) -> None:
        self.found = False
        self._end = b""

    def feed(self, chunk: bytes) -> None:
        """Take the next piece of the stream."""
        window = self._end + chunk
        self.found = self.found or MARKER in window
        self._end = window[-(len(MARKER) - 1) :]


class Console:
    """The serial log as far as it has been read: its end, and whether the marker was in it."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._position = 0
        self._kept = b""
        self._scanner = Scanner()

    @property
    def marker_seen(self) -> bool:
        """Whether the marker was in what has been read."""
        return self._scanner.found

    @property
    def silent(self) -> bool:
        """Whether the guest has written nothing at all."""
        return self._position == 0

    def update(self) -> None:
        """Read what is new in the log, at most 64 MiB: a guest that floods it must not hold up the caller."""
        with self._log.open("rb") as stream:
            stream.seek(self._position)
            for _ in range(_CHUNKS_AT_ONCE):
                chunk = stream.read(_CHUNK)
                self._position += len(chunk)
                self._scanner.feed(chunk)
                self._kept = (self._kept + chunk)[-_KEPT:]
                if len(chunk) < _CHUNK:
                    return

    def tail(self, lines: int = 20) -> str:
        """The last lines, fit to print."""
        return tail(self._kept, lines)


def wait_for_marker(
    console: Console,
    serial: Path,
    process: Process,
    deadline: Deadline,
    waiting: Callable[[Console], object],
) -> None:
    """Return as soon as the guest has printed the marker.

    `serial` is QEMU's socket: it wakes the wait within milliseconds of a byte. `waiting` is called at least twice a
    second. Raises QemuExited or BootTimeout.
    """
    live = Scanner()  # the log is written after the socket, so the marker may be here and not yet there
    with (
        selectors.DefaultSelector() as selector,
        socket.socket(socket.AF_UNIX) as connection,
        process.descriptor() as pidfd,
    ):
        _connect(connection, serial, selector)
        if pidfd is not None:
            selector.register(pidfd, selectors.EVENT_READ)
        ended = pidfd is None
        while True:
            console.update()
            if console.marker_seen or live.found:
                return
            if ended:
                raise exited(console, "marker")
            if deadline.expired:
                raise _too_late(console, deadline)
            waiting(console)
            for key, _ in selector.select(deadline.within(_TICK)):
                if key.fd == pidfd:
                    ended = True
                else:
                    _receive(connection, live, selector)


def _connect(connection: socket.socket, serial: Path, selector: selectors.BaseSelector) -> None:
    connection.setblocking(False)
    try:
        connection.connect(str(serial))
    except OSError:
        return  # QEMU has ended; its pidfd says so
    selector.register(connection, selectors.EVENT_READ)


def _receive(connection: socket.socket, live: Scanner, selector: selectors.BaseSelector) -> None:
    try:
        chunk = connection.recv(_CHUNK)
    except BlockingIOError:
        return
    except OSError:
        chunk = b""
    if not chunk:
        selector.unregister(connection)
    live.feed(chunk)


def exited(console: Console, stage: str) -> QemuExited:
    """The error for a QEMU that ended while the boot waited for `stage`."""
    said = "the guest had written nothing" if console.silent else "the end of the console is above"
    return QemuExited(
        f"QEMU ended before the guest was ready (while waiting for the {stage})",
        stage=stage,
        hint=f"{said}; the guest reset or powered itself off, or QEMU crashed (see dmesg)",
        detail=console.tail(),
    )


def _too_late(console: Console, deadline: Deadline) -> BootTimeout:
    if console.silent:
        hint = (
            "nothing came on the serial port: is the kernel right for this machine? Fuchsia needs kernel.serial=legacy"
        )
    else:
        hint = "if the guest is only slow, raise [boot] timeout; the end of the console is above"
    return BootTimeout(
        f"the guest did not print {MARKER.decode()} within {deadline.seconds:g} s",
        stage="marker",
        hint=hint,
        detail=console.tail(),
    )
