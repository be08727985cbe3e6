"""ELF files: a real one, and small ones put together here, in both classes and byte orders."""

import shutil
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from pipeline.digests import digest
from pipeline.errors import ImageDamaged, ImageError
from pipeline.images import elf
from pipeline.images.part import Fact, Part
from tests.demo import debs

PVH = 18


@dataclass(frozen=True)
class Elf:
    """A file with one LOAD and one NOTE segment and three sections, laid out one after the other."""

    bits: int = 64
    order: str = "<"
    machine: int = 62
    note_type: int = PVH
    note_owner: bytes = b"Xen\0"
    alignment: int = 4
    code: bytes = b"\x90" * 100

    def pack(self, form: str, *values: int) -> bytes:
        return struct.pack(self.order + form, *values)

    def segment(self, kind: int, flags: int, offset: int, size: int, alignment: int = 4096) -> bytes:
        if self.bits == 64:
            return self.pack("IIQQQQQQ", kind, flags, offset, 0x1000, 0x1000, size, 2 * size, alignment)
        return self.pack("IIIIIIII", kind, offset, 0x1000, 0x1000, size, 2 * size, flags, alignment)

    def section(self, name: int, kind: int, offset: int, size: int) -> bytes:
        form = "IIQQQQIIQQ" if self.bits == 64 else "IIIIIIIIII"
        return self.pack(form, name, kind, 0, 0x1000, offset, size, 0, 0, 1, 0)

    @property
    def note(self) -> bytes:
        owner = self.note_owner.ljust(-(-len(self.note_owner) // 4) * 4, b"\0")
        other = self.pack("III", 4, 3, 1) + b"GNU\0" + b"abc\0"
        return other + self.pack("III", len(self.note_owner), 4, self.note_type) + owner + self.pack("I", 0x1000200)

    def encode(self) -> bytes:
        header, segment, section = (64, 56, 64) if self.bits == 64 else (52, 32, 40)
        names = b"\0.text\0.bss\0.shstrtab\0"
        code_at = header + 2 * segment
        note_at = code_at + len(self.code)
        names_at = note_at + len(self.note)
        sections_at = names_at + len(names)
        ident = bytes((*b"\x7fELF", self.bits // 32, 1 if self.order == "<" else 2, 1)).ljust(16, b"\0")
        form = "HHIQQQIHHHHHH" if self.bits == 64 else "HHIIIIIHHHHHH"
        numbers = (2, self.machine, 1, 0x1000, header, sections_at, 0, header, segment, 2, section, 4, 3)
        segments = self.segment(1, 5, code_at, len(self.code)) + self.segment(
            4, 4, note_at, len(self.note), self.alignment
        )
        sections = (
            self.section(0, 0, 0, 0)
            + self.section(1, 1, code_at, len(self.code))
            + self.section(7, 8, 2**31, 5000)
            + self.section(12, 3, names_at, len(names))
        )
        return ident + self.pack(form, *numbers) + segments + self.code + self.note + names + sections


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kernel"


def told(path: Path, data: bytes) -> Part:
    path.write_bytes(data)
    return elf.inspect(path)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("order", ["<", ">"])
def test_all_that_is_in_it(path: Path, bits: int, order: str) -> None:
    image = told(path, Elf(bits, order).encode())
    assert image.sound
    assert image.digest == digest(path)
    assert image.facts == {
        "class": f"{bits}-bit",
        "byte_order": "little" if order == "<" else "big",
        "machine": "x86-64",
        "type": "executable",
        "entry": "0x1000",
        "pvh": True,
        "pvh_entry": "0x1000200",
        "multiboot": False,
    }
    at = 176 if bits == 64 else 116
    load, note, text, bss, names = image.parts
    facts: dict[str, Fact] = {"address": "0x1000", "rights": "r-x", "memory_size": 200}
    assert load == Part("segment", "LOAD", 100, at, None, facts)
    assert (note.name, note.offset, note.facts["rights"]) == ("NOTE", at + 100, "r--")
    code = f"b3:{blake3(Elf.code).hexdigest()}"
    assert text == Part("section", ".text", 100, at, code, {"address": "0x1000"})
    assert (bss.name, bss.size, bss.digest, bss.problems) == (".bss", 5000, None, ())
    assert names.name == ".shstrtab"


@pytest.mark.parametrize(
    ("file", "pvh"),
    [
        (Elf(), True),
        (Elf(alignment=8), False),
        (Elf(note_type=17), False),
        (Elf(note_owner=b"Xem\0"), False),
        (Elf(machine=3, bits=32), True),
        (Elf(machine=183), None),
    ],
)
def test_the_pvh_entry_that_qemu_needs_on_x86(path: Path, file: Elf, pvh: bool | None) -> None:
    assert told(path, file.encode()).facts.get("pvh") == pvh


@pytest.mark.parametrize(
    ("before", "checksum", "found"),
    [(0, 0xE4524FFB, True), (0, 0xE4524FFC, False), (2, 0xE4524FFB, False), (9000, 0xE4524FFB, False)],
)
def test_a_multiboot_header(path: Path, before: int, checksum: int, found: bool) -> None:
    code = bytes(before) + struct.pack("<III", 0x1BADB002, 3, checksum)
    assert told(path, Elf(code=code).encode()).facts["multiboot"] is found


def test_a_real_program(path: Path) -> None:
    shutil.copy(Path(sys.executable).resolve(), path)
    image = elf.inspect(path)
    assert image.sound
    assert {".text", ".dynsym", "LOAD", "NOTE"} <= {part.name for part in image.parts}
    (text,) = [part for part in image.parts if part.name == ".text"]
    assert text.offset
    assert text.digest == f"b3:{blake3(path.read_bytes()[text.offset :][: text.size]).hexdigest()}"


@pytest.mark.skipif(not shutil.which("readelf"), reason="there is no readelf here")
def test_it_tells_what_readelf_tells() -> None:
    program = Path(sys.executable).resolve()
    lines = subprocess.run(
        ["readelf", "-SW", program], capture_output=True, text=True, check=True, env={"LC_ALL": "C"}
    ).stdout.splitlines()
    rows = [line.partition("]")[2].split() for line in lines if line.lstrip().startswith("[")][2:]
    sections = [part for part in elf.inspect(program, digests=False).parts if part.kind == "section"]
    told = [[part.name, part.offset, part.size] for part in sections]
    assert told == [[row[0], int(row[3], 16), int(row[4], 16)] for row in rows]


def with_field(offset: int, form: str, value: int, file: Elf | None = None) -> bytes:
    data = bytearray((file or Elf()).encode())
    struct.pack_into(form, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "problem", "parts"),
    [
        (with_field(32, "<Q", 2**63), "at byte 0x8000000000000000: the table of 2 segments is cut off", 3),
        (with_field(40, "<Q", 2**40), "at byte 0x10000000000: the table of 4 sections is cut off", 2),
        (with_field(54, "<H", 55), "segments described by 55 bytes, expected 56", 3),
        (with_field(56, "<H", 60000), "the table of 60000 segments is cut off", 3),
        (with_field(60, "<H", 60000), "the table of 60000 sections is cut off", 2),
        (Elf().encode()[:-1], "the table of 4 sections is cut off", 2),
    ],
)
def test_damage_of_a_table_is_a_problem(path: Path, data: bytes, problem: str, parts: int) -> None:
    image = told(path, data)
    assert len(image.problems) == 1
    assert problem in image.problems[0]
    assert len(image.parts) == parts


def test_a_count_that_stands_elsewhere_is_bounded(path: Path) -> None:
    data = bytearray(with_field(60, "<H", 0))
    struct.pack_into("<Q", data, len(data) - 4 * 64 + 32, 2**60)
    assert told(path, bytes(data)).problems == (
        f"at byte {len(data) - 256:#x}: {2**60} sections, expected at most 65536",
    )


def test_counts_that_stand_elsewhere(path: Path) -> None:
    """As in files with more than 65,279 sections or 65,534 segments."""
    data = bytearray(Elf().encode())
    struct.pack_into("<HHHH", data, 56, 0xFFFF, 64, 0, 0xFFFF)
    struct.pack_into("<QII", data, len(data) - 256 + 32, 4, 3, 2)
    assert told(path, bytes(data)).parts == told(path, Elf().encode()).parts


def test_what_lies_beyond_the_end_is_a_problem_of_the_part(path: Path) -> None:
    data = with_field(64 + 32, "<Q", 2**40)
    image = told(path, data)
    assert image.problems == ()
    assert image.parts[0].problems == (
        f"it ends at byte {2**40 + 176:#x}, beyond the end of the file ({len(data):#x})",
    )


def test_sections_that_overlap_are_not_read_again_and_again(path: Path) -> None:
    data = bytearray(Elf().encode())
    for number in (1, 2, 3):
        struct.pack_into("<IIQQQQ", data, len(data) - 256 + 64 * number, 0, 1, 0, 0, 0, len(data))
    sections = [part for part in told(path, bytes(data)).parts if part.kind == "section"]
    assert [part.digest for part in sections] == [None, None, None]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:15], lambda data: data[:63], lambda data: b"\x7fELF\x03\x01" + data[6:]]
)
def test_no_header(path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ImageDamaged):
        told(path, damage(Elf().encode()))


