"""Volumes that grow in their own file, and what a kill or a loss of power in the middle of it leaves."""

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ImageDamaged, StoreError
from pipeline.images import fvm
from pipeline.images.fvm import FvmHeader
from tests.images.fvm.volumes import (
    COPY_B,
    SLICE,
    contents,
    copies,
    extended,
    extended_in_place,
    flipped,
    make,
    memory,
    of_2019,
    of_generation,
    put,
    read,
    slices,
    with_copies,
    with_entries,
)

LENGTH = 1 << 20
IMAGE = make({"data": b"x" * 100_000, "more": b"y"})
OLD = read(IMAGE)


def states() -> dict[str, bytes]:
    """Images whose copies differ in what they are worth."""
    return {
        "both": IMAGE,
        "only A": flipped(IMAGE, COPY_B + 8300),
        "only B": flipped(IMAGE, 8300),
        "A is newer": with_copies(IMAGE, of_generation(OLD, 2), of_generation(OLD, 1, b"stale")),
        "B is newer": with_copies(IMAGE, of_generation(OLD, 1, b"stale"), of_generation(OLD, 2)),
        "B is newer, round the end": with_copies(IMAGE, of_generation(OLD, 2**64 - 1, b"stale"), of_generation(OLD, 0)),
        "trimmed": with_entries(IMAGE, {5: 0})[:-SLICE],
    }


every_state = pytest.mark.parametrize("image", states().values(), ids=states().keys())
fits = pytest.mark.parametrize("to_fit", [False, True], ids=["long", "to fit"])


@every_state
@fits
def test_the_metadata_are_those_of_a_new_file(image: bytes, to_fit: bool) -> None:
    changed, anew = extended_in_place(image, LENGTH, to_fit=to_fit), extended(image, LENGTH, to_fit=to_fit)
    assert changed is not None
    assert len(changed) == len(anew)
    assert copies(changed) == copies(anew)
    assert slices(changed) == slices(anew) == slices(image)
    assert read(changed).header == replace(FvmHeader.for_disk(LENGTH, SLICE), generation=read(image).header.generation)


@settings(max_examples=50)
@given(st.integers(1, 8).map(lambda count: 8192 * count), st.integers(0, 1 << 24))
def test_in_place_or_not_is_the_same(slice_size: int, more: int) -> None:
    image = make({"data": b"x" * 100_000, "more": b"y"}, slice_size)
    changed, anew = extended_in_place(image, len(image) + more), extended(image, len(image) + more)
    if changed is None:
        assert read(anew).header.metadata_size > read(image).header.metadata_size
    else:
        assert changed == anew


def test_an_image_of_2019_with_other_tables_is_not_changed_in_place() -> None:
    image = of_2019(b"x" * 8192 * 3, 8 << 20, 8192)
    assert extended_in_place(image, 9 << 20) is None


def test_an_image_of_2019_with_the_tables_of_today_is() -> None:
    image = of_2019(b"x" * SLICE * 3, 4 << 20)
    changed = extended_in_place(image, 8 << 20)
    assert changed is not None
    assert slices(changed) == slices(image)
    assert read(changed).header == replace(FvmHeader.for_disk(8 << 20, SLICE), oldest_minor_version=0)


