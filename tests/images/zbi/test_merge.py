"""Images put together, looked at as a device does."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.images import zbi
from pipeline.images.zbi import bootfs
from pipeline.images.zbi.merge import ZbiMerge
from tests.images import zbis
from tests.images.zbi import device
from tests.images.zbi.conftest import Desk

FILES = {"bin/init": b"#!" * 3000, "lib/libc.so": b"\0elf" * 3000, "lib/z": b"z"}
UNKNOWN = zbis.item(0x12345678, b"something", 7)
WRONG_CRC = zbis.item(0x87654321, b"wrong", 0, zbis.VERSION | zbis.CRC, crc=1)
WORDS = zbis.item(zbis.CMDLINE, b"TERM=dumb quiet\0")


def kinds(image: bytes) -> list[int]:
    return [item.type for item in device.items(image)]


def cmdline(image: bytes) -> list[bytes]:
    return [item.stored for item in device.items(image) if item.type == zbis.CMDLINE]


def compressions(image: bytes) -> list[str]:
    return [item.compression for item in device.items(image) if item.type == zbis.BOOTFS]


@pytest.mark.parametrize("pack", zbis.PACKS)
def test_a_file_is_added_and_the_compression_kept(desk: Desk, pack: str) -> None:
    desk.put("in", zbis.image(FILES, zbis.PACKS[pack], before=WORDS + UNKNOWN, after=WRONG_CRC))
    desk.put("key", b"ssh-ed25519")
    image = desk.make("in", "-e", "data/ssh/authorized_keys=key")
    assert device.files(image) == {**FILES, "data/ssh/authorized_keys": b"ssh-ed25519"}
    assert kinds(image) == [zbis.KERNEL_X64, 0x12345678, 0x87654321, zbis.CMDLINE, zbis.BOOTFS]
    assert [item.raw for item in device.items(image)[:3]] == [zbis.KERNEL, UNKNOWN, WRONG_CRC]
    assert cmdline(image) == [b"TERM=dumb quiet\0"]
    assert compressions(image) == [pack]
    assert [item.has_right_crc for item in device.items(image)] == [True, True, False, True, True]


@pytest.mark.parametrize(
    ("words", "pack"),
    [(("-u",), "raw"), (("-c",), "zstd"), (("--compressed=lz4f",), "lz4"), (("-czstd.19",), "zstd"),
     (("-clz4f.max",), "lz4"), (("--compressed=none",), "raw"), (("-u", "-c"), "zstd")],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else None,
)  # fmt: skip
@pytest.mark.parametrize("old", zbis.PACKS)
def test_a_compression_that_is_asked_for(desk: Desk, old: str, words: tuple[str, ...], pack: str) -> None:
    desk.put("in", zbis.image(FILES, zbis.PACKS[old]))
    desk.put("key", b"key")
    for arguments in (["in", "-e", "key=key", *words], [*words, "in", "-e", "key=key"]):
        image = desk.make(*arguments)
        assert compressions(image) == [pack]
        assert device.files(image) == {**FILES, "key": b"key"}


def test_without_new_files_a_bootfs_stays_as_it_is(desk: Desk) -> None:
    image = zbis.image(FILES, zbis.PACKS["lz4"], before=zbis.item(zbis.BOOTFS, b"no BOOTFS at all"))
    desk.put("in", image)
    for words in ((), ("-u",), ("-czstd",), ("-r",)):
        assert desk.make("in", *words) == image


def test_a_raw_bootfs_that_does_not_tell_its_size(desk: Desk) -> None:
    desk.put("in", zbis.container(zbis.KERNEL, zbis.item(zbis.BOOTFS, zbis.payload(FILES))))  # as in 2019
    desk.put("key", b"key")
    assert zbi.inspect(desk.path / "in").parts[1].size == len(zbis.payload(FILES))
    assert desk.files("in", "-e", "a=key") == {**FILES, "a": b"key"}
    assert desk.run("-t", "in")[1].splitlines()[3] == "00000048: 00007000 BOOTFS (size=00007000)"


def test_without_a_bootfs_there_is_one_in_zstd(desk: Desk) -> None:
    desk.put("in", zbis.container(zbis.KERNEL))
    desk.put("key", b"key")
    image = desk.make("in", "-e", "a=key")
    assert (compressions(image), device.files(image)) == (["zstd"], {"a": b"key"})
    assert device.files(desk.make("-e", "a=key")) == {"a": b"key"}


def test_all_bootfs_become_one_in_the_compression_of_the_first(desk: Desk) -> None:
    first = zbis.bootfs_item(zbis.payload({"a": b"1", "d": b"4"}), zbis.PACKS["lz4"])
    second = zbis.bootfs_item(zbis.payload({"b": b"2"}), zbis.PACKS["zstd"])
    desk.put("in", zbis.container(first, zbis.KERNEL, second))
    desk.put("more", zbis.image({"c": b"3"}))
    desk.put("key", b"5")
    image = desk.make("in", "-e", "e=key", "more")
    assert device.files(image) == {"a": b"1", "b": b"2", "c": b"3", "d": b"4", "e": b"5"}
    assert kinds(image) == [zbis.KERNEL_X64, zbis.KERNEL_X64, zbis.BOOTFS]
    assert compressions(image) == ["lz4"]


@pytest.mark.parametrize(
    ("lines", "joined"),
    [
        ([b"a=1\0"], b"a=1\0"),
        ([b"  a=1 \n\0\0"], b"a=1\0"),
        ([b"a=1", b"", b"b=2\0"], b"a=1 b=2\0"),
        ([b" ", b"\0", b" b=2"], b"b=2\0"),
        ([b"a \t", b"  b"], b"a   b\0"),
        ([b"a\xff"], b"a\xff\0"),
    ],
)
def test_command_lines_become_one(desk: Desk, lines: list[bytes], joined: bytes) -> None:
    items = [zbis.item(zbis.CMDLINE, line) for line in lines]
    desk.put("in", zbis.container(zbis.KERNEL, *items, UNKNOWN))
    image = desk.make("in")
    assert kinds(image) == [zbis.KERNEL_X64, 0x12345678, zbis.CMDLINE]
    assert cmdline(image) == [joined]


def test_an_empty_command_line_is_left_out(desk: Desk) -> None:
    desk.put("in", zbis.container(zbis.KERNEL, zbis.item(zbis.CMDLINE, b" \0")))
    assert kinds(desk.make("in")) == [zbis.KERNEL_X64]


def test_command_lines_that_are_too_long(desk: Desk) -> None:
    desk.put("long", zbis.container(zbis.item(zbis.CMDLINE, b"x" * ((1 << 20) + 1))))
    assert desk.refusal("-o", "OUT", "long").startswith("zbi: long: at byte 0x20: a CMDLINE of 1048577 bytes")
    desk.put("two", zbis.container(*[zbis.item(zbis.CMDLINE, b"x" * (1 << 19))] * 3))
    assert "the command lines are too long together" in desk.refusal("-o", "OUT", "two")


def test_replace_holds_for_what_follows(desk: Desk) -> None:
    desk.put("in", zbis.image({"a": b"old"}))
    desk.put("other", zbis.image({"a": b"other"}))
    desk.put("new", b"new")
    told = "duplicate target path without --replace: a"
    assert desk.files("in", "-r", "-e", "a=new") == {"a": b"new"}
    assert desk.files("-r", "in", "-e", "a=new") == {"a": b"new"}
    assert desk.files("in", "-r", "other", "-e", "b=new") == {"a": b"other", "b": b"new"}
    assert desk.files("-e", "a=new", "-r", "-e", "a=in")["a"] == zbis.image({"a": b"old"})
    assert told in desk.refusal("-o", "OUT", "in", "-e", "a=new", "-r")
    assert f"zbi: other: {told}" in desk.refusal("-o", "OUT", "in", "other", "-r", "-e", "a=new")
    assert told in desk.refusal("-o", "OUT", "-e", "a=new", "-e", "./a=new")


def test_a_directory_and_a_file_of_one_name(desk: Desk) -> None:
    desk.put("in", zbis.image({"a/b": b"1", "a/c": b"2", "d": b"3"}))
    desk.put("new", b"new")
    assert "(directory vs file) without --replace: a" in desk.refusal("-o", "OUT", "in", "-e", "a=new")
    assert "duplicate target path without --replace: d" in desk.refusal("-o", "OUT", "in", "-e", "d/e/f=new")
    assert desk.files("in", "-r", "-e", "a=new") == {"a": b"new", "d": b"3"}
    assert desk.files("in", "-r", "-e", "d/e/f=new") == {"a/b": b"1", "a/c": b"2", "d/e/f": b"new"}


def test_equal_files_are_stored_once(desk: Desk) -> None:
    raw = zbis.bootfs([zbis.entry(name, 5, 4096) for name in (b"a\0", b"b\0")], b"equal".ljust(4096, b"\0"))
    again = zbis.payload({"c": b"equal", "d": b"equal"})
    desk.put("in", zbis.container(zbis.bootfs_item(raw), zbis.bootfs_item(again)))
    desk.put("x", b"equal")
    desk.put("y", b"equal")
    (item,) = device.items(desk.make("in", "-e", "e=x", "-e", "f=y", "-e", "g=x"))
    places = {name: offset for name, _, offset in device.entries(item.content)}
    assert places[b"a"] == places[b"b"]
    assert places[b"e"] == places[b"f"] == places[b"g"]
    # What was apart before stays apart: nothing of the image is hashed
    assert len(set(places.values())) == 4


EMPTY: list[dict[str, bytes]] = [
    {"a": b""},
    {"a": b"", "b": b"1"},
    {"a": b"1", "b": b""},
    {"a": b"", "b": b"", "c": b""},
]


@pytest.mark.parametrize("old", [{}, *EMPTY], ids=str)
@pytest.mark.parametrize("new", EMPTY, ids=str)
def test_empty_files(desk: Desk, old: dict[str, bytes], new: dict[str, bytes]) -> None:
    desk.put("in", zbis.image(old))
    for name, content in new.items():
        desk.put(f"new/{name}", content)
    wanted = old | {f"new/{name}": content for name, content in new.items()}
    assert desk.files("in", "-e", "new=new") == wanted
    desk.put("again", (desk.path / "OUT").read_bytes())
    assert desk.files("again", "-e", "zz=new/a") == wanted | {"zz": new["a"]}


def scattered(count: int, pack: str) -> tuple[dict[str, bytes], bytes]:
    """Files whose contents lie in the opposite order of their names, and the item that holds them."""
    files = {f"d{number % 7}/f{number:04}": b"%d" % number * number for number in range(count)}
    start = len(zbis.bootfs([zbis.entry(name.encode() + b"\0", 0, 0) for name in files]))
    content, entries = b"", []
    for name, data in reversed(files.items()):
        entries.append(zbis.entry(name.encode() + b"\0", len(data), start + len(content)))
        content += data + bytes(-len(data) % 4096)
    return files, zbis.bootfs_item(zbis.bootfs(entries[::-1], content), zbis.PACKS[pack])


@pytest.mark.parametrize("pack", zbis.PACKS)
def test_contents_in_another_order_than_names(desk: Desk, pack: str) -> None:
    files, item = scattered(500, pack)
    desk.put("in", zbis.container(zbis.KERNEL, item))
    desk.put("key", b"key")
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    assert desk.files("in", "-e", "key=key") == files | {"key": b"key"}
    assert set(os.listdir("/proc/self/fd")) <= set(before)  # noqa: PTH208


def test_no_room_for_the_temporary_file(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.put("in", zbis.container(scattered(9, "zstd")[1]))
    desk.put("key", b"key")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: os.open("/nowhere/at/all", os.O_RDONLY))
    said = desk.refusal("-o", "OUT", "in", "-e", "key=key")
    assert said.startswith("zbi: unpacking a BOOTFS into a temporary file: No such file or directory\n")
    assert "set TMPDIR" in said


def test_hundreds_of_files_from_many_places(desk: Desk) -> None:
    for number in range(300):
        desk.put(f"tree/{number % 11}/{number}.bin", bytes([number % 251]) * number)
    tree = {name.removeprefix("tree/"): data for name, data in desk.tree().items()}
    desk.put("in", zbis.image({f"old/{number:03}": bytes([number]) * 50 for number in range(200)}, zbis.PACKS["zstd"]))
    found = desk.files("in", "-e", "new=tree")
    assert {name: data for name, data in found.items() if name.startswith("new/")} == {
        f"new/{name}": data for name, data in tree.items()
    }
    assert len(found) == 500


@pytest.mark.parametrize("pack", ["zstd", "lz4"])
def test_damage_in_a_frame_is_told_with_its_file(desk: Desk, pack: str) -> None:
    desk.put("good", zbis.image({"x": b"1"}))
    packed = zbis.PACKS[pack](zbis.payload(FILES))
    bad = zbis.item(zbis.BOOTFS, packed + b"\0", len(zbis.payload(FILES)), zbis.VERSION | zbis.COMPRESSED)
    desk.put("bad", zbis.container(zbis.KERNEL, bad))
    desk.put("key", b"key")
    desk.put("OUT", b"as it was")
    for words in (("bad", "good"), ("good", "bad"), ("-r", "good", "bad", "good")):
        said = desk.refusal("-o", "OUT", *words, "-e", "a=key")
        assert said.startswith("zbi: bad: at byte 0x48: item BOOTFS: ")


def test_many_bootfs_are_bounded_together(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootfs, "MOST_FILES", 4)
    desk.put("one", zbis.image(FILES))
    desk.put("two", zbis.image({"a": b"", "b": b""}))
    desk.put("key", b"")
    assert len(desk.files("one", "-e", "key=key")) == 4
    assert "zbi: two: too many files in the BOOTFS" in desk.refusal("-o", "OUT", "one", "two", "-e", "key=key")
    assert "zbi: too many files" in desk.refusal("-o", "OUT", "one", "-e", "k=key", "-e", "l=key")


def test_the_same_input_makes_the_same_bytes(desk: Desk) -> None:
    desk.put("in", zbis.image(FILES, zbis.PACKS["zstd"]))
    desk.put("key", b"key" * 100_000)
    images = {desk.make("in", "-e", "a=key") for _ in range(3)}
    assert len(images) == 1


def test_out_may_be_in(desk: Desk) -> None:
    desk.put("OUT", zbis.image(FILES, zbis.PACKS["zstd"]))
    desk.put("key", b"key")
    assert desk.files("OUT", "-e", "a=key") == {**FILES, "a": b"key"}
    assert desk.files("OUT", "-e", "b=key") == {**FILES, "a": b"key", "b": b"key"}
    assert sorted(desk.tree()) == ["OUT", "key"]


def test_nothing_stays_open_after_a_merge(desk: Desk) -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    desk.put("in", zbis.image(FILES))
    with ZbiMerge() as made:
        made.add_image(desk.path / "in")
        assert len(os.listdir("/proc/self/fd")) > len(before)  # noqa: PTH208
    assert set(os.listdir("/proc/self/fd")) <= set(before)  # noqa: PTH208


COMPONENT = st.sampled_from(["a", "b", "a-b", "a.b", "é", "\udcff", "z" * 40])
NAMES = st.lists(COMPONENT, min_size=1, max_size=4).map("/".join)
CONTENTS = st.one_of(
    st.binary(max_size=20), st.sampled_from([b"", b"x" * 4095, b"x" * 4096, b"x" * 4097, bytes(70_000)])
)


def without_clashes(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if not any(other.startswith(f"{name}/") for other in files)}


TREES = st.dictionaries(NAMES, CONTENTS, max_size=12).map(without_clashes)
PACKS = st.sampled_from(list(zbis.PACKS))


@given(TREES, TREES, TREES, PACKS, PACKS, st.sampled_from([(), ("-u",), ("-c",), ("-clz4f",)]))
@settings(max_examples=25)
def test_any_trees_come_out_whole(
    first: dict[str, bytes],
    second: dict[str, bytes],
    new: dict[str, bytes],
    pack: str,
    other: str,
    how: tuple[str, ...],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "one").write_bytes(zbis.image(prefixed("1", first), zbis.PACKS[pack]))
        (directory / "two").write_bytes(zbis.image(prefixed("0", second), zbis.PACKS[other]))
        (directory / "new").mkdir()
        arguments = list(entries(directory / "new", prefixed("2", new)))
        output = str(directory / "OUT")
        inputs = [str(directory / "one"), str(directory / "two"), *arguments, "-e", f"3={directory / 'new'}"]
        assert zbi.main([*how, "-o", output, *inputs]) == 0
        found = device.files((directory / "OUT").read_bytes())
        assert {name: data for name, data in found.items() if not name.startswith("3/")} == {
            **prefixed("1", first), **prefixed("0", second), **prefixed("2", new)
        }  # fmt: skip
        assert {part.name for part in zbi.inspect(directory / "OUT").walk() if part.kind == "file"} == found.keys()


def prefixed(prefix: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{prefix}/{name}": data for name, data in files.items()}


def entries(directory: Path, files: dict[str, bytes]) -> Iterator[str]:
    for name, data in files.items():
        path = directory / hashlib.sha256(data).hexdigest()
        path.write_bytes(data)
        yield from ("-e", f"{name}={path}")
