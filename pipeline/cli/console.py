"""The serial console of a guest, joined with the stdin and stdout of this process."""

import errno
import os
import select
import signal
import socket
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Literal, TextIO

from pipeline.errors import BrokenInstance, CommandError, InstanceBusy
from pipeline.host.locks import lock_of, locked
from pipeline.host.process import Process
from pipeline.host.stdio import OutputError
from pipeline.text.printable import Filter
from pipeline.vm import sockets

DETACH = 0x1D
"""The byte of Ctrl-], the one key that does not reach the guest: it ends the session."""

SILENCE = 1.0
"""Seconds without output after which the guest counts as having answered piped input completely."""

STALLED = 10.0
"""Seconds for which a guest may leave its input unread while nothing else is left to do but wait."""

Reason = Literal["detached", "guest ended"]

_CHUNK = 4096  # bytes; a pipe that is ready takes that many without blocking
_MOST = 1 << 20  # bytes, more than anybody pastes: while that many wait for the guest, DETACH is not seen
_DYING = 1.0  # seconds; a process closes its sockets before it counts as ended


def attach(name: str, serial: Path, process: Process, *, safe: bool) -> Reason:
    """Join stdin and stdout with the serial port of the instance `name`, byte for byte, until one side ends.

    `serial` is QEMU's socket, `process` is QEMU. On a terminal every key goes to the guest, even Ctrl-C, until DETACH
    ends the session. Afterwards the terminal is as before, even if SIGTERM or SIGHUP ends the program by SystemExit.
    Piped input is sent to its end, and output is printed until the guest has been silent for SILENCE seconds. If stdin
    is closed, the output is printed until the guest ends. With `safe`, escape sequences and control characters of the
    guest are left out.

    Returns why the session ended. Raises InstanceBusy if another process has the console, BrokenInstance if QEMU lives
    but its socket does not answer, CommandError if the guest does not take its input, BrokenPipeError if stdout has
    lost its reader, OutputError if stdout cannot be written.
    """
    if not serial.exists():  # checked first, for the lock would make its directory anew
        return _no_answer(name, process, "its socket is not there")
    with sole_user(name, serial), socket.socket(socket.AF_UNIX) as connection, process.descriptor() as pidfd:
        connection.setblocking(False)
        try:
            sockets.connect(connection, serial)
        except BlockingIOError:
            raise _busy(name, f"see who waits for it: fuser -v '{serial}'") from None
        except OSError as error:
            return _no_answer(name, process, str(error.strerror))
        return _talk(name, connection, pidfd, safe=safe)


def _no_answer(name: str, process: Process, why: str) -> Reason:
    if process.wait(_DYING):
        return "guest ended"
    raise BrokenInstance(
        f"{name} runs, but its serial port does not answer: {why}",
        hint=f"SSH may still work: topcoat ssh {name}; else topcoat stop {name}, and boot it anew",
    )


@contextmanager
def sole_user(name: str, serial: Path) -> Iterator[None]:
    """Be the only user of the serial port of the instance `name` during the body. Raises InstanceBusy without waiting.

    QEMU serves one client at a time; the kernel lets others connect, but they would never receive anything. The lock is
    console.lock beside the socket.
    """
    path = serial.with_name("console")
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path, 0))
        except InstanceBusy:
            raise _busy(name, f"see who has it: fuser -v '{lock_of(path)}'") from None
        yield


def _busy(name: str, how: str) -> InstanceBusy:
    return InstanceBusy(
        f"somebody else has the console of {name}", hint=f"only to watch, there is: topcoat logs -f {name}; {how}"
    )


def _talk(name: str, connection: socket.socket, pidfd: int | None, *, safe: bool) -> Reason:
    keys, screen = _descriptor(sys.stdin), _descriptor(sys.stdout)
    terminal = keys if keys is not None and os.isatty(keys) else None
    print(f"connected to {name}" + ("; Ctrl-] detaches" if terminal is not None else ""), file=sys.stderr)
    with _raw(terminal):
        session = _Session(connection, pidfd, keys, screen, on_terminal=terminal is not None, safe=safe)
        reason = session.run()
        if terminal is not None and reason == "guest ended":
            termios.tcflush(terminal, termios.TCIFLUSH)  # what was typed for the guest must not reach the shell here
        return reason


def _descriptor(stream: TextIO | None) -> int | None:
    return None if stream is None else stream.fileno()


