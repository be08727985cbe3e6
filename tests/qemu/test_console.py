import itertools
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.deadline import Deadline
from pipeline.errors import BootTimeout, QemuExited
from pipeline.process import Process
from pipeline.qemu.console import MARKER, Console, Scanner, wait_for_marker

_PIECES = st.sampled_from([MARKER, b"{", b"{{{", b"}}}", b"reset", b"{{{rese", b"t}}}", b"\n"])
_STREAMS = st.lists(_PIECES | st.binary(max_size=3), max_size=12).map(b"".join)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(edges)]


@settings(deadline=None)
@given(_STREAMS, st.lists(st.integers(0, 200), max_size=30))
def test_the_marker_is_found_exactly_if_it_is_there(stream: bytes, places: list[int]) -> None:
    scanner, seen = Scanner(), b""
    for chunk in cut(stream, places):
        scanner.feed(chunk)
        seen += chunk
        assert scanner.found == (MARKER in seen)


def test_the_marker_is_found_byte_by_byte() -> None:
    scanner = Scanner()
    for byte in b"{{{reset}}" + MARKER:
        assert not scanner.found
        scanner.feed(bytes([byte]))
    assert scanner.found


def append(log: Path, data: bytes) -> None:
    with log.open("ab") as stream:
        stream.write(data)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "serial.log"
    path.touch()
    return path


def test_a_console_follows_its_log(log: Path) -> None:
    console = Console(log)
    console.update()
    assert (console.silent, console.marker_seen, console.tail()) == (True, False, "")
    append(log, b"one\ntwo\n{{{re")
    console.update()
    assert (console.silent, console.marker_seen, console.tail()) == (False, False, "one\ntwo\n{{{re")
    append(log, b"set}}}\nthree\n")
    console.update()
    assert (console.marker_seen, console.tail(2)) == (True, "{{{reset}}}\nthree")
    console.update()
    assert console.tail(1) == "three"


def test_of_huge_output_the_end_is_kept(log: Path) -> None:
    console = Console(log)
    append(log, MARKER + b"\n" + b"x" * 99 + b"\n")
    append(log, b"".join(b"line %06d of the guest\n" % number for number in range(150_000)))
    console.update()
    assert console.marker_seen
    assert console.tail(2) == "line 149998 of the guest\nline 149999 of the guest"
    assert 60_000 < len(console.tail(10**6)) <= 65536


def test_the_tail_is_printable(log: Path) -> None:
    append(log, b"\x1b[31mred\x1b[0m\x07\r\n\xff\x9b2J\n")
    console = Console(log)
    console.update()
    assert console.tail() == "red\n\ufffd\ufffd2J"


class FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Qemu:
    """What `wait_for_marker` sees of QEMU: a process, a serial socket and a log. `steps` act while it waits."""

    def __init__(self, directory: Path, log: Path, popen: "subprocess.Popen[bytes]") -> None:
        self.log, self.popen, self.clock = log, popen, FakeClock()
        self.socket = socket.socket(socket.AF_UNIX)
        self.path = directory / "serial"
        self.socket.bind(str(self.path))
        self.socket.listen()
        self.client: socket.socket | None = None
        self.times: list[float] = []

    @property
    def calls(self) -> int:
        return len(self.times)

    def accept(self) -> socket.socket:
        self.client = self.client or self.socket.accept()[0]
        return self.client

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def wait(self, *steps: object) -> Console:
        """Wait for the marker. Each time it waits one step is done; when there are no more, time is up."""
        process = Process.find(self.popen.pid)
        assert process is not None
        return self.wait_for(process, *steps)

    def wait_for(self, process: Process, *steps: object) -> Console:
        console, left = Console(self.log), list(steps)

        def step(seen: Console) -> None:
            assert seen is console
            self.times.append(time.monotonic())
            if not left:
                self.clock.now = 1000.0
                return
            match left.pop(0):
                case ("log", bytes(data)):
                    append(self.log, data)
                case ("socket", bytes(data)):
                    self.accept().sendall(data)
                case "close":
                    self.accept().close()
                case "kill":
                    self.kill()

        wait_for_marker(console, self.path, process, Deadline(60, self.clock), step)
        return console

    def close(self) -> None:
        self.popen.kill()
        self.socket.close()
        if self.client:
            self.client.close()


