"""SSH to a guest, over paramiko: connect with limits for every stage, run commands, pass streams through.

The server is compared with the host key that it must have, or, where none is known yet, its key is taken and pinned
by the caller. An accepted TCP connection means nothing: QEMU accepts before the guest listens.
"""

import logging
import select
import shlex
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

import paramiko

from pipeline.deadline import Deadline
from pipeline.errors import CommandError, ConnectError, SettingsError, TopcoatError, WrongServer
from pipeline.instance import SSH
from pipeline.launcher import Result
from pipeline.settings import Timeouts
from pipeline.text import printable

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # it logs tracebacks of what it also raises

CHUNK = 65536
_EMPTY = 0.02
_CONSOLE = "see what the guest says: topcoat logs NAME"


def quote(words: list[str] | tuple[str, ...]) -> str:
    """A command line for the guest's shell. Several words arrive as they are; one word is a line for the shell."""
    return words[0] if len(words) == 1 else shlex.join(words)


class Connection:
    """An authenticated connection. Made by `connect`."""

    def __init__(self, transport: paramiko.Transport, host_key: str) -> None:
        self._transport = transport
        self.host_key = host_key
        """The server's host key, "TYPE BASE64"."""

    def run(self, command: str, limit: float, most: int = 1 << 20) -> Result:
        """Run a shell command and collect what it writes, at most `most` bytes of each stream.

        Raises CommandError if it does not end within `limit` seconds, writes more, or the connection breaks.
        """
        stdout, stderr = _Bounded(most), _Bounded(most)
        status = self._stream(command, None, stdout.write, stderr.write, Deadline(limit))
        return Result(status, bytes(stdout.data), bytes(stderr.data))

    def stream(self, command: str, stdin: IO[bytes], stdout: BinaryIO, stderr: BinaryIO) -> int:
        """Run a shell command with these streams, byte for byte and without a time limit. Returns its exit status.

        Raises CommandError if the connection breaks or the command was ended by a signal.
        """
        return self._stream(command, stdin, _flushed(stdout), _flushed(stderr), None)

    def _stream(
        self,
        command: str,
        stdin: IO[bytes] | None,
        stdout: Callable[[bytes], object],
        stderr: Callable[[bytes], object],
        deadline: Deadline | None,
    ) -> int:
        try:
            channel = self._transport.open_session(timeout=deadline.seconds if deadline else None)
            try:
                channel.exec_command(command)
                if stdin is None:
                    channel.shutdown_write()
                else:
                    # A thread: sending may block until the guest reads, and the guest may block until we read
                    threading.Thread(target=_feed, args=(stdin, channel), daemon=True).start()
                _drain(channel, stdout, stderr, deadline)
                return _status(channel, command)
            finally:
                with suppress(OSError, EOFError, paramiko.SSHException):  # must not hide what came before
                    channel.close()
        except TopcoatError:
            raise
        except Exception as error:
            raise _broken(command, str(error) or type(error).__name__) from error


class _Bounded:
    def __init__(self, most: int) -> None:
        self.most = most
        self.data = bytearray()

    def write(self, chunk: bytes) -> None:
        self.data += chunk
        if len(self.data) > self.most:
            raise CommandError(f"a command in the guest wrote more than {self.most} bytes", hint=_CONSOLE)


def _flushed(stream: BinaryIO) -> Callable[[bytes], object]:
    def write(chunk: bytes) -> None:
        stream.write(chunk)
        stream.flush()

    return write


def _feed(stdin: IO[bytes], channel: paramiko.Channel) -> None:
    read = getattr(stdin, "read1", stdin.read)  # what is there, without waiting for a full buffer
    with suppress(OSError, EOFError, paramiko.SSHException, ValueError):  # the command has ended; the reader says so
        while chunk := read(CHUNK):
            channel.sendall(chunk)
        channel.shutdown_write()


def _drain(
    channel: paramiko.Channel,
    stdout: Callable[[bytes], object],
    stderr: Callable[[bytes], object],
    deadline: Deadline | None,
) -> None:
    """Pass on both streams until both have ended. Both share one window: leaving one unread would block the other."""
    while True:
        if deadline is not None and deadline.expired:
            raise CommandError(f"a command in the guest did not end within {deadline.seconds:g} s", hint=_CONSOLE)
        if channel.recv_ready():
            stdout(channel.recv(CHUNK))
        elif channel.recv_stderr_ready():
            stderr(channel.recv_stderr(CHUNK))
        elif channel.eof_received or channel.closed:
            return
        elif select.select([channel], [], [], deadline.remaining if deadline else None)[0] and not (
            channel.recv_ready() or channel.recv_stderr_ready() or channel.eof_received
        ):
            channel.status_event.wait(_EMPTY)  # a guest that sends nothing, again and again, wakes us each time


