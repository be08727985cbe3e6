"""Commands as process objects."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import paramiko
import pytest

from pipeline.errors import CommandError, CommandExited, CommandTimeout
from pipeline.host.deadline import Deadline
from pipeline.settings import Timeouts
from pipeline.ssh import connection as connections
from pipeline.ssh.connection import Connection, connect
from pipeline.ssh.connector import Connector
from pipeline.ssh.facilities import Facilities
from pipeline.ssh.session import Session, Vanished
from tests.conftest import processes_with
from tests.fakes import sshd
from tests.ssh.conftest import address
from tests.waiting import SOON, eventually, meanwhile

OPENED = paramiko.Transport._parse_channel_open_success  # type: ignore[attr-defined]  # noqa: SLF001


def test_c4_words_arrive_as_they_are(connector: Connector) -> None:
    assert connector.command("echo", "a  b", "*", "$HOME", "it's", "\udcff").output(SOON) == b"a  b * $HOME it's \xff\n"


def test_c4_on_the_server_of_the_original(server: sshd.Server, connector: Connector) -> None:
    server.like_go = True
    assert connector.command("echo", "a  b").output(SOON) == b"a  b\n"
    assert server.commands[-1] == "echo 'a  b'"


def test_with_shell_the_guests_shell_reads_the_line(connector: Connector, root: Path) -> None:
    for name in ("a1", "a2", "b"):
        (root / name).touch()
    assert connector.command("echo", "a*", "|", "cat", shell=True).output(SOON) == b"a1 a2\n"


@pytest.mark.parametrize("like_go", [False, True])
def test_c5_an_unknown_command_exits_with_127(server: sshd.Server, connector: Connector, like_go: bool) -> None:
    server.like_go = like_go
    with pytest.raises(CommandExited, match=r"'no-such-program x' exited with error: 127") as failure:
        connector.command("no-such-program", "x").run(SOON)
    assert (failure.value.status, failure.value.command) == (127, "no-such-program x")
    assert failure.value.hint


def test_the_error_has_the_end_of_stderr_fit_to_print(connector: Connector) -> None:
    line = "head -c 300000 /dev/zero | tr '\\0' x >&2; printf '\\n\\033[31mred\\377' >&2; exit 3"
    with pytest.raises(CommandExited) as failure:
        connector.command(line, shell=True).run(SOON)
    assert failure.value.status == 3
    assert len(failure.value.stderr) == 64 << 10
    assert failure.value.stderr.endswith(b"red\xff")
    assert failure.value.detail.splitlines()[-1] == "red\N{REPLACEMENT CHARACTER}"
    assert "\033" not in str(failure.value)


def test_output_has_both_streams_in_their_order(connector: Connector) -> None:
    line = "for i in 1 2 3; do echo out $i; echo err $i >&2; done"
    assert connector.command(line, shell=True).output(SOON) == b"out 1\nerr 1\nout 2\nerr 2\nout 3\nerr 3\n"


def test_output_of_a_command_that_fails_is_in_the_error(connector: Connector) -> None:
    with pytest.raises(CommandExited, match=r"exited with error: 4 \(so it is\)") as failure:
        connector.command("echo so it is; exit 4", shell=True).output(SOON)
    assert failure.value.stderr == b"so it is\n"


@pytest.mark.slow
def test_endless_output_is_ended(connector: Connector) -> None:
    with pytest.raises(CommandError, match="wrote more than 100000 bytes"):
        connector.command("yes", "mark-endless").output(10, most=100_000)
    assert processes_with(b"mark-endless") == []


def test_endless_output_that_nobody_wants_takes_no_memory(connector: Connector) -> None:
    command = connector.command("yes", "mark-unwanted")
    with pytest.raises(CommandTimeout) as failure:
        command.run(0.5)
    assert failure.value.ended
    assert processes_with(b"mark-unwanted") == []


def know(connector: Connector) -> None:
    """Connect, and find out what the guest has: on a busy host that takes longer than some limits here."""
    connector.connected().facilities(Deadline(SOON))


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "sleep 1001",
        "sh -c 'sleep 1002; :'; :",
        "sleep 1003 & sleep 1003",
        "setsid sleep 1004; :",
        "trap '' TERM HUP INT; while :; do sleep 1005; done",
        "(while :; do sleep 1006 & sleep 0.01; done)",
    ],
)
def test_at_its_limit_a_command_and_all_that_it_started_is_ended(connector: Connector, line: str) -> None:
    know(connector)
    with pytest.raises(CommandTimeout, match=r"did not end within 1 s, and was killed$") as failure:
        connector.command(line, shell=True).run(1)
    assert failure.value.ended
    assert processes_with(b"sleep\x00" + line.partition("sleep ")[2][:4].encode()) == []


@pytest.mark.slow
def test_a_command_that_has_closed_its_output_has_its_limit_all_the_same(connector: Connector) -> None:
    know(connector)
    with pytest.raises(CommandTimeout, match=r"did not end within 1 s, and was killed$") as failure:
        connector.command("exec >&- 2>&-; sleep 1013; :", shell=True).run(1)
    assert failure.value.ended
    assert processes_with(b"sleep\x001013") == []


@pytest.mark.parametrize("losses", [1, 2])
def test_a_connection_that_is_lost_before_anything_was_run(
    server: sshd.Server, connector: Connector, losses: int
) -> None:
    """Once, it is made anew: dropbear has been seen to end one in the moment in which another command ended."""
    know(connector)
    server.losses = losses
    if losses == 1:
        assert connector.command("echo", "here").output(SOON) == b"here\n"
        assert server.accepted == 2
    else:
        with pytest.raises(CommandError, match="did not run to its end") as failure:
            connector.command("echo", "here").output(SOON)
        assert not isinstance(failure.value, CommandTimeout)


def test_a_connection_that_was_closed_is_not_made_anew(
    server: sshd.Server, connector: Connector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever closes it ends what is under way, also what is just about to begin."""
    connection = connector.connected()
    know(connector)

    def closed(*_: object) -> Session:
        connector.close()
        raise Vanished("the connection is closed", hint="x")

    monkeypatch.setattr(connection, "session", closed)
    with pytest.raises(Vanished):
        connector.command("echo", "here").output(SOON)
    assert (server.accepted, "echo here" in server.commands) == (1, False)


