import itertools
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ImageError, UsageError
from pipeline.images import cpio
from pipeline.images.cpio import CpioEntry

_PART = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12)
_NAMES = st.lists(_PART, min_size=1, max_size=4).map("/".join).filter(lambda name: name != "TRAILER!!!")
_KINDS = st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
_ENTRIES = st.lists(
    st.builds(
        CpioEntry,
        name=_NAMES,
        mode=st.builds(lambda kind, mode: kind | mode, _KINDS, st.integers(0, 0o7777)),
        data=st.binary(max_size=40),
        rdev=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 255)),
    ),
    max_size=6,
)
BASE = [cpio.directory("bin"), cpio.file("bin/sh", b"#!", 0o755), cpio.symlink("sh", "bin/sh")]


def number(*values: int) -> bytes:
    return b"".join(b"%08X" % value for value in values)


@settings(deadline=None)
@given(_ENTRIES)
def test_decode_gives_back_what_encode_took(entries: list[CpioEntry]) -> None:
    archive = cpio.encode(entries)
    assert list(cpio.decode(archive)) == entries
    assert len(archive) % 512 == 0
    assert cpio.encode(entries) == archive


@settings(deadline=None)
@given(_ENTRIES, _ENTRIES, st.integers(0, 5))
def test_archives_may_follow_each_other_with_nuls_between(
    first: list[CpioEntry], second: list[CpioEntry], blocks: int
) -> None:
    archive = cpio.encode(first) + bytes(4 * blocks) + cpio.encode(second)
    assert list(cpio.decode(archive)) == first + second


def test_the_bytes_of_a_tiny_archive() -> None:
    archive = cpio.encode([cpio.file("a/b", b"hello", 0o640), cpio.character_device("tty", 5, 1)])
    expected = (
        b"070701" + number(1, 0o100640, 0, 0, 1, 0, 5, 0, 0, 0, 0, 4, 0) + b"a/b\0" + b"\0\0" + b"hello\0\0\0"
        b"070701" + number(2, 0o020600, 0, 0, 1, 0, 0, 0, 0, 5, 1, 4, 0) + b"tty\0" + b"\0\0"
        b"070701" + number(0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 11, 0) + b"TRAILER!!!\0" + b"\0\0\0"
    )
    assert archive == expected.ljust(512, b"\0")


@pytest.mark.parametrize(
    ("entry", "mode", "data"),
    [
        (cpio.directory("x"), 0o040755, b""),
        (cpio.directory("x", 0o700), 0o040700, b""),
        (cpio.file("x", b"1"), 0o100644, b"1"),
        (cpio.symlink("x", "ü"), 0o120777, "ü".encode()),
        (cpio.character_device("x", 1, 2), 0o020600, b""),
    ],
    ids=["directory", "private directory", "file", "link", "device"],
)
def test_kinds_of_entries(entry: CpioEntry, mode: int, data: bytes) -> None:
    assert (entry.mode, entry.data) == (mode, data)


def test_a_directory_has_two_links() -> None:
    assert cpio.encode([cpio.directory("x")])[38:46] == b"00000002"


