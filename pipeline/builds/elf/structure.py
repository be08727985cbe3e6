"""The structure of ELF files: segments, dynamic section, the versions of libraries that are needed, notes.

The formats are those of the System V gABI, https://www.sco.com/developers/gabi/latest/contents.html, with GNU's
additions in glibc's elf.h. Nothing that a file says is believed before it was compared with the file's size.
"""

import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Range = tuple[int, int]
"""A part of a file: its first byte, and the first one behind it."""

Kind = Literal["program", "library", "object", "other"]

MAGIC = b"\x7fELF"
"""The bytes with which every ELF file begins."""

_MOST_SEGMENTS = 1170  # Linux runs nothing with more: they must fit 64 KiB
_LONGEST_TABLE = 1 << 20  # bytes of the dynamic section, of the sections' names
_LONGEST_NOTES = 1 << 16
_MOST_NOTES = 16  # segments of them
_LONGEST_ID = 64
_MOST_NEEDED = 4096
_LONGEST_NAME = 4096
_MOST_VERSIONS = 10_000

_EXECUTABLE, _SHARED, _OBJECT = 2, 3, 1  # ET_*
_EXECUTE, _WRITE = 1, 2  # PF_*
_LOAD, _DYNAMIC, _INTERPRETER, _NOTE = 1, 2, 3, 4  # PT_*
_NEEDED, _STRINGS, _STRINGS_SIZE, _SONAME, _RPATH, _RUNPATH = 1, 5, 10, 14, 15, 29  # DT_*
_FLAGS_1, _VERSIONS, _VERSIONS_COUNT = 0x6FFFFFFB, 0x6FFFFFFE, 0x6FFFFFFF
_PIE = 0x08000000
_BUILD_ID = 3
_WEAK = 2

_MACHINES = {
    3: "80386",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC64",
    22: "S/390",
    40: "ARM",
    62: "x86-64",
    183: "AArch64",
    243: "RISC-V",
    258: "LoongArch",
}
_GLIBC = re.compile(r"GLIBC_(\d{1,4}(?:\.\d{1,4}){1,3})")
_GLIBC_OF_FEATURES = {"GLIBC_ABI_DT_RELR": "2.36"}
"""The versions of glibc that have a feature which the loader must know, by the name that is needed of it."""