@contextmanager
def _raw(terminal: int | None) -> Iterator[None]:
    """Put a terminal into raw mode during the body, and restore it however the body ends. Does nothing for None."""
    if terminal is None:
        yield
        return
    before = termios.tcgetattr(terminal)

    def restore() -> None:
        with suppress(termios.error):  # a terminal that is gone
            termios.tcsetattr(terminal, termios.TCSANOW, before)

    def end(number: int, _: FrameType | None) -> None:
        restore()  # here too: the exception may interrupt the restoring below
        raise SystemExit(128 + number)

    handlers = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setraw(terminal, termios.TCSANOW)
        yield
    finally:
        restore()
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _Session:
    """One session of `attach`. If one direction is blocked, the other still works."""

    def __init__(
        self,
        connection: socket.socket,
        pidfd: int | None,
        keys: int | None,
        screen: int | None,
        *,
        on_terminal: bool,
        safe: bool,
    ) -> None:
        self._connection = connection
        self._pidfd = pidfd
        self._keys = keys
        self._screen = screen
        self._on_terminal = on_terminal
        self._filter = Filter() if safe else None
        self._typed = bytearray()  # bytes for the guest
        self._said = b""  # bytes for the screen; more are read only when it is empty
        self._input_ended = False
        self._left: float | None = None  # when DETACH was seen
        self._dead = pidfd is None
        self._ended = False  # nothing more comes from the guest
        self._moved = time.monotonic()

    def run(self) -> Reason:
        while not self._ended or self._said:
            if self._left is not None and not self._typed:
                return "detached"
            until = self._until()
            seconds = None if until is None else until - time.monotonic()
            if seconds is not None and seconds <= 0:
                return self._give_up()
            self._act(self._wait(seconds))
        return "guest ended"

    def _until(self) -> float | None:
        """The monotonic time at which the session ends if no byte moves before; None if it has no such limit."""
        if self._left is not None:
            return self._left + SILENCE
        if self._said or self._dead:
            return None
        if self._typed and (self._input_ended or self._full):
            return self._moved + STALLED
        return self._moved + SILENCE if self._input_ended else None

    @property
    def _full(self) -> bool:
        return len(self._typed) >= _MOST

    def _give_up(self) -> Reason:
        if self._typed and self._left is None:
            raise CommandError(
                f"the guest takes no input: {len(self._typed)} bytes of it were not sent",
                hint="does something read there? see: topcoat logs NAME",
            )
        return "detached"

    def _wait(self, seconds: float | None) -> dict[int, int]:
        """Wait, at most so many seconds, for descriptors that will not block, and return their events."""
        poll = select.poll()
        if self._dead and not self._said:
            seconds = 0  # QEMU has ended, so nothing more will come
        if not self._ended:
            wanted = (0 if self._said else select.POLLIN) | (select.POLLOUT if self._typed else 0)
            if wanted:
                poll.register(self._connection, wanted)
        if self._pidfd is not None and not self._dead:
            poll.register(self._pidfd, select.POLLIN)
        if self._keys is not None and not (self._input_ended or self._full or self._ended):
            poll.register(self._keys, select.POLLIN)
        if self._screen is not None:
            poll.register(self._screen, select.POLLOUT if self._said else 0)  # that its reader has gone is always told
        return dict(poll.poll(None if seconds is None else seconds * 1000))

    def _act(self, events: dict[int, int]) -> None:
        self._dead = self._dead or self._pidfd in events
        if self._screen in events:
            self._show(events[self._screen])
        if self._connection.fileno() in events or self._dead:
            self._send()
            self._receive()
        if self._keys in events:
            self._read()

    def _show(self, event: int) -> None:
        if event & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        assert self._screen is not None
        try:
            self._said = self._said[os.write(self._screen, self._said[:_CHUNK]) :]
            self._moved = time.monotonic()
        except BlockingIOError:  # another process may have made the shared descriptor non-blocking
            return
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from error

    def _send(self) -> None:
        try:
            sent = self._connection.send(self._typed) if self._typed else 0
        except BlockingIOError:
            return
        except OSError:  # QEMU has ended; its last output is still to be read
            self._typed.clear()
            return
        if sent:
            del self._typed[:sent]
            self._moved = time.monotonic()

    def _receive(self) -> None:
        if self._said:
            return
        try:
            chunk = self._connection.recv(_CHUNK)
        except BlockingIOError:
            chunk = None
        except OSError:
            chunk = b""
        if chunk:
            self._moved = time.monotonic()
            self._say(self._filter.feed(chunk) if self._filter else chunk)
        elif chunk is not None or self._dead:
            self._ended = True
            self._say(self._filter.end() if self._filter else b"")

    def _say(self, what: str | bytes) -> None:
        if self._screen is None:
            return
        # The terminal's encoding: in any other, bytes of UTF-8 may be control characters
        self._said = what.encode(sys.stdout.encoding, "replace") if isinstance(what, str) else what

    def _read(self) -> None:
        assert self._keys is not None
        try:
            chunk = os.read(self._keys, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # the terminal is gone, or it is a directory
            chunk = b""
        if self._on_terminal:
            before, detach, _ = chunk.partition(bytes([DETACH]))
            self._typed += before
            if detach or not chunk:
                self._left = time.monotonic()
        else:
            self._typed += chunk
        self._input_ended = not chunk or self._left is not None
        self._moved = time.monotonic()
