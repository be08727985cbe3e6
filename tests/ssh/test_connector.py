"""The connector: when it connects, how often it tries, and what it leaves."""

import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import CommandError, ConnectError, KeyGone, KeyRefused, SettingsError, StoreError, WrongServer
from pipeline.settings import Timeouts
from pipeline.ssh.address import Address
from pipeline.ssh.connector import Connector, Retries
from tests.fakes import sshd
from tests.ssh.conftest import PATIENT, PROMPT, address, program
from tests.waiting import NEVER, SOON, eventually


def test_nothing_is_connected_before_it_is_needed(server: sshd.Server, connector: Connector) -> None:
    connector.command("echo", "x")
    assert server.users == []
    assert connector.run("echo x", SOON).stdout == b"x\n"
    assert server.users == ["clusterfuchsia"]


def test_c6_five_refused_connections_then_success(server: sshd.Server, connector: Connector) -> None:
    server.refusals = 5
    assert connector.run("echo x", SOON).stdout == b"x\n"


def test_c6_six_refused_connections_are_an_error_with_the_last_cause(server: sshd.Server, connector: Connector) -> None:
    server.refusals = 6
    with pytest.raises(ConnectError, match=r"error connecting ssh: .+; gave up after .+ at attempt 6 of 6") as failure:
        connector.run("echo x", SOON)
    assert failure.value.stage == "banner"
    assert failure.value.hint
    assert connector.run("echo again", SOON).stdout == b"again\n"


def test_the_whole_connect_has_one_limit(server: sshd.Server, key: Path) -> None:
    server.fault = "no banner"
    slow = Connector(address(server, key), Timeouts(banner=NEVER, connect=NEVER), Retries(attempts=99, limit=0.5))
    with pytest.raises(ConnectError):
        slow.connected()


def test_a_pause_does_not_outlast_the_limit(server: sshd.Server, key: Path) -> None:
    server.fault = "close"
    patient = Connector(address(server, key), PATIENT, Retries(pause=NEVER, limit=0.3))
    began = time.monotonic()
    with pytest.raises(ConnectError, match="at attempt 1 of 6"):
        patient.connected()
    assert time.monotonic() - began >= 0.3


def test_a_refused_key_is_not_tried_again(server: sshd.Server, connector: Connector) -> None:
    server.fault = "refuse key"
    with pytest.raises(KeyRefused):
        connector.connected()
    assert len(server.users) == 1


def test_a_wrong_host_key_is_not_tried_again(server: sshd.Server, key: Path) -> None:
    wrong = Connector(Address("127.0.0.1", server.port, "x", str(key), "ssh-ed25519 AAAA"), PATIENT, PROMPT)
    with pytest.raises(WrongServer):
        wrong.connected()
    assert len(server.transports) == 1


def test_a_key_that_cannot_be_read_is_not_tried_again(server: sshd.Server, key: Path) -> None:
    key.write_bytes(b"none")
    with pytest.raises(SettingsError):
        Connector(address(server, key), PATIENT, Retries(pause=NEVER)).connected()


def test_a_key_that_is_gone_tells_of_a_stopped_guest_and_is_not_waited_for(server: sshd.Server, key: Path) -> None:
    connector = Connector(address(server, key), PATIENT, Retries(pause=NEVER))
    assert connector.run("echo x", SOON).stdout == b"x\n"
    connector.close()
    key.unlink()
    with pytest.raises(KeyGone, match="the guest has been stopped") as gone:
        connector.run("echo x", SOON)
    assert (gone.value.fault, gone.value.stage) == ("guest", "key")


def test_it_can_be_used_again_after_close(server: sshd.Server, connector: Connector) -> None:
    for _ in range(3):
        assert connector.run("echo x", SOON).stdout == b"x\n"
        connector.close()
    assert len(server.users) == 3


def test_a_broken_connection_is_made_anew(server: sshd.Server, connector: Connector) -> None:
    connection = connector.connected()
    server.drop()
    eventually(lambda: not connection.alive)
    assert connector.run("echo x", SOON).stdout == b"x\n"


def test_close_ends_the_waiting_of_another_thread(server: sshd.Server, key: Path) -> None:
    server.fault = "close"
    waiting = Connector(address(server, key), PATIENT, Retries(pause=NEVER))
    told: list[str] = []

    def connect() -> None:
        with pytest.raises(ConnectError, match="was closed") as failure:
            waiting.connected()
        told.append(str(failure.value))

    thread = threading.Thread(target=connect)
    thread.start()
    eventually(lambda: server.accepted)
    time.sleep(0.05)
    waiting.close()
    thread.join(SOON)
    assert told


def connector_directory(connector: Connector) -> Path | None:
    return connector.temporary


def test_c3_the_temporary_directory_stays_until_cleanup(
    server: sshd.Server, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    made = Connector(address(server, key), PATIENT, PROMPT, keep_files=True)
    assert connector_directory(made) is None
    made.connected()
    first = Path(str(made.temporary))
    assert (first.parent, first.name[:20], first.stat().st_mode & 0o777) == (tmp_path, "undercoat-ffx-cache-", 0o700)
    made.close()
    made.connected()
    assert made.temporary == first
    (first / "a").mkdir()
    made.cleanup()
    assert not first.exists()
    assert connector_directory(made) is None
    made.cleanup()


def test_a_tmpdir_that_is_not_there_is_told(
    server: sshd.Server, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "no"))
    with pytest.raises(StoreError, match="temporary directory"):
        Connector(address(server, key), PATIENT, PROMPT, keep_files=True).connected()


def test_who_keeps_no_files_gets_no_directory(connector: Connector) -> None:
    connector.connected()
    assert connector.temporary is None


def test_c17_rmdir_removes_what_is_below_and_nothing_else(connector: Connector, root: Path) -> None:
    (root / "a b" / "c" / "d").mkdir(parents=True)
    connector.rmdir("a b/c")
    connector.rmdir("a b/c")
    assert [path.name for path in root.rglob("*")] == ["a b"]


def test_c17_rmdir_on_the_server_of_the_original(server: sshd.Server, connector: Connector, root: Path) -> None:
    server.like_go = True
    (root / "a" / "b").mkdir(parents=True)
    connector.rmdir("a/b")
    assert [path.name for path in root.rglob("*")] == ["a"]


def test_c18_isdir(connector: Connector, root: Path) -> None:
    (root / "d").mkdir()
    (root / "f").touch()
    (root / "l").symlink_to("d")
    assert [connector.isdir(name) for name in ("d", "f", "no", "l", ".")] == [True, False, False, True, True]


@pytest.mark.slow
def test_syslog_comes_while_a_command_runs(server: sshd.Server, connector: Connector, tmp_path: Path) -> None:
    program(server, tmp_path, "log_listener", 'echo "$@"')
    running = connector.command("cat; sleep 1000", shell=True)
    running.start()
    assert connector.syslog(414141) == b"--dump_logs --pid 414141\n"
    assert running.kill()


def test_many_threads_share_one_connection(server: sshd.Server, connector: Connector) -> None:
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(connector.command("echo", str(n)).output(SOON)))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert sorted(results) == [b"%d\n" % n for n in range(8)]
    assert len(server.users) == 1


def test_a_server_that_takes_no_command_is_given_up(server: sshd.Server, connector: Connector) -> None:
    connector.connected()
    server.fault = "silent"
    with pytest.raises(CommandError, match=r"did not end within 0\.\d+ s"):
        connector.run("echo x", 0.3)
