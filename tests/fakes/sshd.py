"""A real SSH server (paramiko's side of it) on loopback, which can be told to misbehave."""

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Literal

import paramiko
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED

Fault = Literal["none", "no banner", "refuse key", "no exec", "close", "other answer", "other boot", "gone"]


@dataclass
class Server:
    """A running server. `fault` may be changed while it runs."""

    port: int
    host_key: paramiko.ECDSAKey
    authorized: str
    """ "TYPE BASE64" of the one key that may log in."""
    fault: Fault = "none"
    users: list[str] = field(default_factory=list)
    stop: Callable[[], object] = lambda: None
    """From now on nobody listens on the port."""

    @property
    def host_key_line(self) -> str:
        return f"{self.host_key.get_name()} {self.host_key.get_base64()}"


class _Session(paramiko.ServerInterface):
    def __init__(self, server: Server) -> None:
        self.server = server

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.server.users.append(username)
        good = f"{key.get_name()} {key.get_base64()}" == self.server.authorized
        accepted = good and self.server.fault != "refuse key"
        return AUTH_SUCCESSFUL if accepted else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        if self.server.fault == "no exec":
            return False
        command = {"other answer": b"echo hello", "other boot": b"echo " + b"f" * 32}.get(self.server.fault, command)
        threading.Thread(target=_execute, args=(channel, command), daemon=True).start()
        return True


def _execute(channel: paramiko.Channel, command: bytes) -> None:
    """Run the command in a real shell, all three streams passed on."""
    pipe = subprocess.PIPE
    with subprocess.Popen(["sh", "-c", command.decode()], bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe) as shell:
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
        status = shell.wait()
    with suppress(OSError, EOFError):  # the client has gone
        if status >= 0:
            channel.send_exit_status(status)
        channel.close()


def _feed(channel: paramiko.Channel, stdin: IO[bytes]) -> None:
    with suppress(OSError, ValueError):  # the command has ended without reading everything
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
            if server.fault == "close":
                connection.close()
            elif server.fault == "no banner":
                held.enter_context(connection)
            else:
                transport = paramiko.Transport(connection)
                held.callback(transport.close)
                transport.add_server_key(server.host_key)
                with suppress(paramiko.SSHException, EOFError, OSError):  # the client went away
                    transport.start_server(server=_Session(server))


def _close(listener: socket.socket) -> None:
    with suppress(OSError):  # it is closed already
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@contextmanager
def running(authorized: str) -> Iterator[Server]:
    """A server that lets the key `authorized` in, until the end of the body."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(listener.getsockname()[1], paramiko.ECDSAKey.generate(), authorized)
        server.stop = lambda: _close(listener)
        thread = threading.Thread(target=_serve, args=(listener, server), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            _close(listener)
            thread.join(5)
