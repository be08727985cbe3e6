"""A real SSH server (paramiko's side of it) on loopback, which can be told to misbehave.

It runs commands in a real shell, where they can harm nobody, and serves files by SFTP, both with `root` for the
directory in which they start.
"""

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

import paramiko
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, MSG_CHANNEL_SUCCESS, OPEN_SUCCEEDED
from paramiko.sftp import SFTP_OK

from tests.fakes.cage import Cage, CageClosed
from tests.waiting import SOON

Fault = Literal[
    "none",
    "no banner",
    "refuse key",
    "no exec",
    "close",
    "other answer",
    "other boot",
    "gone",
    "silent",
    "no status",
    "no window",
]


@dataclass
class Server:
    """A running server. `fault` may be changed while it runs."""

    port: int
    host_key: paramiko.ECDSAKey
    authorized: str
    """ "TYPE BASE64" of the one key that may log in."""
    cage: Cage
    """Where its commands run."""
    fault: Fault = "none"
    users: list[str] = field(default_factory=list)
    stop: Callable[[], object] = lambda: None
    """From now on nobody listens on the port."""
    refusals: int = 0
    """So many of the next connections are closed at once."""
    vanishing: int = 0
    """So many of the next sessions end before they can begin."""
    losses: int = 0
    """So many of the next sessions cost their whole connection before they can begin, as dropbear's can."""
    without_eof: bool = False
    """They are closed without the word that no more will come."""
    root: Path = Path("/")
    programs: Path | None = None
    """A directory that is searched for programs before all others."""
    like_go: bool = False
    """It knows only `echo` and `rm -rf`, and no shell: as the server in the tests of the original."""
    commands: list[str] = field(default_factory=list)
    """All that it was told to run."""
    sftp: type[paramiko.SFTPServerInterface] = paramiko.SFTPServerInterface
    """What serves files; set by `running`."""
    opened: list[IO[bytes]] = field(default_factory=list)
    """The files that SFTP clients have opened: a broken session leaves them open."""
    accepted: int = 0
    """So many connections have come."""
    over: threading.Event = field(default_factory=threading.Event)
    transports: list[paramiko.Transport] = field(default_factory=list)

    def drop(self) -> None:
        """Break all connections."""
        for transport in self.transports:
            transport.sock.close()

    @property
    def host_key_line(self) -> str:
        return f"{self.host_key.get_name()} {self.host_key.get_base64()}"


class _Transport(paramiko.Transport):
    """Has a command begin once its client was told that it was taken, as servers do."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        self.taken: dict[int, Callable[[], object]] = {}
        """What begins each command, by the client's number of its channel."""

    def _send_user_message(self, data: paramiko.Message) -> None:
        super()._send_user_message(data)  # type: ignore[misc]
        sent = paramiko.Message(data.asbytes())
        if sent.get_byte()[0] == MSG_CHANNEL_SUCCESS:
            self.taken.pop(sent.get_int(), lambda: None)()


class _Session(paramiko.ServerInterface):
    def __init__(self, server: Server, transport: _Transport) -> None:
        self.server = server
        self.transport = transport
        self._vanishing: dict[int, threading.Event] = {}

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.server.users.append(username)
        good = f"{key.get_name()} {key.get_base64()}" == self.server.authorized
        accepted = good and self.server.fault != "refuse key"
        return AUTH_SUCCESSFUL if accepted else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        if self.server.losses:
            self.server.losses -= 1
            self.transport.sock.close()
        if self.server.vanishing:
            self.server.vanishing -= 1
            self._vanishing[chanid] = threading.Event()
            threading.Thread(target=self._end, args=(chanid,), daemon=True).start()
        return OPEN_SUCCEEDED

    def _end(self, chanid: int) -> None:
        while channel := self.transport.accept(SOON):
            if channel.chanid == chanid:
                channel.eof_sent = self.server.without_eof
                channel.close()
                self._vanishing[chanid].set()
                return

    def _has_vanished(self, chanid: int) -> bool:
        """Whether the session is one that ends before it can begin; what it is asked meanwhile has to wait."""
        return chanid in self._vanishing and self._vanishing[chanid].wait(SOON)

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        if self.server.fault == "no exec" or self._has_vanished(channel.chanid):
            return False
        self.server.commands.append(command.decode(errors="surrogateescape"))
        if self.server.fault == "silent":
            self.server.over.wait(SOON)
            return False
        command = {"other answer": b"echo hello", "other boot": b"echo " + b"f" * 32}.get(self.server.fault, command)
        if self.server.like_go and not command.startswith((b"echo ", b"rm -rf ")):
            command = b"exit 127"
        shell = threading.Thread(target=_execute, args=(channel, command, self.server), daemon=True)
        self.transport.taken[channel.remote_chanid] = shell.start
        return True

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        handler = paramiko.SFTPServer(channel, name, self, self.server.sftp, self.server.root)
        handler.start()
        return True


