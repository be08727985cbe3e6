"""The connector against the real Linux guest: dropbear, busybox and OpenSSH's SFTP server."""

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from pipeline.errors import CommandError, CommandExited, CommandTimeout, NoMatch
from pipeline.settings import TCG_SCALE, Timeouts
from pipeline.ssh.connector import Connector
from pipeline.ssh.facilities import Facilities
from pipeline.ssh.landing import TransferLimits
from pipeline.vm.instance import Instance
from pipeline.vm.qemu.stopping import stop
from tests.conftest import Workspace
from tests.ssh.conftest import PROMPT
from tests.waiting import SOON, meanwhile

pytestmark = pytest.mark.timeout(300)  # without KVM, on a host with other work


@contextmanager
def connected(workspace: Workspace) -> Iterator[Connector]:
    """A connector to the guest of a workspace."""
    handle = workspace.instance().live_handle()
    assert handle
    with closing(Connector(handle.ssh, Timeouts().scaled(TCG_SCALE), PROMPT, TransferLimits(stall=SOON))) as connector:
        yield connector


@pytest.fixture
def guest(booted: Workspace) -> Iterator[Connector]:
    with connected(booted) as connector:
        yield connector


def hostile(directory: Path) -> dict[bytes, bytes]:
    """Files with names of all kinds and content of all sizes, and an empty directory."""
    chance = random.Random(7)
    files = {
        name: chance.randbytes(size)
        for size, name in enumerate(
            [
                b"plain", b".dot", b"with blank", b"new\nline", b"not \xff\xfe UTF-8", b"-rf", b"'\"$(id)`;&|<>*?[\\",
                b"\xc3\xa4", b"x" * 255, b"deep/er/file", b"deep/-C", b"tab\t", b"\x1b[31m", b"@list", b"#", b"~",
            ]
        )
    }  # fmt: skip
    files |= {b"large": chance.randbytes(3_000_000), b"block": chance.randbytes(32768), b"two": bytes(65536)}
    for name, data in files.items():
        path = directory / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (directory / "empty" / "too").mkdir(parents=True)
    return files


def contents(directory: Path) -> dict[bytes, bytes | None]:
    found = directory.rglob("*")
    return {os.fsencode(path.relative_to(directory)): None if path.is_dir() else path.read_bytes() for path in found}


def test_commands(guest: Connector) -> None:
    assert guest.command("echo", "a  b", "*", "$HOME").output(SOON) == b"a  b * $HOME\n"
    assert guest.command("echo", "/etc/pass*", "|", "cat", shell=True).output(SOON) == b"/etc/passwd\n"
    with pytest.raises(CommandExited) as failure:
        guest.command("no-such-program").run(SOON)
    assert (failure.value.status, failure.value.stderr) == (127, b"sh: no-such-program: not found\n")
    command = guest.command("head", "-c", "5000000", "/dev/urandom")
    with command.stdout() as stdout:
        command.start()
        assert len(stdout.read()) == 5_000_000
        command.wait(SOON)


def test_a_command_may_close_its_output_long_before_it_ends(guest: Connector) -> None:
    with pytest.raises(CommandExited) as failure:
        guest.command("exec >&- 2>&-; sleep 11; exit 7", shell=True).run(SOON)
    assert failure.value.status == 7
    with pytest.raises(CommandTimeout, match="and was killed"):
        guest.command("exec >&- 2>&-; sleep 1234", shell=True).run(2)
    assert running(guest, "sleep 1234") == b""


def running(guest: Connector, word: str) -> bytes:
    """The processes with this word that are more than zombies."""
    line = f"for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done 2>/dev/null | grep '[{word[0]}]{word[1:]}'"
    return guest.command(f"{line}; true", shell=True).output(SOON)


ENDLESS = ["sleep 1234", "sleep 1234 & sleep 1234", "setsid sleep 1234; :", "trap '' TERM HUP; (sleep 1234; :); :"]


