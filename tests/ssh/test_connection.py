"""SSH to a guest, against a real server on loopback."""

import io
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest

from pipeline.builds import ssh_keys
from pipeline.errors import CommandError, ConnectError, SettingsError, WrongServer
from pipeline.host.deadline import Deadline
from pipeline.ssh.address import Address
from pipeline.ssh.command import Command
from pipeline.ssh.connection import Connection, connect, quote
from pipeline.ssh.connector import Connector
from pipeline.ssh.result import Result
from pipeline.ssh.sftp import Sftp
from pipeline.ssh.transfer import Transfer
from tests.fakes import sshd
from tests.ssh.conftest import HASTY, PATIENT, address, written
from tests.waiting import NEVER, SOON, eventually


@pytest.fixture(params=["ed25519", "rsa"])
def key_type(request: pytest.FixtureRequest) -> ssh_keys.KeyType:
    kind: ssh_keys.KeyType = request.param
    return kind


@pytest.fixture
def connection(server: sshd.Server, key: Path) -> Iterator[Connection]:
    with connect(address(server, key), PATIENT, SOON) as connected:
        yield connected


def test_what_a_server_runs_here_can_harm_nobody(connection: Connection, root: Path, here: Path) -> None:
    """An attack that works must not hit the host that it is tried on."""
    shell = [("kill -0 $$", True), (f"kill -0 {os.getpid()}", False), ("test -e /dev/null", True)]
    files = [(f"echo x >{root}/new", True), (f"echo x >{here}/new", False), ("echo x >/new", False)]
    undone = [("mount -o remount,bind,rw /", False), (f"mknod {root}/disk b 8 0", False)]
    for command, works in shell + files + undone:
        assert (connection.run(command, SOON).status == 0) == works, command
    seen = connection.run("ls /dev; ls -d /proc/[0-9]*", SOON).stdout.decode().split()
    assert {name for name in seen if not name.startswith("/proc")} == {
        "fd",
        "full",
        "null",
        "random",
        "urandom",
        "zero",
    }
    assert len(seen) < 20


def test_both_types_of_keys_open_the_server(tmp_path: Path, key_type: ssh_keys.KeyType) -> None:
    key = written(tmp_path, key_type)
    with (
        sshd.running(key.with_suffix(".pub").read_text().strip()) as server,
        connect(address(server, key), PATIENT, SOON) as connected,
    ):
        assert connected.run("echo in", SOON).stdout == b"in\n"
    assert server.users == ["clusterfuchsia"]


def test_stages_are_told_in_order_and_the_host_key_is_learnt(server: sshd.Server, key: Path) -> None:
    stages: list[str] = []
    unknown = Address("127.0.0.1", server.port, "x", str(key), None)
    with connect(unknown, PATIENT, SOON, stages.append) as connected:
        assert connected.host_key == server.host_key_line
    assert stages == ["tcp", "banner", "auth"]


def test_another_host_key_is_refused_before_the_login(server: sshd.Server, key: Path) -> None:
    wrong = Address("127.0.0.1", server.port, "x", str(key), "ssh-ed25519 AAAA")
    with pytest.raises(WrongServer) as refusal, connect(wrong, PATIENT, SOON):
        pass
    assert "expected ssh-ed25519 AAAA" in refusal.value.detail
    assert server.users == []


@pytest.mark.parametrize(("fault", "stage"), [("no banner", "banner"), ("close", "banner"), ("refuse key", "auth")])
def test_a_server_that_misbehaves_is_told_by_stage_and_in_time(
    server: sshd.Server, key: Path, fault: sshd.Fault, stage: str
) -> None:
    server.fault = fault
    timeouts = HASTY if fault == "no banner" else PATIENT
    with pytest.raises(ConnectError) as failure, connect(address(server, key), timeouts, SOON):
        pass
    assert failure.value.stage == stage
    assert failure.value.hint


