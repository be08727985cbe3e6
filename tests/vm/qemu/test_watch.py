"""The loop that listens to a guest, against a serial socket, a log, a monitor and a process played in the test."""

import itertools
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.host.deadline import Deadline
from pipeline.host.process import Process
from pipeline.vm.qemu.qmp import Monitor
from pipeline.vm.qemu.serial import MARKER, Console
from pipeline.vm.qemu.watch import Watch, watching
from tests.waiting import SOON

GREETING = b'{"QMP": {}}\r\n{"return": {}}\r\n'


class FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Qemu:
    """What a Watch sees of QEMU. `steps` act while it waits."""

    def __init__(self, directory: Path, popen: "subprocess.Popen[bytes]", held: ExitStack) -> None:
        self.popen, self.clock, self.held = popen, FakeClock(), held
        self.log = directory / "serial.log"
        self.log.touch()
        self.path = directory / "serial"
        self.serial = held.enter_context(socket.socket(socket.AF_UNIX))
        self.serial.bind(str(self.path))
        self.serial.listen()
        self.client: socket.socket | None = None
        qmp = held.enter_context(socket.socket(socket.AF_UNIX))
        qmp.bind(str(directory / "qmp"))
        qmp.listen()
        greet = threading.Thread(target=self._greet, args=(qmp,))
        greet.start()
        self.monitor = held.enter_context(Monitor(directory / "qmp", SOON))
        greet.join()
        self.times: list[float] = []

    def _greet(self, qmp: socket.socket) -> None:
        self.other_end = self.held.enter_context(qmp.accept()[0])
        self.other_end.sendall(GREETING)

    def append(self, data: bytes) -> None:
        with self.log.open("ab") as stream:
            stream.write(data)

    def accept(self) -> socket.socket:
        self.client = self.client or self.held.enter_context(self.serial.accept()[0])
        return self.client

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def act(self, step: object) -> None:
        match step:
            case ("log", bytes(data)):
                self.append(data)
            case ("socket", bytes(data)):
                self.accept().sendall(data)
            case ("event", str(name), dict(facts)):
                self.other_end.sendall(json.dumps({"event": name, "data": facts}).encode() + b"\r\n")
            case "hang up":
                self.other_end.shutdown(socket.SHUT_RDWR)
            case "close":
                self.accept().close()
            case "kill":
                self.kill()

    def wait(self, *steps: object) -> Watch:
        """Wait for the marker. Each time it waits one step is done; when there are no more, time is up."""
        process = Process.find(self.popen.pid)
        assert process is not None
        left = list(steps)

        def step() -> None:
            self.times.append(time.monotonic())
            if left:
                self.act(left.pop(0))
            else:
                self.clock.now = 1000.0

        with watching(Console(self.log), self.path, self.monitor, process, step) as watch:
            self.result = watch.until(lambda: watch.markers > 0, Deadline(60, self.clock))
            return watch


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Qemu]:
    monkeypatch.setattr("pipeline.vm.qemu.watch._TICK", 0.01)
    monkeypatch.setattr("pipeline.vm.qemu.watch._AFTERMATH", 0.1)
    monkeypatch.setattr("pipeline.vm.qemu.watch._QUIET", 0.05)
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as popen, ExitStack() as held:
        held.callback(popen.kill)
        yield Qemu(Path(), popen, held)


def test_a_marker_that_is_there_already(qemu: Qemu) -> None:
    qemu.append(b"early\n" + MARKER)
    qemu.wait()
    assert (qemu.result, qemu.times) == (True, [])


def test_a_marker_through_the_socket_only(qemu: Qemu) -> None:
    watch = qemu.wait(("socket", b"boot {{{re"), ("socket", b"set}}}\n"))
    assert qemu.result
    assert watch.console.silent