@pytest.fixture
def qemu(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Qemu]:
    monkeypatch.setattr("pipeline.qemu.console._TICK", 0.01)
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as popen:
        played = Qemu(Path(), log, popen)
        yield played
        played.close()


def test_a_marker_that_is_there_already(qemu: Qemu) -> None:
    append(qemu.log, b"early\n" + MARKER)
    assert qemu.wait().marker_seen
    assert qemu.calls == 0


def test_a_marker_through_the_socket_only(qemu: Qemu) -> None:
    console = qemu.wait(("socket", b"boot {{{re"), ("socket", b"set}}}\n"))
    assert not console.marker_seen
    assert console.silent


def test_a_byte_on_the_socket_wakes_the_wait(qemu: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.qemu.console._TICK", 60.0)
    qemu.wait(("socket", MARKER))
    assert qemu.calls == 1


def test_a_marker_through_the_log_only(qemu: Qemu) -> None:
    assert qemu.wait("nothing", ("log", b"..." + MARKER)).marker_seen
    assert qemu.calls == 2


def test_a_marker_cut_by_the_moment_of_connecting(qemu: Qemu) -> None:
    append(qemu.log, b"{{{re")
    assert qemu.wait(("socket", b"set}}}"), ("log", b"set}}}")).marker_seen
    assert qemu.calls == 2


def test_the_log_counts_when_the_socket_is_closed(qemu: Qemu) -> None:
    assert qemu.wait(("socket", b"x"), "close", "nothing", ("log", MARKER)).marker_seen


def test_a_closed_socket_keeps_nobody_busy(qemu: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.qemu.console._TICK", 0.05)
    with pytest.raises(BootTimeout):
        qemu.wait("close", "nothing", "nothing", "nothing")
    assert qemu.times[-1] - qemu.times[-2] >= 0.04


def test_the_log_counts_when_the_socket_is_not_there(qemu: Qemu) -> None:
    qemu.path.unlink()
    assert qemu.wait(("log", MARKER)).marker_seen


def test_a_process_that_dies_before_the_marker(qemu: Qemu) -> None:
    with pytest.raises(QemuExited) as caught:
        qemu.wait(("log", b"panic\n"), "kill")
    assert caught.value.stage == "marker"
    assert caught.value.detail == "panic"
    assert "the end of the console is above" in caught.value.hint
    assert qemu.calls == 2


def test_a_process_that_dies_silently(qemu: Qemu) -> None:
    with pytest.raises(QemuExited) as caught:
        qemu.wait("kill")
    assert caught.value.detail == ""
    assert "the guest had written nothing" in caught.value.hint


def test_a_process_that_was_dead_before(qemu: Qemu) -> None:
    process = Process.find(qemu.popen.pid)
    assert process is not None
    qemu.kill()
    with pytest.raises(QemuExited):
        qemu.wait_for(process)
    append(qemu.log, MARKER)
    assert qemu.wait_for(process).marker_seen


def test_a_process_that_dies_after_the_marker(qemu: Qemu) -> None:
    console = Console(qemu.log)
    process = Process.find(qemu.popen.pid)
    assert process is not None

    def last_words(_: Console) -> None:
        append(qemu.log, MARKER)
        qemu.kill()

    wait_for_marker(console, qemu.path, process, Deadline(60), last_words)
    assert console.marker_seen


@pytest.mark.parametrize(
    ("steps", "detail", "hint"),
    [
        ([], "", "nothing came on the serial port"),
        ([("log", b"booting\n{{{rese")], "booting\n{{{rese", "raise [boot] timeout"),
    ],
    ids=["silence", "chatter"],
)
def test_a_deadline_that_passes(qemu: Qemu, steps: list[object], detail: str, hint: str) -> None:
    with pytest.raises(BootTimeout) as caught:
        qemu.wait(*steps)
    assert str(caught.value) == "the guest did not print {{{reset}}} within 60 s"
    assert (caught.value.stage, caught.value.detail) == ("marker", detail)
    assert hint in caught.value.hint