def test_nobody_listening_is_told(key: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    nobody = Address("127.0.0.1", port, "x", str(key), None)
    with pytest.raises(ConnectError) as failure, connect(nobody, PATIENT, SOON):
        pass
    assert failure.value.stage == "tcp"


@pytest.mark.parametrize("content", [b"", b"no key"])
def test_a_private_key_that_cannot_be_read_is_told(server: sshd.Server, key: Path, content: bytes) -> None:
    key.write_bytes(content)
    with pytest.raises(SettingsError, match="cannot be read"), connect(address(server, key), PATIENT, SOON):
        pass


def test_status_and_both_streams_of_a_command(connection: Connection) -> None:
    result = connection.run("printf out; printf err >&2; exit 7", SOON)
    assert result == Result(7, b"out", b"err")


def test_one_connection_serves_many_commands(connection: Connection) -> None:
    assert [connection.run(f"echo {number}", SOON).stdout for number in range(5)] == [b"%d\n" % n for n in range(5)]


def test_keys_are_exchanged_in_the_way_that_is_quickest_for_the_guest(connection: Connection) -> None:
    kex = connection._transport.get_security_options().kex  # noqa: SLF001
    assert kex[0] == "curve25519-sha256@libssh.org"
    assert sorted(kex) == sorted(paramiko.Transport._preferred_kex)  # type: ignore[attr-defined]  # noqa: SLF001


def test_small_packets_are_sent_at_once(connection: Connection) -> None:
    """Else one in two commands takes 40 ms more, which a timed test would tell only now and then."""
    sock = connection._transport.sock  # noqa: SLF001
    assert isinstance(sock, socket.socket)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_command_without_stdin_sees_its_end(connection: Connection) -> None:
    assert connection.run("cat; echo done", SOON).stdout == b"done\n"


def test_much_output_on_both_streams_does_not_block(connection: Connection) -> None:
    command = "head -c 5000000 /dev/zero >&2; head -c 5000000 /dev/zero"
    result = connection.run(command, 30, most=5_000_000)
    assert (len(result.stdout), len(result.stderr)) == (5_000_000, 5_000_000)


def test_more_output_than_allowed_is_refused(connection: Connection) -> None:
    with pytest.raises(CommandError, match="wrote more than 1000 bytes"):
        connection.run("yes", 10, most=1000)


def test_a_command_that_does_not_end_is_given_up(connection: Connection) -> None:
    with pytest.raises(CommandError, match=r"did not end within 0\.3 s"):
        connection.run(f"sleep {NEVER}", 0.3)


def test_a_command_ended_by_a_signal_is_no_success(connection: Connection) -> None:
    with pytest.raises(CommandError, match="ended by a signal, or the connection broke"):
        connection.run("kill -9 $$", SOON)


def test_a_server_that_refuses_commands(connection: Connection, server: sshd.Server) -> None:
    server.fault = "no exec"
    with pytest.raises(CommandError, match="did not run to its end"):
        connection.run("true", SOON)


def test_streams_pass_through_byte_for_byte(connection: Connection) -> None:
    data = os.urandom(3_000_000)
    out, err = io.BytesIO(), io.BytesIO()
    assert connection.stream("cat; printf '\\377' >&2; exit 3", io.BytesIO(data), out, err) == 3
    assert out.getvalue() == data
    assert err.getvalue() == b"\xff"


def test_a_command_that_ignores_its_input_ends_all_the_same(connection: Connection) -> None:
    out = io.BytesIO()
    assert connection.stream("echo no", io.BytesIO(bytes(10_000_000)), out, io.BytesIO()) == 0
    assert out.getvalue() == b"no\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["uname"], "uname"),
        (["ls *.txt | wc"], "ls *.txt | wc"),
        (["printf", "%s|", "a b", "*", "$HOME", "it's"], "printf '%s|' 'a b' '*' '$HOME' 'it'\"'\"'s'"),
    ],
)
def test_several_words_arrive_as_they_are_and_one_is_a_shell_line(words: list[str], line: str) -> None:
    assert quote(words) == line


def test_quoted_words_survive_the_remote_shell(connection: Connection) -> None:
    words = ["printf", "%s|", "a b", "*", "$HOME", "it's", "\n"]
    assert connection.run(quote(words), SOON).stdout == b"a b|*|$HOME|it's|\n|"


