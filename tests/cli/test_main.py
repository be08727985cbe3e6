"""The `topcoat` command, as a program."""

import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Workspace
from tests.images import zbis
from tests.needs import openpty
from tests.waiting import SOON


@pytest.fixture
def running(bundle: Workspace) -> Workspace:
    """A workspace with a scripted guest named i0."""
    assert bundle.luigi("BootInstance").status == 0
    return bundle


def test_instances_lists_what_there_is(running: Workspace) -> None:
    handle = running.instance().live_handle()
    assert handle
    lines = running.topcoat("instances").stdout.decode().splitlines()
    assert lines[0].split() == ["name", "state", "pid", "port", "build", "started"]
    assert lines[1].split()[:5] == ["i0", "running", str(handle.process.pid), "1", "clusterfuzz"]
    listed = json.loads(running.topcoat("instances", "--json").stdout)
    assert listed == {
        "schema": 1,
        "instances": [
            {
                "name": "i0",
                "state": "running",
                "pid": handle.process.pid,
                "port": 1,
                "build": "clusterfuzz",
                "started": handle.started,
                "directory": str(running.instance().directory),
                "halt": None,
            }
        ],
    }


def test_no_instances(workspace: Workspace) -> None:
    outcome = workspace.topcoat("instances")
    assert (outcome.status, outcome.stdout) == (0, b"")
    assert b"boot one: luigi --module tasks BootInstance" in outcome.stderr
    assert json.loads(workspace.topcoat("instances", "--json").stdout)["instances"] == []


def test_stop_says_how_it_went(running: Workspace) -> None:
    assert running.topcoat("stop", "i0").stdout == b"i0: stopped\n"
    assert running.topcoat("stop", "i0").stdout == b"i0: was not running\n"
    assert json.loads(running.topcoat("stop", "--all", "--json").stdout) == {
        "schema": 1,
        "stopped": {"i0": "not running"},
    }


@pytest.mark.parametrize("words", [["stop"], ["stop", "--all", "i0"], ["stop", "nobody"], ["ssh", "nobody", "true"]])
def test_wrong_usage_is_explained(running: Workspace, words: list[str]) -> None:
    outcome = running.topcoat(*words)
    assert outcome.status == 2
    assert b"error: " in outcome.stderr
    assert b"hint: " in outcome.stderr
    assert running.instance().live_handle(), "and nothing was stopped"


def test_an_instance_that_is_not_running_cannot_be_entered(running: Workspace) -> None:
    running.topcoat("stop", "i0")
    outcome = running.topcoat("ssh", "i0", "--", "true")
    assert outcome.status == 2
    assert b"i0 is not running (stopped)\n  hint: boot it: luigi" in outcome.stderr


def test_logs_are_passed_on_as_they_are_and_outlive_the_guest(running: Workspace) -> None:
    log = running.topcoat("logs", "i0").stdout
    assert log.startswith(b"\x1b[2J[00000.000]")
    assert log.endswith(b"{{{reset}}}\r\n")
    running.topcoat("stop", "i0")
    assert running.topcoat("logs", "i0").stdout == log


def test_logs_on_a_terminal_are_without_the_guest_s_escapes(running: Workspace) -> None:
    main, terminal = openpty()
    command = running.command("topcoat", "logs", "i0")
    subprocess.run(command, cwd=running.directory, env=running.environment, stdout=terminal, check=True)
    os.close(terminal)
    shown = os.read(main, 65536)
    os.close(main)
    assert b"welcome to Zircon" in shown
    assert b"\x1b" not in shown


def test_following_the_logs_ends_with_the_guest(running: Workspace) -> None:
    command = running.command("topcoat", "logs", "-f", "i0")
    with subprocess.Popen(command, cwd=running.directory, env=running.environment, stdout=subprocess.PIPE) as follower:
        assert follower.stdout
        assert b"welcome" in follower.stdout.readline() + follower.stdout.readline()
        with running.instance().serial_log.open("ab") as log:
            log.write(b"later\r\n")
        rest = iter(follower.stdout.readline, b"")
        assert b"later\r\n" in rest
        assert follower.poll() is None
        running.topcoat("stop", "i0")
        assert follower.wait(SOON) == 0