@pytest.mark.parametrize(("length", "fits"), [(4095, True), (4096, False)])
def test_the_longest_name(length: int, fits: bool) -> None:
    entries = [cpio.file("x" * length, b"")]
    if fits:
        assert list(cpio.decode(cpio.encode(entries))) == entries
    else:
        with pytest.raises(ImageError, match="is too long for an initramfs"):
            cpio.encode(entries)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda data: b"070702" + data[6:], "no newc header at byte 0"),
        (lambda data: b"\x1f\x8b" + data, "no newc header at byte 0"),
        (lambda data: bytes(2) + data, "no newc header at byte 4"),
        (lambda data: data[:100], "the header is cut off at byte 0"),
        (lambda data: data[:112], "the entry is cut off at byte 0"),
        (lambda data: data[:20] + b"G" + data[21:], "the header is no hexadecimal text at byte 0"),
        (lambda data: data[:94] + number(1) + data[102:], "a name of 1 bytes at byte 0"),
        (lambda data: data[:94] + number(4097) + data[102:], "a name of 4097 bytes at byte 0"),
        (lambda data: data[:54] + number(2**32 - 1) + data[62:], "the entry is cut off at byte 0"),
        (lambda data: data + b"rubbish", "no newc header at byte 512"),
    ],
    ids=["magic", "compressed", "unaligned", "header", "entry", "digits", "no name", "long name", "size", "rubbish"],
)
def test_damage_is_named(damage: Callable[[bytes], bytes], why: str) -> None:
    with pytest.raises(ImageError) as caught:
        list(cpio.decode(damage(cpio.encode(BASE))))
    assert str(caught.value) == f"no sound uncompressed cpio archive: {why}"


@settings(deadline=None)
@given(st.data())
def test_damaged_input_never_raises_anything_else(data: st.DataObject) -> None:
    archive = bytearray(cpio.encode(BASE)[: data.draw(st.integers(0, 512), "length")])
    for _ in range(data.draw(st.integers(0, 4), "flips") if archive else 0):
        archive[data.draw(st.integers(0, len(archive) - 1), "place")] = data.draw(st.integers(0, 255), "byte")
    try:
        entries = list(itertools.islice(cpio.decode(bytes(archive)), 1000))
    except ImageError:
        return
    assert len(entries) <= len(BASE) + 1, "a damaged trailer may look like one entry more"


def test_a_negative_size_is_damage() -> None:
    archive = cpio.encode([cpio.file("a", b"")])
    with pytest.raises(ImageError):
        list(itertools.islice(cpio.decode(archive[:54] + b"-0000070" + archive[62:]), 10))


def test_injection_makes_private_directories_and_a_private_file() -> None:
    assert cpio.injection("data/ssh/./key", b"k") == [
        cpio.directory("data", 0o700),
        cpio.directory("data/ssh", 0o700),
        cpio.file("data/ssh/key", b"k", 0o600),
    ]


@pytest.mark.parametrize("target", ["/etc/x", "", ".", "..", "../x", "a/../../x", "a/.."])
def test_injection_refuses_to_leave_the_image(target: str) -> None:
    with pytest.raises(UsageError, match="cannot be a path in the image"):
        cpio.injection(target, b"")