def _status(channel: paramiko.Channel, command: str) -> int:
    # After EOF the server owes the status at once; recv_exit_status itself knows no limit
    if not channel.status_event.wait(10.0):
        raise _broken(command, "the guest does not say how it ended")
    if channel.exit_status == -1:
        raise _broken(command, "it was ended by a signal, or the connection broke")
    return channel.exit_status


def _broken(command: str, why: str) -> CommandError:
    return CommandError(f"the command {printable(command)[:80]!r} did not run to its end: {why}", hint=_CONSOLE)


@contextmanager
def connect(
    address: SSH, timeouts: Timeouts, limit: float, reached: Callable[[str], object] = lambda _: None
) -> Iterator[Connection]:
    """Connect and authenticate; close at the end of the body.

    No stage takes longer than its limit in `timeouts`, nor than `limit` seconds. `reached` hears of every stage that
    was passed: "tcp", "banner" (with the key exchange), "auth". Raises ConnectError, whose `stage` is the one that
    was not, or WrongServer.
    """
    key = private_key(Path(address.key))
    with _tcp(address, min(timeouts.connect, limit)) as connection:
        reached("tcp")
        transport = paramiko.Transport(connection)
        try:
            shown = _exchange_keys(transport, timeouts, limit)
            reached("banner")
            _compare(address, shown)
            _authenticate(transport, address, key, min(timeouts.auth, limit))
            reached("auth")
            yield Connection(transport, shown)
        finally:
            transport.close()


def _tcp(address: SSH, limit: float) -> socket.socket:
    try:
        return socket.create_connection((address.host, address.port), limit)
    except OSError as error:
        raise ConnectError(
            f"nothing answers on {address.host}:{address.port}: {error}", stage="tcp", hint=_CONSOLE
        ) from error


def _exchange_keys(transport: paramiko.Transport, timeouts: Timeouts, limit: float) -> str:
    """Returns the server's host key."""
    transport.banner_timeout = min(timeouts.banner, limit)
    try:
        transport.start_client(timeout=min(timeouts.connect + timeouts.banner, limit))
        return _key_line(transport.get_remote_server_key())
    except Exception as error:
        raise ConnectError(
            f"the guest's SSH server does not answer: {str(error) or type(error).__name__}",
            stage="banner",
            hint=_CONSOLE,
        ) from error


def _compare(address: SSH, shown: str) -> None:
    if address.host_key is not None and shown != address.host_key:
        raise WrongServer(
            f"the server on port {address.port} is not the guest that was booted: its host key is another one",
            stage="host key",
            hint="something else has taken the guest's port; stop the instance and boot it again",
            detail=f"expected {address.host_key}\nfound    {printable(shown)}",
        )


def _authenticate(transport: paramiko.Transport, address: SSH, key: paramiko.PKey, limit: float) -> None:
    transport.auth_timeout = limit
    try:
        transport.auth_publickey(address.user, key)
    except paramiko.AuthenticationException as error:
        raise ConnectError(
            f"the guest refuses the key {address.key}: {error}",
            stage="auth",
            hint="does its image hold this key? delete the prepared ssh-* image and run the same command again",
        ) from error
    except Exception as error:
        raise ConnectError(f"the login broke off: {error}", stage="auth", hint=_CONSOLE) from error


class Connector:
    """A way into a guest that connects when it is first needed. See pipeline.launcher.Connector."""

    def __init__(self, address: SSH, timeouts: Timeouts) -> None:
        self.address = address
        self._timeouts = timeouts
        self._open = ExitStack()
        self._connection: Connection | None = None

    def run(self, command: str, limit: float) -> Result:
        """See pipeline.launcher.Connector. Connecting has limits of its own."""
        if self._connection is None:
            whole = self._timeouts.connect + self._timeouts.banner + self._timeouts.auth
            self._connection = self._open.enter_context(connect(self.address, self._timeouts, whole))
        return self._connection.run(command, limit)

    def close(self) -> None:
        """See pipeline.launcher.Connector."""
        self._connection = None
        self._open.close()


def private_key(path: Path) -> paramiko.PKey:
    """The key in the file. Raises SettingsError."""
    try:
        return paramiko.PKey.from_path(path)
    except (OSError, paramiko.SSHException, ValueError) as error:
        raise SettingsError(
            f"the private key {path} cannot be read: {error}", hint="delete it; the next BootInstance makes a new one"
        ) from error


def _key_line(key: paramiko.PKey) -> str:
    return f"{key.get_name()} {key.get_base64()}"
