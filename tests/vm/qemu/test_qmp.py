"""The monitor protocol, against a server played in the test; the real QEMU answers in the boot tests."""

import json
import os
import select
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pipeline.host.process import Process
from pipeline.vm.qemu.qmp import Monitor, MonitorError, MonitorGoneError, power_down, quit_qemu
from tests.waiting import NEVER, SOON

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
OK = b'{"return": {}}\r\n'
EVENT = b'{"event": "RESUME", "timestamp": {}}\r\n'
USERNET = (
    "Hub -1 (net0):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n"
    "  TCP[ESTABLISHED]   13       127.0.0.1 40001    192.168.3.9    22     0     0\r\n"
    "  TCP[HOST_FORWARD]  12       127.0.0.1 43865    192.168.3.9    22     0     0\r\n"
)


def ssh_port(path: Path, limit: float) -> int:
    with Monitor(path, limit) as monitor:
        return monitor.ssh_port()


def collect_until_gone(monitor: Monitor) -> None:
    with suppress(MonitorGoneError):
        while select.select([monitor], [], [], SOON)[0]:
            monitor.collect()
        pytest.fail("it is still there")


@contextmanager
def playing(path: Path, *answers: bytes) -> Iterator[list[dict[str, object]]]:
    """A server that greets with the first answer and gives one more for each command; then it hangs up."""
    commands: list[dict[str, object]] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            client, _ = server.accept()
            with client, client.makefile("rb") as lines, suppress(OSError):  # the client has had enough
                for answer in answers:
                    client.sendall(answer)
                    if answer is not answers[-1]:
                        commands.append(json.loads(lines.readline()))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield commands
        thread.join(SOON)


def test_the_port_is_that_of_the_forward_and_of_no_connection(tmp_path: Path) -> None:
    answer = json.dumps({"return": USERNET}).encode() + b"\r\n"
    with playing(tmp_path / "qmp", GREETING, OK, answer) as commands:
        assert ssh_port(tmp_path / "qmp", 5) == 43865
    assert commands[0] == {"execute": "qmp_capabilities"}
    assert commands[1] == {"execute": "human-monitor-command", "arguments": {"command-line": "info usernet"}}


def test_events_are_kept_and_pieces_are_put_together(tmp_path: Path) -> None:
    reset = b'{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}\r\n'
    full = b'{"event": "BLOCK_IO_ERROR", "data": {"nospace": true, "action": "stop"}}\r\n'
    answers = (GREETING, EVENT + OK, EVENT * 2 + b'{"return": 7}\r\n' + reset + full)
    with playing(tmp_path / "qmp", *answers), Monitor(tmp_path / "qmp", 5) as monitor:
        assert monitor.execute("x") == 7
        collect_until_gone(monitor)
    assert monitor.events == ["RESUME"] * 3 + ["SHUTDOWN guest-reset", "BLOCK_IO_ERROR nospace"]


def test_events_without_end_are_not_kept_without_end(tmp_path: Path) -> None:
    with playing(tmp_path / "qmp", GREETING, OK + EVENT * 5000), Monitor(tmp_path / "qmp", 5) as monitor:
        collect_until_gone(monitor)
        assert len(monitor.events) == 1000


@pytest.mark.parametrize("event", [b'{"event": 7}', b'{"event": "X", "data": 7}', b'{"event": {"a": 1}, "data": []}'])
def test_strange_events_are_taken_as_they_are(tmp_path: Path, event: bytes) -> None:
    with playing(tmp_path / "qmp", GREETING, OK + event + b"\r\n"), Monitor(tmp_path / "qmp", 5) as monitor:
        collect_until_gone(monitor)
        assert len(monitor.events) == 1


def test_the_boot_id_is_the_machines_uuid(tmp_path: Path) -> None:
    answer = b'{"return": {"UUID": "6ed5b97c-4d0d-497a-bbc5-0ccdd8f53e66"}}\r\n'
    with playing(tmp_path / "qmp", GREETING, OK, answer), Monitor(tmp_path / "qmp", 5) as monitor:
        assert monitor.boot_id() == "6ed5b97c4d0d497abbc50ccdd8f53e66"
        assert monitor.peer == os.getpid()


@pytest.mark.parametrize("answer", [b"7", b'{"UUID": "x"}', b'{"UUID": 7}', b"{}", b"null"])
def test_a_uuid_that_is_none(tmp_path: Path, answer: bytes) -> None:
    answers = (GREETING, OK, b'{"return": ' + answer + b"}\r\n")
    with (
        playing(tmp_path / "qmp", *answers),
        Monitor(tmp_path / "qmp", 5) as monitor,
        pytest.raises(MonitorError, match="query-uuid"),
    ):
        monitor.boot_id()


def test_the_power_button_is_pressed(tmp_path: Path) -> None:
    with playing(tmp_path / "qmp", GREETING, OK, b'{"return": null}\r\n') as commands:
        power_down(tmp_path / "qmp", 5)
    assert commands[1] == {"execute": "system_powerdown"}


def test_a_quit_that_is_answered_by_hanging_up_is_taken(tmp_path: Path) -> None:
    with playing(tmp_path / "qmp", GREETING, OK, b"") as commands:
        quit_qemu(tmp_path / "qmp", 5)
    assert commands[1] == {"execute": "quit"}


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ((b'{"return": {}}\r\n',), "it gives no greeting"),
        ((b"hello\r\n",), "its answer is no JSON"),
        ((b"[]\r\n",), "its answer is no object"),
        ((GREETING, b'{"error": {"class": "GenericError", "desc": "no"}}\r\n'), "qmp_capabilities: .*no"),
        ((GREETING, OK, b'{"return": "Hub"}\r\n'), "QEMU forwards no port: Hub"),
        ((GREETING,), "it closed the connection|it is gone"),
        ((b"x" * (3 << 20),), "its answer has no end|it is gone"),
    ],
)
def test_answers_that_make_no_sense(tmp_path: Path, answers: tuple[bytes, ...], message: str) -> None:
    with playing(tmp_path / "qmp", *answers), pytest.raises(MonitorError, match=message):
        ssh_port(tmp_path / "qmp", 5)


def test_silence_has_a_limit(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "qmp"))
        server.listen()
        with pytest.raises(MonitorError, match=r"no answer within 0\.2 s"):
            ssh_port(tmp_path / "qmp", 0.2)


def test_a_qemu_that_ends_before_it_listens_is_not_waited_for(tmp_path: Path) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as qemu, socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "qmp"))
        process = Process.find(qemu.pid)
        ending = threading.Timer(0.2, qemu.kill)
        ending.start()
        with pytest.raises(MonitorGoneError, match="QEMU has ended"), Monitor(tmp_path / "qmp", NEVER, process):
            pass
        ending.join(SOON)


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(MonitorGoneError, match="cannot connect"):
        ssh_port(tmp_path / "qmp", 1)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "qmp"))
    with pytest.raises(MonitorGoneError, match="nobody listens"):
        ssh_port(tmp_path / "qmp", 0.1)
