"""A command in a guest, as a process object: start it, read what it writes, wait for it, end it."""

import io
from collections.abc import Callable
from contextlib import suppress

from pipeline.errors import CommandError, CommandExited, CommandTimeout
from pipeline.host.deadline import Deadline
from pipeline.ssh import ending
from pipeline.ssh.connection import Bounded, Connection
from pipeline.ssh.session import Session, Stream, Vanished
from pipeline.text.printable import one_line, tail

STDERR = 64 << 10
"""How many bytes of the end of stderr are kept for the error."""

OUTPUT = 64 << 20
"""The most bytes that `Command.output` takes by default."""

_STARTING = 30.0  # seconds, without connecting, which has limits of its own
_ENDING = 12.0
_LEAVING = 1.0
_STATUS = 10.0
_HINT = "see what it says above, and whether the guest has the program: topcoat ssh NAME -- CMD"


class Command:
    """One run of a command line by the guest's shell. Made by Connector.command; nothing happens before `start`.

    Its stdin is empty, unless `start` says otherwise. Output that nobody takes by `stdout` or `stderr` is read and
    thrown away, but the end of stderr is kept for the error. Output that is taken must be read: SSH's window, 2 MiB for
    both streams, is the only buffer, and the command stands still when it is full. Errors: CommandExited for an exit
    status that is not 0, CommandTimeout at the limit, and CommandError if the connection breaks, a signal ends the
    command, or it does not start.

    The command is ended by `kill`, at a limit, when one of its streams is closed early, and when an exception such as
    KeyboardInterrupt ends a wait. A guest with Linux's /proc is then asked, in a second session, to kill the command
    and all that it has started. If it confirms within 12 seconds that nothing is left, `kill` returns True and
    CommandTimeout has `ended`. Only a process that has cleared its environment escapes: see pipeline/ssh/ending.py. Any
    other guest, such as Fuchsia, is only sent SSH's signal KILL and the end of the session, which promises nothing.
    Nothing is promised either if the server has not yet agreed to start the command when the limit comes.
    """

    def __init__(
        self,
        connected: Callable[[], Connection],
        line: str,
        renewed: Callable[[Connection], Connection | None] = lambda _: None,
    ) -> None:
        self.line = line
        """The command line, as the guest's shell gets it."""
        self._connected, self._renewed = connected, renewed
        self._connection: Connection | None = None
        self._session: Session | None = None
        self._mark: str | None = None
        self._stderr = _Tail(STDERR)
        self._said: Bounded | None = None
        self._streams: dict[Stream, CommandOutput] = {}

    def start(self, *, stdin: bool = False, combined: bool = False) -> None:
        """Connect if need be, and start the command. It can be started once.

        With `stdin`, it reads what `write` is given, until `end_input`. With `combined`, its stderr is part of stdout.
        """
        assert self._session is None, "a command is started once"
        self._connection = self._connected()
        self._start(_STARTING, stdin=stdin, combined=combined)

    def _start(self, limit: float, *, stdin: bool = False, combined: bool = False) -> Deadline:
        """Begin the command within `limit` seconds. Returns what is left of them, which begin anew if it reconnects."""
        deadline = Deadline(limit)
        try:
            self._begin(deadline, stdin=stdin, combined=combined)
        except Vanished:  # nothing has been run; dropbear can end a whole connection when another command ends
            assert self._connection is not None
            if (renewed := self._renewed(self._connection)) is None:
                raise
            self._connection, self._session, deadline = renewed, None, Deadline(limit)
            self._begin(deadline, stdin=stdin, combined=combined)
        return deadline

    def _begin(self, deadline: Deadline, *, stdin: bool, combined: bool) -> None:
        connection = self._connection
        assert connection is not None
        if connection.facilities(deadline).environ:
            self._mark = ending.new_mark()
        line = ending.marked(self.line, self._mark, combined=combined) if self._mark else self.line

        def prepare(session: Session) -> None:
            session.sinks = {stream: sink for stream, sink in self._sinks().items() if stream not in self._streams}
            if combined:
                session.combine()
            self._session = session  # so that an interrupted start can be ended

        try:
            session = connection.session(self.line, "exec", line, deadline, prepare)
        except CommandError as error:  # nothing has been run, or the guest does not answer and cannot be asked either
            if self._session is not None:
                self._session.close()
            _tell(error, ended=False)
            raise
        except BaseException:
            self.kill()
            raise
        if not stdin:
            session.end_input()

    def _sinks(self) -> dict[Stream, Callable[[bytes], object]]:
        return {"stdout": self._said.write if self._said else lambda _: None, "stderr": self._stderr.write}

    def ending(self) -> "_Ending":
        """Return a context manager that ends the command if its body raises."""
        return _Ending(self)

    @property
    def session(self) -> Session:
        """The SSH session of the command, which must have been started."""
        assert self._session is not None, "the command has not been started"
        return self._session

    def run(self, limit: float | None = None) -> None:
        """Start the command and wait for its end; `limit` seconds after the guest is connected it is ended."""
        deadline = self._started_within(limit)
        self._finish(deadline)

    def _started_within(self, limit: float | None, *, combined: bool = False) -> Deadline | None:
        """Start the command, and return the deadline that `limit`, in seconds, sets for its end."""
        assert self._session is None, "a command is started once"
        self._connection = self._connected()
        deadline = self._start(_STARTING if limit is None else limit, combined=combined)
        return None if limit is None else deadline

    def wait(self, limit: float | None = None) -> None:
        """Wait until the command has ended and its output was read. After `limit` seconds it is ended."""
        self._finish(None if limit is None else Deadline(limit))

    def _finish(self, deadline: Deadline | None) -> None:
        with self.ending():
            status = self.session.finish(deadline)
        self.session.close()
        if status != 0:
            raise self._exited(status, bytes(self._said.data[-STDERR:] if self._said else self._stderr.data))

    def output(self, limit: float | None = None, most: int = OUTPUT) -> bytes:
        """Run the command, and return what it writes to stdout and stderr: in a Linux guest, in the order of writing.

        See `run` for the limit. If it writes more than `most` bytes, it is ended, and CommandError is raised.
        """
        said = self._said = Bounded(most)
        self._finish(self._started_within(limit, combined=True))
        return bytes(said.data)

    def stdout(self) -> "CommandOutput":
        """Return the command's stdout as a stream to read. Closing the stream before its end ends the command."""
        return self._taken("stdout")

    def stderr(self) -> "CommandOutput":
        """Return the command's stderr as a stream, like `stdout`. CommandExited then has nothing of it."""
        return self._taken("stderr")

    def _taken(self, stream: Stream) -> "CommandOutput":
        if stream not in self._streams:
            self._streams[stream] = CommandOutput(_Source(self, stream))
            if self._session is not None:
                self._session.take(stream)
        return self._streams[stream]

    def write(self, data: bytes, deadline: Deadline) -> None:
        """Write to the command's stdin. If that takes until the deadline, the command is ended."""
        broken: CommandError | None = None
        with self.ending():
            try:
                self.session.write(data, deadline)
            except CommandTimeout:
                raise
            except CommandError as error:
                broken = error
        if broken is not None:
            self.wait(_STATUS)  # it has ended, and may say itself why it takes no more
            raise broken

    def end_input(self) -> None:
        """End the command's stdin."""
        self.session.end_input()

    def kill(self) -> bool:
        """End the command, if it still runs, and all that it has started. See the class for what that promises.

        Returns True if the guest has confirmed it, or if there was nothing to end. Raises nothing.
        """
        session = self._session
        if session is None or (session.status is not None and session.ended):
            return True
        if self._kill_marked():
            session.leave(_LEAVING)
            return True
        with suppress(CommandError):  # the connection may be broken: then it cannot be ended either
            session.signal("KILL")
        session.close()
        return False

    def _kill_marked(self) -> bool:
        if self._mark is None or self._connection is None or not self._connection.alive:
            return False
        try:
            return self._connection.run(ending.killing(self._mark), _ENDING).stdout == ending.GONE
        except CommandError:  # the return value says so
            return False

    def _exited(self, status: int, stderr: bytes) -> CommandExited:
        said = f" ({one_line(stderr.strip())})" if stderr.strip() else ""
        return CommandExited(
            f"{one_line(self.line, 200)!r} exited with error: {status}{said}",
            hint=_HINT,
            detail=tail(stderr),
            status=status,
            command=self.line,
            stderr=stderr,
        )