class Files(paramiko.SFTPServerInterface):
    """The files of a directory."""

    def __init__(self, session: "_Session", root: Path) -> None:
        super().__init__(session)
        self.opened = session.server.opened
        self.root = root

    def real(self, path: str) -> Path:
        return self.root / path

    def list_folder(self, path: str) -> list[paramiko.SFTPAttributes] | int:
        try:
            return [attributes(each) for each in self.real(path).iterdir()]
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)

    def stat(self, path: str) -> paramiko.SFTPAttributes | int:
        return self._about(path, follow=True)

    def lstat(self, path: str) -> paramiko.SFTPAttributes | int:
        return self._about(path, follow=False)

    def _about(self, path: str, *, follow: bool) -> paramiko.SFTPAttributes | int:
        try:
            return attributes(self.real(path), follow=follow)
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)

    def mkdir(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        try:
            self.real(path).mkdir()
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)
        return SFTP_OK

    def open(self, path: str, flags: int, attr: paramiko.SFTPAttributes) -> paramiko.SFTPHandle | int:
        writing = bool(flags & os.O_WRONLY)
        try:
            stream = self.real(path).open("wb" if writing else "rb")
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)
        self.opened.append(stream)
        handle = paramiko.SFTPHandle(flags)
        setattr(handle, "writefile" if writing else "readfile", stream)
        return handle


def attributes(path: Path, *, follow: bool = False) -> paramiko.SFTPAttributes:
    return paramiko.SFTPAttributes.from_stat(path.stat() if follow else path.lstat(), path.name)


def _execute(channel: paramiko.Channel, command: bytes, server: Server) -> None:
    """Run the command in a real shell, all three streams passed on."""
    pipe = subprocess.PIPE
    if server.fault == "no window":
        channel.out_window_size = 1 << 40
    try:
        words = server.cage.words(command, server.root)
    except CageClosed:
        return
    path = os.environ["PATH"] if server.programs is None else f"{server.programs}:{os.environ['PATH']}"
    with subprocess.Popen(
        words,
        bufsize=0,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env={**os.environ, "PATH": path},
    ) as shell:
        assert shell.stdin
        assert shell.stdout
        assert shell.stderr
        feeder = threading.Thread(target=_feed, args=(channel, shell.stdin), daemon=True)
        pumps = [
            threading.Thread(target=_pump, args=(shell.stdout, channel.sendall), daemon=True),
            threading.Thread(target=_pump, args=(shell.stderr, channel.sendall_stderr), daemon=True),
        ]
        for thread in (feeder, *pumps):
            thread.start()
        for pump in pumps:
            pump.join()
        with suppress(OSError, EOFError):  # as real servers do: the command may run on
            channel.shutdown_write()
        status = shell.wait()
    with suppress(OSError, EOFError):  # the client has gone
        if status >= 0 and server.fault != "no status":
            channel.send_exit_status(status)
        channel.close()


def _feed(channel: paramiko.Channel, stdin: IO[bytes]) -> None:
    # The command has ended without reading everything, or the connection has broken
    with suppress(OSError, ValueError, EOFError, paramiko.SSHException):
        while chunk := channel.recv(65536):
            stdin.write(chunk)
        stdin.close()


def _pump(source: IO[bytes], send: Callable[[bytes], object]) -> None:
    with suppress(OSError, EOFError):  # the client has gone
        while chunk := source.read(65536):
            send(chunk)


def _serve(listener: socket.socket, server: Server) -> None:
    with ExitStack() as held:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            server.accepted += 1
            if server.fault == "close" or server.refusals > 0:
                server.refusals -= 1
                connection.close()
            elif server.fault == "no banner":
                held.enter_context(connection)
            else:
                transport = _Transport(connection)
                held.callback(transport.close)
                server.transports.append(transport)
                transport.add_server_key(server.host_key)
                with suppress(paramiko.SSHException, EOFError, OSError):  # the client went away
                    transport.start_server(server=_Session(server, transport))


def _close(listener: socket.socket) -> None:
    with suppress(OSError):  # it is closed already
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@contextmanager
def running(authorized: str, root: Path = Path("/")) -> Iterator[Server]:
    """A server that lets the key `authorized` in, until the end of the body."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        cage = Cage(root)
        server = Server(
            listener.getsockname()[1], paramiko.ECDSAKey.generate(), authorized, cage, root=root, sftp=Files
        )
        server.stop = lambda: _close(listener)
        thread = threading.Thread(target=_serve, args=(listener, server), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            _close(listener)
            thread.join(SOON)
            cage.close()
            for stream in server.opened:
                with suppress(OSError):  # what it still holds does not fit on a small disk
                    stream.close()
