"""Zip archives of seeds, sound and hostile."""

import bz2
import io
import lzma
import os
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.builds.targets.seeds import SeedLimits, Seeds
from pipeline.builds.targets.seeds.packed import PIECE
from tests.builds.targets.archives import MIB, gathered, little_memory, named, squeezed, zipped

FILES = {"a": b"first" * 100, "b": b"second" * 100, "c": b"third" * 100}


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return zipped(tmp_path / "x.zip", FILES)


def listed(data: bytes, number: int) -> int:
    """Where the entry with this number is in the list of an archive."""
    at = -1
    for _ in range(number + 1):
        at = data.index(b"PK\1\2", at + 1)
    return at


def changed(path: Path, *changes: tuple[int, bytes]) -> Path:
    data = bytearray(path.read_bytes())
    for at, new in changes:
        data[at : at + len(new)] = new
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_method_that_zipfile_knows(tmp_path: Path, method: int) -> None:
    contents = [b"x", b"text " * 5000, os.urandom(200_000), bytes(1 << 20)]
    source = zipped(tmp_path / "x.zip", {str(at): content for at, content in enumerate(contents)}, method)
    assert gathered(source) == (named(*contents), Seeds(4, sum(map(len, contents)), ()))


def test_content_that_is_a_little_more_than_a_piece(tmp_path: Path) -> None:
    """zlib has taken all that is packed by then, and still has something to give."""
    contents = [bytes(PIECE + more) for more in range(-3, 300)]
    source = zipped(tmp_path / "x.zip", {str(len(content)): content for content in contents})
    assert gathered(source)[0] == named(*contents)


def test_lzma_without_a_mark_of_its_end(tmp_path: Path) -> None:
    """7-Zip writes it so: the size says where it ends."""
    content = os.urandom(100) + b"A" * 400
    source = bomb(tmp_path / "x.zip", 14, b"\x10\x02\x05\0" + _lzma_literals(content), content)
    assert gathered(source) == (named(content), Seeds(1, 500, ()))


def _lzma_literals(content: bytes) -> bytes:
    """Properties and data of LZMA in which each byte is a literal, as 7-Zip's LZMA specification has them."""
    coder = _RangeEncoder()
    for byte in content:
        coder.encode(0x300, 0)
        context = 1
        for at in range(7, -1, -1):
            coder.encode(context, byte >> at & 1)
            context = context << 1 | byte >> at & 1
    for _ in range(5):
        coder.shift()
    return b"\0" + (1 << 16).to_bytes(4, "little") + bytes(coder.out)


class _RangeEncoder:
    def __init__(self) -> None:
        self.out = bytearray()
        self.low, self.width, self.cache, self.pending = 0, 0xFFFFFFFF, 0, 1
        self.chances = [1024] * 0x301

    def shift(self) -> None:
        carry = self.low >> 32
        if self.low < 0xFF000000 or carry:
            self.out += bytes(byte + carry & 0xFF for byte in [self.cache, *[0xFF] * (self.pending - 1)])
            self.cache, self.pending = self.low >> 24 & 0xFF, 0
        self.pending += 1
        self.low = (self.low & 0xFFFFFF) << 8

    def encode(self, which: int, bit: int) -> None:
        bound = (self.width >> 11) * self.chances[which]
        if bit:
            self.low, self.width = self.low + bound, self.width - bound
            self.chances[which] -= self.chances[which] >> 5
        else:
            self.width = bound
            self.chances[which] += 2048 - self.chances[which] >> 5
        while self.width < 1 << 24:
            self.width <<= 8
            self.shift()


def test_zip64_and_bytes_before_and_a_comment_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    source = zipped(tmp_path / "x.zip", FILES, zipfile.ZIP_STORED)
    assert source.read_bytes().count(b"PK\6\6") == 1
    assert gathered(source)[0] == named(*FILES.values())
    source.write_bytes(b"#!/bin/sh\n" + source.read_bytes())
    assert gathered(source)[0] == named(*FILES.values())
    with zipfile.ZipFile(source, "a") as archive:
        archive.comment = b"c" * 65535
    assert gathered(source) == (named(*FILES.values()), Seeds(3, 1600, ()))