class DamagedElfError(ValueError):
    """An ELF file is cut off, or what it says of itself cannot be true; the message says what, in one clause."""


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version such as "2.36", to be compared: 2.9 is older than 2.36. "" is older than all."""
    return tuple(int(number) for number in version.split(".") if number)


@dataclass(frozen=True)
class FileBytes:
    """The bytes of an open file, of which `size` is what it had when it was opened."""

    descriptor: int
    size: int

    def at(self, offset: int, length: int) -> bytes:
        """These bytes of the file. Raises DamagedElfError if it does not have them."""
        self.hold(offset + length)
        data = os.pread(self.descriptor, length, offset)
        if len(data) < length:
            raise DamagedElfError("it has become shorter while it was read")
        return data

    def hold(self, end: int) -> None:
        """Raises DamagedElfError if the file has less than `end` bytes."""
        if end > self.size:
            raise DamagedElfError(f"it is cut off: it has {self.size} bytes, and should have {end} or more")

    def text(self, offset: int, end: int) -> str:
        """The text at this offset, which ends with a zero byte before `end`."""
        text, zero, _ = self.at(offset, min(_LONGEST_NAME, max(0, end - offset))).partition(b"\0")
        if not zero:
            raise DamagedElfError("a name in it has no end")
        return text.decode(errors="replace")


@dataclass(frozen=True)
class _Segment:
    kind: int
    flags: int
    offset: int
    address: int
    size: int
    alignment: int

    @property
    def range(self) -> Range:
        return self.offset, self.offset + self.size


class ElfFile:
    """The structure of an ELF file. Whatever is asked of it may raise DamagedElfError."""

    def __init__(self, data: FileBytes) -> None:
        self.data = data
        width, order = data.at(4, 2)
        if width not in (1, 2) or order not in (1, 2):
            raise DamagedElfError("its header says neither 32 nor 64 bits, or no order of bytes")
        self.wide = width == 2
        self._order = "<" if order == 1 else ">"
        layout = struct.Struct(self._order + ("HHIQQQIHHHHHH" if self.wide else "HHIIIIIHHHHHH"))
        header = layout.unpack(data.at(16, layout.size))
        self._type, machine, _, self._entry, self._segments_at, self._sections_at = header[:6]
        self._segment_count, self._sections = header[9], header[10:]
        self.machine = _MACHINES.get(machine, f"machine {machine}")

    @cached_property
    def segments(self) -> tuple[_Segment, ...]:
        if self._segment_count > _MOST_SEGMENTS:
            raise DamagedElfError(f"it has {self._segment_count} segments, more than any program")
        layout = struct.Struct(self._order + ("IIQQQQQQ" if self.wide else "IIIIIIII"))
        table = self.data.at(self._segments_at, layout.size * self._segment_count) if self._segment_count else b""
        found = []
        for fields in layout.iter_unpack(table):
            kind, flags, offset, address, size = (
                fields[at] for at in ((0, 1, 2, 3, 5) if self.wide else (0, 6, 1, 2, 4))
            )
            self.data.hold(offset + size)
            found.append(_Segment(kind, flags, offset, address, size, fields[7]))
        return tuple(found)

    @property
    def names(self) -> list[Range]:
        """Where the names are that it shares with libraries. A static program has them among all others, or nowhere."""
        if _STRINGS not in self.dynamic:
            return [(0, self.data.size)]
        return [(self._strings, min(self._strings + self._value(_STRINGS_SIZE), self.data.size))]

    @property
    def constants(self) -> list[Range]:
        """Where the constants are: not with the code, if the linker has given them a segment of their own."""
        loaded = [segment for segment in self.segments if segment.kind == _LOAD]
        apart = any(not segment.flags & (_EXECUTE | _WRITE) for segment in loaded)
        return [segment.range for segment in loaded if not (apart and segment.flags & _EXECUTE)]

    @property
    def kind(self) -> Kind:
        """Programs that can be anywhere in memory are shared objects, too, and older linkers do not mark them."""
        if self._type == _SHARED:
            static = bool(self._entry) and not self.needed
            program = self._value(_FLAGS_1) & _PIE or (not self.soname and (self.interpreter or static))
            return "program" if program else "library"
        return "program" if self._type == _EXECUTABLE else "object" if self._type == _OBJECT else "other"

    @cached_property
    def interpreter(self) -> str:
        found = self._segment(_INTERPRETER)
        return self.data.text(found.offset, found.offset + found.size) if found else ""

    @cached_property
    def dynamic(self) -> Mapping[int, Sequence[int]]:
        """The values of each tag of the dynamic section, in their order."""
        segment = self._segment(_DYNAMIC)
        if not segment:
            return {}
        if segment.size > _LONGEST_TABLE:
            raise DamagedElfError(f"its dynamic section has {segment.size} bytes")
        layout = struct.Struct(self._order + ("QQ" if self.wide else "II"))
        found: dict[int, list[int]] = {}
        for tag, value in layout.iter_unpack(self.data.at(segment.offset, segment.size // layout.size * layout.size)):
            if not tag:
                break
            found.setdefault(tag, []).append(value)
        return found

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """The names of the libraries that its loader loads for it."""
        places = self.dynamic.get(_NEEDED, ())
        if len(places) > _MOST_NEEDED:
            raise DamagedElfError(f"it needs {len(places)} libraries")
        names = tuple(map(self._string, places))
        if "" in names:
            raise DamagedElfError("a library that it needs has no name")
        return names

    @property
    def search(self) -> tuple[str, ...]:
        """Where the loader looks for these libraries."""
        found = self.dynamic.get(_RUNPATH) or self.dynamic.get(_RPATH)
        return tuple(self._string(found[0]).split(":")) if found else ()

    @property
    def inherited(self) -> bool:
        """Whether the loader looks there for the libraries of its libraries, too."""
        return _RPATH in self.dynamic and _RUNPATH not in self.dynamic

    @cached_property
    def soname(self) -> str:
        return "".join(map(self._string, self.dynamic.get(_SONAME, ())[:1]))

    @property
    def build_id(self) -> str:
        """In hexadecimal digits; "" if it has none."""
        segments = [one for one in self.segments if one.kind == _NOTE and one.size <= _LONGEST_NOTES]
        for segment in segments[:_MOST_NOTES]:
            notes = self.data.at(segment.offset, segment.size)
            for name, kind, content in _notes(notes, self._order, 8 if segment.alignment == 8 else 4):
                if (name, kind) == (b"GNU\0", _BUILD_ID) and len(content) <= _LONGEST_ID:
                    return content.hex()
        return ""

    @property
    def debug(self) -> bool:
        """Whether it has debug information. Raises if the table of sections, which is usually last, is cut off."""
        size, count, names = self._sections
        if not self._sections_at or not count:
            return False
        self.data.hold(self._sections_at + size * count)
        if names >= count:
            return False
        entry = self.data.at(self._sections_at + names * size, 40 if self.wide else 24)
        offset, length = struct.unpack_from(self._order + ("QQ" if self.wide else "II"), entry, 24 if self.wide else 16)
        return b".debug_info\0" in self.data.at(offset, min(length, _LONGEST_TABLE))

    @property
    def glibc(self) -> str:
        """The newest version of glibc of which it needs something; "" if it needs none."""
        names = list(self._versions())
        matches = (_GLIBC.fullmatch(name) for name in names)
        found = [match[1] for match in matches if match]
        found += [_GLIBC_OF_FEATURES[name] for name in names if name in _GLIBC_OF_FEATURES]
        return max(found, key=release, default="")

    def _versions(self) -> Iterator[str]:
        """The versions that it needs of its libraries; without those that may lack."""
        at = self._place(self._value(_VERSIONS)) if _VERSIONS in self.dynamic else 0
        left = _MOST_VERSIONS
        for _ in range(min(self._value(_VERSIONS_COUNT), _MOST_VERSIONS)):
            _, count, _, first, following = struct.unpack(self._order + "HHIII", self.data.at(at, 16))
            place = at + first
            for _ in range(min(count, left)):
                left -= 1
                _, flags, _, name, step = struct.unpack(self._order + "IHHII", self.data.at(place, 16))
                if not flags & _WEAK:
                    yield self._string(name)
                place += step
            at += following

    def _segment(self, kind: int) -> _Segment | None:
        return next((segment for segment in self.segments if segment.kind == kind and segment.size), None)

    def _value(self, tag: int) -> int:
        return self.dynamic.get(tag, (0,))[0]

    def _string(self, index: int) -> str:
        size = self._value(_STRINGS_SIZE)
        if index >= size:
            raise DamagedElfError("a name lies outside of the table of names")
        return self.data.text(self._strings + index, min(self._strings + size, self.data.size))

    @cached_property
    def _strings(self) -> int:
        """Where the table of names begins."""
        return self._place(self._value(_STRINGS))

    def _place(self, address: int) -> int:
        """Where in the file the byte is that is loaded to this address."""
        for segment in self.segments:
            if segment.kind == _LOAD and segment.address <= address < segment.address + segment.size:
                return address - segment.address + segment.offset
        raise DamagedElfError(f"what should be at address {address:#x} is in none of its segments")


def _notes(data: bytes, order: str, alignment: int) -> Iterator[tuple[bytes, int, bytes]]:
    """Name, kind and content of each note. What cannot be one ends them: tools that change programs leave such."""
    at = 0
    while at + 12 <= len(data):
        name_size, size, kind = struct.unpack_from(order + "III", data, at)
        start = at + 12
        content = -(-(start + name_size) // alignment) * alignment
        if content + size > len(data):
            return
        yield data[start : start + name_size], kind, data[content : content + size]
        at = -(-(content + size) // alignment) * alignment
