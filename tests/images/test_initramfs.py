"""What is told of an initramfs, compared with what was put into it."""

import gzip
import stat
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from pipeline.images import cpio, initramfs
from pipeline.images.part import Part

BASE = [
    cpio.directory("bin"),
    cpio.file("bin/sh", b"#!" * 40, 0o755),
    cpio.symlink("sh", "bin/sh"),
    cpio.character_device("dev/console", 5, 1),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "initramfs"


def told(path: Path, data: bytes) -> Part:
    path.write_bytes(data)
    return initramfs.inspect(path)


def test_each_kind_of_entry(path: Path) -> None:
    image = told(path, cpio.encode(BASE))
    digest = f"b3:{blake3(b'#!' * 40).hexdigest()}"
    assert image.facts == {"archives": 1}
    assert image.sound
    assert image.parts == (
        Part("directory", "bin", 0, 116, None, {"mode": "0755"}),
        Part("file", "bin/sh", 80, 236, digest, {"mode": "0755"}),
        Part("symlink", "sh", 6, 432, None, {"mode": "0777", "target": "bin/sh"}),
        Part("character device", "dev/console", 0, 564, None, {"mode": "0600", "device": "5:1"}),
    )
    assert path.read_bytes()[236:316] == b"#!" * 40


def test_without_digests(path: Path) -> None:
    path.write_bytes(cpio.encode(BASE))
    assert {part.digest for part in initramfs.inspect(path, digests=False).walk()} == {None}


def test_a_later_entry_replaces_an_earlier_one(path: Path) -> None:
    added = [("bin/sh", b"new"), ("data/key", b"key")]
    image = told(path, cpio.inject(cpio.encode(BASE), added, replace=True))
    assert image.facts == {"archives": 2}
    facts = [(part.name, part.facts.get("archive", 1), "replaced" in part.facts) for part in image.parts]
    assert facts == [
        ("bin", 1, False),
        ("bin/sh", 1, True),
        ("sh", 1, False),
        ("dev/console", 1, False),
        ("bin/sh", 2, False),
        ("data", 2, False),
        ("data/key", 2, False),
    ]


def test_names_with_and_without_a_dot_are_the_same(path: Path) -> None:
    image = told(path, cpio.encode([cpio.file("./a", b"1"), cpio.file("a", b"2"), cpio.file("/a", b"3")]))
    assert ["replaced" in part.facts for part in image.parts] == [True, True, False]


def test_a_directory_that_is_named_again_is_not_replaced(path: Path) -> None:
    image = told(path, cpio.encode([cpio.directory("a"), cpio.directory("a", 0o700)]))
    assert ["replaced" in part.facts for part in image.parts] == [False, False]


def test_an_owner(path: Path) -> None:
    archive = bytearray(cpio.encode([cpio.file("a", b"")]))
    archive[22:38] = b"000003E8000003E9"
    assert told(path, bytes(archive)).parts[0].facts == {"mode": "0644", "owner": "1000:1001"}


def test_a_kind_of_file_that_does_not_exist(path: Path) -> None:
    image = told(path, cpio.encode([cpio.CpioEntry("a", 0o644), cpio.file("b", b"")]))
    assert [part.problems for part in image.parts] == [("mode 644 is of no kind of file",), ()]


def test_what_is_compressed_behind_an_archive_is_named(path: Path) -> None:
    first = cpio.encode([cpio.file("kernel/x86/microcode", b"m")])
    image = told(path, first + gzip.compress(b"070701"))
    assert [(part.kind, part.name, part.offset) for part in image.parts][1:] == [("compressed", "gzip", len(first))]
    assert image.sound


def test_however_long_the_nuls_between_archives_are(path: Path) -> None:
    """Of which those at 20 MB to 4 TB are a hole; to read that would take an hour."""
    archive = cpio.encode([cpio.file("a", b"b")])
    with path.open("wb") as stream:
        stream.write(archive + bytes(20_000_000) + archive)
        stream.truncate(4 << 40)
        stream.seek((4 << 40) - 4)
        stream.write(archive)
    image = initramfs.inspect(path)
    assert [part.offset for part in image.parts] == [112, 20_000_000 + 512 + 112, (4 << 40) - 4 + 112]
    assert (image.sound, image.facts["archives"]) == (True, 3)


@pytest.mark.parametrize(
    ("damage", "problem", "left"),
    [
        (lambda data: data[:300], "at byte 0x74: 'bin/sh' is cut off: it has 80 bytes", 1),
        (lambda data: data[:180], "the header is cut off at byte 116", 1),
        (lambda data: data[:230], "at byte 0xe2: the file is cut off: 4 bytes, expected 7", 1),
        (lambda data: data + b"rubbish", "no newc header at byte 1024", 4),
        (lambda data: data[:226] + b"\0" + data[227:], "a NUL in a name at byte 116", 1),
        (lambda data: bytes(600), "there are no files in it", 0),
        (lambda data: cpio.encode([]), "there are no files in it", 0),
    ],
)
def test_damage_is_a_problem_and_what_came_before_is_told(path: Path, damage, problem: str, left: int) -> None:  # type: ignore[no-untyped-def]
    image = told(path, damage(cpio.encode(BASE)))
    assert len(image.parts) == left
    assert len(image.problems) == 1
    assert problem in image.problems[0]


def test_more_entries_than_anybody_needs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initramfs, "_ENTRIES_MOST", 10)
    image = told(path, cpio.encode(cpio.file(str(number), b"") for number in range(20)))
    assert image.problems == ("at byte 0x460: more entries, expected at most 10",)
    assert len(image.parts) == 10


_ENTRIES = st.lists(
    st.builds(
        cpio.CpioEntry,
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=9),
        st.sampled_from([stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777]),
        st.binary(max_size=20),
    ).filter(lambda entry: entry.name != cpio.TRAILER),
    min_size=1,
    max_size=8,
)


@pytest.mark.slow
@given(entries=_ENTRIES)
def test_it_tells_what_decode_reads(tmp_path_factory: pytest.TempPathFactory, entries: list[cpio.CpioEntry]) -> None:
    image = told(tmp_path_factory.getbasetemp() / "initramfs", cpio.encode(entries))
    assert [(part.name, part.size) for part in image.parts] == [(entry.name, len(entry.data)) for entry in entries]


@given(st.integers(0, 1100), st.binary(min_size=1, max_size=12))
def test_no_damage_is_too_much(tmp_path_factory: pytest.TempPathFactory, place: int, damage: bytes) -> None:
    data = bytearray(cpio.encode(BASE))
    data[place : place + len(damage)] = damage
    assert told(tmp_path_factory.getbasetemp() / "damaged", bytes(data)).kind == "cpio"
