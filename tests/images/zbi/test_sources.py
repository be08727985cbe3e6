"""Files and directories of the host, as they come into an image."""

import hashlib
import os

import pytest

from pipeline.errors import ImageDamaged, InputChanged
from pipeline.images.zbi import compression, container, merge
from pipeline.images.zbi.merge import ZbiMerge
from tests.images import zbis
from tests.images.zbi.conftest import Desk

FILES = {"bin/init": b"#!" * 3000, "lib/libc.so": b"\0elf" * 3000}


def test_directories_as_inputs_and_sources(desk: Desk) -> None:
    desk.put("tree/a", b"1")
    desk.put("tree/b/c", b"2")
    (desk.path / "tree/link").symlink_to("a")
    (desk.path / "tree/empty").mkdir()
    assert desk.files("tree") == {"a": b"1", "b/c": b"2", "link": b"1"}
    assert desk.files("-e", "x/y=tree") == {"x/y/a": b"1", "x/y/b/c": b"2", "x/y/link": b"1"}
    assert desk.files("tree/empty") == {}
    (desk.path / "linked").symlink_to("tree")
    assert desk.files("linked") == desk.files("tree")


def test_links_to_directories(desk: Desk) -> None:
    desk.put("tree/a", b"1")
    (desk.path / "tree/loop").symlink_to(".")
    for words in (("tree",), ("-e", "x=tree")):
        said = desk.refusal("-o", "OUT", *words)
        assert said.startswith("zbi: tree/loop is a link to a directory\n")
    assert desk.files("-e", "x=tree/a", "-e", "y=tree/loop/a") == {"x": b"1", "y": b"1"}


def test_what_lies_in_a_directory_must_be_files(desk: Desk) -> None:
    (desk.path / "tree").mkdir()
    os.mkfifo(desk.path / "tree/pipe")
    assert "tree/pipe is a named pipe, not a file" in desk.refusal("-o", "OUT", "-e", "x=tree")


@pytest.mark.parametrize(
    ("source", "problem"),
    [("missing", "missing: No such file or directory"), ("pipe", "pipe is a named pipe, not a file"),
     ("/dev/zero", "/dev/zero is a character device, not a file")],
)  # fmt: skip
def test_sources_that_are_no_files(desk: Desk, source: str, problem: str) -> None:
    os.mkfifo(desk.path / "pipe")
    desk.put("OUT", b"as it was")
    assert problem in desk.refusal("-o", "OUT", "-e", f"a={source}")


@pytest.mark.parametrize("target", ["/a", "..", ".", "", "../a", "a/../..", "n" * 256, "n" * 127 + "/" + "n" * 128])
def test_targets_that_no_device_takes(desk: Desk, target: str) -> None:
    desk.put("key", b"key")
    assert "a file in a BOOTFS cannot be named" in desk.refusal("-o", "OUT", "-e", f"{target}=key")


@pytest.mark.parametrize(
    ("target", "name"), [("./a", "a"), ("a//b", "a/b"), ("a/x/../b", "a/b"), ("a/", "a"), ("n" * 255, "n" * 255)]
)
def test_targets_are_folded(desk: Desk, target: str, name: str) -> None:
    desk.put("key", b"key")
    assert desk.files("-e", f"{target}=key") == {name: b"key"}


def test_a_name_that_is_not_utf8(desk: Desk) -> None:
    desk.put("tree/a\udcff", b"1")
    assert desk.files("tree") == {"a\udcff": b"1"}


def test_a_source_that_no_bootfs_can_hold(desk: Desk) -> None:
    os.truncate(desk.put("sparse", b""), compression.MOST_UNPACKED + 1)
    try:
        code, _, said = desk.run("-o", "OUT", "-e", "a=sparse")
    finally:
        (desk.path / "sparse").unlink()
    assert code == 1
    assert said.startswith(f"zbi: sparse: it has 2147483649 bytes, expected at most {compression.MOST_UNPACKED} in a")
    assert desk.tree() == {}


def changed(desk: Desk, content: bytes) -> str:
    """Refuse a source that is changed after it has been hashed."""
    with ZbiMerge() as made:
        made.add_file("a", desk.put("key", b"as it was"))
        (item,) = made.outcome()
        desk.put("key", content)
        assert not isinstance(item, container.Item)
        with pytest.raises(InputChanged) as caught:
            list(item.pieces())
        return caught.value.message


@pytest.mark.parametrize("content", [b"as it is!", b"longer than it was", b"short", b""])
def test_a_source_that_changes_while_it_is_read(desk: Desk, content: bytes) -> None:
    assert changed(desk, content) == f"{desk.path}/key changed while it was read"


def test_an_image_that_shrinks_while_it_is_read(desk: Desk) -> None:
    path = desk.put("in", zbis.image({**FILES, "lib/large": bytes(3 << 20)}))
    desk.put("key", b"key")
    with ZbiMerge() as made:
        made.add_image(path)
        made.add_file("a", desk.path / "key")
        items = made.outcome()
        os.truncate(path, 2 << 20)
        stream = desk.path.joinpath("OUT").open("w+b", buffering=0)
        with stream, pytest.raises(ImageDamaged, match=f"^{path}: at byte 0x200000: the file has become shorter"):
            container.write(stream, items)


def test_the_identity_of_a_source_is_its_digest(desk: Desk) -> None:
    new = merge.New.at(desk.put("key", b"key"))
    assert (new.size, new.identity) == (3, hashlib.sha256(b"key").hexdigest())
    assert b"".join(map(bytes, new.pieces())) == b"key"
