"""One SSH connection to a guest, over paramiko: connect with a limit for every stage, run commands, pass streams.

The server must show the host key that is known of it; if none is known yet, the caller pins the one that it shows. An
accepted TCP connection means nothing: QEMU accepts before the guest listens.
"""

import logging
import os
import shlex
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

import paramiko

from pipeline.errors import CommandError, ConnectError, KeyGone, KeyRefused, SettingsError, TopcoatError, WrongServer
from pipeline.host.deadline import Deadline
from pipeline.host.stdio import OutputError, ReaderGone
from pipeline.settings import Timeouts
from pipeline.ssh import facilities, holders
from pipeline.ssh.address import Address
from pipeline.ssh.facilities import Facilities
from pipeline.ssh.packets import Packets
from pipeline.ssh.result import Result
from pipeline.ssh.session import CHUNK, CONSOLE, Session, Vanished
from pipeline.text.printable import printable

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # it logs tracebacks of what it also raises

_OPENING = 30.0  # seconds for the server to take a session and a command
_PAUSES = (0.0, 0.1, 0.5, 2.0)  # seconds before a session is asked for again, see Vanished: a busy guest needs time
_QUICKEST = "curve25519-sha256@libssh.org"  # others take an emulated guest longer, and nobody listens on loopback
_LEAVING = 2.0  # seconds for paramiko's thread to end, which sees at once that its socket is closed
_SILENCE = 60_000  # milliseconds after which a peer that takes nothing of what we send counts as gone


def quote(words: list[str] | tuple[str, ...]) -> str:
    """Return a command line for the guest's shell: several words are quoted, one word is a whole line for the shell."""
    return words[0] if len(words) == 1 else shlex.join(words)


class Connection:
    """An authenticated connection, made by `connect`. Several threads can have sessions in it at once."""

    def __init__(self, transport: paramiko.Transport, host_key: str) -> None:
        self._transport = transport
        self._probing = threading.Lock()
        self._facilities: Facilities | None = None
        self.host_key = host_key
        """The server's host key, "TYPE BASE64"."""

    @property
    def alive(self) -> bool:
        """Whether the connection still stands, as far as that is known without sending anything."""
        return self._transport.is_active()

    def session(
        self,
        what: str,
        kind: str,
        argument: str,
        deadline: Deadline,
        prepare: Callable[[Session], object] = lambda _: None,
    ) -> Session:
        """Open a session, in which the server starts a command (`kind` is "exec") or a service ("subsystem").

        `argument` is the command line or the name of the service; errors name it by `what`. `prepare` is called with
        the session before the server is asked to start anything. Raises CommandError, and CommandTimeout at the
        deadline.
        """
        for pause in _PAUSES:
            try:
                return self._opened(what, kind, argument, deadline, prepare)
            except Vanished:
                if not self.alive:
                    raise
            self._transport.join(deadline.within(pause))  # it ends when the connection does
        return self._opened(what, kind, argument, deadline, prepare)

    def _opened(
        self, what: str, kind: str, argument: str, deadline: Deadline, prepare: Callable[[Session], object]
    ) -> Session:
        session = Session(self._transport, what, deadline)
        try:
            prepare(session)
            session.request(kind, argument.encode("utf-8", "surrogateescape"), deadline)
        except BaseException:
            session.close()
            raise
        return session

    def facilities(self, deadline: Deadline) -> Facilities:
        """Return what the guest has to offer; only the first call asks. Raises CommandError and CommandTimeout."""
        with self._probing:
            if self._facilities is None:
                self._facilities = facilities.of(self.run(facilities.QUESTION, max(0.001, deadline.remaining)))
            return self._facilities

    def run(self, command: str, limit: float, most: int = 1 << 20) -> Result:
        """Run a shell command and collect what it writes, at most `most` bytes of each stream.

        Raises CommandError if it writes more or the connection breaks, and CommandTimeout if it does not end within
        `limit` seconds. Neither ends the command in the guest: see Command for commands that may not end.
        """
        deadline = Deadline(limit)
        stdout, stderr = Bounded(most), Bounded(most)
        with self._running(command, deadline) as session:
            session.sinks |= {"stdout": stdout.write, "stderr": stderr.write}
            session.end_input()
            return Result(session.finish(deadline), bytes(stdout.data), bytes(stderr.data))

    def stream(self, command: str, stdin: IO[bytes], stdout: BinaryIO, stderr: BinaryIO) -> int:
        """Run a shell command with these streams, byte for byte and without a time limit. Returns its exit status.

        Raises CommandError if the connection breaks or the command was ended by a signal.
        """
        with self._running(command, Deadline(_OPENING)) as session:
            session.sinks |= {"stdout": _flushed(stdout), "stderr": _flushed(stderr)}
            # A thread: sending may block until the guest reads, and the guest may block until we read. It is not
            # joined: what it waits for may be a person at a terminal
            threading.Thread(target=_feed, args=(stdin, session), daemon=True).start()
            return session.finish(None)

    @contextmanager
    def _running(self, command: str, deadline: Deadline) -> Iterator[Session]:
        session = self.session(command, "exec", command, deadline, _keep)
        try:
            yield session
        except (TopcoatError, ReaderGone, OutputError):  # the last two are of our own stdout
            raise
        except Exception as error:
            raise session.broken(str(error) or type(error).__name__) from error
        finally:
            session.close()


def _keep(session: Session) -> None:
    session.sinks.clear()  # so that no output is dropped before the caller has set its own sinks


