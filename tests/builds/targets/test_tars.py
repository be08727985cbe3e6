"""Tar archives of seeds, sound and hostile."""

import bz2
import gzip
import io
import lzma
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.builds.targets.seeds import SeedLimits, Seeds
from tests.builds.targets.archives import MIB, gathered, little_memory, member, named, squeezed, tarred

FILES = {"a": b"first" * 300, "b": b"second" * 300, "c": b"third" * 300}
FORMS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
COMPRESSED = ["tar.gz", "tar.bz2", "tar.xz", "tar.lzma"]


def cut_off(name: str, why: str = "it is cut off") -> str:
    return f"1 archive that cannot be read to its end: {name} ({why}); pack the seeds anew"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["short", "é/" + "long/" * 40 + "end", "x" * 100, "d/" * 30 + "y" * 99])
def test_all_formats_and_lengths_of_names(tmp_path: Path, form: int, name: str) -> None:
    if form == tarfile.USTAR_FORMAT and len(name) > 200:
        name = name[-150:]
    files = {name: b"a", "after": b"b" * 512, "last": b"c" * 513, "big": bytes(5000)}
    written, seeds = gathered(tarred(tmp_path / "x.tar", files, form), limits=SeedLimits(unit=4096))
    assert written == named(b"a", b"b" * 512, b"c" * 513)
    assert seeds.left_out == ("1 file larger than 4 KiB: big in x.tar; make smaller seeds",)


def test_names_are_those_of_long_headers(tmp_path: Path) -> None:
    for form in FORMS:
        source = tarred(tmp_path / f"{form}.tar", {"d" * 80 + "/" + "n" * 20: bytes(20)}, form)
        told = gathered(source, limits=SeedLimits(unit=10))[1].left_out[0]
        assert ("d" * 40 in told, "n" * 20 in told) == (True, True)


@pytest.mark.parametrize("name", ["\x1f\udc8b", "BZh9", "\udcfd7zXZ", "]"])
def test_a_first_file_that_is_named_like_compressed_data(tmp_path: Path, name: str) -> None:
    source = tarred(tmp_path / "x.tar", {name: b"seed"}, tarfile.GNU_FORMAT).rename(tmp_path / "x.tar.lzma")
    assert gathered(source) == (named(b"seed"), Seeds(1, 4, ()))


@pytest.mark.parametrize("words", [(), ("--sparse",), ("--format=v7",), ("--format=oldgnu",), ("--format=pax",)])
def test_what_gnu_tar_makes(tmp_path: Path, words: tuple[str, ...]) -> None:
    if not shutil.which("tar"):
        pytest.skip("there is no tar here")
    (tmp_path / "files/sub").mkdir(parents=True)
    for name, content in FILES.items():
        (tmp_path / "files/sub" / name).write_bytes(content)
    with (tmp_path / "files/b-sparse").open("wb") as stream:
        for at in range(40):  # more holes than the header has room for
            stream.seek(at << 17)
            stream.write(b"data")
    subprocess.run(["tar", *words, "-cf", "x.tar", "files"], cwd=tmp_path, check=True)
    written, seeds = gathered(tmp_path / "x.tar")
    assert written == named(*FILES.values())
    sparse = "1 sparse file in an archive: files/b-sparse in x.tar; pack the seeds without --sparse"
    large = "1 file larger than 1 MiB: files/b-sparse in x.tar; make smaller seeds"
    assert seeds.left_out == (sparse if "--sparse" in words else large,)


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_sparse_files_of_pax(tmp_path: Path, version: str) -> None:
    if not shutil.which("tar"):
        pytest.skip("there is no tar here")
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 18)
    (tmp_path / "z").write_bytes(b"z")
    words = ["--sparse", "--format=pax", f"--sparse-version={version}"]
    subprocess.run(["tar", *words, "-cf", "x.tar", "sparse", "z"], cwd=tmp_path, check=True)
    written, seeds = gathered(tmp_path / "x.tar")
    assert written == named(b"z")
    assert seeds.left_out[0].startswith("1 sparse file in an archive: ")


def test_links_and_devices_are_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(member("directory", kind=tarfile.DIRTYPE))
        archive.addfile(member("a", 1), io.BytesIO(b"a"))
        archive.addfile(member("symbolic", kind=tarfile.SYMTYPE, link="/etc/passwd"))
        archive.addfile(member("hard", 7, kind=tarfile.LNKTYPE, link="a"))
        archive.addfile(member("device", kind=tarfile.BLKTYPE))
        archive.addfile(member("pipe", kind=tarfile.FIFOTYPE))
        archive.addfile(member("unknown", 3, kind=b"Z"), io.BytesIO(b"zzz"))
        archive.addfile(member("b", 1), io.BytesIO(b"b"))
    links = "2 links in archives, such as symbolic in x.tar; pack the files themselves"
    special = "3 things that are no regular files, such as device in x.tar; only regular files can be seeds"
    assert gathered(tmp_path / "x.tar") == (named(b"a", b"b"), Seeds(2, 2, (links, special)))


def test_headers_that_say_nothing_about_a_file_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", pax_headers={"comment": "about all", "path": "ignored"}) as archive:
        archive.addfile(member("volume", kind=b"V"))
        archive.addfile(member("old directory/", 700, kind=tarfile.AREGTYPE))
        archive.addfile(member("dump", 4, kind=b"D"), io.BytesIO(b"Ya\0\0"))
        archive.addfile(member("old", 3, kind=tarfile.AREGTYPE), io.BytesIO(b"old"))
        archive.addfile(member("contiguous", 3, kind=tarfile.CONTTYPE), io.BytesIO(b"new"))
    assert gathered(tmp_path / "x.tar") == (named(b"old", b"new"), Seeds(2, 6, ()))


def header(name: bytes, size: bytes, flag: bytes = b"0") -> bytes:
    block = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size.ljust(12, b"\0") + b"00000000000\0"
    block += b" " * 8 + flag + bytes(100) + b"ustar\x0000"
    block = block.ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


END = bytes(1024)
GOOD = header(b"good", b"4") + padded(b"good")


