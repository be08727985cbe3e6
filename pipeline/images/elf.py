"""ELF files, such as kernels: what they are, and whether all that they name lies in the file.

Format: the System V ABI, chapters 4 and 5 (elf.h). QEMU's `-kernel` starts an ELF file on x86 only with a Multiboot
header (Zircon's `multiboot.bin`) or with a PVH entry: Xen, include/public/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY.
"""

import itertools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.digests import digest
from pipeline.errors import ImageDamaged, ImageError, ImageTooLarge
from pipeline.images.part import Fact, Part
from pipeline.images.source import Source, opened

T = TypeVar("T")

MAGIC = b"\x7fELF"
_TYPES = {1: "relocatable", 2: "executable", 3: "shared or position-independent", 4: "core"}
_MACHINES = {3: "x86", 8: "MIPS", 20: "PowerPC", 21: "PowerPC 64", 22: "S390", 40: "arm", 62: "x86-64", 183: "arm64"}
_MACHINES |= {243: "RISC-V", 258: "LoongArch"}
_X86 = (3, 62)
_SEGMENTS = {0: "NULL", 1: "LOAD", 2: "DYNAMIC", 3: "INTERP", 4: "NOTE", 5: "SHLIB", 6: "PHDR", 7: "TLS"}
_SEGMENTS |= {0x6474E550: "GNU_EH_FRAME", 0x6474E551: "GNU_STACK", 0x6474E552: "GNU_RELRO", 0x6474E553: "GNU_PROPERTY"}
_LOAD = 1
_DYNAMIC = 2
_NOTE = 4
_NO_BITS = (0, 8)  # types of sections that take no room in the file
_ELSEWHERE = 0xFFFF  # a count that does not fit in the header stands in section 0
_MOST = 65536  # segments, and sections
_LONGEST_NAME = 256
_NAMES_LARGEST = 16 << 20
_NOTES_LARGEST = 1 << 16
_NOTES_MOST = 64
_DYNAMIC_LARGEST = 1 << 16
_NEEDED, _STRINGS, _STRINGS_SIZE = 1, 5, 10  # tags of the dynamic section
_XEN_PHYS32_ENTRY = 18
_MULTIBOOT = 0x1BADB002
_MULTIBOOT_WITHIN = 8192

_HINT = "was it copied as a whole? make or fetch it anew"


@dataclass(frozen=True)
class _Class:
    """How the tables of one class (32 or 64 bits) are laid out. The fields of a section are the same in both."""

    bits: int
    header: str
    segment: str
    segment_order: tuple[int, ...]
    """Where type, flags, offset, address, file size, memory size and alignment stand."""
    section: str


_CLASSES = {
    1: _Class(32, "HHIIIIIHHHHHH", "IIIIIIII", (0, 6, 1, 2, 4, 5, 7), "IIIIIIIIII"),
    2: _Class(64, "HHIQQQIHHHHHH", "IIQQQQQQ", (0, 1, 2, 3, 5, 6, 7), "IIQQQQIIQQ"),
}


@dataclass(frozen=True)
class _Header:
    layout: _Class
    order: str
    type: int
    machine: int
    entry: int
    segments_at: int
    sections_at: int
    segment_size: int
    segments: int
    section_size: int
    sections: int
    names: int


@dataclass(frozen=True)
class _Segment:
    type: int
    flags: int
    offset: int
    address: int
    size: int
    memory: int
    alignment: int


@dataclass(frozen=True)
class _Section:
    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    information: int


def inspect(path: Path, *, digests: bool = True) -> Part:
    """The segments and sections of an ELF file. The digest of the whole may be a "b3s:" one, see pipeline/digests.py.

    Raises ImageDamaged if not even its header is whole; what is wrong beyond that is a problem of the part. Raises
    UsageError and StoreError as `opened` does.
    """
    with opened(path) as source:
        header = _header(source)
        problems: list[str] = []
        sections = _tolerated(lambda: _sections(source, header), problems)
        segments = _tolerated(lambda: _segments(source, header, sections), problems)
        return Part(
            kind="ELF",
            size=source.size,
            offset=0,
            digest=digest(path) if digests else None,
            facts=_facts(source, header, segments),
            problems=tuple(problems),
            parts=(*_shown_segments(source, segments), *_shown_sections(source, header, sections, digests)),
        )


