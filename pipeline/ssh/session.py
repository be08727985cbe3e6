"""One session in an SSH connection, whose streams are read and written by its callers, without a thread of its own.

SSH's window is the only buffer: what nobody reads stays in the guest. Both output streams share one window, so a stream
that nobody wants is read too, into its sink: else it would fill the window and hold up the other.
"""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import paramiko
from paramiko.common import cMSG_CHANNEL_REQUEST

from pipeline.errors import CommandError, CommandTimeout
from pipeline.host.deadline import Deadline
from pipeline.text.printable import printable

if TYPE_CHECKING:
    from paramiko.buffered_pipe import BufferedPipe

Stream = Literal["stdout", "stderr"]

CHUNK = 65536
"""The most bytes that are read or written at once."""

CONSOLE = "see what the guest says: topcoat logs NAME"
"""The hint of errors about a guest that does not behave."""

_STREAMS: tuple[Stream, ...] = ("stdout", "stderr")
_FREE = 2.0  # seconds for a lock that is held for microseconds
_LOOK = 0.25  # seconds: while we wait to be allowed to write, the guest may wait for us to read


def _is_usable(transport: paramiko.Transport, *channels: paramiko.Channel) -> bool:
    """Whether paramiko can be asked for something; if it would wait for ever, the connection is cut.

    It waits for its locks without a limit. If Ctrl-C came just after it had taken one, nobody releases that.
    """
    locks = [transport.lock, transport.clear_to_send_lock]
    for channel in channels:
        pipes = (channel.in_buffer, channel.in_stderr_buffer)
        locks += [channel.lock, *(pipe._lock for pipe in pipes)]  # type: ignore[attr-defined]  # noqa: SLF001
    for lock in locks:
        if not lock.acquire(timeout=_FREE):
            with suppress(OSError):  # the other side has closed it
                transport.sock.shutdown(socket.SHUT_RDWR)
            return False
        lock.release()
    return True


