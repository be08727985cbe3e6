"""What is kept from those who clean up."""

import fcntl
import logging
import os
import subprocess
from pathlib import Path

import pytest

from pipeline.host import aging
from tests.cleaning import CLEANERS, Cleaner, age
from tests.waiting import SOON


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that is cleaned, with two in it."""
    for name in ("ours", "another"):
        (tmp_path / "tmp" / name / "inner").mkdir(parents=True)
        (tmp_path / "tmp" / name / "inner" / "file").write_text("x")
    return tmp_path / "tmp"


def left(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


OURS = ["ours", "ours/inner", "ours/inner/file"]


@pytest.mark.parametrize("clean", CLEANERS)
class TestCleaned:
    def test_what_is_kept_stays_with_all_that_is_below(self, place: Path, clean: Cleaner) -> None:
        age(place)
        with aging.kept(place / "ours"):
            clean(place)
            assert left(place) == OURS
        clean(place)
        assert left(place) == []

    def test_who_inherits_a_descriptor_keeps_it_on(self, place: Path, clean: Cleaner) -> None:
        age(place)
        with aging.kept(place / "ours") as descriptors:
            child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=descriptors)
        with child:
            clean(place)
            assert left(place) == OURS
        clean(place)
        assert left(place) == []

    def test_a_sticky_file_stays(self, place: Path, clean: Cleaner) -> None:
        (place / "file").touch()
        (place / "file").chmod(0o600 | aging.STICKY)
        age(place)
        clean(place)
        assert left(place) == ["file"]


def test_several_keep_the_same(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with aging.kept(place), aging.kept(place, place / "ours") as descriptors:
        assert len(descriptors) == 2
        assert not any(os.get_inheritable(descriptor) for descriptor in descriptors)
    assert caplog.messages == []


def test_who_cleans_up_at_this_moment_is_waited_for(
    place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aging, "_PATIENCE", SOON)
    cleaner = os.open(place, os.O_RDONLY)
    fcntl.flock(cleaner, fcntl.LOCK_EX)
    monkeypatch.setattr("pipeline.host.locks.time.sleep", lambda _: os.close(cleaner))
    with aging.kept(place):
        assert is_shared(place)
    assert caplog.messages == []


def is_shared(directory: Path) -> bool:
    """Whether somebody has the directory's lock, and one more may share it."""
    other = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(other)
    return True


def test_what_cannot_be_kept_is_told_and_is_no_failure(
    place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aging, "_PATIENCE", 0.05)
    caplog.set_level(logging.WARNING, "topcoat")
    with aging.kept(place / "gone"):
        pass
    descriptor = os.open(place / "ours", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with aging.kept(place / "ours", place / "another"):
        pass
    os.close(descriptor)
    assert [record.getMessage() for record in caplog.records] == [
        f"{place}/gone is not kept from being cleaned up: No such file or directory",
        f"{place}/ours is not kept from being cleaned up: Resource temporarily unavailable",
    ]
