"""Other users of the host: a guest's SSH port is everybody's on it."""

import os
import pwd
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from pipeline.errors import ConnectError
from pipeline.ssh import holders
from pipeline.ssh.connection import connect
from pipeline.ssh.connector import Connector
from tests import neighbours
from tests.conftest import Workspace
from tests.fakes import sshd
from tests.ssh.conftest import HASTY, PATIENT, address
from tests.waiting import SOON

MOST_WITHOUT_LOGIN = 5
"""Of one address, in dropbear: MAX_UNAUTH_PER_IP."""
_HOLD = """
address = sys.argv[3]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
held = [socket.socket(family) for _ in range(int(sys.argv[2]))]
for connection in held:
    connection.settimeout(60)
    connection.connect((address, int(sys.argv[1])))
    connection.recv(1)  # the guest's server has it
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(port: int, count: int, address: str = "127.0.0.1") -> Iterator[None]:
    """So many connections to a server that greets, which another user holds."""
    words = neighbours.command(_HOLD, str(port), str(count), address)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin
        assert child.stdout
        try:
            assert child.stdout.readline() == b"held\n"
            yield
        finally:
            child.stdin.close()
            child.wait(SOON)


def name() -> str:
    """Who holds the connections."""
    return pwd.getpwuid(os.getuid() or neighbours.OTHER).pw_name


@pytest.mark.timeout(300)
def test_who_holds_all_that_a_guest_gives_is_told(booted: Workspace) -> None:
    handle = booted.instance().live_handle()
    assert handle
    with held(handle.ssh.port, MOST_WITHOUT_LOGIN):
        done = booted.topcoat("ssh", "i0", "--", "true")
    assert done.status == 255
    assert f"; connections to its port are held by {name()} {MOST_WITHOUT_LOGIN}; gave up after" in done.text
    assert "at attempt 4 of 4" in done.text
    assert "if they are strangers: a guest that is booted anew has another port: topcoat stop i0" in done.text
    assert booted.topcoat("ssh", "i0", "--", "true").status == 0


def test_nobody_hides_behind_a_socket_of_ipv6(server: sshd.Server) -> None:
    with held(server.port, 1, "::ffff:127.0.0.1"):
        assert holders.told(server.port) == f"connections to its port are held by {name()} 1"


def test_nobody_is_blamed_for_a_guest_that_is_silent(server: sshd.Server, key: Path) -> None:
    server.fault = "no banner"
    with pytest.raises(ConnectError) as caught, connect(address(server, key), HASTY, SOON):
        pass
    assert "held" not in str(caught.value)


def test_only_those_who_are_connected_to_the_port_count(server: sshd.Server, key: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert holders.told(port) == ""
        with held(server.port, 1), socket.create_connection(("127.0.0.1", port)) as own:
            me = pwd.getpwuid(os.getuid()).pw_name
            assert holders.told(port) == f"connections to its port are held by {me} 1"
            assert holders.told(port, own=os.fstat(own.fileno()).st_ino) == ""
            assert holders.told(port, but=os.getuid()) == ""
            assert holders.told(server.port) == f"connections to its port are held by {name()} 1"
    with closing(Connector(address(server, key), PATIENT)) as connector:
        connector.connected()
        assert holders.told(server.port, but=os.getuid()) == ""


@pytest.mark.parametrize(("fault", "told"), [("refuse key", False), ("close", True)])
def test_a_key_that_is_refused_is_nobody_elses_doing(
    server: sshd.Server, key: Path, monkeypatch: pytest.MonkeyPatch, fault: sshd.Fault, told: bool
) -> None:
    monkeypatch.setattr(holders, "told", lambda *_: "connections to its port are held by somebody 1")
    server.fault = fault
    with pytest.raises(ConnectError) as caught, connect(address(server, key), PATIENT, SOON):
        pass
    assert ("held by somebody" in str(caught.value)) == told
