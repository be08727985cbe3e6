"""Which crashes of a bucket are kept, and the room for all."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fuzz.crashes.bucket import KeptInput
from pipeline.fuzz.crashes.keeping import Room, chosen, size_of

inputs = st.dictionaries(st.integers(1, 99), st.builds(KeptInput, st.just(""), st.integers(0, 9)), max_size=30)


@given(inputs, st.integers(1, 12))
def test_the_first_the_newest_and_the_smallest_are_kept(crashes: dict[int, KeptInput], most: int) -> None:
    kept, numbers = chosen(crashes, most), sorted(crashes)
    assert len(kept) == min(most, len(crashes))
    assert kept >= set(numbers[:1]) | set(numbers[len(numbers) - most // 2 :] if len(numbers) > most else numbers)
    small = sorted(kept - {*numbers[:1], *numbers[len(numbers) - most // 2 :]})
    left = set(numbers) - kept
    assert all(crashes[one].size <= crashes[other].size for one in small for other in left)


@given(inputs, st.integers(1, 12))
def test_what_is_kept_stays_kept_when_the_others_are_gone(crashes: dict[int, KeptInput], most: int) -> None:
    kept = chosen(crashes, most)
    assert chosen({number: crashes[number] for number in kept}, most) == kept


def test_the_room_is_measured_again_after_a_while(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    times = iter((0.0, 0.0, 1.0, 2.0, 700.0, 700.0))
    room = Room(tmp_path, 100, lambda: next(times))
    assert room.fits(100)
    (tmp_path / "p/f/b/1").mkdir(parents=True)
    (tmp_path / "p/f/b/1/input").write_bytes(bytes(60))
    (tmp_path / "p/f/b/bucket.json").write_bytes(bytes(1000))
    assert room.fits(100)
    room.take(1)
    assert not room.fits(100)
    assert not room.fits(41)
    assert "has 60 B, and no room" not in caplog.text
    assert len(caplog.messages) == 1


def test_only_files_of_crashes_are_counted(tmp_path: Path) -> None:
    for name, size in (("a/b/c/1/input", 1), ("a/b/c/1/serial.txt", 2), ("a/b/c/1/capsule/state.zst", 400), ("x", 8)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "a/b/c/2").symlink_to(tmp_path / "a/b/c/1")
    assert size_of(tmp_path) == 3
    assert size_of(tmp_path / "gone") == 0
