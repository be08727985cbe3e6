"""All that can be heard of a guest while it boots, in one loop: its serial port, QEMU's events, QEMU's end."""

import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.deadline import Deadline
from pipeline.process import Process
from pipeline.qemu.console import Console, Scanner
from pipeline.qemu.qmp import Monitor, MonitorError
from pipeline.qemu.verdict import hopeless

_CHUNK = 1 << 20
_ANSWER = 1.0  # seconds for a word of QEMU's
_TICK = 0.5  # the log is read this often even if the socket is silent: a marker may be cut by the moment of connecting
_AFTERMATH = 1.0  # a panic's trace is still being written when its first line is seen
_QUIET = 0.2


class Watch:
    """Made by `watching`. `until` waits for something; what was seen meanwhile stands in the attributes."""

    def __init__(
        self, console: Console, monitor: Monitor, selector: selectors.BaseSelector, tick: Callable[[], object]
    ) -> None:
        self.console = console
        self.ended = False
        """Whether QEMU has ended."""
        self._monitor = monitor
        self._selector = selector
        self._tick = tick
        self._live = Scanner()  # the log is written after the socket, so the marker may be here and not yet there
        self._judged = 0
        self._looked = -_TICK

    @property
    def markers(self) -> int:
        """How many times the guest has printed the marker."""
        return max(self.console.markers, self._live.count)

    @property
    def events(self) -> tuple[str, ...]:
        """QEMU's events, with their reasons, in their order."""
        return tuple(self._monitor.events)

    def until(self, done: Callable[[], bool], deadline: Deadline) -> bool:
        """Wait until `done`; it is asked whenever something was heard. False if there is no use in waiting on.

        That is so when QEMU has ended, when the guest or QEMU has said something that no boot recovers from, or when
        the deadline has passed. The tick that `watching` was given is called about twice a second.
        """
        while True:
            self.console.update()
            expired = deadline.expired  # asked before: what is done by then counts
            if done():
                return True
            if self.ended or expired:
                return False
            if self._is_time_to_look():
                if self._hopeless():
                    self._hear_the_rest()
                    return False
                self._tick()
            self._listen(deadline.within(_TICK))

    def stays(self, seconds: float) -> bool:
        """Whether there is still use in waiting after a moment, in which QEMU or the kernel might end."""
        moment = Deadline(seconds)
        return self.until(lambda: moment.expired, moment) and not self.ended and not self._hopeless()

    def listen_to(self, readable: int, heard: Callable[[], object]) -> None:
        """From now on `until` also wakes when this descriptor becomes readable, and calls `heard`."""
        self._selector.register(readable, selectors.EVENT_READ, heard)

    def _is_time_to_look(self) -> bool:
        """A guest may write byte by byte; looking closer at each would keep the marker waiting."""
        now = time.monotonic()
        if now - self._looked < _TICK:
            return False
        self._looked = now
        return True

    def _hopeless(self) -> bool:
        if "STOP" in self.events[self._judged :]:  # why, QEMU only says when it is asked
            with suppress(MonitorError):
                self._monitor.events.append(f"STATUS {self._monitor.status(_ANSWER)}")
        text, events = self.console.news(), self.events[self._judged :]
        self._judged += len(events)
        return bool(text or events) and hopeless(text, events)

    def _hear_the_rest(self) -> None:
        """The end of what the guest has begun to say."""
        rest = Deadline(_AFTERMATH)
        while not self.ended and not rest.expired and self._listen(rest.within(_QUIET)):
            self.console.update()
        self.console.update()

    def _listen(self, seconds: float) -> bool:
        heard = self._selector.select(seconds)
        for key, _ in heard:
            key.data()
        return bool(heard)

    def on_serial(self, connection: socket.socket) -> None:
        """Take what has come on the serial socket."""
        try:
            chunk = connection.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._leave(connection)
        self._live.feed(chunk)

    def on_monitor(self) -> None:
        """Take the events that QEMU has sent."""
        try:
            self._monitor.collect()
        except MonitorError:
            self._leave(self._monitor)

    def on_end(self, pidfd: int) -> None:
        """QEMU has ended: its last events and bytes are there."""
        self._leave(pidfd)
        self.ended = True
        self.on_monitor()

    def _leave(self, source: int | socket.socket | Monitor) -> None:
        with suppress(KeyError):  # QEMU's end is heard from several sources at once
            self._selector.unregister(source)


@contextmanager
def watching(
    console: Console, serial: Path, monitor: Monitor, process: Process, tick: Callable[[], object]
) -> Iterator[Watch]:
    """Listen to a QEMU during the body: to its monitor, and its serial socket, which has one listener at a time."""
    with (
        selectors.DefaultSelector() as selector,
        socket.socket(socket.AF_UNIX) as connection,
        process.descriptor() as pidfd,
    ):
        watch = Watch(console, monitor, selector, tick)
        if _connected(connection, serial):
            selector.register(connection, selectors.EVENT_READ, lambda: watch.on_serial(connection))
        selector.register(monitor, selectors.EVENT_READ, watch.on_monitor)
        watch.on_monitor()  # an event may have come together with the last answer: then the socket tells of nothing
        if pidfd is None:
            watch.ended = True
        else:
            selector.register(pidfd, selectors.EVENT_READ, lambda: watch.on_end(pidfd))
        yield watch


def _connected(connection: socket.socket, serial: Path) -> bool:
    connection.setblocking(False)
    try:
        connection.connect(str(serial))
    except OSError:
        return False  # QEMU has ended; its pidfd says so
    return True
