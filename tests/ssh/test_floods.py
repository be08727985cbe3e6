"""Servers that send more than anybody has asked for: nothing of ours grows without a bound."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from pipeline.errors import CommandError, ConnectError
from pipeline.host.deadline import Deadline
from pipeline.ssh.address import Address
from pipeline.ssh.connection import connect
from pipeline.ssh.packets import LARGEST
from tests.fakes import sshd
from tests.ssh.conftest import PATIENT, address
from tests.waiting import NEVER, SOON, eventually

VERSION = b"SSH-2.0-flood\r\n"
CHUNK = bytes(1 << 16)


@contextmanager
def saying(words: bytes, over_and_over: bytes) -> Iterator[tuple[int, list[int]]]:
    """A server that says `words`, and the rest until nobody listens; the port, and what it got rid of in all."""
    sent = [0]

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.sendall(words)
                while True:
                    sent[0] += connection.send(over_and_over)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1], sent
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join(SOON)


@pytest.mark.parametrize(
    ("words", "over_and_over", "reason"),
    [
        (VERSION + struct.pack(">I", (2 << 30) - 4), CHUNK, "announces a packet of 2,147,48"),
        (VERSION + struct.pack(">I", LARGEST + 12), CHUNK, "announces a packet of 262,152 bytes"),
        (b"", b"x" * 4096, "greeting has no end"),
        (b"", b"hello\r\n" * 512, "Indecipherable protocol version"),
    ],
    ids=["2 GiB", "a bit more than the largest", "no line", "too many lines"],
)
def test_before_the_login(key: Path, words: bytes, over_and_over: bytes, reason: str) -> None:
    with saying(words, over_and_over) as (port, sent):
        guest = Address("127.0.0.1", port, "x", str(key), None)
        with pytest.raises(ConnectError) as caught, connect(guest, PATIENT, SOON):
            pass
    assert sent[0] < 64 << 20, "what the kernel's buffers hold, which is much less, and what was read"
    assert reason in str(caught.value)


@pytest.mark.parametrize("stream", ["1", "2"])
def test_a_session_that_nobody_reads(server: sshd.Server, key: Path, stream: str) -> None:
    server.fault = "no window"
    with connect(address(server, key), PATIENT, SOON) as connection:
        session = connection.session("flood", "exec", f"cat /dev/zero >&{stream}", Deadline(SOON))
        with closing(session):
            eventually(lambda: not connection.alive)
            assert 0 < session.buffered <= 2 << 20
            with pytest.raises(CommandError, match="sends more than it was allowed to"):
                session.finish(Deadline(SOON))


def test_a_server_that_keeps_to_the_window_is_let_wait(server: sshd.Server, key: Path) -> None:
    with connect(address(server, key), PATIENT, SOON) as connection:
        session = connection.session("all", "exec", "head -c 9000000 /dev/zero; echo over >&2", Deadline(SOON))
        with closing(session):
            eventually(lambda: session.buffered == 2 << 20)
            session.sinks.clear()
            taken: list[bytes] = []
            session.sinks |= {"stdout": taken.append, "stderr": lambda _: None}
            assert session.finish(Deadline(NEVER)) == 0
            assert sum(map(len, taken)) == 9_000_000
