"""The handle: the original's form, and ours within it."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import BadHandle, StoreError
from pipeline.host.locks import lock_of
from pipeline.host.process import Process
from pipeline.undercoat.handle import ConnectorPart, HandleFile, LauncherPart, UndercoatHandle
from tests.waiting import SOON

SAMPLE = {
    "ConnectorType": "SSHConnector",
    "Connector": {"Host": "127.0.0.1", "Port": 4022, "Key": "/k/sshid", "TmpDir": "/t/c"},
    "LauncherType": "QemuLauncher",
    "Launcher": {"Pid": 77, "TmpDir": "/t/l"},
    "Topcoat": {"BootId": "b00t", "StartTicks": 123, "HostBootId": "h0st"},
}
"""Frozen. All but "Topcoat" is the original's."""

HANDLE = UndercoatHandle(
    ConnectorPart("127.0.0.1", 4022, "/k/sshid", "/t/c"), LauncherPart(77, "/t/l"), Process(77, 123, "h0st"), "b00t"
)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HandleFile:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return HandleFile.create(HANDLE)


def test_l1_c1_the_frozen_sample(file: HandleFile) -> None:
    assert json.loads(file.path.read_text()) == SAMPLE
    assert file.read() == HANDLE
    assert file.path.name.startswith("undercoat_")
    assert file.path.suffix == ".handle"
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert not lock_of(file.path).exists()


def test_one_of_the_original_s(file: HandleFile) -> None:
    theirs = {name: value for name, value in SAMPLE.items() if name != "Topcoat"}
    file.path.write_text(json.dumps(theirs))
    assert file.read() == UndercoatHandle(HANDLE.connector, HANDLE.launcher)


def test_names_count_in_either_case(file: HandleFile) -> None:
    theirs = {"connectortype": "SSHConnector", "CONNECTOR": {"host": "x", "PORT": 1}, "launcherType": "QemuLauncher"}
    file.path.write_text(json.dumps(theirs))
    assert file.read() == UndercoatHandle(ConnectorPart("x", 1))


def test_h1_non_ascii_paths_survive(file: HandleFile) -> None:
    japanese = UndercoatHandle(HANDLE.connector, LauncherPart(1, "/tmp/ファジング"))
    file.write(japanese)
    assert file.read() == japanese


def test_h2_a_released_handle_is_gone_for_all(file: HandleFile) -> None:
    file.release()
    file.release()
    with pytest.raises(BadHandle, match=r"Bad handle: .*: No such file or directory"):
        file.read()
    with pytest.raises(BadHandle, match="No such file"):
        file.write(HANDLE)
    assert list(file.path.parent.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "junk", "7", "[]", '"x"', "[" * 100_000])
def test_h3_what_is_no_handle(file: HandleFile, text: str) -> None:
    file.path.write_text(text)
    with pytest.raises(BadHandle, match="Bad handle: "):
        file.read()


def test_h3_a_bad_path(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", Path("/"), Path()):
        with pytest.raises(BadHandle, match="Bad handle: "):
            HandleFile(path).read()


def test_h4_an_empty_one_loads(file: HandleFile) -> None:
    file.path.write_text("{}")
    assert file.read() == UndercoatHandle()
    file.path.write_text('{"ConnectorType": "", "Connector": null, "LauncherType": "", "Launcher": null}')
    assert file.read() == UndercoatHandle()


@pytest.mark.parametrize(
    "data",
    [
        {"LauncherType": "TpuLauncher", "Launcher": {"Pid": 1}},
        {"ConnectorType": "Carrier", "Connector": {}},
        {"ConnectorType": 7},
        {"LauncherType": "QemuLauncher", "Launcher": []},
        {"LauncherType": "QemuLauncher", "Launcher": {"Pid": "1"}},
        {"LauncherType": "QemuLauncher", "Launcher": {"Pid": -1}},
        {"LauncherType": "QemuLauncher", "Launcher": {"Pid": True}},
        {"LauncherType": "QemuLauncher", "Launcher": {"TmpDir": 5}},
        {"Topcoat": 1},
    ],
)
def test_h5_unknown_types_and_wrong_ones(file: HandleFile, data: object) -> None:
    file.path.write_text(json.dumps(data))
    with pytest.raises(BadHandle):
        file.read()


@pytest.mark.parametrize(
    ("part", "field", "name"),
    [
        ("Connector", "Host", "host"),
        ("Connector", "Port", "port"),
        ("Connector", "Key", "key"),
        ("Connector", "TmpDir", "tmpDir"),
        ("Launcher", "Pid", "pid"),
        ("Launcher", "TmpDir", "tmpdir"),
    ],
)
def test_l2_c2_i2_what_is_not_whole_is_told(file: HandleFile, part: str, field: str, name: str) -> None:
    HANDLE.require_whole()
    data = json.loads(json.dumps(SAMPLE))
    del data[part][field]
    file.path.write_text(json.dumps(data))
    with pytest.raises(BadHandle, match=f"^{name} not found in handle"):
        file.read().require_whole()


def test_i2_an_old_handle_keeps_its_pid(file: HandleFile) -> None:
    file.path.write_text('{"LauncherType":"QemuLauncher","Launcher":{"Pid":123}}')
    assert file.read().launcher.pid == 123


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*SAMPLE, *"xy"]), inner, max_size=4),
    max_leaves=8,
)


@given(_JSON)
def test_nothing_else_comes_of_any_json(data: object) -> None:
    try:
        handle = UndercoatHandle.decode(data)
    except ValueError:
        return
    assert UndercoatHandle.decode(handle.encode()) == handle


def _write(path: Path, number: int) -> None:
    for count in range(20):
        HandleFile(path).write(UndercoatHandle(HANDLE.connector, LauncherPart(number * 1000 + count + 1, "/t/l")))


@pytest.mark.slow
def test_several_processes_may_write_it(file: HandleFile) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(file.path, number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(SOON)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert file.read().launcher.pid % 1000 == 20
    assert sorted(path.name for path in file.path.parent.iterdir()) == [file.path.name]


class TestHandlesOfOthers:
    """Whoever can write a handle says which directories are deleted, and which processes are ended."""

    def test_another_user_s(self, file: HandleFile, monkeypatch: pytest.MonkeyPatch) -> None:
        owner = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
        with pytest.raises(BadHandle, match="it belongs to another user"):
            file.read()

    def test_one_that_others_can_write_to(self, file: HandleFile) -> None:
        file.path.chmod(0o666)
        with pytest.raises(BadHandle, match="others can write to it"):
            file.read()

    def test_nothing_is_made_beside_it(self, file: HandleFile) -> None:
        file.path.chmod(0o666)
        before = sorted(file.path.parent.iterdir())
        with pytest.raises(BadHandle), file.alone():
            pass
        assert sorted(file.path.parent.iterdir()) == before

    def test_a_link_in_its_place_or_that_of_its_lock(self, file: HandleFile, tmp_path: Path) -> None:
        lock_of(file.path).symlink_to(tmp_path / "made")
        with pytest.raises(StoreError), file.alone():
            pass
        assert not (tmp_path / "made").exists()
        (link := tmp_path / "link.handle").symlink_to(file.path)
        with pytest.raises(BadHandle):
            HandleFile(link).read()
