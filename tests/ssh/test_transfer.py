"""Transfers that are large or end in the middle, by tar and by SFTP, on a server of our own."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import CommandError
from pipeline.ssh.connector import Connector
from tests.fakes import sshd
from tests.ssh.conftest import make, tree
from tests.waiting import SOON, meanwhile


def interrupt() -> None:
    """As Ctrl-C does."""
    os.kill(os.getpid(), signal.SIGINT)


def got(connector: Connector, source: str, directory: str) -> None:
    connector.get(source, Path(directory))


@pytest.mark.parametrize("direction", ["put", "get"])
@pytest.mark.usefixtures("way")
def test_a_server_that_dies_in_the_middle(
    server: sshd.Server, connector: Connector, root: Path, here: Path, direction: str
) -> None:
    large: dict[str, bytes | None] = {f"d/{number}": bytes(9_000_000) for number in range(8)}
    make(root if direction == "get" else here, large)
    connector.connected()
    transfer = connector.put if direction == "put" else partial(got, connector)
    arrives = root / "to" if direction == "put" else here
    with pytest.raises(CommandError), meanwhile(lambda: any(arrives.rglob("*")), server.drop):
        transfer(str(here / "d") if direction == "put" else "d", str(here if direction == "get" else "to"))
    if direction == "get":
        assert [name for name in tree(here) if ".part" in name] == []
        assert all(data in (None, large["d/0"]) for data in tree(here).values())


@pytest.mark.slow
@pytest.mark.usefixtures("way")
def test_ctrl_c_in_the_middle_of_a_get(connector: Connector, root: Path, here: Path) -> None:
    make(root, {f"d/{number}": bytes(9_000_000) for number in range(20)})
    with pytest.raises(KeyboardInterrupt), meanwhile(lambda: any(here.rglob("*")), interrupt):
        connector.get("d", here)
    assert [name for name in tree(here) if ".part" in name] == []
    assert connector.run("echo usable", SOON).stdout == b"usable\n"


@pytest.mark.usefixtures("way")
def test_ctrl_c_just_when_a_file_was_made(
    connector: Connector, root: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def open_(path: Any, *arguments: Any, **options: Any) -> int:
        descriptor = real(path, *arguments, **options)
        if str(path).endswith(".part"):
            os.close(descriptor)
            raise KeyboardInterrupt
        return descriptor

    make(root, {f"d/{number}": b"x" for number in range(20)})
    monkeypatch.setattr(os, "open", open_)
    with pytest.raises(KeyboardInterrupt):
        connector.get("d", here)
    monkeypatch.undo()
    assert [name for name in tree(here) if ".part" in name] == []


@pytest.mark.slow
def test_thousands_of_files_there_and_back(way: str, connector: Connector, root: Path, here: Path) -> None:
    count = {"tar": 2000, "sftp": 500}[way]
    files: dict[str, bytes | None] = {f"c/{number:04d}": b"%d" % number for number in range(count)}
    make(here, files)
    connector.put(str(here / "c"), ".")
    assert tree(root / "c") == tree(here / "c")
    back = here / "back"
    back.mkdir()
    connector.get("c/*", back)
    assert tree(back) == tree(here / "c")
