"""The command line."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.host.locks import locked
from pipeline.images.zbi import container, program
from pipeline.images.zbi.merge import ZbiMerge
from tests.images import zbis
from tests.images.zbi import device
from tests.images.zbi.conftest import Desk

PROJECT = Path(__file__).parents[3]
FILES = {"bin/init": b"#!" * 3000, "lib/libc.so": b"\0elf"}
PROGRAM = [sys.executable, "-m", "pipeline.images.zbi"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT), **more}


def test_it_is_a_program(desk: Desk) -> None:
    desk.put("in", zbis.image(FILES))
    desk.put("key", b"key")
    words = [*PROGRAM, "-o", "OUT", "in", "-e", "a=key"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert device.files((desk.path / "OUT").read_bytes()) == {**FILES, "a": b"key"}
    done = subprocess.run([*PROGRAM, "missing"], env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("zbi: no output file\n  hint: give -o OUT, or --list or --extract.")


@pytest.mark.parametrize("words", [("--help",), ("-h",), ("-th",), ("-o", "OUT", "missing", "-h")])
def test_help(desk: Desk, words: tuple[str, ...]) -> None:
    code, out, err = desk.run(*words)
    assert (code, err) == (0, "")
    assert out == program.USAGE + "\n"
    assert max(map(len, out.splitlines())) <= 120
    assert desk.tree() == {}


@pytest.mark.parametrize(
    "words",
    [
        ("-o", "OUT", "in", "-e", "a=key"),
        ("-oOUT", "in", "-ea=key"),
        ("--output=OUT", "in", "--entry=a=key"),
        ("--output", "OUT", "in", "--entry", "a=key"),
        ("in", "--entry", "a=key", "-r", "-o", "OUT"),
        ("-rvoOUT", "in", "-ea=key"),
        ("--replace", "--verbose", "--compressed", "in", "-o", "OUT", "-e", "a=key", "--uncompressed"),
        ("-T", "cmdline", "-F", "in", "-e", "a=key", "-o", "OUT"),
        ("-T", "cmdline", "-T", "container", "in", "-e", "a=key", "-o", "OUT"),
        ("-T", "cmdline", "--files", "in", "-e", "a=key", "-o", "OUT"),
        ("--bootable=x64", "in", "-e", "a=key", "-o", "OUT"),
        ("--complete=x64", "in", "-e", "a=key", "-o", "OUT"),
        ("in", "-o", "elsewhere", "-e", "a=key", "-o", "OUT"),
    ],
    ids=" ".join,
)
def test_ways_to_say_the_same(desk: Desk, words: tuple[str, ...]) -> None:
    desk.put("in", zbis.image(FILES))
    desk.put("key", b"key")
    assert desk.run(*words) == (0, "", "")
    assert device.files((desk.path / "OUT").read_bytes()) == {**FILES, "a": b"key"}
    assert sorted(desk.tree()) == ["OUT", "in", "key"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--nonsense",), "there is no option --nonsense"),
        (("--list=3", "in"), "there is no option --list=3"),
        (("-q",), "there is no option -q"),
        (("-tq", "in"), "there is no option -q"),
        (("-é",), "there is no option -é"),
        (("in", "-o"), "option -o needs a value"),
        (("in", "--output"), "option --output needs a value"),
        (("in",), "no output file"),
        (("-v", "in"), "no output file"),
        ((), "no output file"),
        (("-t",), "no input"),
        (("-t", "in", "-o", "OUT"), "--output (-o) is incompatible with --list (-t)"),
        (("-x", "in", "-o", "OUT"), "--output (-o) is incompatible with --extract (-x)"),
        (("-t", "in", "-u"), "--compressed (-c) without an output file"),
        (("-t", "in", "-B", "x64"), "--bootable (-B) without an output file"),
        (("-t", "in", "-D", "dir"), "--output-dir (-D) is for what is extracted"),
        (("-t", "in", "-e", "a=key"), "--entry (-e) without an output file"),
        (("-x", "in", "-e", "a=key"), "--entry (-e) without an output file"),
        (("-o", "OUT", "in", "--", "*.so"), "patterns choose what is extracted"),
        (("-o", "OUT", "in", "-e", "key"), "manifest entry has no '=' separator: key"),
        (("-o", "OUT", "in", "-T", "nonsense", "key"), "unrecognized type: nonsense"),
        (("-o", "OUT", "in", "-T", "cmdline:", "key"), "--type=cmdline:: '' is no number of bytes"),
        (("-o", "OUT", "in", "-T", "cmdline:-1", "key"), "'-1' is no number of bytes"),
        (("-o", "OUT", "in", "-T", "cmdline:٣", "key"), "is no number of bytes"),
        (("-o", "OUT", "in", "-T", "cmdline:" + "9" * 5000, "key"), "is no number of bytes"),
        (("-o", "OUT", "in", "-T", "cmdline:999999999", "key"), "999999999 bytes are too many for an item"),
        (("-o", "OUT", "in", "-T", "cmdline:4", "key"), "key has 3 bytes, not 4"),
        (("-o", "OUT", "in", "-T", "cmdline", "missing"), "missing: No such file or directory"),
        (("-o", "OUT", "in", "-T", "cmdline:4", "missing"), "missing: No such file or directory"),
        (("-o", "OUT", "in", "-T", "cmdline", "pipe"), "pipe is a named pipe, not a file"),
        (("-o", "OUT", "in", "-T", "cmdline:4", "pipe"), "pipe is neither a file nor a device"),
        (("-o", "OUT", "in", "-T", "cmdline:4", "tree"), "tree: Is a directory"),
        (("-o", "OUT", "in", "-T", "cmdline", "/dev/zero"), "/dev/zero is a character device, not a file"),
        (("-o", "OUT", "in", "-T", "cmdline:4", "/dev/null"), "/dev/null has 0 bytes, not 4"),
        (("-o", "OUT", "in", "-B", "sparc"), "'sparc' is no architecture"),
        (("-o", "OUT", "in", "-B", "arm64"), "Not a bootable image: kernel arch mismatch: it has KERNEL_X64"),
        (("-o", "OUT", "-B", "x64", "-e", "a=key"), "Not a bootable image: no kernel item found"),
        (("-o", "OUT", "-B", "x64", "tree", "-T", "cmdline", "key"), "Not a bootable image: no kernel item found"),
        (("-o", "OUT", "in", "-czstd.23"), "zstd has no level 23"),
        (("-o", "OUT", "-c", "zstd", "in"), "zstd: No such file or directory"),
        (("-o", "tree", "in"), "tree is there and is no file"),
        (("-o", "pipe", "in"), "pipe is there and is no file"),
        (("-o", "/dev/null", "in"), "/dev/null is there and is no file"),
        (("-o", "OUT", "pipe"), "pipe is a named pipe, not a file"),
        (("-o", "OUT", "/dev/zero"), "/dev/zero is a character device, not a file"),
        (("-o", "OUT", "-"), "-: No such file or directory"),
        (("-t", "key"), "key: at byte 0x0: this is no ZBI"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_makes_no_sense(desk: Desk, words: tuple[str, ...], problem: str) -> None:
    desk.put("in", zbis.image(FILES))
    desk.put("key", b"key")
    (desk.path / "tree").mkdir()
    os.mkfifo(desk.path / "pipe")
    assert problem in desk.refusal(*words)


def test_devices_are_still_devices() -> None:
    assert Path("/dev/null").is_char_device()


def test_a_file_as_an_item(desk: Desk) -> None:
    desk.put("in", zbis.container(zbis.KERNEL))
    desk.put("data", b"some data")
    image = desk.make("in", "-T", "12345678", "data", "-T", "nvram:4", "data", "-T", "cmdline", "-e", "a=1 b", "data")
    found = [(item.type, item.stored, item.extra, item.flags) for item in device.items(image)]
    assert found[1:] == [
        (0x12345678, b"some data", 0, zbis.VERSION | zbis.CRC),
        (0x4C4C564E, b"some", 0, zbis.VERSION | zbis.CRC),
        (zbis.CMDLINE, b"a=1 b some data\0", 0, zbis.VERSION | zbis.CRC),
    ]
    assert all(item.has_right_crc for item in device.items(image))


@pytest.mark.parametrize("words", [("-T", "ramdisk", "data"), ("-T", "kernel", "data"), ("-T", "bootfs:99", "data")])
def test_storage_made_of_a_file_is_compressed(desk: Desk, words: tuple[str, ...]) -> None:
    desk.put("data", bytes(99))
    for how, pack in (((), "zstd"), (("-clz4f",), "lz4"), (("-u",), "raw")):
        (item,) = device.items(desk.make(*words, *how))
        assert (item.compression, item.content, item.extra, item.has_right_crc) == (pack, bytes(99), 99, True)


def test_a_bootfs_made_of_a_file_does_not_choose_the_compression(desk: Desk) -> None:
    desk.put("raw", zbis.payload(FILES))
    desk.put("key", b"key")
    image = desk.make("-T", "bootfs", "raw", "-F", "-e", "a=key")
    assert device.files(image) == {**FILES, "a": b"key"}
    assert device.items(image)[0].compression == "zstd"


def test_a_damaged_bootfs_made_of_a_file_is_told_with_its_name(desk: Desk) -> None:
    desk.put("raw", bytes(4096))
    desk.put("key", b"key")
    said = desk.refusal("-o", "OUT", "-T", "bootfs", "raw", "-F", "-e", "a=key")
    assert said.startswith("zbi: raw: in its BOOTFS, at byte 0x0 of the content: the magic 0x0")


def test_bytes_of_a_device(desk: Desk) -> None:
    desk.put("in", zbis.container(zbis.KERNEL))
    image = desk.make(
        "in", "-T", "entropy:64", "/dev/urandom", "-T", "nvram:5", "/dev/zero", "-T", "nvram:0", "/dev/null"
    )
    _, entropy, zeros, none = device.items(image)
    assert (entropy.type, len(entropy.stored)) == (0x444E4152, 64)
    assert (zeros.stored, none.stored) == (bytes(5), b"")
    assert any(entropy.stored)


def test_a_file_that_is_too_large_for_an_item(desk: Desk) -> None:
    os.truncate(desk.put("sparse", b""), (1 << 28) + 1)
    code, _, said = desk.run("-o", "OUT", "-T", "nvram", "sparse")
    assert code == 1
    assert said.startswith("zbi: sparse is too large for an item\n")


@pytest.mark.parametrize(("arch", "kind"), [("x64", zbis.KERNEL_X64), ("arm64", zbis.KERNEL_ARM64)])
def test_the_kernel_comes_first_in_a_bootable_image(desk: Desk, arch: str, kind: int) -> None:
    desk.put("in", zbis.container(zbis.item(1, b"1"), zbis.item(kind, b"kernel"), zbis.item(2, b"2")))
    assert [item.type for item in device.items(desk.make("in", "-B", arch))] == [kind, 1, 2]
    assert [item.type for item in device.items(desk.make("in"))] == [1, kind, 2]


@pytest.mark.parametrize("name", ["OUT", "new/dir/OUT", "./OUT", "../{}/OUT"])
def test_places_of_the_output(desk: Desk, name: str) -> None:
    desk.put("in", zbis.image(FILES))
    output = name.format(desk.path.name)
    assert desk.run("in", "-o", output) == (0, "", "")
    assert (desk.path / output).read_bytes() == zbis.image(FILES)
    assert len(desk.tree()) == 2


def test_an_output_that_is_a_link_becomes_a_file(desk: Desk) -> None:
    desk.put("in", zbis.image(FILES))
    desk.put("target", b"kept")
    (desk.path / "OUT").symlink_to("target")
    assert desk.make("in") == zbis.image(FILES)
    assert not (desk.path / "OUT").is_symlink()
    assert (desk.path / "target").read_bytes() == b"kept"


def test_a_failure_leaves_the_output_as_it_was(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    desk.put("OUT", b"as it was")
    desk.put("in", zbis.image(FILES))
    monkeypatch.setattr(container, "write_all", full)
    said = desk.refusal("-o", "OUT", "in")
    assert said.startswith("zbi: making OUT: No space left on device\n  hint: free some space on that disk")


def test_remains_of_a_killed_run_are_removed(desk: Desk) -> None:
    desk.put(".OUT.abcd1234.tmp/OUT", b"half")
    desk.put("OUT.lock", b"")
    desk.put("in", zbis.image(FILES))
    desk.make("in")
    assert sorted(desk.tree()) == ["OUT", "in"]


def test_ctrl_c_leaves_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    desk.put("in", zbis.image(FILES))
    monkeypatch.setattr(container, "write", interrupted)
    assert desk.run("-o", "OUT", "in") == (130, "", "")
    assert sorted(desk.tree()) == ["in"]
    monkeypatch.setattr(ZbiMerge, "add_image", interrupted)
    assert desk.run("-t", "in") == (130, "", "")


def test_two_at_once_do_not_lose_what_the_other_adds(desk: Desk) -> None:
    desk.put("OUT", zbis.image(FILES))
    desk.put("key", b"key")
    with locked(desk.path / "OUT"):
        words = [[*PROGRAM, "-o", "OUT", "OUT", "-e", f"k{number}=key"] for number in range(3)]
        running = [subprocess.Popen(word, env=environment(), stderr=subprocess.PIPE) for word in words]
    assert [(process.communicate()[1], process.returncode) for process in running] == [(b"", 0)] * 3
    assert device.files((desk.path / "OUT").read_bytes()) == {**FILES, "k0": b"key", "k1": b"key", "k2": b"key"}
    assert sorted(desk.tree()) == ["OUT", "key"]


def test_nobody_reads_the_listing(desk: Desk) -> None:
    desk.put("in", zbis.image({f"{number:05}" * 10: b"" for number in range(5000)}))
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*PROGRAM, "-tv", "in"], env=environment(), stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("words", [("-tv", "in"), ("--help",)])
def test_a_full_disk_behind_the_listing(desk: Desk, words: tuple[str, ...]) -> None:
    desk.put("in", zbis.image(FILES))
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROGRAM, *words], env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith("zbi: reading an image, or printing: No space left on device\n  hint: ")
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_disk_that_cannot_be_read(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    desk.put("in", zbis.image(FILES))
    desk.put("key", b"key")
    monkeypatch.setattr(container.FilePayload, "read", broken)
    assert "Input/output error" in desk.refusal("-o", "OUT", "in", "-e", "a=key")
    assert "Input/output error" in desk.refusal("-o", "OUT", "in")


def test_a_locale_that_knows_only_ascii(desk: Desk) -> None:
    desk.put("in", zbis.image({"é": b"1", "a\udcff": b"2"}))
    ascii_only = environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii")
    done = subprocess.run([*PROGRAM, "-tv", "in"], env=ascii_only, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-2:] == ["        : 00001000 00000001 \\xe9", "        : 00002000 00000001 a"]
    for words in (["-x", "in", "-D", "out"], ["-o", "OUT", "in", "-e", "ü=in"]):
        done = subprocess.run([*PROGRAM, *words], env=ascii_only, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    assert (desk.path / "out/é").read_bytes() == b"1"
    assert (desk.path / "out/a\udcff").read_bytes() == b"2"
    assert list(device.files((desk.path / "OUT").read_bytes())) == ["a\udcff", "é", "ü"]


def test_names_in_messages_are_printable(desk: Desk) -> None:
    said = desk.refusal("-o", "OUT", "mi\x1b[2Jssing")
    assert said.startswith("zbi: missing: No such file or directory\n")
    said = desk.refusal("-o", "OUT", "-e", "a=x\x1b[31m\udcff")
    assert said.startswith("zbi: x: No such file or directory\n")


def test_a_directory_that_cannot_be_read(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "tree")

    (desk.path / "tree").mkdir()
    monkeypatch.setattr(Path, "iterdir", forbidden)
    code, _, said = desk.run("-o", "OUT", "tree")
    assert code == 1
    assert said.startswith("zbi: looking through tree: Permission denied")
