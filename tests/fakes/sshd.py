"""A real SSH server (paramiko's side of it) on loopback, which can be told to misbehave."""

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import paramiko

Fault = Literal["none", "no banner", "refuse key", "no exec", "close"]


@dataclass
class Server:
    """A running server. `fault` may be changed while it runs."""

    port: int
    host_key: paramiko.PKey
    authorized: str
    """ "TYPE BASE64" of the one key that may log in."""
    fault: Fault = "none"
    users: list[str] = field(default_factory=list)

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
        return paramiko.AUTH_SUCCESSFUL if accepted else paramiko.AUTH_FAILED  # type: ignore[attr-defined]

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED  # type: ignore[attr-defined]

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        if self.server.fault == "no exec":
            return False
        threading.Thread(target=_execute, args=(channel, command), daemon=True).start()
        return True


def _execute(channel: paramiko.Channel, command: bytes) -> None:
    """Run the command in a real shell, all three streams passed on."""
    shell = subprocess.Popen(
        ["sh", "-c", command.decode()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert shell.stdin and shell.stdout and shell.stderr

    def feed() -> None:
        assert shell.stdin
        try:
            while chunk := channel.recv(65536):
                shell.stdin.write(chunk)
            shell.stdin.close()
        except OSError:
            pass  # the command has ended without reading everything

    pumps = [
        threading.Thread(target=_pump, args=(shell.stdout, channel.sendall), daemon=True),
        threading.Thread(target=_pump, args=(shell.stderr, channel.sendall_stderr), daemon=True),
    ]
    threading.Thread(target=feed, daemon=True).start()
    for pump in pumps:
        pump.start()
    for pump in pumps:
        pump.join()
    status = shell.wait()
    try:
        if status >= 0:
            channel.send_exit_status(status)
        channel.close()
    except OSError:
        pass  # the client has gone


def _pump(source: object, send: object) -> None:
    try:
        while chunk := source.read1(65536):  # type: ignore[attr-defined]
            send(chunk)  # type: ignore[operator]
    except OSError:
        pass  # the client has gone


def _serve(listener: socket.socket, server: Server) -> None:
    held = []
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        if server.fault == "close":
            connection.close()
        elif server.fault == "no banner":
            held.append(connection)
        else:
            transport = paramiko.Transport(connection)
            transport.add_server_key(server.host_key)
            try:
                transport.start_server(server=_Session(server))
            except (paramiko.SSHException, EOFError):
                continue  # the client went away


@contextmanager
def running(authorized: str) -> Iterator[Server]:
    """A server that lets the key `authorized` in, until the end of the body."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(listener.getsockname()[1], paramiko.ECDSAKey.generate(), authorized)
        thread = threading.Thread(target=_serve, args=(listener, server), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)