class Bounded:
    """A buffer for what a command writes, which takes at most `most` bytes."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.data = bytearray()

    def write(self, chunk: bytes) -> None:
        """Add the chunk. Raises CommandError if there are more than `most` bytes now."""
        self.data += chunk
        if len(self.data) > self.most:
            raise CommandError(f"a command in the guest wrote more than {self.most} bytes", hint=CONSOLE)


def _flushed(stream: BinaryIO) -> Callable[[bytes], object]:
    def write(chunk: bytes) -> None:
        if chunk:
            stream.write(chunk)
            stream.flush()

    return write


def _feed(stdin: IO[bytes], session: Session) -> None:
    read = getattr(stdin, "read1", stdin.read)  # what is there, without waiting for a full buffer
    with suppress(OSError, CommandError, ValueError):  # the command has ended; the reader says so
        while chunk := read(CHUNK):
            session.write(chunk, None, reading=False)
        session.end_input()


@contextmanager
def connect(
    address: Address, timeouts: Timeouts, limit: float, reached: Callable[[str], object] = lambda _: None
) -> Iterator[Connection]:
    """Connect to a guest and log in; the connection is closed at the end of the body.

    No stage takes longer than its limit in `timeouts`, nor than `limit` seconds. `reached` is called with the name of
    every stage that was passed: "tcp", "banner" (with the key exchange), "auth". Raises ConnectError, whose `stage`
    is the one that failed; its subclasses KeyGone, KeyRefused and WrongServer mean that trying again is of no use.
    Raises SettingsError for a private key that cannot be read.
    """
    key = private_key(Path(address.key))
    with _tcp(address, min(timeouts.connect, limit)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE)
        # Else a small packet waits until the one before it is acknowledged, which may be put off by 40 ms
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reached("tcp")
        transport = paramiko.Transport(connection, packetizer_class=Packets)
        try:
            with _telling_holders(address.port, os.fstat(connection.fileno()).st_ino):
                shown = _exchange_keys(transport, timeouts, limit)
                reached("banner")
                _compare(address, shown)
                _authenticate(transport, address, key, min(timeouts.auth, limit))
            reached("auth")
            yield Connection(transport, shown)
        finally:
            with suppress(OSError):  # the other side has closed it
                connection.shutdown(socket.SHUT_RDWR)
            # `close` waits for locks without a limit, and Ctrl-C may have left one of them held
            deadline = Deadline(_LEAVING)
            leaving = threading.Thread(target=transport.close, daemon=True)
            leaving.start()
            for thread in (leaving, transport):
                thread.join(deadline.remaining)


def _tcp(address: Address, limit: float) -> socket.socket:
    try:
        return socket.create_connection((address.host, address.port), limit)
    except OSError as error:
        raise ConnectError(
            f"nothing answers on {address.host}:{address.port}: {error}", stage="tcp", hint=CONSOLE
        ) from error


@contextmanager
def _telling_holders(port: int, own: int) -> Iterator[None]:
    """Add to a ConnectError who else is connected: a server takes only so many clients that have not logged in."""
    try:
        yield
    except (KeyRefused, WrongServer):
        raise
    except ConnectError as error:
        if held := holders.told(port, own):
            error.message = f"{error.message}; {held}"
            error.args = (error.message,)
            error.hint = "if they are strangers: a guest that is booted anew has another port: topcoat stop NAME"
        raise


def _exchange_keys(transport: paramiko.Transport, timeouts: Timeouts, limit: float) -> str:
    """Exchange keys with the server, and return its host key as "TYPE BASE64"."""
    transport.banner_timeout = min(timeouts.banner, limit)
    known = transport.get_security_options()
    known.kex = sorted(known.kex, key=lambda name: name != _QUICKEST)  # the others stay in their order
    try:
        transport.start_client(timeout=min(timeouts.connect + timeouts.banner, limit))
        key = transport.get_remote_server_key()
        return f"{key.get_name()} {key.get_base64()}"
    except Exception as error:
        raise ConnectError(
            f"the guest's SSH server does not answer: {str(error) or type(error).__name__}",
            stage="banner",
            hint=CONSOLE,
        ) from error


def _compare(address: Address, shown: str) -> None:
    if address.host_key is not None and shown != address.host_key:
        raise WrongServer(
            f"the server on port {address.port} is not the guest that was booted: its host key is another one",
            stage="host key",
            hint="something else has taken the guest's port; stop the instance and boot it again",
            detail=f"expected {address.host_key}\nfound    {printable(shown)}",
        )


def _authenticate(transport: paramiko.Transport, address: Address, key: paramiko.PKey, limit: float) -> None:
    transport.auth_timeout = limit
    try:
        transport.auth_publickey(address.user, key)
    except paramiko.AuthenticationException as error:
        if not transport.is_active():
            raise _broken_off(error) from error
        raise KeyRefused(
            f"the guest refuses the key {address.key}: {error}",
            stage="auth",
            hint="does its image hold this key? delete the prepared ssh-* image and run the same command again",
        ) from error
    except Exception as error:
        raise _broken_off(error) from error


def _broken_off(error: Exception) -> ConnectError:
    return ConnectError(f"the login broke off: {error}", stage="auth", hint=CONSOLE)


def private_key(path: Path) -> paramiko.PKey:
    """Read the private key in a file. Raises KeyGone if there is no such file, SettingsError if it cannot be read."""
    try:
        return paramiko.PKey.from_path(path)
    except FileNotFoundError as error:
        raise KeyGone(
            f"the private key {path} is not there: the guest has been stopped",
            stage="key",
            hint="see what runs: topcoat instances; what was stopped must be booted again",
        ) from error
    except (OSError, paramiko.SSHException, ValueError) as error:
        raise SettingsError(
            f"the private key {path} cannot be read: {error}", hint="delete it; the next BootInstance makes a new one"
        ) from error