def test_the_limit_really_ends_what_runs_in_the_guest(guest: Connector) -> None:
    """Often over one connection: dropbear does not take a new session well while a command ends."""
    for line in ENDLESS * 2:
        with pytest.raises(CommandTimeout, match="and was killed") as failure:
            guest.command(line, shell=True).run(2)
        assert failure.value.ended
        assert running(guest, "sleep 1234") == b""
    assert guest.isdir("/tmp")
    assert_a_stream_closed_early_ends_it(guest)


def assert_a_stream_closed_early_ends_it(guest: Connector) -> None:
    command = guest.command("while :; do echo filler; done", shell=True)
    command.start()
    with command.stdout() as stdout:
        assert stdout.readline() == b"filler\n"
        assert guest.command("echo", "beside it").output(SOON) == b"beside it\n"
    assert running(guest, "filler") == b""


@pytest.fixture(params=["tar", "sftp"])
def guest_one_way(request: pytest.FixtureRequest, guest: Connector, monkeypatch: pytest.MonkeyPatch) -> Connector:
    if request.param == "sftp":
        monkeypatch.setattr(guest.connected(), "facilities", lambda _: Facilities(environ=True))
    return guest


def test_files_with_names_of_all_kinds_and_many(guest_one_way: Connector, tmp_path: Path) -> None:
    source, back, again = (tmp_path / name for name in ("source", "back", "again"))
    for directory in (source, back, again):
        directory.mkdir()
    hostile(source)
    guest_one_way.put(str(source), "/tmp/to/there")
    guest_one_way.put(f"{source}/*", "/tmp/to/there too")
    guest_one_way.get("/tmp/to/there/source", back)
    assert contents(back / "source") == contents(source)
    guest_one_way.get("/tmp/to/there too/*", again)
    assert contents(again) == contents(source)
    shutil.rmtree(again / "deep")
    guest_one_way.get("/tmp/to/there/source/d*", again)
    assert contents(again) == contents(source)
    guest_one_way.rmdir("/tmp/to/there")
    assert guest_one_way.isdir("/tmp/to")
    with pytest.raises(NoMatch):
        guest_one_way.get("/tmp/to/there/*", again)
    assert_two_thousand_files_arrive(guest_one_way, tmp_path)
    for made in ("/tmp/to", "data/corpus/c"):
        guest_one_way.rmdir(made)


def assert_two_thousand_files_arrive(guest: Connector, tmp_path: Path) -> None:
    source, back = tmp_path / "c", tmp_path / "all back"
    source.mkdir()
    back.mkdir()
    for number in range(2000):
        (source / f"{number:040x}").write_bytes(os.urandom(number % 700))
    guest.put(str(source), "data/corpus")
    guest.get("data/corpus/c/*", back)
    assert contents(back) == contents(source)


def assert_a_full_guest_says_so(guest: Connector, tmp_path: Path) -> None:
    source = tmp_path / "c"
    source.mkdir()
    for number in range(8):
        (source / str(number)).write_bytes(bytes(1_000_000))
    guest.run("mkdir /tmp/small && mount -t tmpfs -o size=1m none /tmp/small", SOON)
    with pytest.raises(CommandExited, match="No space left on device"):
        guest.put(str(source), "/tmp/small")


def test_many_sessions_and_a_guest_that_ends_in_the_middle(demo: Workspace, tmp_path: Path) -> None:
    assert demo.luigi("BootInstance").status == 0
    with connected(demo) as guest:
        assert_many_sessions_work(guest)
        assert_a_full_guest_says_so(guest, tmp_path)
        assert_its_end_is_told(demo.instance(), guest, tmp_path)


def assert_many_sessions_work(guest: Connector) -> None:
    for number in range(20):
        assert guest.isdir("/tmp")
        assert guest.command("echo", str(number)).output(SOON) == b"%d\n" % number
        assert not guest.isdir("/etc/passwd")


def assert_its_end_is_told(instance: Instance, guest: Connector, tmp_path: Path) -> None:
    guest.run("dd if=/dev/zero of=/tmp/large bs=1M count=300", 60)

    def come() -> bool:
        return any(tmp_path.iterdir())

    with pytest.raises(CommandError, match="did not run to its end"), meanwhile(come, lambda: stop(instance, 3)):
        guest.get("/tmp/large", tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".topcoat", "large"))] == []