def test_following_the_logs_of_a_silent_guest_ends_with_the_reader(running: Workspace) -> None:
    command = running.command("topcoat", "logs", "-f", "i0")
    with subprocess.Popen(
        command, cwd=running.directory, env=running.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as follower:
        assert follower.stdout
        assert follower.stderr
        try:
            assert follower.stdout.readline()
            follower.stdout.close()
            assert follower.wait(SOON) == 141
            assert follower.stderr.read() == b""
        finally:
            follower.kill()


def test_no_log_yet(running: Workspace) -> None:
    (running.store.instances / "i1").mkdir()
    outcome = running.topcoat("logs", "i1")
    assert outcome.status == 2
    assert b"i1 has no serial log yet\n  hint: boot it: " in outcome.stderr


def test_argv_is_the_command_line_that_a_boot_has(bundle: Workspace) -> None:
    before = shlex.split(bundle.topcoat("argv", "i0").stdout.decode())
    assert bundle.files() == []
    assert bundle.luigi("BootInstance").status == 0
    after = json.loads(bundle.topcoat("argv", "i0", "--json").stdout)["argv"]
    handle = bundle.instance().live_handle()
    assert handle
    assert tuple(after) == handle.argv
    at = before.index("-append") + 1
    before[before.index("-uuid") + 1] = after[after.index("-uuid") + 1]
    assert before[:at] == after[:at]
    assert before[at].split("entropy")[0] == after[at].split("entropy")[0]


def test_argv_of_a_build_that_lacks_nothing_but_its_architecture(workspace: Workspace) -> None:
    outcome = workspace.run("topcoat", "argv", "i0", environment={"FUCHSIA_DIR": "/nonexistent"})
    assert outcome.status == 20
    assert b"hint: run fx set there" in outcome.stderr


def test_output_into_a_closed_pipe_is_no_error(running: Workspace) -> None:
    running.instance().serial_log.write_bytes(b"line\n" * 200_000)
    command = f"{shlex.join(running.command('topcoat', 'logs', 'i0'))} | head -n 1"
    done = subprocess.run(
        command, shell=True, cwd=running.directory, env=running.environment, capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"line\n", b"")


def test_instances_imports_nothing_heavy(running: Workspace) -> None:
    program = "import sys; from pipeline.cli.main import main; main(['instances']); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=running.directory, env=running.environment, capture_output=True, check=True
    )
    heavy = {"luigi", "paramiko", "sh", "asyncio", "qemu", "cryptography", "psutil", "rich"}
    assert not heavy & set(done.stdout.decode().split())