def test_bytes_that_make_no_sense_are_the_servers_fault(key: Path) -> None:
    """A key exchange with names that are no text: paramiko's thread dies of a UnicodeDecodeError."""
    names = b"".join(struct.pack(">I", 2) + b"\xff\xfe" for _ in range(10))
    payload = bytes([20]) + bytes(16) + names + bytes(5)
    padding = 8 - (5 + len(payload)) % 8 + 8
    packet = struct.pack(">IB", 1 + len(payload) + padding, padding) + payload + bytes(padding)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.sendall(b"SSH-2.0-strange\r\n" + packet)
                client.recv(65536)
                client.recv(65536)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        strange = Address("127.0.0.1", listener.getsockname()[1], "x", str(key), None)
        with pytest.raises(ConnectError) as failure, connect(strange, PATIENT, SOON):
            pass
        thread.join(SOON)
    assert failure.value.stage == "banner"


LOCKS: dict[str, Callable[[paramiko.Channel], threading.Lock]] = {
    "channel": lambda channel: channel.lock,
    "stdout": lambda channel: channel.in_buffer._lock,  # type: ignore[attr-defined]  # noqa: SLF001
    "stderr": lambda channel: channel.in_stderr_buffer._lock,  # type: ignore[attr-defined]  # noqa: SLF001
    "transport": lambda channel: channel.get_transport().lock,
    "sending": lambda channel: channel.get_transport().clear_to_send_lock,
}


def interrupted_with_a_lock(address: Address, opened: list[paramiko.Channel], which: str, how: str) -> None:
    with connect(address, PATIENT, SOON) as connected:
        command = Command(lambda: connected, "sleep 1000")
        if how == "command":
            command.start()
        else:
            session = connected.session("sleep", "exec", "sleep 1000", Deadline(SOON))
        del opened[:-1]  # what probed the guest
        LOCKS[which](opened[0]).acquire()
        try:
            raise KeyboardInterrupt
        finally:
            if how == "command":
                command.kill()
            else:
                session.close()


class TestLocksThatNobodyReleases:
    """As Ctrl-C leaves them, if it comes just after paramiko has taken one."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("which", "how"), [*((which, "session") for which in LOCKS), ("channel", "command"), ("sending", "command")]
    )
    def test_session_and_connection_end_although_paramiko_s_thread_cannot(
        self, server: sshd.Server, key: Path, monkeypatch: pytest.MonkeyPatch, which: str, how: str
    ) -> None:
        opened: list[paramiko.Channel] = []
        real = paramiko.Transport.open_session

        def open_session(transport: paramiko.Transport, **named: Any) -> paramiko.Channel:
            opened.append(real(transport, **named))
            return opened[-1]

        monkeypatch.setattr(paramiko.Transport, "open_session", open_session)
        with pytest.raises(KeyboardInterrupt):
            interrupted_with_a_lock(address(server, key), opened, which, how)
        LOCKS[which](opened[0]).release()
        transport = opened[0].get_transport()
        eventually(lambda: not transport.is_alive())

    @pytest.mark.parametrize(
        ("owner", "name", "use"),
        [
            (Transfer, "get", lambda connector: connector.get("x", Path("/nowhere"))),
            (Transfer, "put", lambda connector: connector.put("x", "y")),
            (Transfer, "sizes", lambda connector: connector.sizes("x")),
            (Transfer, "fetch", lambda connector: connector.fetch("x", ["y"], Path("/nowhere"))),
            (Sftp, "stat", lambda connector: connector.isdir("x")),
        ],
        ids=["get", "put", "sizes", "fetch", "isdir"],
    )
    def test_nothing_uses_a_connection_again_that_was_interrupted(
        self,
        server: sshd.Server,
        key: Path,
        monkeypatch: pytest.MonkeyPatch,
        owner: type,
        name: str,
        use: Callable[[Connector], object],
    ) -> None:
        connector = Connector(address(server, key), PATIENT)
        first = connector.connected()
        monkeypatch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            use(connector)
        assert connector.run("echo usable", SOON).stdout == b"usable\n"
        assert connector.connected() is not first
        connector.close()


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt
