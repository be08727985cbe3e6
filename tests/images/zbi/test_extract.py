"""Files taken out of images, of which some want to land where they do not belong."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.images import zbi
from pipeline.images.zbi import container, extract
from tests.images import zbis
from tests.images.zbi.conftest import Desk

FILES = {"bin/init": b"#!" * 3000, "data/empty": b"", "lib/deep/er/libc.so": b"\0elf", "zz": b"z" * 4096}


def taken(desk: Desk, image: bytes, *words: str) -> dict[str, bytes]:
    """What is in `out` after extraction."""
    desk.put("in", image)
    assert desk.run("-x", "in", "-D", "out", *words) == (0, "", "")
    return {name.removeprefix("out/"): data for name, data in desk.tree().items() if name.startswith("out/")}


def refused(desk: Desk, image: bytes, *words: str) -> str:
    desk.put("in", image)
    code, out, err = desk.run("-x", "in", "-D", "out", *words)
    assert (code, out) == (1, "")
    assert "\n  hint: " in err
    return err


@pytest.mark.parametrize("pack", zbis.PACKS)
def test_all_files_are_written(desk: Desk, pack: str) -> None:
    assert taken(desk, zbis.image(FILES, zbis.PACKS[pack])) == FILES
    assert {path.stat().st_mode & 0o777 for path in desk.path.rglob("out/**/*") if path.is_file()} == {
        0o644 & ~current_umask()
    }


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_by_default_into_the_current_directory(desk: Desk) -> None:
    desk.put("elsewhere/in", zbis.image(FILES))
    assert desk.run("-x", "elsewhere/in") == (0, "", "")
    assert {name: data for name, data in desk.tree().items() if name != "elsewhere/in"} == FILES


@pytest.mark.parametrize("directory", ["a/b/c", "./a/../a", "a/"])
def test_the_directory_is_made(desk: Desk, directory: str) -> None:
    (desk.path / "a").mkdir()
    desk.put("in", zbis.image({"x": b"1"}))
    assert desk.run("-x", "in", "--output-dir", directory) == (0, "", "")
    assert (desk.path / directory / "x").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["*"], list(FILES)),
        ([], list(FILES)),
        (["bin/init"], ["bin/init"]),
        (["bin"], []),
        (["*.so", "zz"], ["lib/deep/er/libc.so", "zz"]),
        (["lib/*"], ["lib/deep/er/libc.so"]),
        (["!lib/*"], ["bin/init", "data/empty", "zz"]),
        (["^lib/*", "!zz"], ["bin/init", "data/empty"]),
        (["*i*", "!data/*"], ["bin/init", "lib/deep/er/libc.so"]),
        (["BIN/*"], []),
        (["?[nz]?"], []),
        (["z?"], ["zz"]),
    ],
    ids=str,
)
def test_patterns(desk: Desk, patterns: list[str], names: list[str]) -> None:
    found = taken(desk, zbis.image(FILES, zbis.PACKS["zstd"]), "--", *patterns)
    assert found == {name: data for name, data in FILES.items() if name in names}


def test_files_of_all_bootfs_and_images(desk: Desk) -> None:
    image = zbis.container(
        zbis.bootfs_item(zbis.payload({"a": b"1", "b": b"1"})), zbis.bootfs_item(zbis.payload({"b": b"2", "c": b"2"}))
    )
    assert taken(desk, image) == {"a": b"1", "b": b"2", "c": b"2"}


def test_files_that_are_there_are_replaced(desk: Desk) -> None:
    desk.put("target", b"not to be touched")
    desk.put("out/zz", b"old")
    (desk.path / "out/data").mkdir()
    (desk.path / "out/data/empty").symlink_to(desk.path / "target")
    (desk.path / "out/bin").mkdir()
    os.link(desk.path / "target", desk.path / "out/bin/init")
    assert taken(desk, zbis.image(FILES)) == FILES
    assert (desk.path / "target").read_bytes() == b"not to be touched"
    assert taken(desk, zbis.image(FILES)) == FILES


def test_a_pipe_in_the_way_is_replaced(desk: Desk) -> None:
    (desk.path / "out").mkdir()
    os.mkfifo(desk.path / "out/zz")
    assert taken(desk, zbis.image(FILES))["zz"] == FILES["zz"]


def test_the_directory_itself_may_be_a_link(desk: Desk) -> None:
    (desk.path / "real").mkdir()
    (desk.path / "out").symlink_to("real")
    assert taken(desk, zbis.image({"a/b": b"1"})) == {}
    assert (desk.path / "real/a/b").read_bytes() == b"1"


@pytest.mark.parametrize("directory", ["lib", "lib/deep", "lib/deep/er"])
def test_a_link_on_the_way_is_not_followed(desk: Desk, directory: str) -> None:
    (desk.path / "elsewhere").mkdir()
    (desk.path / "out" / directory).parent.mkdir(parents=True)
    (desk.path / "out" / directory).symlink_to(desk.path / "elsewhere")
    said = refused(desk, zbis.image(FILES))
    name = directory.rpartition("/")[2]
    assert said.startswith(f"zbi: 'lib/deep/er/libc.so' cannot be extracted: '{name}' is there and is no directory\n")
    assert list((desk.path / "elsewhere").iterdir()) == []


def test_a_directory_in_the_way(desk: Desk) -> None:
    desk.put("out/zz/kept", b"kept")
    said = refused(desk, zbis.image(FILES))
    assert said.startswith("zbi: 'zz' cannot be extracted: a directory is there\n")
    assert (desk.path / "out/zz/kept").read_bytes() == b"kept"


@pytest.mark.parametrize("files", [{"a": b"1", "a/b": b"2"}, {"a/b": b"2", "a": b"1"}], ids=["file", "directory"])
def test_a_name_that_is_a_file_and_a_directory(desk: Desk, files: dict[str, bytes]) -> None:
    said = refused(desk, zbis.image(files))
    assert "cannot be extracted" in said
    assert "the image has both" in said
    assert desk.run("-x", "in", "-D", "new", "--", "!a") == (0, "", "")
    assert (desk.path / "new/a/b").read_bytes() == b"2"


def sharing(names: list[bytes], content: bytes = b"shared") -> bytes:
    """An image in which all names have one range."""
    start = len(zbis.bootfs([zbis.entry(name + b"\0", 0, 0) for name in names]))
    entries = [zbis.entry(name + b"\0", len(content), start) for name in names]
    return zbis.container(zbis.bootfs_item(zbis.bootfs(entries, content + bytes(-len(content) % 4096))))


def test_a_shared_range_is_written_once(desk: Desk) -> None:
    names = [b"d%d/n%d" % (number % 10, number) for number in range(1000)]
    found = taken(desk, sharing(names))
    assert found == {name.decode(): b"shared" for name in names}
    assert len({(desk.path / "out" / name).stat().st_ino for name in found}) == 1
    assert taken(desk, sharing(names, b"changed")) == {name.decode(): b"changed" for name in names}


def test_one_name_twice_in_one_range(desk: Desk) -> None:
    assert taken(desk, sharing([b"a", b"a", b"b", b"a"])) == {"a": b"shared", "b": b"shared"}


def test_more_links_than_the_file_system_takes(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def link(source: Any, target: Any, *, src_dir_fd: int, **options: Any) -> None:
        if os.stat(source, dir_fd=src_dir_fd).st_nlink == 4:
            raise OSError(errno.EMLINK, "Too many links")
        real(source, target, src_dir_fd=src_dir_fd, **options)

    monkeypatch.setattr(os, "link", link)
    names = [b"n%d" % number for number in range(10)]
    assert taken(desk, sharing(names)) == {name.decode(): b"shared" for name in names}
    links = {(desk.path / "out" / name.decode()).stat() for name in names}
    assert sorted({stat.st_ino: stat.st_nlink for stat in links}.values()) == [2, 4, 4]


def test_a_file_system_without_links(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    assert taken(desk, sharing([b"a", b"b"])) == {"a": b"shared", "b": b"shared"}


def test_a_full_disk(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(container, "write_all", full)
    said = refused(desk, zbis.image(FILES))
    assert said.startswith("zbi: extracting into out: No space left on device\n")
    assert "-D DIR" in said


def test_a_file_where_the_directory_should_be(desk: Desk) -> None:
    desk.put("out", b"a file")
    assert refused(desk, zbis.image(FILES)).startswith("zbi: extracting into out: File exists\n")


@pytest.mark.parametrize(
    "name", [b"../x", b"a/../../x", b"/tmp/x", b"a//x", b"./x", b"x/", b"a\0x", b".."], ids=lambda name: name.decode()
)
def test_a_hostile_name_stops_all_before_anything_is_written(desk: Desk, name: bytes) -> None:
    raw = zbis.bootfs([zbis.entry(b"good\0", 1, 4096), zbis.entry(name + b"\0", 1, 8192)], bytes(8192))
    said = refused(desk, zbis.container(zbis.bootfs_item(raw)))
    assert said.startswith("zbi: in: at byte 0x20: in its BOOTFS, at byte 0x30 of the content: the name ")
    assert list((desk.path / "out").iterdir()) == []


def test_names_of_controls_and_bytes_are_only_names(desk: Desk) -> None:
    files = {"a\x1b[2J\n": b"1", "a\udcff/\udcfe": b"2", "...": b"3", "-rf": b"4", "é": b"5", " ": b"6"}
    assert taken(desk, zbis.image(files)) == files


def test_damage_behind_the_last_file_is_an_error(desk: Desk) -> None:
    raw = zbis.payload(FILES)
    packed = zbis.PACKS["zstd"](raw)
    item = zbis.item(zbis.BOOTFS, packed + b"\0", len(raw), zbis.VERSION | zbis.COMPRESSED)
    assert refused(desk, zbis.container(item)).startswith("zbi: in: at byte 0x20: item BOOTFS: it has ")


def test_all_of_a_frame_is_read_even_if_one_file_is_wanted(desk: Desk) -> None:
    raw = zbis.payload({"a": b"1", "b": os.urandom(1 << 20)})
    packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(raw))
    packed[-1] ^= 1
    item = zbis.item(zbis.BOOTFS, bytes(packed), len(raw), zbis.VERSION | zbis.COMPRESSED)
    said = refused(desk, zbis.container(item), "--", "a")
    assert "its zstd frame cannot be unpacked: zstd decompress error: Restored data doesn't match checksum" in said


def test_no_descriptor_is_left_open(desk: Desk) -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    taken(desk, zbis.image(FILES))
    refused(desk, zbis.image({"a": b"1", "a/b": b"2"}))
    assert set(os.listdir("/proc/self/fd")) <= set(before)  # noqa: PTH208


def test_the_number_of_files_is_told(desk: Desk) -> None:
    with container.opened(desk.put("in", zbis.image(FILES, after=zbis.KERNEL))) as items:
        assert extract.extract(items, desk.path / "out", lambda name: name < "c") == 1


HOSTILE = st.lists(
    st.sampled_from([b"..", b".", b"", b"a", b"link", b"file", b"\xff", b"b" * 100, b"\0"]), min_size=1, max_size=5
).map(b"/".join)


@given(st.lists(st.tuples(HOSTILE, st.integers(0, 3)), max_size=6))
@settings(max_examples=60)
def test_nothing_lands_outside(files: list[tuple[bytes, int]]) -> None:
    entries = [zbis.entry(name + b"\0", 9 * bool(page), (page + 2) * 4096) for name, page in files]
    image = zbis.container(zbis.bootfs_item(zbis.bootfs(entries).ljust(8192, b"\0") + b"x" * 4 * 4096))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "outside").mkdir()
        (directory / "outside/kept").write_bytes(b"kept")
        (directory / "in").write_bytes(image)
        out = directory / "a/b/out"
        out.mkdir(parents=True)
        (out / "link").symlink_to(directory / "outside")
        (out / "file").symlink_to(directory / "outside/kept")
        assert zbi.main(["-x", str(directory / "in"), "-D", str(out)]) in (0, 1)
        assert sorted(path.name for path in directory.iterdir()) == ["a", "in", "outside"]
        assert [path.read_bytes() for path in (directory / "outside").iterdir()] == [b"kept"]
        assert [path.name for path in (directory / "a").iterdir()] == ["b"]
        assert [path.name for path in (directory / "a/b").iterdir()] == ["out"]