def test_files_of_unknown_size_while_they_were_packed(tmp_path: Path) -> None:
    class Pipe(io.BytesIO):
        def seek(self, *_: object) -> int:
            raise io.UnsupportedOperation

        tell = seek

    stream = Pipe()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"streamed")
    (tmp_path / "x.zip").write_bytes(stream.getvalue())
    assert b"PK\7\x08" in stream.getvalue(), "its local header has no size"
    assert gathered(tmp_path / "x.zip")[0] == named(b"streamed")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ((16, b"\0\0\0\0"), "damaged file: b in x.zip (its content is not what the list says); pack the seeds anew"),
        ((24, b"\0\1\0\0"), "damaged file: b in x.zip (its content is not what the list says); pack the seeds anew"),
        ((42, b"\7\0\0\0"), "damaged file: b in x.zip (it is not where the list says); pack the seeds anew"),
        ((42, b"\0\0\0\x70"), "damaged file: b in x.zip (it is not where the list says); pack the seeds anew"),
        ((20, b"\1\0\0\0"), "damaged file: b in x.zip (it is cut off); pack the seeds anew"),
        ((10, b"\x0c"), "damaged file: b in x.zip (the compressed data are not sound: Invalid data stream); "),
        ((10, b"\x0e"), "damaged file: b in x.zip (its LZMA header is not sound); pack the seeds anew"),
        ((8, b"\1"), "encrypted file: b in x.zip; pack the seeds without a password"),
        ((10, b"\x63"), "file compressed in an unknown way: b in x.zip; pack the seeds as zip does by default"),
        ((10, b"\x09"), "file compressed in an unknown way: b in x.zip; pack the seeds as zip does by default"),
        ((24, b"\0\0\0\x7f"), "file larger than 1 MiB: b in x.zip; make smaller seeds"),
        ((38, struct.pack("<L", (stat.S_IFLNK | 0o777) << 16)), "link in an archive: b in x.zip; pack the files "),
        ((38, struct.pack("<L", stat.S_IFIFO << 16)), "thing that is no regular file: b in x.zip; only regular "),
    ],
)
def test_what_is_left_out_does_not_hide_the_rest(sound: Path, change: tuple[int, bytes], told: str) -> None:
    at = listed(sound.read_bytes(), 1)
    written, seeds = gathered(changed(sound, (at + change[0], change[1])))
    assert written == named(FILES["a"], FILES["c"])
    assert len(seeds.left_out) == 1
    assert seeds.left_out[0].startswith(f"1 {told}")


def test_directories_are_not_mentioned(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("directory/", b"")
        archive.writestr("directory/a", b"a")
    assert gathered(tmp_path / "x.zip") == (named(b"a"), Seeds(1, 1, ()))


def test_a_zip_archive_in_one_is_a_seed_like_any_other(tmp_path: Path, sound: Path) -> None:
    inner = sound.read_bytes()
    assert gathered(zipped(tmp_path / "outer.zip", {"inner.zip": inner}))[0] == named(inner)


@pytest.mark.parametrize("content", [b"", b"PK\5\6", b"PK\3\4" + bytes(100), b"text" * 30000])
def test_what_is_no_zip_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    why = "it is no zip archive, or has lost its end"
    told = f"1 archive that cannot be read to its end: x.zip ({why}); pack the seeds anew"
    assert gathered(tmp_path / "x.zip") == ({}, Seeds(0, 0, (told,)))


def test_a_list_that_is_not_sound_ends_where_it_is_not(sound: Path) -> None:
    at = listed(sound.read_bytes(), 2)
    written, seeds = gathered(changed(sound, (at, b"??")))
    assert written == named(FILES["a"], FILES["b"])
    why = f"its list of files is not sound at byte {at}"
    assert seeds.left_out == (f"1 archive that cannot be read to its end: x.zip ({why}); pack the seeds anew",)


@pytest.mark.parametrize("at", [12, 16])
def test_a_list_that_lies_nowhere(sound: Path, at: int) -> None:
    end = sound.read_bytes().rindex(b"PK\5\6")
    why = "its list of files cannot be where it says"
    told = f"1 archive that cannot be read to its end: x.zip ({why}); pack the seeds anew"
    assert gathered(changed(sound, (end + at, b"\xff\xff\xff\x7f"))) == ({}, Seeds(0, 0, (told,)))


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 293), st.binary(min_size=1, max_size=8)), max_size=4), st.integers(200, 600))
def test_whatever_is_damaged_no_wrong_seed_is_taken(changes: list[tuple[int, bytes]], length: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = zipped(Path(place) / "x.zip", FILES)
        changed(path, *changes)
        os.truncate(path, min(length, path.stat().st_size))
        assert gathered(path)[0].items() <= named(*FILES.values()).items()


def bomb(path: Path, method: int, packed: bytes, content: bytes) -> Path:
    """An archive of one file, whose list says that these packed data have that content."""
    name, crc, size = b"bomb", zlib.crc32(content), len(content)
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, method, 0, 0, crc, len(packed), size, len(name), 0) + name
    entry = struct.pack(
        "<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, method, 0, 0, crc, len(packed), size, len(name), 0, 0, 0, 0, 0, 0
    )
    start = len(local) + len(packed)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(entry + name), start, 0)
    path.write_bytes(local + packed + entry + name + end)
    return path


