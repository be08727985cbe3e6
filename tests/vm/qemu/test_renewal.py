"""The renewal of a clone, by guests that do not play along."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pipeline.host.deadline import Deadline
from pipeline.vm.qemu.renewal import RenewalError, renew
from tests.waiting import SOON

BOOT_ID = "6ed5b97c4d0d497abbc50ccdd8f53e66"


@contextmanager
def guest(gate: Path, answer: Callable[[socket.socket], object]) -> Iterator[list[bytes]]:
    """A guest that answers so to the line that it is given, which is there after the body."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(gate))
        server.listen()

        def serve() -> None:
            client, _ = server.accept()
            with client, suppress(OSError):
                heard.append(client.recv(4096))
                answer(client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield heard
        thread.join(SOON)
        assert not thread.is_alive()


def test_it_gives_the_clone_what_is_its_own(tmp_path: Path) -> None:
    def well(client: socket.socket) -> None:
        client.sendall(b"renewed ")
        client.sendall(f"{BOOT_ID}\n".encode())

    with guest(tmp_path / "gate", well) as first:
        renew(tmp_path / "gate", BOOT_ID, "i7", Deadline(SOON))
    (tmp_path / "gate").unlink()
    with guest(tmp_path / "gate", well) as second:
        renew(tmp_path / "gate", BOOT_ID, "i7", Deadline(SOON))
    seeds = set()
    for line in (*first, *second):
        match = re.fullmatch(rb"(\w{32}) i7 (\d{19}) ([0-9a-f]{64})\n", line)
        assert match, line
        assert match[1].decode() == BOOT_ID
        seeds.add(match[3])
    assert len(seeds) == 2


def drip(client: socket.socket) -> None:
    while True:
        client.sendall(b".")
        if threading.Event().wait(0.05):
            return


ANSWERS: dict[str, tuple[Callable[[socket.socket], object], str]] = {
    "failed: RNDADDENTROPY: Operation not permitted": (
        lambda client: client.sendall(b"failed: RNDADDENTROPY: Operation not permitted\n"),
        "RNDADDENTROPY",
    ),
    "another boot": (lambda client: client.sendall(b"renewed 77cd\n"), "renewed 77cd"),
    "escapes": (lambda client: client.sendall(b"\x1b[31mred\n"), "answers 'red'"),
    "nothing": (lambda client: client.close(), "answers ''"),
    "floods": (lambda client: client.sendall(b"x" * (64 << 20)), "answers 'xxx"),
    "drips": (drip, "does not answer"),
    "is silent": (lambda client: client.recv(1), "does not answer"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_that_is_none_ends_it(tmp_path: Path, kind: str) -> None:
    answer, said = ANSWERS[kind]
    limit = 0.5 if kind in ("drips", "is silent") else SOON
    with guest(tmp_path / "gate", answer), pytest.raises(RenewalError, match=re.escape(said)) as failed:
        renew(tmp_path / "gate", BOOT_ID, "i7", Deadline(limit))
    assert len(str(failed.value)) < 300
    assert "\x1b" not in str(failed.value)


def test_a_gate_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RenewalError, match="No such file"):
        renew(tmp_path / "gate", BOOT_ID, "i7", Deadline(SOON))