@given(changes=st.lists(st.tuples(st.integers(4, 593), st.integers(0, 255)), max_size=20), size=st.integers(4, 800))
def test_no_damage_is_too_much(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], size: int
) -> None:
    data = bytearray(Elf().encode())
    for offset, value in changes:
        data[offset] = value
    with suppress(ImageError):
        assert told(tmp_path_factory.getbasetemp() / "damaged", bytes(data[:size])).kind == "ELF"


def test_what_a_real_program_loads() -> None:
    program = Path(sys.executable).resolve()
    loaded = {Path(line.split()[-1]).name for line in Path("/proc/self/maps").read_text().splitlines()}
    found = elf.needed(program)
    assert "libc.so.6" in found
    # libz.so.1 is a link to libz.so.1.3.1
    assert [name for name in found if not any(file.startswith(name) for file in loaded)] == []


@pytest.mark.parametrize("names", [(), ("libz.so.1",), ("libc.so.6", "libm.so.6", "libc.so.6")])
def test_the_libraries_are_told_in_their_order(path: Path, names: tuple[str, ...]) -> None:
    path.write_bytes(debs.elf(*names))
    assert elf.needed(path) == names


@pytest.mark.parametrize("content", [b"", b"\x7fEL", b"#!/bin/sh\n", Elf().encode()])
def test_what_loads_nothing(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert elf.needed(path) == ()


@pytest.mark.parametrize("offset", [64 + 8, 64 + 16, 64 + 56 + 8, 64 + 56 + 32])
def test_names_that_do_not_lie_in_the_file(path: Path, offset: int) -> None:
    data = bytearray(debs.elf("libz.so.1"))
    struct.pack_into("<Q", data, offset, 2**40)
    path.write_bytes(data)
    with pytest.raises(ImageError):
        elf.needed(path)


@given(changes=st.lists(st.tuples(st.integers(4, 276), st.integers(0, 255)), max_size=20), size=st.integers(4, 300))
def test_no_damage_is_too_much_for_the_names(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], size: int
) -> None:
    data, file = bytearray(debs.elf("libz.so.1", "libc.so.6")), tmp_path_factory.getbasetemp() / "damaged-names"
    for offset, value in changes:
        data[offset] = value
    file.write_bytes(data[:size])
    with suppress(ImageError):
        assert len(elf.needed(file)) <= 64