def _lzma() -> bytes:
    packed = squeezed(lzma.LZMACompressor(lzma.FORMAT_ALONE, preset=0), b"", 64)
    return b"\x09\x04\x05\0" + packed[:5] + packed[13:]


BOMBS: list[tuple[int, Callable[[], bytes]]] = [
    (zipfile.ZIP_DEFLATED, lambda: squeezed(zlib.compressobj(9, wbits=-15), b"", 64)),
    (zipfile.ZIP_BZIP2, lambda: squeezed(bz2.BZ2Compressor(), b"", 64)),
    (zipfile.ZIP_LZMA, _lzma),
]


@pytest.mark.parametrize(("method", "pack"), BOMBS)
def test_a_bomb_that_lies_about_its_size(tmp_path: Path, method: int, pack: Callable[[], bytes]) -> None:
    """64 MiB come of it, if it is let; zipfile lets bzip2 and LZMA."""
    packed = pack()
    assert len(packed) < MIB
    source = bomb(tmp_path / "x.zip", method, packed, bytes(1000))
    with little_memory(10 * MIB):
        written, seeds = gathered(source)
    assert written == {}
    assert seeds.left_out[0].startswith("1 damaged file: bomb in x.zip (")


def test_an_honest_bomb_is_not_even_opened(tmp_path: Path) -> None:
    source = bomb(tmp_path / "x.zip", 12, b"no bzip2", bytes(2 * MIB))
    assert gathered(source)[1].left_out == ("1 file larger than 1 MiB: bomb in x.zip; make smaller seeds",)


def _overlapping(path: Path, packed: bytes, content: bytes, count: int) -> Path:
    """An archive whose list has the same file many times."""
    data = bomb(path, 8, packed, content).read_bytes()
    start, end = data.index(b"PK\1\2"), data.rindex(b"PK\5\6")
    entries = data[start:end] * count
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count & 0xFFFF, count & 0xFFFF, len(entries), start, 0)
    path.write_bytes(data[:start] + entries + tail)
    return path


def _count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of bytes of each read from a file, from now on."""
    reads: list[int] = []
    real = os.pread

    def counting(descriptor: int, size: int, position: int) -> bytes:
        found = real(descriptor, size, position)
        reads.append(len(found))
        return found

    monkeypatch.setattr(os, "pread", counting)
    return reads


def test_a_million_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _overlapping(tmp_path / "x.zip", zlib.compress(b"one", wbits=-15), b"one", 1_000_000)
    reads = _count_reads(monkeypatch)
    with little_memory(4 * MIB):
        written, seeds = gathered(source, limits=SeedLimits(units=100))
    assert written == named(b"one")
    assert seeds.left_out[0].endswith("they lie among more than 400 files; merge them into fewer")
    assert len(reads) < 400 * 5


def test_files_that_overlap_are_not_unpacked_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 10,000 files is the same MiB: 10 GB to unpack."""
    packed = zlib.compress(bytes(MIB), wbits=-15)
    source = _overlapping(tmp_path / "x.zip", packed, bytes(MIB), 10_000)
    reads = _count_reads(monkeypatch)
    written, seeds = gathered(source, limits=SeedLimits(bytes=5 * MIB))
    assert written == named(bytes(MIB))
    assert seeds.left_out[0].endswith("more than 20 MiB would have to be read; merge them into fewer")
    assert sum(reads) < MIB


def test_packed_data_of_which_nothing_comes_cost_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty blocks of deflate, 5 bytes each: a MB of them in each of 10,000 files."""
    source = _overlapping(tmp_path / "x.zip", b"\0\0\0\xff\xff" * 200_000, b"x", 10_000)
    reads = _count_reads(monkeypatch)
    written, seeds = gathered(source, limits=SeedLimits(bytes=5 * MIB))
    assert written == {}
    assert seeds.left_out[-1].endswith("more than 20 MiB would have to be read; merge them into fewer")
    assert sum(reads) < 21 * MIB