def needed(path: Path) -> tuple[str, ...]:
    """The libraries that the loader loads for this program or library (DT_NEEDED), by the names that it looks for.

    Nothing for a file that is no ELF file, such as a script. Raises ImageDamaged or ImageTooLarge, and UsageError and
    StoreError as `opened` does.
    """
    with opened(path) as source:
        if source.at(0, min(len(MAGIC), source.size)) != MAGIC:
            return ()
        header = _header(source)
        segments = _segments(source, header, _sections(source, header))
        dynamic = (segment for segment in segments if segment.type == _DYNAMIC)
        entries = [entry for segment in dynamic for entry in _dynamic(source, header, segment)]
        table, names = dict(entries), [value for tag, value in entries if tag == _NEEDED]
        if not names:
            return ()
        size = table.get(_STRINGS_SIZE, 0)
        strings = source.at(_offset_of(table.get(_STRINGS, 0), size, segments), size)
        return tuple(strings[name:].partition(b"\0")[0].decode(errors="replace") for name in names)


def _dynamic(source: Source, header: _Header, segment: _Segment) -> Iterator[tuple[int, int]]:
    """Tag and value of each entry, up to the one that ends them."""
    if segment.size > _DYNAMIC_LARGEST:
        raise ImageTooLarge(f"{segment.size} bytes of dynamic section", expected=f"{_DYNAMIC_LARGEST}", hint=_HINT)
    form = struct.Struct(header.order + ("QQ" if header.layout.bits == 64 else "II"))
    content = source.at(segment.offset, segment.size - segment.size % form.size)
    return itertools.takewhile(lambda entry: entry[0] != 0, form.iter_unpack(content))


def _offset_of(address: int, size: int, segments: list[_Segment]) -> int:
    """Where in the file lies what is loaded to this address."""
    for segment in segments:
        if segment.type == _LOAD and segment.address <= address <= address + size <= segment.address + segment.size:
            return segment.offset + address - segment.address
    raise ImageDamaged(f"names of libraries at {address:#x}", expected="in a LOAD segment", hint=_HINT)


def _header(source: Source) -> _Header:
    start = source.at(0, min(16, source.size))
    if not start.startswith(MAGIC):
        raise ImageDamaged("no ELF header", offset=0, expected="7f 45 4c 46", hint="give an ELF file")
    start = source.at(0, 16)
    layout, order = _CLASSES.get(start[4]), {1: "<", 2: ">"}.get(start[5])
    if layout is None or order is None:
        raise ImageDamaged(f"class {start[4]}, byte order {start[5]}", offset=4, expected="1 or 2 each", hint=_HINT)
    form = struct.Struct(order + layout.header)
    kind, machine, _, entry, segments_at, sections_at, _, _, *rest = form.unpack(source.at(16, form.size))
    return _Header(layout, order, kind, machine, entry, segments_at, sections_at, *rest)


def _rows(source: Source, form: struct.Struct, offset: int, count: int, stride: int, what: str) -> list[list[int]]:
    """The rows of a table. Raises ImageDamaged or ImageTooLarge."""
    if count > _MOST:
        raise ImageTooLarge(f"{count} {what}s", offset=offset, expected=f"at most {_MOST}", hint=_HINT)
    if stride != form.size:
        raise ImageDamaged(f"{what}s described by {stride} bytes", expected=f"{form.size}", hint=_HINT)
    if not source.holds(offset, count * stride):
        raise ImageDamaged(f"the table of {count} {what}s is cut off", offset=offset, hint=_HINT)
    return [list(row) for row in form.iter_unpack(source.at(offset, count * stride))]


def _tolerated(read: Callable[[], list[T]], problems: list[str]) -> list[T]:
    try:
        return read()
    except ImageError as error:
        problems.append(error.message)
        return []


def _sections(source: Source, header: _Header) -> list[_Section]:
    if header.sections_at == 0:
        return []
    count = header.sections or _section_rows(source, header, 1)[0].size
    return _section_rows(source, header, count)


def _section_rows(source: Source, header: _Header, count: int) -> list[_Section]:
    form = struct.Struct(header.order + header.layout.section)
    rows = _rows(source, form, header.sections_at, count, header.section_size, "section")
    return [_Section(*row[:8]) for row in rows]


def _segments(source: Source, header: _Header, sections: list[_Section]) -> list[_Segment]:
    form = struct.Struct(header.order + header.layout.segment)
    elsewhere = header.segments == _ELSEWHERE and sections
    count = sections[0].information if elsewhere else header.segments
    if count == 0:
        return []
    rows = _rows(source, form, header.segments_at, count, header.segment_size, "segment")
    return [_Segment(*(row[at] for at in header.layout.segment_order)) for row in rows]