@pytest.mark.parametrize("size", [b"00000000004\0", b"4", b"     4 \0", b"\x80" + bytes(10) + b"\4", b"4\0garbage"])
def test_how_a_size_may_be_written(tmp_path: Path, size: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(header(b"a", size) + padded(b"seed") + GOOD + END)
    assert gathered(tmp_path / "x.tar") == (named(b"seed", b"good"), Seeds(2, 8, ()))


@pytest.mark.parametrize("size", [b"-4", b"+4", b"4_0", b"9", b"\xff" * 12, b"0x4"])
def test_how_a_size_may_not_be_written(tmp_path: Path, size: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(GOOD + header(b"a", size) + padded(b"seed") + GOOD + END)
    why = "a number in a header of it is not sound, or it is no tar archive"
    assert gathered(tmp_path / "x.tar") == (named(b"good"), Seeds(1, 4, (cut_off("x.tar", why),)))


@pytest.mark.parametrize("size", [b"\x80" + b"\xff" * 11, b"77777777777"])
def test_a_size_that_the_archive_does_not_have(tmp_path: Path, size: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(GOOD + header(b"a", size) + padded(b"seed") + END)
    assert gathered(tmp_path / "x.tar") == (named(b"good"), Seeds(1, 4, (cut_off("x.tar"),)))


def test_a_size_in_a_pax_header_counts(tmp_path: Path) -> None:
    records = b"9 size=4\n"
    pax = header(b"pax", b"%o" % len(records), b"x") + padded(records)
    (tmp_path / "x.tar").write_bytes(pax + header(b"a", b"0") + padded(b"seed") + GOOD + END)
    assert gathered(tmp_path / "x.tar") == (named(b"seed", b"good"), Seeds(2, 8, ()))


@pytest.mark.parametrize(
    "records",
    [
        b"9 size=4",
        b"99 path=x\n",
        b"0 size=4\n",
        b"8 size=4\n",
        b"11 size=-4\n",
        b"size=4\n",
        b"3 =\n",
        b"4 =\n",
        b"5 size=4\n",
    ],
)
def test_a_pax_header_that_is_not_sound(tmp_path: Path, records: bytes) -> None:
    pax = header(b"pax", b"%o" % len(records), b"x") + padded(records)
    (tmp_path / "x.tar").write_bytes(GOOD + pax + header(b"a", b"4") + padded(b"seed") + END)
    why = "a PAX header in it is not sound"
    assert gathered(tmp_path / "x.tar") == (named(b"good"), Seeds(1, 4, (cut_off("x.tar", why),)))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"text" * 1000, "a number in a header of it is not sound, or it is no tar archive"),
        (b"\0" * 150 + b"7" + b"\0" * 900, "a header in it is not sound, or it is no tar archive"),
        (b"text", "it is cut off"),
        (b"\x1f\x8b", "it is cut off"),
        (b"BZh9", "it is cut off"),
        (b"BZh91AY" + bytes(20), "the compressed data are not sound: Invalid data stream"),
        (b"\xfd7zXZ\0", "it is cut off"),
        (b"", "it ends without the mark of its end, so it may be cut off"),
    ],
)
def test_what_is_no_tar_archive(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    assert gathered(tmp_path / "x.tar") == ({}, Seeds(0, 0, (cut_off("x.tar", why),)))


def test_an_archive_that_lost_its_end_mark_may_be_cut_off(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(GOOD)
    why = "it ends without the mark of its end, so it may be cut off"
    assert gathered(tmp_path / "x.tar") == (named(b"good"), Seeds(1, 4, (cut_off("x.tar", why),)))


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(["tar", *COMPRESSED]), st.floats(0, 1, exclude_max=True))
def test_wherever_it_is_cut_off_what_comes_before_counts(suffix: str, share: float) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = tarred(Path(place) / f"x.{suffix}", {**FILES, "noise": bytes(range(256)) * 12})
        # The mark of the end of a plain one is at byte 10240
        length = int(share * (path.stat().st_size if suffix != "tar" else 10752))
        os.truncate(path, length)
        written, seeds = gathered(path)
    assert written.items() <= named(*FILES.values(), bytes(range(256)) * 12).items()
    assert len(seeds.left_out) == 1
    assert seeds.left_out[0].startswith(f"1 archive that cannot be read to its end: x.{suffix} (")
    if suffix == "tar":
        assert len(written) == sum(length >= end for end in (2012, 4360, 6620, 10240))


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(["tar", *COMPRESSED]), st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=9))))
def test_however_it_is_damaged_nothing_is_raised(suffix: str, changes: list[tuple[float, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = tarred(Path(place) / f"x.{suffix}", FILES)
        data = bytearray(path.read_bytes())
        for share, new in changes:
            at = int(share * len(data))
            data[at : at + len(new)] = new
        path.write_bytes(data)
        written, seeds = gathered(path)
    if suffix in ("tar.gz", "tar.bz2", "tar.xz") and not seeds.left_out:
        assert written == named(*FILES.values()), "a checksum would have told"


def test_a_wrong_checksum_at_the_end_of_gzip_is_told(tmp_path: Path) -> None:
    """What comes with the last piece does not count then."""
    contents = [bytes([at]) * 20_000 for at in range(4)]
    source = tarred(tmp_path / "x.tar.gz", {str(at): content for at, content in enumerate(contents)})
    data = bytearray(source.read_bytes())
    data[-8] ^= 1
    source.write_bytes(data)
    why = "the compressed data are not sound: Error -3 while decompressing data: incorrect data check"
    written, seeds = gathered(source)
    assert named(*contents[:3]).items() <= written.items() <= named(*contents).items()
    assert seeds.left_out == (cut_off("x.tar.gz", why),)


PACKERS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS.keys())
def test_streams_may_follow_each_other(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    data = GOOD + header(b"a", b"4") + padded(b"seed") + END
    packed = pack(data[:700]) + bytes(8) + pack(b"") + pack(data[700:]) + bytes(70_000)
    (tmp_path / "x.tar.gz").write_bytes(packed)
    assert gathered(tmp_path / "x.tar.gz") == (named(b"seed", b"good"), Seeds(2, 8, ()))


COMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.compressobj(1, wbits=31),
    ".bz2": bz2.BZ2Compressor,
    ".xz": lambda: lzma.LZMACompressor(preset=0),
}


def bomb(path: Path, start: bytes, zeros: int, end: bytes = b"") -> Path:
    """A compressed archive: `start`, this many MiB of NULs, and `end`."""
    path.write_bytes(squeezed(COMPRESSORS[path.suffix](), start, zeros, end))
    return path


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_a_large_file_before_the_seeds_is_passed_over_within_bounds(tmp_path: Path, suffix: str) -> None:
    limits = SeedLimits(bytes=5 * MIB)  # so 20 MiB may be read
    small = bomb(tmp_path / f"small.tar.{suffix}", header(b"big", b"%o" % (19 * MIB)), 19, GOOD + END)
    large = bomb(tmp_path / f"large.tar.{suffix}", header(b"big", b"%o" % (64 * MIB)), 64, GOOD + END)
    assert (small.stat().st_size < MIB, large.stat().st_size < MIB) == (True, True)
    with little_memory(16 * MIB):
        assert gathered(small, limits=limits)[0] == named(b"good")
        written, seeds = gathered(large, limits=limits)
    assert written == {}
    told = f"more seeds, in {large.name} and after it: more than 20 MiB would have to be read; merge them into fewer"
    assert seeds.left_out == (told,)


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        (b"x", [cut_off("x.tar.gz", "a header in it has 104,857,600 bytes")]),
        (b"L", [cut_off("x.tar.gz", "a header in it has 104,857,600 bytes")]),
        (b"K", []),
        (b"g", []),
        (b"S", ["1 sparse file in an archive: bomb in x.tar.gz; pack the seeds without --sparse"]),
    ],
)
def test_a_header_of_many_bytes_takes_no_memory(tmp_path: Path, flag: bytes, told: list[str]) -> None:
    """tarfile would read all of it at once."""
    source = bomb(tmp_path / "x.tar.gz", GOOD + header(b"bomb", b"%o" % (100 * MIB), flag), 100, END)
    with little_memory(4 * MIB):
        found = gathered(source, limits=SeedLimits(bytes=40 * MIB))
    assert found == (named(b"good"), Seeds(1, 4, tuple(told)))