class _Ending:
    """A context manager that ends the command if its body raises, and says so in a CommandTimeout."""

    def __init__(self, command: Command) -> None:
        self._command = command

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            return
        _tell(error, ended=self._command.kill())


def _tell(error: BaseException, *, ended: bool) -> None:
    """Add to a timeout's message what became of the command; leave other errors as they are."""
    if isinstance(error, CommandTimeout) and not error.ended:
        error.ended = ended
        error.message += ", and was killed" if ended else "; nobody knows whether it still runs"
        error.args = (error.message,)


class CommandOutput(io.BufferedReader):
    """An output stream of a command. Reading it waits for the command, without a limit."""

    def close(self) -> None:
        """Close the stream. If its end has not been read yet, the command is ended."""
        if not self.closed:
            raw = self.raw
            assert isinstance(raw, _Source)
            raw.give_up()
        super().close()

    def __del__(self) -> None:
        """Do nothing: a stream that is forgotten is not closed, because ending a command takes time."""


class _Source(io.RawIOBase):
    def __init__(self, command: Command, stream: Stream) -> None:
        super().__init__()
        self._command = command
        self._stream: Stream = stream
        self._rest = b""
        self._at_end = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        data = self._rest or self._command.session.read(self._stream, None)
        self._at_end = not data
        count = min(len(buffer), len(data))
        buffer[:count], self._rest = data[:count], data[count:]
        return count

    def give_up(self) -> None:
        if not self._at_end:
            self._command.kill()

    def __del__(self) -> None:
        """See CommandOutput."""


class _Tail:
    """A buffer that keeps the last `most` bytes of what is written to it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.data = bytearray()

    def write(self, chunk: bytes) -> None:
        self.data += chunk
        del self.data[: -self._most]
