"""All that one ELF file says of itself, read at once."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from pipeline.builds.elf import marks
from pipeline.builds.elf.structure import MAGIC, DamagedElfError, ElfFile, FileBytes, Kind

_LARGEST = 4 << 30  # bytes of a file; the largest programs with all debug information have about half


@dataclass(frozen=True)
class ElfFacts:
    """What one ELF file says of itself."""

    machine: str
    """The machine that it is for, such as "x86-64", "AArch64", "80386"; "machine 999" if it has no name here."""
    bits: int
    kind: Kind
    interpreter: str
    """The path of its loader. Empty: it has none, so it is a static program (static-pie too), or a library."""
    needed: tuple[str, ...]
    """The libraries that the loader loads for it (DT_NEEDED), in their order."""
    search: tuple[str, ...]
    """Directories in which the loader looks for them, as written: $ORIGIN stays. DT_RUNPATH; without it, DT_RPATH."""
    inherited: bool
    """Whether `search` counts for the libraries of its libraries too, as DT_RPATH does."""
    soname: str
    build_id: str
    """In hexadecimal digits; "" if it has none."""
    sanitizers: tuple[str, ...]
    """What it is built with, as -fsanitize names it, sorted: "address", "undefined", "memory", "thread", "hwaddress",
    "leak" (if not by "address"), "dataflow". UBSan is told by its checks: each has the type that it is about."""
    engine: str
    """The fuzzing engine in it: "libFuzzer", "AFL++", "Centipede", "honggfuzz", "Jazzer"; "" if none of them is."""
    target: bool
    """Whether the bytes LLVMFuzzerTestOneInput or LLVMFuzzerRunDriver are anywhere in it."""
    debug: bool
    """Whether it has debug information (.debug_info) itself."""
    glibc: str
    """The oldest glibc with which it can run, such as "2.34", by the versions that it needs; "" if it needs none."""


def read(path: Path) -> ElfFacts | None:
    """Read what a file says of itself; None if it is no ELF file, or no regular file at all.

    Raises DamagedElfError for a damaged one, and OSError if it cannot be read. The file is read once, a chunk at a
    time; one that is written to meanwhile may be called damaged.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or os.pread(descriptor, len(MAGIC), 0) != MAGIC:
            return None
        if facts.st_size > _LARGEST:
            raise DamagedElfError(f"it has {facts.st_size} bytes, more than any program")
        return _facts(ElfFile(FileBytes(descriptor, facts.st_size)))
    finally:
        os.close(descriptor)


def _facts(file: ElfFile) -> ElfFacts:
    found = marks.find(file.data.descriptor, file.data.size, file.names, file.constants)
    return ElfFacts(
        machine=file.machine,
        bits=64 if file.wide else 32,
        kind=file.kind,
        interpreter=file.interpreter,
        needed=file.needed,
        search=file.search,
        inherited=file.inherited,
        soname=file.soname,
        build_id=file.build_id,
        sanitizers=tuple(sorted(found.sanitizers | marks.of_runtimes(file.needed))),
        engine=found.engine,
        target=bool(found.target),
        debug=file.debug,
        glibc=file.glibc,
    )