@dataclass(frozen=True)
class Call:
    """A call that changes a file or brings its changes to the disk."""

    kind: str
    place: int = 0
    data: bytes = b""

    def apply(self, image: bytes) -> bytes:
        if self.kind == "resize":
            return image[: self.place].ljust(self.place, b"\0")
        return put(image, self.place, self.data) if self.kind == "write" else image


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What has been done to files so far."""
    done: list[Call] = []
    resize, write, sync = os.ftruncate, os.pwrite, os.fsync

    def note(call: Call, work: Callable[[], object]) -> object:
        done.append(call)
        return work()

    monkeypatch.setattr(os, "ftruncate", lambda file, size: note(Call("resize", size), lambda: resize(file, size)))
    monkeypatch.setattr(os, "fsync", lambda file: note(Call("sync"), lambda: sync(file)))
    monkeypatch.setattr(
        os,
        "pwrite",
        lambda file, data, start: note(Call("write", start, bytes(data)), lambda: write(file, data, start)),
    )
    return done


def broken(image: bytes, call: Call) -> Iterator[bytes]:
    """What can be on the disk if the power is lost before this call is: nothing of it, all, or a part.

    Parts of the first sector are more than has to be borne: a disk writes sectors whole. But so the hash is wrong, as
    it would be after worse.
    """
    yield image
    yield call.apply(image)
    if call.kind == "write":
        for size in (64, 80, 512, 4096, 8192, 40960, len(call.data) - 4096):
            yield put(image, call.place, call.data[:size])
            yield put(image, call.place + size, call.data[size:])


def left_behind(image: bytes, calls: list[Call]) -> Iterator[bytes]:
    """What a loss of power at any moment can leave. Calls before a sync are on the disk, later ones perhaps."""
    for number, call in enumerate(calls):
        assert call.kind == "sync" or calls[number + 1].kind == "sync", "one change at a time is on its way"
        yield from broken(image, call)
        image = call.apply(image)
    yield image


@every_state
@fits
def test_whenever_it_is_killed_the_old_or_the_new_volume_is_there(
    calls: list[Call], image: bytes, to_fit: bool
) -> None:
    changed = extended_in_place(image, LENGTH, to_fit=to_fit)
    assert changed is not None
    ends = (read(image), read(changed))
    seen = set()
    for left in left_behind(image, list(calls)):
        found = read(left)
        assert found in ends
        assert slices(left) == slices(image)
        seen.add(found == ends[1])
        again = extended_in_place(left, LENGTH, to_fit=to_fit) if len(left) <= LENGTH else changed
        assert again is not None
        assert copies(again) == copies(changed), "the same command again goes on from there"
    assert seen == {False, True}
    assert [call.kind for call in calls[:2]] == (["write", "sync"] if to_fit else ["resize", "sync"])


@pytest.mark.parametrize("number", range(6))
def test_when_a_call_fails_the_old_or_the_new_volume_is_there(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    left = number

    def counted(work: Callable[..., object]) -> Callable[..., object]:
        def call(*words: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return work(*words)

        return call

    with memory(IMAGE) as stream:
        for name in ("ftruncate", "pwrite", "fsync"):
            monkeypatch.setattr(os, name, counted(getattr(os, name)))
        with pytest.raises(OSError, match="Input/output error"):
            fvm.extend_in_place(stream, LENGTH)
        monkeypatch.undo()
        found = contents(stream)
    assert read(found) in (OLD, read(extended(IMAGE, LENGTH)))
    assert slices(found) == slices(IMAGE)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "fvm.blk"
    path.write_bytes(IMAGE)
    path.chmod(0o640)
    return path


def test_the_file_stays_the_same(volume: Path) -> None:
    before = volume.stat()
    fvm.extend_file(volume, LENGTH, in_place=True)
    after = volume.stat()
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, LENGTH)
    assert fvm.check(volume) == ()


def test_where_the_tables_grow_the_file_is_written_anew(volume: Path) -> None:
    before = volume.stat()
    fvm.extend_file(volume, 64 << 20, in_place=True)
    after = volume.stat()
    assert (after.st_mode, after.st_size) == (before.st_mode, 64 << 20)
    assert after.st_ino != before.st_ino
    assert fvm.check(volume) == ()


def test_what_a_longer_file_held_behind_the_volume_does_no_harm(volume: Path) -> None:
    with volume.open("ab") as stream:
        stream.write(b"rubbish" * 10_000)
    fvm.extend_file(volume, LENGTH, in_place=True)
    assert fvm.check(volume) == ()
    assert slices(volume.read_bytes()) == slices(IMAGE)


def test_a_full_disk_is_told_and_the_volume_is_as_before(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreError, match="extending an FVM: No space left on device") as caught:
        fvm.extend_file(volume, LENGTH, in_place=True)
    assert "free some space" in caught.value.hint
    assert read(volume.read_bytes()) == OLD


def test_a_cut_off_slice_is_not_covered_by_a_longer_file(volume: Path) -> None:
    volume.write_bytes(IMAGE[:-1])
    with pytest.raises(ImageDamaged, match="slice 5 is cut off"):
        fvm.extend_file(volume, LENGTH, in_place=True)
    assert volume.read_bytes() == IMAGE[:-1]
