"""What a fuzzer leaves behind in the real Linux guest: processes, and a disk that is full."""

import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.builds import build
from pipeline.errors import CommandExited, FuzzerTimeout
from pipeline.fuzz.batch import Batch
from pipeline.fuzz.fuzzer import Fuzzer
from pipeline.fuzz.styles import Linux
from pipeline.fuzz.symbolizer import Symbolizer
from pipeline.fuzz.targets import FuzzTarget
from pipeline.settings import TCG_SCALE, Timeouts
from pipeline.ssh.connector import Connector
from pipeline.vm.instance import Instance
from tests.conftest import Workspace
from tests.fuzz.fakes import Output
from tests.fuzz.loops import Followed
from tests.waiting import eventually

TARGET = FuzzTarget("tests", "leaver")
LIMIT = 120.0

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def connector(booted: Workspace) -> Iterator[Connector]:
    handle = Instance.named(booted.store, "i0").live_handle()
    assert handle
    with closing(Connector(handle.ssh, Timeouts().scaled(TCG_SCALE))) as made:
        yield made


@pytest.fixture(scope="module")
def symbolizer(booted: Workspace) -> Symbolizer:
    chosen = settings.load({"TOPCOAT_ROOT": str(booted.store.root)}, booted.directory)
    return Symbolizer.of(build.load(chosen, {}))


@pytest.fixture
def fuzzer(connector: Connector, symbolizer: Symbolizer) -> Iterator[Fuzzer]:
    yield Fuzzer(TARGET, Linux(TARGET), symbolizer)
    connector.rmdir(f"/data/fuzz/{TARGET.package}")


def installed(fuzzer: Fuzzer, connector: Connector, directory: Path, script: str) -> Fuzzer:
    """The fuzzer, which is this script, prepared."""
    (program := directory / TARGET.name).write_text(f"#!/bin/sh\n{script}\n")
    connector.put(str(program), fuzzer.absolute("pkg"))
    connector.command("chmod", f"{stat.S_IRWXU:o}", fuzzer.absolute(f"pkg/{TARGET.name}")).run(LIMIT)
    fuzzer.prepare(connector)
    return fuzzer


def lives(connector: Connector, pid: str) -> bool:
    try:
        connector.command("kill", "-0", pid).run(LIMIT)
    except CommandExited:
        return False
    return True


@pytest.mark.parametrize("held", ["</dev/null >/dev/null 2>&1", ""], ids=["silent", "holds its output"])
def test_what_runs_on_is_ended(fuzzer: Fuzzer, connector: Connector, tmp_path: Path, held: str) -> None:
    left = f"setsid sh -c 'echo $$ >data/pid; while :; do sleep 1; done' {held} &"
    ran = installed(fuzzer, connector, tmp_path, f"{left}\nuntil [ -s data/pid ]; do sleep 0.1; done\nexit 0")
    ran.run(connector, ["tmp/corpus"], Output(), limit=LIMIT)
    pid = connector.command("cat", "/data/fuzz/tests/leaver/data/pid").output(LIMIT).decode().strip()
    assert pid.isdecimal()
    eventually(lambda: not lives(connector, pid))  # killed, it is there until init has heard of it


def test_one_command_runs_it_on_many_inputs(fuzzer: Fuzzer, connector: Connector, tmp_path: Path) -> None:
    """By the guest's own shell, whatever becomes of a run."""
    ran = installed(fuzzer, connector, tmp_path, 'exec >&2; for input; do :; done; . "./$input"')
    inputs = {
        "leaves": "sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >data/pid; exit 77",
        "looks": "[ -e /proc/$(cat data/pid)/exe ] && exit 9; echo fine",
        "odd": "exit 3",
        "dies": "kill -9 $$",
        "hangs": "echo hangs; exec sleep 1000",
        "last": "echo last",
    }
    for name, does in inputs.items():
        (tmp_path / name).write_text(does + "\n")
        connector.put(str(tmp_path / name), fuzzer.absolute("data"))
    followed = Followed()
    with pytest.raises(FuzzerTimeout):
        ran.run_each(connector, [], Batch([f"data/{name}" for name in inputs], 10), followed)
    assert followed.runs[1] == b"fine\n"
    assert [error.rpartition(" ")[2] for error in followed.errors] == ["", "", "3", "137"]
    assert (followed.runs[4:], followed.open) == ([b"hangs\n"], True)


def test_a_full_disk_is_told(fuzzer: Fuzzer, connector: Connector, tmp_path: Path) -> None:
    ran = installed(fuzzer, connector, tmp_path, "dd if=/dev/zero of=tmp/fill bs=1M 2>/dev/null; exit 0")
    assert ran.style.shortage(connector) == ""
    ran.run(connector, ["tmp/corpus"], Output(), limit=LIMIT)
    assert ran.style.shortage(connector).startswith("0 B are left on its disk of ")
    ran.prepare(connector)
    assert ran.style.shortage(connector) == ""
