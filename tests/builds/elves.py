"""ELF files for tests, made without a linker: what matters of them can be chosen."""

import struct
from dataclasses import dataclass, field

LOADER = "/lib64/ld-linux-x86-64.so.2"
LIBFUZZER = b"LLVMFuzzerTestOneInput\0ERROR: libFuzzer: deadly signal\0"
"""What a program has in it that is linked with libFuzzer."""

_ADDRESS = 0x1000


@dataclass(frozen=True)
class Elf:
    """A program, unless something else is chosen; `bytes()` makes its file."""

    kind: int = 3
    machine: int = 62
    wide: bool = True
    little: bool = True
    interpreter: str = LOADER
    needed: tuple[str, ...] = ("libc.so.6",)
    soname: str = ""
    runpath: str = ""
    rpath: str = ""
    flags: int = 0x08000000
    entry: int = _ADDRESS
    build_id: str = ""
    versions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The versions that it needs of each library; those that begin with "?" may lack."""
    exported: tuple[str, ...] = ()
    """Further names that libraries can see."""
    sections: tuple[str, ...] = ()
    text: bytes = b""
    """What else is loaded."""
    unloaded: bytes = b""
    """What else is in the file."""

    def __bytes__(self) -> bytes:
        return _Maker(self).file()


class _Maker:
    def __init__(self, elf: Elf) -> None:
        self._elf = elf
        self._order = "<" if elf.little else ">"
        versions = [name.lstrip("?") for names in elf.versions.values() for name in names]
        texts = [*elf.needed, *elf.versions, *versions, elf.soname, elf.runpath, elf.rpath, *elf.exported]
        self._names = b"\0" + b"".join(text.encode() + b"\0" for text in dict.fromkeys(texts) if text)

    def file(self) -> bytes:
        elf, wide = self._elf, self._elf.wide
        header_size, segment_size = (64, 56) if wide else (52, 32)
        parts: dict[int, bytes] = {}  # by the type of their segment
        at = header_size + segment_size * 4
        names_at = at
        versions_at = names_at + len(self._names)
        versions = self._versions()
        dynamic_at = versions_at + len(versions)
        parts[2] = self._dynamic(names_at, versions_at) if elf.kind != 1 else b""
        parts[3] = elf.interpreter.encode() + b"\0" if elf.interpreter else b""
        parts[4] = self._note()
        places = {}
        place = dynamic_at
        for kind, content in parts.items():
            places[kind] = place
            place += len(content)
        size = place + len(elf.text)
        segments = [self._segment(1, 0, size), *(self._segment(kind, places[kind], len(parts[kind])) for kind in parts)]
        sections_at, sections = self._sections(size + len(elf.unloaded))
        header = b"\x7fELF" + bytes([2 if wide else 1, 1 if elf.little else 2, 1]).ljust(12, b"\0")
        header += struct.pack(
            self._order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"),
            *(elf.kind, elf.machine, 1, elf.entry, header_size if elf.kind != 1 else 0, sections_at, 0, header_size),
            *(segment_size, 4 if elf.kind != 1 else 0, 64 if wide else 40, 2 if sections else 0, 1 if sections else 0),
        )
        loaded = header + b"".join(segments) + self._names + versions + b"".join(parts.values()) + elf.text
        return loaded + elf.unloaded + sections

    def _segment(self, kind: int, offset: int, size: int) -> bytes:
        address = _ADDRESS + offset
        if self._elf.wide:
            return struct.pack(self._order + "IIQQQQQQ", kind, 4, offset, address, address, size, size, 4)
        return struct.pack(self._order + "IIIIIIII", kind, offset, address, address, size, size, 4, 4)

    def _dynamic(self, names_at: int, versions_at: int) -> bytes:
        elf = self._elf
        entries = [(1, self._name(library)) for library in elf.needed]
        tags = {14: elf.soname, 15: elf.rpath, 29: elf.runpath}
        entries += [(tag, self._name(text)) for tag, text in tags.items() if text]
        if elf.versions:
            entries += [(0x6FFFFFFE, _ADDRESS + versions_at), (0x6FFFFFFF, len(elf.versions))]
        entries += [(5, _ADDRESS + names_at), (10, len(self._names)), (0x6FFFFFFB, elf.flags), (0, 0)]
        return b"".join(struct.pack(self._order + ("QQ" if elf.wide else "II"), *entry) for entry in entries)

    def _versions(self) -> bytes:
        made = b""
        for library, names in self._elf.versions.items():
            made += struct.pack(self._order + "HHIII", 1, len(names), self._name(library), 16, 16 + 16 * len(names))
            for name in names:
                weak = 2 if name.startswith("?") else 0
                made += struct.pack(self._order + "IHHII", 0, weak, 2, self._name(name.lstrip("?")), 16)
        return made

    def _note(self) -> bytes:
        content = bytes.fromhex(self._elf.build_id)
        if not content:
            return b""
        other = struct.pack(self._order + "III", 4, 3, 1) + b"GNU\0abc\0"
        return other + struct.pack(self._order + "III", 4, len(content), 3) + b"GNU\0" + content

    def _sections(self, at: int) -> tuple[int, bytes]:
        """Where the table of sections begins, and what is there after the sections' names: two of them."""
        if not self._elf.sections:
            return 0, b""
        names = b"\0" + b"".join(name.encode() + b"\0" for name in self._elf.sections)
        if self._elf.wide:
            entry = struct.pack(self._order + "IIQQQQIIQQ", 0, 3, 0, 0, at, len(names), 0, 0, 1, 0)
        else:
            entry = struct.pack(self._order + "10I", 0, 3, 0, 0, at, len(names), 0, 0, 1, 0)
        return at + len(names), names + bytes(len(entry)) + entry

    def _name(self, text: str) -> int:
        return self._names.index(b"\0" + text.encode() + b"\0") + 1
