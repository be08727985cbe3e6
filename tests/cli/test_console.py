"""The console, as a program on a terminal or between pipes; the test plays the guest."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest

from pipeline.cli import console
from pipeline.cli.console import DETACH
from pipeline.errors import BrokenInstance, InstanceBusy
from pipeline.host.process import Process
from tests.conftest import Workspace
from tests.needs import openpty
from tests.waiting import SOON

LIMIT = SOON
SHORT = 0.4
"""What SILENCE and STALLED are in these tests, unless they say otherwise."""

PROGRAM = """
import json, sys
from pathlib import Path
from pipeline.cli import console
from pipeline.errors import TopcoatError
from pipeline.host.process import Process
serial, pid, safe, console.SILENCE, console.STALLED = json.loads(sys.argv[1])
try:
    print(console.attach("i0", Path(serial), Process.find(pid), safe=safe), file=sys.stderr)
except (TopcoatError, BrokenPipeError) as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
"""


class Guest:
    """QEMU as the console sees it: a process, and a serial port that one client at a time can use."""

    def __init__(self, directory: Path) -> None:
        self.serial = directory / "serial"
        self.popen = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        found = Process.find(self.popen.pid)
        assert found
        self.process = found
        self.server = socket.socket(socket.AF_UNIX)
        self.server.settimeout(LIMIT)
        self.server.bind(str(self.serial))
        self.server.listen()
        self.client: socket.socket | None = None

    @property
    def port(self) -> socket.socket:
        if self.client is None:
            self.client, _ = self.server.accept()
            self.client.settimeout(LIMIT)
        return self.client

    def says(self, data: bytes) -> None:
        self.port.sendall(data)

    def hears(self, count: int) -> bytes:
        heard = b""
        while len(heard) < count and (chunk := self.port.recv(count - len(heard))):
            heard += chunk
        return heard

    def rest(self) -> bytes:
        """What comes until the console has gone."""
        heard = b""
        while chunk := self.port.recv(65536):
            heard += chunk
        return heard

    def hangs_up(self) -> None:
        self.port.close()
        self.client = None

    def dies(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def close(self) -> None:
        self.dies()
        self.popen.communicate()
        self.server.close()
        if self.client:
            self.client.close()


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    (tmp_path / "run").mkdir()
    played = Guest(Path("run"))
    yield played
    played.close()


class Running:
    """A console that runs, with the other ends of what it reads and writes."""

    def __init__(self, popen: "subprocess.Popen[bytes]", main: int = -1, slave: int = -1) -> None:
        self.popen, self.main, self.slave = popen, main, slave

    def types(self, keys: bytes) -> None:
        while keys:
            keys = keys[os.write(self.main, keys) :]

    def shows(self, end: bytes) -> bytes:
        """What appears on the terminal up to `end`."""
        seen = b""
        while not seen.endswith(end):
            assert select.select([self.main], [], [], LIMIT)[0], seen
            seen += os.read(self.main, 1)
        return seen

    @property
    def modes(self) -> list[object]:
        return list(termios.tcgetattr(self.slave))

    def ends(self) -> tuple[int, str]:
        """Its exit code, and its last line on stderr."""
        assert self.popen.stderr
        said = self.popen.stderr.read().decode()
        return self.popen.wait(LIMIT), said.splitlines()[-1]


def command(
    serial: Path, process: Process, *, safe: bool = False, silence: float = SHORT, stalled: float = SHORT
) -> list[str]:
    return [sys.executable, "-c", PROGRAM, json.dumps([str(serial), process.pid, safe, silence, stalled])]


@pytest.fixture
def started() -> Iterator[list[Running]]:
    """What is in the list is ended with the test."""
    running: list[Running] = []
    yield running
    for one in running:
        one.popen.kill()
        for stream in (one.popen.stdin, one.popen.stdout, one.popen.stderr):
            if stream:
                with suppress(BrokenPipeError):
                    stream.close()
        one.popen.wait()
        for descriptor in (one.main, one.slave):
            if descriptor >= 0:
                with suppress(OSError):
                    os.close(descriptor)


def on_terminal(started: list[Running], words: list[str], stdout: int | None = None) -> Running:
    main, slave = openpty()
    popen = subprocess.Popen(
        words, stdin=slave, stdout=slave if stdout is None else stdout, stderr=subprocess.PIPE, cwd=Path.cwd()
    )
    started.append(Running(popen, main, slave))
    return started[-1]


def piped(started: list[Running], words: list[str]) -> Running:
    started.append(
        Running(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    )
    return started[-1]


def stream(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe
    return pipe


def test_keys_and_text_pass_byte_for_byte(guest: Guest, started: list[Running]) -> None:
    console = on_terminal(started, command(guest.serial, guest.process))
    before = console.modes
    guest.says(b"login: ")
    console.shows(b"login: ")
    keys = bytes(byte for byte in range(256) if byte != DETACH)
    console.types(keys)
    assert guest.hears(255) == keys, "control keys too, Ctrl-C among them"
    every = bytes(range(256))
    guest.says(every + b"\x1b[0m.")
    assert console.shows(b"\x1b[0m.") == every + b"\x1b[0m.", "nor does the terminal add carriage returns"
    assert console.modes != before
    console.types(b"last\n\x1dnot this")
    assert guest.rest() == b"last\n"
    assert console.ends() == (0, "detached")
    assert console.modes == before


def test_the_first_line_says_how_to_leave(guest: Guest, started: list[Running]) -> None:
    console = on_terminal(started, command(guest.serial, guest.process))
    assert stream(console.popen.stderr).readline() == b"connected to i0; Ctrl-] detaches\n"
    other = piped(started, command(guest.serial, guest.process))
    assert stream(other.popen.stderr).readline() == b"InstanceBusy: somebody else has the console of i0\n"
    guest.says(b".")
    console.shows(b".")
    console.types(b"\x1d")
    assert console.ends() == (0, "detached")
    assert guest.rest() == b""
    guest.hangs_up()
    third = piped(started, command(guest.serial, guest.process))
    assert stream(third.popen.stderr).readline() == b"connected to i0\n"
    stream(third.popen.stdin).close()
    assert third.ends() == (0, "detached")


@pytest.mark.parametrize("how", ["socket", "process"])
def test_it_ends_with_the_guest(guest: Guest, started: list[Running], how: str) -> None:
    console = on_terminal(started, command(guest.serial, guest.process))
    before = console.modes
    guest.says(b"up.")
    console.shows(b"up.")
    guest.says(b"last words.")
    if how == "socket":
        guest.hangs_up()
    else:
        guest.dies()
    console.shows(b"last words.")
    assert console.ends() == (0, "guest ended")
    assert console.modes == before


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, -signal.SIGINT)]
)
def test_a_signal_leaves_the_terminal_as_it_was(
    guest: Guest, started: list[Running], number: signal.Signals, status: int
) -> None:
    console = on_terminal(started, command(guest.serial, guest.process))
    before = console.modes
    guest.says(b".")
    console.shows(b".")
    assert console.modes != before
    console.popen.send_signal(number)
    assert console.ends()[0] == status
    assert console.modes == before


def test_a_terminal_that_is_gone_detaches(guest: Guest, started: list[Running]) -> None:
    console = on_terminal(started, command(guest.serial, guest.process), stdout=subprocess.PIPE)
    guest.says(b".")
    assert stream(console.popen.stdout).read(1) == b"."
    os.close(console.main)
    assert console.ends() == (0, "detached")


def test_the_console_can_be_left_while_the_guest_does_not_listen(guest: Guest, started: list[Running]) -> None:
    console = on_terminal(started, command(guest.serial, guest.process))
    guest.says(b".")
    console.shows(b".")
    for _ in range(100):
        console.types(b"x" * 5000)  # more than the socket takes
    console.types(b"\x1d")
    assert console.ends() == (0, "detached")
    assert 0 < guest.rest().count(b"x") < 500_000


def test_the_console_can_be_left_while_its_output_is_not_read(guest: Guest, started: list[Running]) -> None:
    console = on_terminal(started, command(guest.serial, guest.process), stdout=subprocess.PIPE)
    guest.port.settimeout(SHORT)
    with suppress(TimeoutError):
        while True:
            guest.says(b"flood" * 1000)
    guest.port.settimeout(LIMIT)
    console.types(b"keys")
    assert guest.hears(4) == b"keys"
    console.types(b"\x1d")
    assert console.ends() == (0, "detached")


@pytest.mark.slow
def test_piped_input_is_sent_and_what_the_guest_says_is_printed_until_it_is_silent(
    guest: Guest, started: list[Running]
) -> None:
    console = piped(started, command(guest.serial, guest.process, silence=4.0))
    with stream(console.popen.stdin) as stdin:
        stdin.write(b"all \x03\x1d\xff of it\n")
    assert guest.hears(14) == b"all \x03\x1d\xff of it\n"
    for number in range(4):
        guest.says(b"%d\x1b[m\r\n" % number)
        time.sleep(0.3)
    assert stream(console.popen.stdout).read() == b"".join(b"%d\x1b[m\r\n" % number for number in range(4))
    assert console.ends() == (0, "detached")


@pytest.mark.slow
def test_a_slow_guest_holds_up_the_input_and_loses_nothing(guest: Guest, started: list[Running]) -> None:
    console = piped(started, command(guest.serial, guest.process, stalled=LIMIT))
    stdin = stream(console.popen.stdin)
    guest.says(b".")
    assert stream(console.popen.stdout).read(1) == b"."
    data, sent = os.urandom(3 << 20), 0
    os.set_blocking(stdin.fileno(), False)
    while select.select([], [stdin], [], 3.0)[1]:
        sent += os.write(stdin.fileno(), data[sent : sent + 4096])
    assert 1 << 20 <= sent < 2 << 20, "it takes no more than it may keep"
    heard = guest.hears(sent)
    while sent < len(data):
        part = os.write(stdin.fileno(), data[sent : sent + 4096])
        sent += part
        heard += guest.hears(part)
    stdin.close()
    assert heard == data
    assert console.ends() == (0, "detached")


def test_input_that_the_guest_does_not_take_is_an_error(guest: Guest, started: list[Running]) -> None:
    console = piped(started, command(guest.serial, guest.process))
    with stream(console.popen.stdin) as stdin:
        stdin.write(b"x" * 900_000)
    status, said = console.ends()
    assert status == 0
    assert said.startswith("CommandError: the guest takes no input: ")
    left = int(said.split()[6])
    assert guest.rest() == b"x" * (900_000 - left)


def test_without_stdin_it_prints_until_the_guest_ends(guest: Guest, started: list[Running]) -> None:
    console = piped(started, ["sh", "-c", 'exec "$@" <&-', "sh", *command(guest.serial, guest.process)])
    guest.says(b"one ")
    time.sleep(2 * SHORT)
    guest.says(b"two")
    guest.dies()
    assert stream(console.popen.stdout).read() == b"one two"
    assert console.ends() == (0, "guest ended")


def test_without_stdout_it_sends(guest: Guest, started: list[Running]) -> None:
    console = piped(started, ["sh", "-c", 'exec "$@" >&-', "sh", *command(guest.serial, guest.process)])
    guest.says(b"nobody hears")
    stream(console.popen.stdin).write(b"sent")
    stream(console.popen.stdin).flush()
    assert guest.hears(4) == b"sent"
    guest.dies()
    assert console.ends() == (0, "guest ended")


def test_output_that_nobody_reads_any_more(guest: Guest, started: list[Running]) -> None:
    console = piped(started, command(guest.serial, guest.process))
    guest.says(b".")
    assert stream(console.popen.stdout).read(1) == b"."
    stream(console.popen.stdout).close()
    assert console.ends() == (0, "BrokenPipeError: [Errno 32] Broken pipe"), "though the guest is silent"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_safe_output_is_without_escapes_and_control_characters(
    guest: Guest, started: list[Running], encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    console = piped(started, command(guest.serial, guest.process, safe=True))
    guest.says(b"a\x07\x1b[3")
    assert stream(console.popen.stdout).read(1) == b"a"
    guest.says("1mb\x1b]0;title\x07 \u00e4\u011b\r\n\b\tc\x1b[".encode() + b"\xc3")
    guest.hangs_up()
    shown = stream(console.popen.stdout).read()
    assert shown == {"utf-8": "b äě\r\n\b\tc\ufffd".encode(), "latin-1": b"b \xe4?\r\n\b\tc?"}[encoding]
    assert console.ends() == (0, "guest ended")


def test_a_console_that_somebody_has_is_refused(guest: Guest) -> None:
    with (
        console.sole_user("i0", guest.serial),
        pytest.raises(InstanceBusy, match="somebody else has the console of i0") as refusal,
    ):
        console.attach("i0", guest.serial, guest.process, safe=False)
    assert "topcoat logs -f i0" in refusal.value.hint
    assert "fuser -v 'run/console.lock'" in refusal.value.hint


def test_a_queue_before_the_serial_port_is_not_joined(guest: Guest) -> None:
    guest.server.listen(0)
    with socket.socket(socket.AF_UNIX) as first:
        first.connect(str(guest.serial))
        with pytest.raises(InstanceBusy) as refusal:
            console.attach("i0", guest.serial, guest.process, safe=False)
    assert "fuser -v 'run/serial'" in refusal.value.hint


def test_a_guest_that_has_ended_before(guest: Guest) -> None:
    guest.server.close()
    guest.dies()
    assert console.attach("i0", guest.serial, guest.process, safe=False) == "guest ended"
    assert console.attach("i0", Path("gone/serial"), guest.process, safe=False) == "guest ended"


@pytest.mark.parametrize("serial", ["run/serial", "gone/serial"])
def test_a_living_qemu_without_a_serial_port(guest: Guest, monkeypatch: pytest.MonkeyPatch, serial: str) -> None:
    monkeypatch.setattr(console, "_DYING", 0.05)
    guest.server.close()
    with pytest.raises(BrokenInstance, match="i0 runs, but its serial port does not answer: ") as caught:
        console.attach("i0", Path(serial), guest.process, safe=False)
    assert "topcoat stop i0" in caught.value.hint
    assert not Path("gone").exists()


def interrupt(console: Running, prompt: bytes) -> None:
    """Type Ctrl-C until it has worked: between two commands, a shell takes no notice of it."""
    seen = b""
    for _ in range(10):
        console.types(b"\x03")
        end = time.monotonic() + 2
        while time.monotonic() < end and not seen.endswith(prompt):
            if select.select([console.main], [], [], 0.2)[0]:
                seen += os.read(console.main, 1)
        if seen.endswith(prompt):
            return
    pytest.fail(f"it goes on: {seen!r}")


def test_the_demo_guest_has_a_shell_on_its_console(demo: Workspace, started: list[Running]) -> None:
    booted = demo.luigi("BootInstance")
    assert booted.status == 0, booted.text
    handle = demo.instance().live_handle()
    assert handle
    log = demo.instance().serial_log.read_bytes()
    assert log.count(b"\r\n{{{reset}}}\r\n") == log.count(b"{{{reset}}}") == 1

    console = on_terminal(started, command(demo.instance().serial_socket, handle.process))
    assert stream(console.popen.stderr).readline() == b"connected to i0; Ctrl-] detaches\n"
    prompt = b"# \x1b[6n"  # it asks the terminal where the cursor is
    console.types(b"\r")
    console.shows(prompt)
    console.types(b"echo $((6*7))\r")
    assert console.shows(prompt).endswith(b"\r\n42\r\n/ " + prompt)
    console.types(b"echo begun; sleep 99\r")
    console.shows(b"\r\nbegun\r\n")
    interrupt(console, prompt)
    console.types(b"echo status $?\r")
    console.shows(b"\r\nstatus 130\r\n")
    console.types(b"\x1d")
    assert console.ends() == (0, "detached")

    assert demo.topcoat("ssh", "i0", "--", "cat /etc/boot_id").stdout == f"{handle.boot_id}\n".encode()
    assert demo.topcoat("ssh", "i0", "--", "hostname").stdout == b"i0\n"
