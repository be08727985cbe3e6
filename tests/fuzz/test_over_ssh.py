"""Fuzzers over a real SSH connection, to a server on this host."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.builds import ssh_keys
from pipeline.errors import FuzzerError, OutputLost
from pipeline.fuzz.fuzzer import Fuzzer
from pipeline.fuzz.styles import FuzzCtl, Linux, Style
from pipeline.fuzz.targets import FuzzTarget
from pipeline.ssh.address import Address
from pipeline.ssh.connector import Connector
from tests.fakes import sshd
from tests.fuzz.fakes import FAKES, SYMBOLIZER, Output
from tests.fuzz.test_run import Closed
from tests.ssh.conftest import PATIENT
from tests.waiting import SOON

TARGET = FuzzTarget("foo", "bar")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[sshd.Server]:
    private, public = ssh_keys.generate("ed25519")
    (tmp_path / "key").write_bytes(private)
    with sshd.running(public.decode().strip(), tmp_path) as running:
        running.programs = tmp_path / "programs"
        running.programs.mkdir()
        program(running, "log_listener", 'echo "log of $3: {{{0x41}}}"')
        yield running


@pytest.fixture
def connector(server: sshd.Server, tmp_path: Path) -> Iterator[Connector]:
    address = Address("127.0.0.1", server.port, "clusterfuchsia", str(tmp_path / "key"), server.host_key_line)
    made = Connector(address, PATIENT)
    yield made
    made.close()
    for transport in server.transports:
        transport.join(SOON)


def program(server: sshd.Server, name: str, script: str) -> None:
    assert server.programs
    (server.programs / name).write_text(f"#!/bin/sh\n{script}\n")
    (server.programs / name).chmod(0o755)


def fuzzer(style: Style, root: Path, script: str) -> Fuzzer:
    path = root / "foo/bar/pkg/bar"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return Fuzzer(TARGET, style, SYMBOLIZER)


def linux(root: Path, script: str) -> Fuzzer:
    """All that it says it says on stderr, as libFuzzer."""
    return fuzzer(Linux(TARGET, str(root)), root, f"exec >&2; {script}")


def test_a_whole_run_and_the_fetch_of_what_it_found(connector: Connector, tmp_path: Path) -> None:
    """With a syslog that is fetched over the same connection meanwhile."""
    script = f"echo found >tmp/crash-1312; export FAKE_STYLE=linux FAKE_STATUS=77; exec {FAKES}/fuzzer $*"
    made = linux(tmp_path / "guest", script)
    host = tmp_path / "host"
    host.mkdir()
    made.prepare(connector)
    output = Output()
    found = made.run(connector, ["data/corpus"], output, host, SOON)
    assert f"Test unit written to {host}/crash-1312\n" in output.text
    assert "log of 414141: wow.c:1\n" in output.text
    assert output.text.count("filler\n") == 65536 // 7
    for path in found:
        connector.get(path, host)
    assert (host / "crash-1312").read_text() == "found\n"


def test_fuzz_ctl(connector: Connector, server: sshd.Server, tmp_path: Path) -> None:
    program(server, "fuzz_ctl", f'[ $1 = reset ] && exit; shift 2; FAKE_STYLE=fuzz_ctl exec {FAKES}/fuzzer "$@"')
    made = fuzzer(FuzzCtl(TARGET), tmp_path / "guest", "")
    made.prepare(connector)
    output = Output()
    assert made.run(connector, ["data/corpus"], output, None, SOON) == ["/tmp/fuzz_ctl/fuchsia.com/foo/bar/crash-1312"]
    assert "Running: data/corpus/testcase\n" in output.text


def test_f18_over_ssh(connector: Connector, server: sshd.Server, tmp_path: Path) -> None:
    program(server, "fuzz_ctl", "echo internal error >&2; exit 1")
    made = fuzzer(FuzzCtl(TARGET), tmp_path / "guest", "")
    with pytest.raises(FuzzerError, match=r"return code: 1 \(internal error\)$"):
        made.run(connector, ["data/corpus"], Output(), None, SOON)


def test_f23_over_ssh(connector: Connector, tmp_path: Path) -> None:
    made = fuzzer(FuzzCtl(TARGET), tmp_path / "guest", "")
    with pytest.raises(FuzzerError, match="not found"):
        made.run(connector, ["data/corpus"], Output(), None, SOON)


def test_an_output_that_is_closed_ends_the_fuzzer_there(connector: Connector, tmp_path: Path) -> None:
    made = linux(tmp_path / "guest", "echo $$ >../../pid; while :; do echo line; done")
    made.prepare(connector)
    with pytest.raises(OutputLost):
        made.run(connector, ["data/corpus"], Closed(), None, SOON)
    pid = int((tmp_path / "guest/pid").read_text())
    assert connector.run(f"test -e /proc/$$ && test ! -e /proc/{pid}", SOON).status == 0


def test_a_connection_that_breaks_is_told(connector: Connector, server: sshd.Server, tmp_path: Path) -> None:
    made = linux(tmp_path / "guest", "echo running; exec sleep 1000")
    made.prepare(connector)

    class Breaking(Output):
        def write(self, data: bytes, /) -> None:
            super().write(data)
            server.drop()

    output = Breaking()
    try:
        with pytest.raises(FuzzerError, match=r"^failed during (PID scanning|wait): "):
            made.run(connector, ["data/corpus"], output, None, SOON)
        assert output.text.startswith("running\n")
    finally:
        made.style.stop(connector)