@pytest.mark.slow
def test_the_limit_begins_anew_with_the_connection(
    server: sshd.Server, connector: Connector, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(connector)
    server.losses = 1
    real = connector.connected

    def slow() -> Connection:
        time.sleep(1.5)
        return real()

    command = connector.command("echo", "here")
    monkeypatch.setattr(connector, "connected", slow)
    assert command.output(1.0) == b"here\n"


def test_without_proc_nobody_knows_and_that_is_told(connector: Connector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connector.connected(), "facilities", lambda _: Facilities())
    with pytest.raises(CommandTimeout, match="nobody knows whether it still runs") as failure:
        connector.command("sleep", "2").run(0.3)
    assert not failure.value.ended


def test_a_command_can_be_killed_and_does_not_mind_a_second_time(connector: Connector) -> None:
    command = connector.command("sleep", "1008")
    command.start()
    assert command.kill()
    assert processes_with(b"sleep\x001008") == []
    command.kill()
    with pytest.raises(CommandError, match="ended by a signal, or the connection broke"):
        command.wait(SOON)


def test_kill_after_a_normal_end_has_no_effect(server: sshd.Server, connector: Connector) -> None:
    command = connector.command("echo", "x")
    command.run(SOON)
    told = list(server.commands)
    assert command.kill()
    assert server.commands == told


def test_streams_are_read_as_they_come(connector: Connector) -> None:
    command = connector.command("echo one; sleep 0.2; echo two; echo err >&2; exit 5", shell=True)
    command.start()
    stdout, stderr = command.stdout(), command.stderr()
    assert stdout.readline() == b"one\n"
    assert stdout.read() == b"two\n"
    assert stderr.read() == b"err\n"
    with pytest.raises(CommandExited, match=r"exited with error: 5$"):
        command.wait(SOON)


def test_stderr_that_nobody_takes_does_not_stop_stdout(connector: Connector) -> None:
    command = connector.command("head -c 6000000 /dev/zero >&2; echo out; exit 6", shell=True)
    with command.stdout() as stdout:
        command.start()
        assert stdout.read() == b"out\n"
        with pytest.raises(CommandExited) as failure:
            command.wait(SOON)
    assert failure.value.stderr == bytes(64 << 10)


@pytest.mark.slow
def test_what_nobody_reads_stays_in_the_guest(connector: Connector, root: Path) -> None:
    command = connector.command("dd if=/dev/zero bs=1M count=100 status=none; echo all >written", shell=True)
    stdout = command.stdout()
    command.start()
    time.sleep(0.5)
    assert not (root / "written").exists(), "the window is full"
    assert command.session.buffered <= 4 << 20
    assert len(stdout.read()) == 100 << 20
    command.wait(SOON)
    assert (root / "written").exists()


def test_two_threads_read_the_two_streams(connector: Connector) -> None:
    command = connector.command("head -c 9000000 /dev/zero >&2 & head -c 9000000 /dev/zero; wait", shell=True)
    lengths = {}
    readers = {
        name: threading.Thread(target=lambda name=name, stream=stream: lengths.update({name: len(stream.read())}))
        for name, stream in {"out": command.stdout(), "err": command.stderr()}.items()
    }
    command.start()
    for reader in readers.values():
        reader.start()
    command.wait(SOON)
    for reader in readers.values():
        reader.join(SOON)
    assert lengths == {"out": 9_000_000, "err": 9_000_000}


@pytest.mark.slow
def test_closing_a_stream_early_ends_the_command(connector: Connector) -> None:
    command = connector.command("echo x; exec sleep 1009", shell=True)
    command.start()
    with command.stdout() as stdout:
        assert stdout.readline() == b"x\n"
    assert processes_with(b"sleep\x001009") == []


def test_a_stream_that_is_forgotten_changes_nothing(connector: Connector, root: Path) -> None:
    command = connector.command("sleep 0.3; touch done", shell=True)
    command.start()
    del command
    eventually((root / "done").exists)


def test_a_connection_that_breaks_ends_the_wait(server: sshd.Server, connector: Connector) -> None:
    command = connector.command("sleep", "1012")
    command.start()
    server.drop()
    with pytest.raises(CommandError, match="ended by a signal, or the connection broke"):
        command.wait(SOON)


def test_a_command_ended_by_a_signal_is_no_success(connector: Connector) -> None:
    with pytest.raises(CommandError, match="ended by a signal, or the connection broke"):
        connector.command("kill -9 $$", shell=True).run(SOON)


@pytest.mark.slow
def test_ctrl_c_ends_the_command(connector: Connector) -> None:
    def runs() -> bool:
        return bool(processes_with(b"sleep\x001010"))

    with pytest.raises(KeyboardInterrupt), meanwhile(runs, lambda: os.kill(os.getpid(), signal.SIGINT)):
        connector.command("sleep", "1010").run(SOON)
    assert processes_with(b"sleep\x001010") == []


def test_a_command_has_no_input(connector: Connector) -> None:
    assert connector.command("cat").output(SOON) == b""


def test_a_command_that_is_given_input(connector: Connector, root: Path) -> None:
    command = connector.command("cat > got", shell=True)
    command.start(stdin=True)
    command.write(b"x" * 3_000_000, Deadline(SOON))
    command.end_input()
    command.wait(SOON)
    assert (root / "got").stat().st_size == 3_000_000


def test_a_command_that_takes_no_more_input_says_why(connector: Connector) -> None:
    command = connector.command("echo no more >&2; exit 7", shell=True)
    command.start(stdin=True)
    with pytest.raises(CommandExited, match=r"7 \(no more\)"):
        command.write(bytes(50_000_000), Deadline(SOON))


def test_a_command_that_never_reads_its_input_is_ended(connector: Connector) -> None:
    command = connector.command("sleep", "1011")
    command.start(stdin=True)
    with pytest.raises(CommandTimeout):
        command.write(bytes(50_000_000), Deadline(0.5))
    assert processes_with(b"sleep\x001011") == []


def test_a_server_that_never_answers_is_given_up_at_the_limit(server: sshd.Server, connector: Connector) -> None:
    connector.command("true").run(SOON)
    server.fault = "silent"
    with pytest.raises(CommandTimeout, match=r"'sleep 5' in the guest did not end within 0\.3 s; nobody knows"):
        connector.command("sleep", "5").run(0.3)


def test_a_server_that_does_not_say_how_a_command_ended(server: sshd.Server, connector: Connector) -> None:
    server.fault = "no status"
    with pytest.raises(CommandError, match="did not run to its end"):
        connector.command("true").run(SOON)


def test_a_server_that_refuses_commands(server: sshd.Server, connector: Connector) -> None:
    server.fault = "no exec"
    with pytest.raises(CommandError, match="refuses it"):
        connector.command("true").run(SOON)


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_a_session_that_ends_before_it_begins_is_asked_for_again(
    server: sshd.Server, connector: Connector, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """As dropbear does while another command ends. If the opener is late, it has ended before it is seen to be open."""
    if late:
        monkeypatch.setattr(paramiko.Transport, "_parse_channel_open_success", opened_late)
    connector.command("true").run(SOON)
    server.vanishing = 4
    assert connector.command("echo", "x").output(SOON) == b"x\n"
    assert server.vanishing == 0
    assert server.accepted == 1


def test_a_session_that_is_closed_before_anything_was_asked_for_is_opened_again(server: sshd.Server, key: Path) -> None:
    prepared: list[Session] = []

    def prepare(session: Session) -> None:
        prepared.append(session)
        eventually(lambda: len(prepared) > 1 or session.ended)

    with connect(address(server, key), Timeouts(), 5) as connection:
        server.vanishing, server.without_eof = 1, True
        session = connection.session("echo", "exec", "echo x", Deadline(SOON), prepare)
        assert session.read("stdout", Deadline(SOON)) == b"x\n"
        session.close()
    assert (len(prepared), server.commands[-1]) == (2, "echo x")


def opened_late(transport: Any, message: paramiko.Message) -> None:
    """Let the opener of a channel know a while after the message, and maybe later ones, came."""
    channel = message.get_int()
    message.rewind()
    told = transport.channel_events[channel]
    transport.channel_events[channel] = threading.Event()
    OPENED(transport, message)
    threading.Timer(0.2, told.set).start()


def test_sessions_that_never_begin_are_asked_for_a_few_times(
    server: sshd.Server, connector: Connector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_PAUSES", (0.0, 0.01))
    connector.command("true").run(SOON)
    server.vanishing = 100
    with pytest.raises(CommandError, match="did not run to its end"):
        connector.command("true").run(SOON)
    assert 90 < server.vanishing <= 97  # whatever may run all the same is to be killed too


def test_a_server_that_does_not_mind_the_window_is_cut_off(server: sshd.Server, connector: Connector) -> None:
    connector.command("true").run(SOON)
    server.fault = "no window"
    command = connector.command("yes")
    stdout = command.stdout()
    command.start()
    eventually(lambda: not server.transports[-1].is_active())
    with pytest.raises(CommandError, match="sends more than it was allowed to"):
        stdout.read1(100)
    command.kill()
