"""Watching a booting guest in one loop: its serial port, QEMU's events, and QEMU's end."""

import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.host.deadline import Deadline
from pipeline.host.process import Process
from pipeline.vm import sockets
from pipeline.vm.qemu.qmp import Monitor, MonitorError
from pipeline.vm.qemu.serial import Console, Scanner
from pipeline.vm.qemu.verdict import hopeless

_CHUNK = 1 << 20
_ANSWER = 1.0  # seconds; for QEMU's answer why it has paused the guest
# Seconds; the log is read so often even if the socket is silent: connecting may have cut a marker
_TICK = 0.5
_AFTERMATH = 1.0  # seconds; a panic's trace is still being written when its first line is seen
_QUIET = 0.2  # seconds; after so long a silence the trace counts as complete


class Watch:
    """A watch over a booting guest, made by `watching`: `until` waits, and the attributes hold what was seen."""

    def __init__(
        self, console: Console, monitor: Monitor, selector: selectors.BaseSelector, tick: Callable[[], object]
    ) -> None:
        self.console = console
        self.ended = False
        """Whether QEMU has ended."""
        self._monitor = monitor
        self._selector = selector
        self._tick = tick
        self._live = Scanner()  # of the socket: QEMU writes the log after it, so a marker may not be in the log yet
        self._judged = 0
        self._looked = -_TICK

    @property
    def markers(self) -> int:
        """How many times the guest has printed the marker."""
        return max(self.console.markers, self._live.count)

    @property
    def events(self) -> tuple[str, ...]:
        """QEMU's events so far, in their order, each with its reason."""
        return tuple(self._monitor.events)

    def until(self, done: Callable[[], bool], deadline: Deadline) -> bool:
        """Wait until `done` returns true. Returns False if there is no use in waiting any longer.

        That is so when QEMU has ended, when the guest or QEMU has said something that no boot recovers from, or when
        the deadline has passed. `done` is called whenever something was heard; the tick that was given to `watching`
        is called about twice a second.
        """
        while True:
            self.console.update()
            expired = deadline.expired  # asked before `done`: what is done by the deadline counts
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
        """Wait for some seconds. Returns whether QEMU still lives then, and nothing hopeless was heard meanwhile."""
        moment = Deadline(seconds)
        return self.until(lambda: moment.expired, moment) and not self.ended and not self._hopeless()

    def listen_to(self, readable: int, heard: Callable[[], object]) -> None:
        """Make `until` wake also when the descriptor `readable` becomes readable, and call `heard` then."""
        self._selector.register(readable, selectors.EVENT_READ, heard)

    def _is_time_to_look(self) -> bool:
        """Whether _TICK seconds have passed since the last look; to look at each byte would keep the marker waiting."""
        now = time.monotonic()
        if now - self._looked < _TICK:
            return False
        self._looked = now
        return True

    def _hopeless(self) -> bool:
        if "STOP" in self.events[self._judged :]:  # QEMU gives the reason only when it is asked
            with suppress(MonitorError):
                self._monitor.events.append(f"STATUS {self._monitor.status(_ANSWER)}")
        text, events = self.console.news(), self.events[self._judged :]
        self._judged += len(events)
        return bool(text or events) and hopeless(text, events)

    def _hear_the_rest(self) -> None:
        """Listen on for a moment, for the end of what the guest has begun to say."""
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
        """Read what has come on the serial socket, and look for markers in it."""
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
        """Keep the events that QEMU has sent."""
        try:
            self._monitor.collect()
        except MonitorError:
            self._leave(self._monitor)

    def on_end(self, pidfd: int) -> None:
        """Note that QEMU has ended, and keep its last events."""
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
    """Watch a QEMU during the body, by its monitor, its serial socket (path `serial`), its log, and its process.

    The serial socket takes one listener at a time. `tick` is called about twice a second while `Watch.until` waits.
    """
    with (
        selectors.DefaultSelector() as selector,
        socket.socket(socket.AF_UNIX) as connection,
        process.descriptor() as pidfd,
    ):
        watch = Watch(console, monitor, selector, tick)
        if _connected(connection, serial):
            selector.register(connection, selectors.EVENT_READ, lambda: watch.on_serial(connection))
        selector.register(monitor, selectors.EVENT_READ, watch.on_monitor)
        watch.on_monitor()  # an event may have been read together with the last answer: then select sees nothing
        if pidfd is None:
            watch.ended = True
        else:
            selector.register(pidfd, selectors.EVENT_READ, lambda: watch.on_end(pidfd))
        yield watch


def _connected(connection: socket.socket, serial: Path) -> bool:
    connection.setblocking(False)
    try:
        sockets.connect(connection, serial)
    except OSError:
        return False  # QEMU has ended; its pidfd says so
    return True