class Command:
    """The command, with BASE in the file IN and a key in the file `key`."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory, self._capsys = directory, capsys
        (directory / "IN").write_bytes(cpio.encode(BASE))
        (directory / "key").write_bytes(b"the key")

    def __call__(self, *words: str, out: str = "OUT", source: str = "IN") -> tuple[int, str]:
        code = cpio.main(["-o", str(self.directory / out), str(self.directory / source), *words])
        said = self._capsys.readouterr()
        assert said.out == ""
        return code, said.err

    def entry(self, target: str, name: str = "key") -> tuple[str, str]:
        return "-e", f"{target}={self.directory / name}"

    def made(self, out: str = "OUT") -> list[CpioEntry]:
        return list(cpio.decode((self.directory / out).read_bytes()))


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, capsys)


def test_files_are_added_after_all_others(command: Command) -> None:
    assert command(*command.entry("data/ssh/authorized_keys"), *command.entry("bin/new")) == (0, "")
    assert command.made() == [
        *BASE,
        cpio.directory("data", 0o700),
        cpio.directory("data/ssh", 0o700),
        cpio.file("data/ssh/authorized_keys", b"the key", 0o600),
        cpio.file("bin/new", b"the key", 0o600),
    ]


def test_what_is_added_starts_at_a_multiple_of_512(command: Command) -> None:
    source = command.directory / "IN"
    source.write_bytes(source.read_bytes().rstrip(b"\0") + bytes(4))
    assert command(*command.entry("new")) == (0, "")
    made = (command.directory / "OUT").read_bytes()
    assert made.find(b"070701", 510) == 512
    assert command.made() == [*BASE, cpio.file("new", b"the key", 0o600)]


def test_output_may_be_the_input(command: Command) -> None:
    assert command(*command.entry("new"), out="IN") == (0, "")
    assert command.made("IN") == [*BASE, cpio.file("new", b"the key", 0o600)]


def test_nothing_to_add_keeps_the_files(command: Command) -> None:
    assert command() == (0, "")
    assert command.made() == BASE


@pytest.mark.parametrize("prefix", ["", "./"])
def test_a_file_that_is_there_needs_replace(command: Command, prefix: str) -> None:
    (command.directory / "IN").write_bytes(cpio.encode([cpio.file(f"{prefix}init", b"old", 0o755)]))
    code, said = command(*command.entry("init"))
    assert (code, said.splitlines()[0]) == (1, "zbi: duplicate target path without --replace: init")
    assert not (command.directory / "OUT").exists()
    assert command("--replace", *command.entry("init")) == (0, "")
    assert command.made()[-1] == cpio.file("init", b"the key", 0o600)


def test_a_file_where_a_directory_is_wanted_needs_replace(command: Command) -> None:
    assert command(*command.entry("sh/key"))[0] == 1


def test_the_same_target_twice_needs_replace(command: Command) -> None:
    assert command(*command.entry("new"), *command.entry("new"))[0] == 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("data/x", "zbi: manifest entry has no '=' separator: data/x"),
        ("data/x=no-such-file", "zbi: no-such-file: No such file or directory"),
        ("../x=IN", "zbi: '../x' cannot be a path in the image"),
        ("/x=IN", "zbi: '/x' cannot be a path in the image"),
        ("=IN", "zbi: '' cannot be a path in the image"),
        ("data/x=.", "zbi: .: Is a directory"),
    ],
    ids=["no equals sign", "missing file", "climbing", "absolute", "no target", "directory"],
)
def test_an_entry_that_makes_no_sense_is_refused(
    command: Command, monkeypatch: pytest.MonkeyPatch, entry: str, message: str
) -> None:
    monkeypatch.chdir(command.directory)
    (command.directory / "OUT").write_bytes(b"old")
    code, said = command("-e", entry)
    assert (code, said.splitlines()[0]) == (1, message)
    assert (command.directory / "OUT").read_bytes() == b"old"
    assert sorted(path.name for path in command.directory.iterdir()) == ["IN", "OUT", "key"]


def test_a_target_that_is_not_utf8_is_taken_or_refused(command: Command) -> None:
    assert command(*command.entry("data/\udcff"))[0] in (0, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"MZ is no cpio", "zbi: no sound uncompressed cpio archive: no newc header at byte 0"),
        (cpio.encode([]), "the initramfs holds no files"),
        (b"", "the initramfs holds no files"),
        (None, "/IN: No such file or directory"),
    ],
    ids=["no cpio", "no files", "nothing", "missing"],
)
def test_an_input_that_is_no_initramfs_is_refused(command: Command, content: bytes | None, message: str) -> None:
    (command.directory / "IN").unlink()
    if content is not None:
        (command.directory / "IN").write_bytes(content)
    code, said = command(*command.entry("new"))
    assert code == 1
    assert message in said.splitlines()[0]
    assert not (command.directory / "OUT").exists()


@pytest.mark.skipif(shutil.which("cpio") is None, reason="there is no cpio program here")
def test_the_cpio_program_reads_it(command: Command) -> None:
    archive = cpio.encode([*BASE, cpio.file("ä b", b"x" * 1000)])
    listing = subprocess.run(["cpio", "-t", "--quiet"], input=archive, capture_output=True, check=True).stdout
    assert listing.decode().splitlines() == ["bin", "bin/sh", "sh", "ä b"]