def _facts(source: Source, header: _Header, segments: list[_Segment]) -> dict[str, Fact]:
    facts: dict[str, Fact] = {
        "class": f"{header.layout.bits}-bit",
        "byte_order": "little" if header.order == "<" else "big",
        "machine": _MACHINES.get(header.machine, str(header.machine)),
        "type": _TYPES.get(header.type, f"{header.type:#x}"),
        "entry": f"{header.entry:#x}",
    }
    if header.machine in _X86:
        entry = _pvh_entry(source, header, segments)
        facts |= {"pvh": entry is not None, "multiboot": _has_multiboot(source)}
        facts |= {} if entry is None else {"pvh_entry": f"{entry:#x}"}
    return facts


def _pvh_entry(source: Source, header: _Header, segments: list[_Segment]) -> int | None:
    notes = [segment for segment in segments if segment.type == _NOTE][:_NOTES_MOST]
    for segment in notes:
        if segment.size <= _NOTES_LARGEST and source.holds(segment.offset, segment.size):
            for owner, kind, content in _notes(source.at(segment.offset, segment.size), header, segment.alignment):
                if (owner, kind) == (b"Xen", _XEN_PHYS32_ENTRY) and content:
                    return int.from_bytes(content[:8], "little" if header.order == "<" else "big")
    return None


def _notes(data: bytes, header: _Header, alignment: int) -> Iterator[tuple[bytes, int, bytes]]:
    """Owner, type and content of each note."""
    block = 8 if alignment == 8 else 4
    position = 0
    while position + 12 <= len(data):
        owner_size, size, kind = struct.unpack_from(f"{header.order}III", data, position)
        content = position + 12 + owner_size
        content += -content % block
        owner = data[position + 12 : position + 12 + min(owner_size, _LONGEST_NAME)]
        yield owner.rstrip(b"\0"), kind, data[content : content + size]
        position = content + size + -size % block


def _has_multiboot(source: Source) -> bool:
    """Whether a boot loader, such as QEMU, finds a Multiboot header: three words whose sum is 0, at a multiple of 4."""
    start = source.at(0, min(_MULTIBOOT_WITHIN, source.size))
    words = struct.unpack(f"<{len(start) // 4}I", start[: len(start) // 4 * 4])
    return any(
        magic == _MULTIBOOT and (magic + flags + checksum) % 2**32 == 0
        for magic, flags, checksum in zip(words, words[1:], words[2:], strict=False)
    )


def _shown_segments(source: Source, segments: list[_Segment]) -> Iterator[Part]:
    for segment in segments:
        rights = "".join(letter if segment.flags & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))
        more = {"memory_size": segment.memory} if segment.memory != segment.size else {}
        yield Part(
            kind="segment",
            name=_SEGMENTS.get(segment.type, f"{segment.type:#x}"),
            size=segment.size,
            offset=segment.offset,
            facts={"address": f"{segment.address:#x}", "rights": rights, **more},
            problems=_outside(source, segment.offset, segment.size),
        )


def _shown_sections(source: Source, header: _Header, sections: list[_Section], digests: bool) -> Iterator[Part]:
    # Sections that overlap could make us read the same bytes thousands of times
    occupied = sum(section.size for section in sections if section.type not in _NO_BITS)
    names = _names(source, header, sections)
    for section in sections[1:]:  # the first is none
        problems = () if section.type in _NO_BITS else _outside(source, section.offset, section.size)
        readable = digests and not problems and section.type not in _NO_BITS and occupied <= source.size
        yield Part(
            kind="section",
            name=names[section.name : section.name + _LONGEST_NAME].partition(b"\0")[0].decode(errors="replace"),
            size=section.size,
            offset=section.offset,
            digest=source.digest(section.offset, section.size) if readable else None,
            facts={"address": f"{section.address:#x}"},
            problems=problems,
        )


def _names(source: Source, header: _Header, sections: list[_Section]) -> bytes:
    """The table of the sections' names; nothing if there is none in the file, and then they have no names."""
    number = sections[0].link if header.names == _ELSEWHERE and sections else header.names
    if not number < len(sections):
        return b""
    table = sections[number]
    return source.at(table.offset, table.size) if _is_table(source, table) else b""


def _is_table(source: Source, table: _Section) -> bool:
    return table.size <= _NAMES_LARGEST and source.holds(table.offset, table.size)


def _outside(source: Source, offset: int, size: int) -> tuple[str, ...]:
    if source.holds(offset, size):
        return ()
    return (f"it ends at byte {offset + size:#x}, beyond the end of the file ({source.size:#x})",)