def test_a_byte_on_the_socket_wakes_the_wait(qemu: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.vm.qemu.watch._TICK", 60.0)
    qemu.wait(("socket", MARKER))
    assert (qemu.result, len(qemu.times)) == (True, 1)


def test_a_marker_through_the_log_only(qemu: Qemu) -> None:
    qemu.wait("nothing", ("log", b"..." + MARKER))
    assert (qemu.result, len(qemu.times)) == (True, 2)


def test_a_marker_cut_by_the_moment_of_connecting(qemu: Qemu) -> None:
    qemu.append(b"{{{re")
    qemu.wait(("socket", b"set}}}"), ("log", b"set}}}"))
    assert (qemu.result, len(qemu.times)) == (True, 2)


def test_the_log_counts_when_the_socket_is_closed(qemu: Qemu) -> None:
    qemu.wait(("socket", b"x"), "close", "nothing", ("log", MARKER))
    assert qemu.result


@pytest.mark.parametrize("step", ["close", "hang up"])
def test_a_closed_socket_keeps_nobody_busy(qemu: Qemu, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    monkeypatch.setattr("pipeline.vm.qemu.watch._TICK", 0.05)
    qemu.wait(step, "nothing", "nothing", "nothing")
    assert not qemu.result
    assert qemu.times[-1] - qemu.times[-2] >= 0.04


def test_the_log_counts_when_the_socket_is_not_there(qemu: Qemu) -> None:
    qemu.path.unlink()
    qemu.wait(("log", MARKER))
    assert qemu.result


def test_a_process_that_dies_before_the_marker(qemu: Qemu) -> None:
    watch = qemu.wait(("log", b"last words\n"), "kill")
    assert (qemu.result, watch.ended, len(qemu.times)) == (False, True, 2)
    assert watch.console.tail() == "last words"


def test_what_a_process_writes_before_it_dies_counts(qemu: Qemu) -> None:
    def last_words() -> None:
        qemu.append(MARKER)
        qemu.kill()

    process = Process.find(qemu.popen.pid)
    assert process
    with watching(Console(qemu.log), qemu.path, qemu.monitor, process, last_words) as watch:
        assert watch.until(lambda: watch.markers > 0, Deadline(60))


def test_the_last_event_of_a_process_that_dies_is_heard(qemu: Qemu) -> None:
    watch = qemu.wait(("event", "SHUTDOWN", {"reason": "host-signal"}), "kill")
    assert (qemu.result, watch.events) == (False, ("SHUTDOWN host-signal",))


def test_a_process_that_died_before_it_is_watched(qemu: Qemu) -> None:
    qemu.act("hang up")
    watch = qemu.wait("kill")
    assert (qemu.result, watch.ended) == (False, True)


def test_all_that_a_death_makes_readable_is_heard_at_once(qemu: Qemu) -> None:
    """Monitor and process tell of it in one wake, and either may come first."""
    process = Process.find(qemu.popen.pid)
    assert process

    def die() -> None:
        qemu.act("hang up")
        qemu.accept().close()
        qemu.kill()

    with watching(Console(qemu.log), qemu.path, qemu.monitor, process, die) as watch:
        assert not watch.until(lambda: watch.markers > 0, Deadline(SOON))
        assert watch.ended


@pytest.mark.parametrize("step", [("log", b"\r\nHalted\r\n"), ("event", "SHUTDOWN", {"reason": "guest-reset"}), "kill"])
def test_what_does_not_stay_for_a_moment(qemu: Qemu, step: object) -> None:
    process, left = Process.find(qemu.popen.pid), [step]
    assert process

    def act() -> None:
        if left:
            qemu.act(left.pop())

    with watching(Console(qemu.log), qemu.path, qemu.monitor, process, act) as watch:
        assert not watch.stays(60)


def test_what_stays_for_a_moment(qemu: Qemu) -> None:
    process = Process.find(qemu.popen.pid)
    assert process
    with watching(Console(qemu.log), qemu.path, qemu.monitor, process, lambda: None) as watch:
        assert watch.stays(0.1)
        qemu.append(b"\r\nZIRCON KERNEL PANIC\r\n")
        assert not watch.stays(0), "however short the moment is, it is looked at once"


def test_time_that_is_up(qemu: Qemu) -> None:
    watch = qemu.wait(("log", b"chatter\n{{{rese"))
    assert (qemu.result, watch.ended, watch.markers) == (False, False, 0)


def test_what_is_done_by_the_time_that_is_up_counts(qemu: Qemu) -> None:
    """However long the question takes: the time may be up while it is asked."""
    process, answers = Process.find(qemu.popen.pid), [False, True]
    assert process

    def done() -> bool:
        qemu.clock.now = 1000.0
        return answers.pop(0)

    with watching(Console(qemu.log), qemu.path, qemu.monitor, process, lambda: None) as watch:
        assert watch.until(done, Deadline(60, qemu.clock))


@pytest.mark.parametrize(
    "step",
    [
        ("log", b"ZIRCON KERNEL PANIC\r\n"),
        ("event", "SHUTDOWN", {"reason": "guest-reset"}),
        ("event", "GUEST_PANICKED", {}),
    ],
)
def test_what_is_hopeless_ends_the_wait_at_once(qemu: Qemu, step: object) -> None:
    watch = qemu.wait("nothing", step, *["nothing"] * 1000)
    assert not qemu.result
    assert not watch.ended
    assert len(qemu.times) < 10


def test_an_event_that_came_together_with_an_answer_is_heard_at_once(qemu: Qemu) -> None:
    """No selector tells of it: it has been read from the socket already."""
    qemu.other_end.sendall(b'{"return": {}}\r\n{"event": "GUEST_PANICKED", "data": {}}\r\n')
    qemu.monitor.execute("human-monitor-command")
    watch = qemu.wait(*["nothing"] * 1000)
    assert (qemu.result, watch.events) == (False, ("GUEST_PANICKED",))
    assert len(qemu.times) < 10


def test_a_guest_that_kvm_gives_up_is_hopeless_at_once(qemu: Qemu) -> None:
    """QEMU says STOP, and why only to who asks."""

    def answer() -> None:
        asked = b""
        while b"query-status" not in asked:
            asked += qemu.other_end.recv(4096)
        qemu.other_end.sendall(b'{"return": {"status": "internal-error"}}\r\n')

    answering = threading.Thread(target=answer, daemon=True)
    answering.start()
    watch = qemu.wait(("event", "STOP", {}), *["nothing"] * 1000)
    assert (qemu.result, watch.events) == (False, ("STOP", "STATUS internal-error"))
    assert len(qemu.times) < 10
    answering.join(SOON)


def test_the_rest_of_a_panic_is_heard(qemu: Qemu) -> None:
    def trace() -> None:
        qemu.append(b"bt#00: 0xff\n")
        qemu.accept().sendall(b"x")

    def step() -> None:
        qemu.append(b"ZIRCON KERNEL PANIC\n")
        threading.Timer(0.03, trace).start()

    process = Process.find(qemu.popen.pid)
    assert process
    with watching(Console(qemu.log), qemu.path, qemu.monitor, process, step) as watch:
        assert not watch.until(lambda: watch.markers > 0, Deadline(60))
    assert watch.console.tail(1) == "bt#00: 0xff"


def test_something_else_can_wake_it(qemu: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.vm.qemu.watch._TICK", 60.0)
    signal, heard = os.eventfd(1), list[str]()
    process = Process.find(qemu.popen.pid)
    assert process
    try:
        with watching(Console(qemu.log), qemu.path, qemu.monitor, process, lambda: None) as watch:
            watch.listen_to(signal, lambda: heard.append("it"))
            assert watch.until(lambda: bool(heard), Deadline(60))
    finally:
        os.close(signal)
    assert heard == ["it"]


def test_a_guest_that_writes_byte_by_byte_is_not_looked_at_for_each(
    qemu: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.vm.qemu.watch._TICK", 0.3)
    looks: list[float] = []
    process = Process.find(qemu.popen.pid)
    assert process

    def write() -> None:
        for byte in b"x" * 100 + MARKER:
            qemu.accept().sendall(bytes([byte]))
            time.sleep(0.002)

    writer = threading.Thread(target=write)
    with watching(Console(qemu.log), qemu.path, qemu.monitor, process, lambda: looks.append(time.monotonic())) as watch:
        writer.start()
        assert watch.until(lambda: watch.markers > 0, Deadline(60))
        writer.join()
    assert looks
    assert all(after - before > 0.2 for before, after in itertools.pairwise(looks)), "at most one each tick"
