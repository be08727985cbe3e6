"""No name leads out of a directory that was chosen."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.host.beneath import Beneath
from tests.descriptors import descriptors


def test_what_is_missing_is_made_and_the_same_way_is_taken_twice(tmp_path: Path) -> None:
    with Beneath(tmp_path) as below:
        for name in (b"one", b"two"):
            with below.entered((b"a", b"b")) as directory:
                os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=directory))
        with below.entered(()) as directory:
            assert os.path.samestat(os.fstat(directory), tmp_path.stat())
    assert sorted(path.name for path in (tmp_path / "a/b").iterdir()) == ["one", "two"]


def test_a_directory_outlives_the_next_way_for_its_body(tmp_path: Path) -> None:
    with Beneath(tmp_path) as below, below.entered((b"a",)) as first, below.entered((b"b",)) as second:
        assert os.fstat(first).st_ino == (tmp_path / "a").stat().st_ino
        assert os.fstat(second).st_ino == (tmp_path / "b").stat().st_ino


@pytest.mark.parametrize("way", ["outside", "outside/deeper", "dangling", "file", "fifo"])
def test_what_is_no_directory_is_not_entered(tmp_path: Path, way: str) -> None:
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    root = tmp_path / "root"
    root.mkdir()
    (root / "outside").symlink_to(outside)
    (root / "dangling").symlink_to(tmp_path / "nothing")
    (root / "file").touch()
    os.mkfifo(root / "fifo")
    names = [os.fsencode(name) for name in way.split("/")]
    with Beneath(root) as below, pytest.raises(NotADirectoryError) as caught, below.entered(names):
        pass
    assert caught.value.filename == names[0]
    assert list(outside.iterdir()) == []


@given(st.lists(st.sampled_from([b"a", b"b", b"..", b".", b"", b"a/../..", b"/", b"\xff"]), max_size=4))
def test_all_that_comes_about_is_below(tmp_path_factory: pytest.TempPathFactory, names: list[bytes]) -> None:
    parent = tmp_path_factory.mktemp("parent")
    (parent / "root").mkdir()
    before = descriptors()
    good = all(name in (b"a", b"b", b"\xff") for name in names)
    with Beneath(parent / "root") as below:
        try:
            with below.entered(names) as directory:
                assert Path(f"/proc/self/fd/{directory}").readlink().is_relative_to(parent / "root")
            assert good
        except ValueError:
            assert not good
    assert descriptors() <= before
    assert [path.name for path in parent.iterdir()] == ["root"]