class _Bell(threading.Event):
    """An Event that paramiko sets when data has come. It counts, so that none is lost between a look and a wait."""

    def __init__(self) -> None:
        super().__init__()
        self.rung = 0
        self._changed = threading.Condition()

    def set(self) -> None:
        with self._changed:
            self.rung += 1
            self._changed.notify_all()

    def clear(self) -> None:
        """Do nothing: the number of rings only grows."""

    def wait_since(self, rung: int, seconds: float | None) -> None:
        """Wait until it has rung more than `rung` times, for at most so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self.rung != rung, seconds)


class Vanished(CommandError):
    """The server has ended a session before anything was run in it, so that another one can be asked for.

    dropbear does so (seen in 2022.83) if another session's command ends at that moment.
    """


class Session:
    """An open channel of an SSH connection, which errors call `what`.

    Methods raise CommandTimeout when the deadline that they are given passes, and CommandError if the connection
    breaks. To make a session and to `request` can also raise Vanished. One thread may read a stream while another one
    reads the other stream, or writes.
    """

    def __init__(self, transport: paramiko.Transport, what: str, deadline: Deadline) -> None:
        self._what = what
        self.sinks: dict[Stream, Callable[[bytes], object]] = dict.fromkeys(_STREAMS, lambda _: None)
        """What takes the data of each stream for which nobody calls `read`. Without a sink, only `read` reads it."""
        self._bell = _Bell()
        self._locks = {stream: threading.Lock() for stream in _STREAMS}
        if not _is_usable(transport):
            raise self.broken("the connection was left in the middle of something")
        try:
            self._channel = transport.open_session(timeout=max(0.001, deadline.remaining))
        except (paramiko.SSHException, EOFError, OSError) as error:
            if deadline.expired:
                raise self.late(deadline) from error
            # A refusal is a ChannelException; this one was opened, and closed again before paramiko could return it
            vanished = type(error) is paramiko.SSHException or not transport.is_active()
            raise self.broken(str(error) or "the connection is closed", vanished=vanished) from error
        self._flooded = False
        for pipe in (self._channel.in_buffer, self._channel.in_stderr_buffer):
            pipe.set_event(self._bell)
            self._bound(pipe)

    def _bound(self, pipe: "BufferedPipe[bytes]") -> None:
        """Hold the server to SSH's window: paramiko buffers whatever comes."""
        feed = pipe.feed

        def checked(data: bytes) -> None:
            if self.buffered + len(data) > self._channel.in_window_size:
                self._flooded = True
                raise paramiko.SSHException("the server sends more than it was allowed to")  # ends the connection
            feed(data)

        pipe.feed = checked  # type: ignore[method-assign]  # paramiko offers no class to be chosen

    def request(self, kind: str, argument: bytes, deadline: Deadline) -> None:
        """Ask the server to start a command ("exec") or a service ("subsystem"), and wait until it agrees."""
        self._channel.event.clear()
        self._channel.event_ready = False
        if self._channel.closed:
            raise self.broken("the connection is closed", vanished=True)  # nothing has been asked for yet
        self._send_request(kind, argument, answered=True)
        if not self._channel.event.wait(deadline.remaining):  # paramiko's own way waits for ever
            raise self.late(deadline)
        if not self._channel.event_ready:
            why = "the guest's SSH server refuses it, or the connection broke"
            raise self.broken(why, vanished=bool(self._channel.eof_received))

    def signal(self, name: str) -> None:
        """Ask the server to send a signal, such as "KILL", to the command. Many servers ignore that."""
        self._send_request("signal", name.encode(), answered=False)

    def _send_request(self, kind: str, argument: bytes, *, answered: bool) -> None:
        message = paramiko.Message()
        message.add_byte(cMSG_CHANNEL_REQUEST)
        message.add_int(self._channel.remote_chanid)
        message.add_string(kind)
        message.add_boolean(answered)
        message.add_string(argument)
        transport = self._channel.get_transport()
        if not _is_usable(transport):
            raise self.broken("the connection was left in the middle of something")
        try:
            transport._send_user_message(message)  # type: ignore[attr-defined]  # noqa: SLF001  there is no other way
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self.broken(str(error) or "the connection is closed") from error

    def combine(self) -> None:
        """Receive stderr as part of stdout from now on, in the order of writing."""
        self._channel.set_combine_stderr(True)

    def take(self, stream: Stream) -> None:
        """Take the sink from this stream: from now on only `read` reads it."""
        self.sinks.pop(stream, None)

    @property
    def ended(self) -> bool:
        """Whether no more output will come than has come already."""
        return bool(self._channel.eof_received or self._channel.closed)

    @property
    def buffered(self) -> int:
        """The number of bytes that have come and that nobody has read yet."""
        return len(self._channel.in_buffer) + len(self._channel.in_stderr_buffer)

    @property
    def status(self) -> int | None:
        """The exit status of the command; None until it is known."""
        return self._channel.exit_status if self._channel.exit_status >= 0 else None

    def read(self, stream: Stream, deadline: Deadline | None) -> bytes:
        """Wait for the next data of the stream, and return at most CHUNK bytes; nothing at its end."""
        while True:
            rung, ended = self._bell.rung, self.ended
            if (data := self._received(stream)) or ended:
                return data
            if not self._drained():
                self._wait(rung, deadline)

    def write(self, data: bytes, deadline: Deadline | None, *, reading: bool = True) -> None:
        """Write all of the data to the command's stdin.

        Meanwhile it reads the streams that have sinks; without `reading`, another thread must do so.
        """
        view = memoryview(data)
        self._channel.settimeout(_LOOK)
        while view:
            if reading:
                self._drained()
            with suppress(TimeoutError):
                view = view[self._sent(view[:CHUNK]) :]
            if view and deadline is not None and deadline.expired:
                raise self.late(deadline)

    def _sent(self, data: memoryview) -> int:
        try:
            sent = self._channel.send(bytes(data))
        except TimeoutError:
            raise
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self.broken(str(error)) from error
        if not sent:
            raise self.broken("it takes no more input")
        return sent

    def end_input(self) -> None:
        """End the command's stdin."""
        with suppress(paramiko.SSHException, EOFError, OSError):  # it has ended already, and `finish` says so
            self._channel.shutdown_write()

    def finish(self, deadline: Deadline | None) -> int:
        """Read the streams that have sinks to their end, wait for the command to end, and return its exit status."""
        while True:
            rung, ended = self._bell.rung, self.ended
            if not self._drained():
                if ended:
                    break
                self._wait(rung, deadline)
        # A command may close its output, or send it elsewhere, and run on
        if not self._channel.status_event.wait(None if deadline is None else deadline.remaining):
            assert deadline is not None
            raise self.late(deadline)
        if self.status is None:
            raise self.broken("it was ended by a signal, or the connection broke")
        return self.status

    def _wait(self, rung: int, deadline: Deadline | None) -> None:
        if deadline is not None and deadline.expired:
            raise self.late(deadline)
        self._bell.wait_since(rung, None if deadline is None else deadline.remaining)

    def _drained(self) -> bool:
        """Pass what has come to the sinks. Returns whether there was anything."""
        return b"".join(self._received(stream, sink) for stream, sink in tuple(self.sinks.items())) != b""

    def _received(self, stream: Stream, sink: Callable[[bytes], object] = lambda _: None) -> bytes:
        channel = self._channel
        ready, receive = {
            "stdout": (channel.recv_ready, channel.recv),
            "stderr": (channel.recv_stderr_ready, channel.recv_stderr),
        }[stream]
        if self._flooded:
            raise self.broken("the guest's SSH server sends more than it was allowed to")
        with self._locks[stream]:
            try:
                data = receive(CHUNK) if ready() else b""
            except (paramiko.SSHException, EOFError, OSError) as error:
                raise self.broken(str(error) or "the connection is closed") from error
            sink(data)
        return data

    def leave(self, seconds: float) -> None:
        """Wait at most so many seconds for a command that was told to end, and close the session.

        dropbear has trouble with a new session while the command of another one ends.
        """
        if _is_usable(self._channel.get_transport(), self._channel):
            with suppress(CommandError):  # nobody needs its result
                self.finish(Deadline(seconds))
        self.close()

    def close(self) -> None:
        """Close the session. Depending on the server, the command ends at once, when it next writes, or not at all."""
        if not _is_usable(self._channel.get_transport(), self._channel):
            return
        with suppress(OSError, EOFError, paramiko.SSHException):  # must not hide what came before
            self._channel.close()

    def late(self, deadline: Deadline) -> CommandTimeout:
        """Make the error for a command that did not end by the deadline."""
        return CommandTimeout(f"{self._named} did not end within {deadline.seconds:g} s", hint=CONSOLE)

    def broken(self, why: str, *, vanished: bool = False) -> CommandError:
        """Make the error for a command that was broken off, with the reason; Vanished if it had not begun."""
        kind = Vanished if vanished else CommandError
        return kind(f"{self._named} did not run to its end: {why}", hint=CONSOLE)

    @property
    def _named(self) -> str:
        return f"{printable(self._what)[:80]!r} in the guest"