def test_a_map_of_a_sparse_file_that_never_ends(tmp_path: Path) -> None:
    block = bytearray(header(b"sparse", b"0", b"S"))
    block[482] = 1
    block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)
    more = bytes(504) + b"\1" + bytes(7)
    with gzip.open(tmp_path / "x.tar.gz", "wb", 1) as stream:
        stream.write(GOOD + bytes(block))
        for _ in range(64):
            stream.write(more * 2048)
    with little_memory(4 * MIB):
        written, seeds = gathered(tmp_path / "x.tar.gz", limits=SeedLimits(bytes=1 * MIB))
    assert written == named(b"good")
    assert seeds.left_out[-1].endswith("more than 16 MiB would have to be read; merge them into fewer")


def test_headers_upon_headers(tmp_path: Path) -> None:
    """tarfile calls itself for each of them."""
    name = header(b"name", b"1", b"L") + padded(b"n")
    (tmp_path / "x.tar").write_bytes(GOOD + name * 5000 + GOOD + END)
    assert gathered(tmp_path / "x.tar") == (named(b"good"), Seeds(1, 4, ()))
    written, seeds = gathered(tmp_path / "x.tar", limits=SeedLimits(units=1000))
    assert written == named(b"good")
    assert seeds.left_out[0].endswith("they lie among more than 4,000 files; merge them into fewer")


def test_a_dictionary_that_takes_too_much_memory_is_not_made(tmp_path: Path) -> None:
    """The header of the block asks for 4 GiB."""
    data = bytearray(lzma.compress(GOOD + END))
    assert data[12:17] == bytes([2, 0, 0x21, 1, data[16]])
    data[16] = 40
    data[20:24] = zlib.crc32(data[12:20]).to_bytes(4, "little")
    (tmp_path / "x.tar.xz").write_bytes(data)
    with little_memory(4 * MIB):
        written, seeds = gathered(tmp_path / "x.tar.xz")
    assert written == {}
    why = "the compressed data are not sound: Memory usage limit exceeded"
    assert seeds.left_out == (cut_off("x.tar.xz", why),)


def test_what_xz_makes_at_most_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.tar.xz").write_bytes(lzma.compress(GOOD + END, preset=9 | lzma.PRESET_EXTREME))
    assert gathered(tmp_path / "x.tar.xz")[0] == named(b"good")