class TestInTheGuest:
    """`topcoat ssh` with the real Linux guest."""

    def test_stdin_status_and_binary_output_pass_through(self, booted: Workspace) -> None:
        data = os.urandom(300_000)
        outcome = booted.topcoat("ssh", "i0", "--", "cat; echo err >&2; exit 7", stdin=data)
        assert (outcome.status, outcome.stdout, outcome.stderr) == (7, data, b"err\n")
        words = booted.topcoat("ssh", "i0", "--", "printf", "%s|", "a b", "$HOME", "*")
        assert words.stdout == b"a b|$HOME|*|"
        assert booted.topcoat("ssh", "i0", "ls", "-d", "/data").stdout == b"/data\n"
        assert booted.topcoat("ssh", "i0", "--", "kill -9 $$").status == 255
        assert booted.topcoat("ssh", "i0", "--", "no-such-program").status == 127
        assert booted.topcoat("ssh", "i0", "--", "cat /proc/cmdline").stdout.decode().count("topcoat.boot=") == 1

    def test_output_that_nobody_takes(self, booted: Workspace) -> None:
        """It is not the guest's fault."""
        ends = {
            ">/dev/full": (30, "error: stdout cannot be written: No space left on device"),
            ">&-": (30, "error: stdout cannot be written: Bad file descriptor"),
            "| head -n 1": (141, ""),
            "2>&- | head -n 1": (141, ""),
        }
        for command in ("ssh i0 -- yes", "console i0"):
            for streams, end in ends.items():
                if command == "console i0" and streams == ">&-":
                    continue  # it only listens then
                done = subprocess.run(
                    ["bash", "-c", f"yes | topcoat {command} {streams}; exit ${{PIPESTATUS[1]}}"],
                    cwd=booted.directory,
                    env=booted.environment,
                    capture_output=True,
                    timeout=200,
                    check=False,
                )
                said = done.stderr.decode().removeprefix("connected to i0\n").partition("\n")[0]
                assert (done.returncode, said) == end, (command, streams)

    def test_a_terminal_or_nothing_as_stdin(self, booted: Workspace) -> None:
        """On a terminal a thread still waits for a key when the command has ended."""
        main, terminal = openpty()
        try:
            for stdin in ("<&0", "<&-"):
                line = shlex.join(booted.command("topcoat", "ssh", "i0", "--", "echo", "done")) + stdin
                done = subprocess.run(
                    ["sh", "-c", line],
                    stdin=terminal,
                    capture_output=True,
                    env=booted.environment,
                    cwd=booted.directory,
                    check=False,
                )
                assert (done.returncode, done.stdout, done.stderr) == (0, b"done\n", b"")
        finally:
            os.close(main)
            os.close(terminal)

    def test_the_guest_serves_sftp(self, booted: Workspace) -> None:
        import paramiko

        handle = booted.instance().live_handle()
        assert handle
        with paramiko.Transport((handle.ssh.host, handle.ssh.port)) as transport:
            transport.connect(username=handle.ssh.user, pkey=paramiko.PKey.from_path(handle.ssh.key))
            with paramiko.SFTPClient.from_transport(transport) as sftp:  # type: ignore[union-attr]
                assert set(sftp.listdir("/data")) == {".ssh", "ssh", "fuzz"}

    def test_a_guest_is_entered_with_the_key_of_its_boot_whatever_becomes_of_that_of_the_store(
        self, demo: Workspace
    ) -> None:
        assert demo.luigi("BootInstance").status == 0
        instance = demo.instance()
        handle = instance.live_handle()
        assert handle
        assert handle.ssh.key == str(instance.key)
        assert stat.S_IMODE(instance.key.stat().st_mode) == 0o600
        before = (demo.store.keys / "sshid").read_bytes()
        assert demo.luigi("SSHKeyPair", "--type", "rsa").status == 0
        assert demo.topcoat("ssh", "i0", "--", "echo", "in").stdout == b"in\n"
        assert demo.topcoat("force", "SSHKeyPair").status == 0
        assert demo.luigi("InitrdWithKey").status == 0
        assert demo.luigi("ExtendedBlk", "--length", "2G").status == 0
        assert (demo.store.keys / "sshid").read_bytes() != before
        assert demo.topcoat("ssh", "i0", "--", "head", "-c", "8", "/dev/vda").stdout == b"FVM PART"
        assert demo.topcoat("clean", "--yes").status == 0
        shutil.rmtree(demo.store.keys)
        assert demo.topcoat("ssh", "i0", "--", "echo", "in").stdout == b"in\n"
        assert demo.topcoat("stop", "i0").status == 0
        assert not instance.key.exists()

    def test_a_login_becomes_openssh(self, booted: Workspace, tmp_path: Path) -> None:
        """With a scripted ssh in PATH that shows what it was given."""
        handle = booted.instance().live_handle()
        assert handle
        (tmp_path / "ssh").write_text('#!/bin/sh\nprintf "%s\\n" "$@" && pwd && ls sshid known_hosts\n')
        (tmp_path / "ssh").chmod(0o755)
        path = {"PATH": f"{tmp_path}:{booted.environment['PATH']}"}
        words = booted.run("topcoat", "ssh", "i0", environment=path).stdout.decode().splitlines()
        *words, user, directory, known_hosts, key = words
        assert (user, directory) == ("clusterfuchsia@127.0.0.1", str(booted.instance().directory))
        assert {f"UserKnownHostsFile={known_hosts}", key} <= set(words)
        assert "/" not in "".join(words), "what is in a path, such as %, can mean something to OpenSSH"
        assert "StrictHostKeyChecking=yes" in words
        assert words[:2] == ["-F", "none"]
        assert booted.instance().known_hosts.read_text() == f"[127.0.0.1]:{handle.ssh.port} {handle.ssh.host_key}\n"

    @pytest.mark.skipif(not shutil.which("ssh"), reason="OpenSSH's client is not installed")
    def test_a_guest_gets_nothing_of_its_users_by_a_login(self, booted: Workspace, tmp_path: Path) -> None:
        """No agent, no password, no variables: it is hostile. What counts is what the real client makes of it."""
        secrets = {"LANG": "C.UTF-8", "LC_SECRET": "hidden", "SSH_AUTH_SOCK": f"{tmp_path}/agent", "DISPLAY": ":1"}
        done = booted.run("topcoat", "ssh", "i0", stdin=b"env; echo $((6 * 7))\n", environment=secrets)
        assert done.stdout.splitlines()[-1] == b"42", done.text
        assert not [
            line for line in done.stdout.splitlines() if line.startswith((b"LC_", b"LANG", b"SSH_AUTH", b"DISP"))
        ]
        (tmp_path / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -G "$@"\n')
        (tmp_path / "ssh").chmod(0o755)
        path = {"PATH": f"{tmp_path}:{booted.environment['PATH']}"}
        chosen = booted.run("topcoat", "ssh", "i0", environment=path).stdout.decode().splitlines()
        wanted = {
            "forwardagent no",
            "forwardx11 no",
            "identityagent none",
            "permitlocalcommand no",
            "preferredauthentications publickey",
            "updatehostkeys false",
            "controlmaster false",
        }
        assert wanted <= set(chosen)
        told = ("sendenv ", "setenv ", "localcommand ", "proxycommand ", "remoteforward ", "localforward ")
        assert not [line for line in chosen if line.startswith(told)]


@pytest.mark.parametrize(
    "words",
    [
        ["stop", "", "--all"],
        ["ssh", "", "--", "true"],
        ["boot", ""],
        ["why", "BootInstance", "--name", ""],
        ["force", "ExtendedBlk", "--length="],
        ["campaign", "status", ""],
        ["campaign", "check", ""],
        ["corpus", "list", ""],
        ["corpus", "export", "p/f", ""],
        ["corpus", "import", "p/f", "there", ""],
        ["image", ""],
    ],
)
def test_an_empty_word_is_refused(running: Workspace, words: list[str]) -> None:
    outcome = running.topcoat(*words)
    assert outcome.status == 2, outcome.text
    assert "has an empty value\n  hint: give it one, or leave it out" in outcome.text
    assert running.instance().live_handle()


def test_the_image_tools_are_commands_too(workspace: Workspace) -> None:
    (workspace.directory / "key").write_text("ssh-ed25519 AAAA\n")
    (workspace.directory / "in.zbi").write_bytes(zbis.image({"bin/init": b"#!"}))
    (workspace.directory / "data").write_bytes(b"content")
    made = workspace.topcoat("zbi", "-o", "out.zbi", "in.zbi", "-e", "data/key=key")
    assert (made.status, made.text) == (0, "")
    assert "data/key" in workspace.topcoat("zbi", "-tv", "out.zbi").text
    assert workspace.topcoat("fvm", "fvm.blk", "create", "--slice", "32K", "--partition", "data=data").status == 0
    assert workspace.topcoat("fvm", "fvm.blk", "extend", "--length", "8M").status == 0
    assert (workspace.topcoat("fvm", "fvm.blk", "check").text, workspace.topcoat("image", "fvm.blk").status) == ("", 0)
    assert "Usage: zbi" in workspace.topcoat("zbi", "--help").text
    assert "usage: fvm" in workspace.topcoat("fvm", "--help").text
    refused = workspace.topcoat("zbi", "-o", "out.zbi", "none.zbi")
    assert (refused.status, refused.text.splitlines()[0]) == (1, "zbi: none.zbi: No such file or directory")
