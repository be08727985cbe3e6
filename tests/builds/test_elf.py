"""What ELF files say of themselves: those of this system, and made ones, sound and damaged."""

import os
import struct
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection
from hypothesis import given
from hypothesis import strategies as st

from pipeline.builds.elf import DamagedElfError, ElfFacts, read, release
from tests.builds.elves import LIBFUZZER, LOADER, Elf

ADDRESS = b"__asan_init"
CHECKED = b"\0\0\0\x0b\0'int'\0"
"""The type of a check of UBSan."""


def facts(tmp_path: Path, elf: Elf) -> ElfFacts:
    (tmp_path / "file").write_bytes(bytes(elf))
    found = read(tmp_path / "file")
    assert found
    return found


def of_this_system() -> list[Path]:
    """Python, the shell, and all libraries that this process has loaded."""
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
    return [Path(sys.executable).resolve(), Path("/bin/sh").resolve(), *map(Path, sorted(mapped))]


def by_another_reader(path: Path) -> dict[str, object]:
    with path.open("rb") as stream:
        other = ELFFile(stream)
        dynamic, loader = other.get_section_by_name(".dynamic"), other.get_section_by_name(".interp")
        note = other.get_section_by_name(".note.gnu.build-id")
        assert isinstance(dynamic, DynamicSection)
        return {
            "needed": tuple(vars(tag)["needed"] for tag in dynamic.iter_tags("DT_NEEDED")),
            "soname": "".join(vars(tag)["soname"] for tag in dynamic.iter_tags("DT_SONAME")),
            "interpreter": loader.data().rstrip(b"\0").decode() if loader else "",
            "build_id": next(note.iter_notes())["n_desc"] if isinstance(note, NoteSection) else "",
            "machine": {"EM_X86_64": "x86-64", "EM_AARCH64": "AArch64"}[other["e_machine"]],
            "debug": other.get_section_by_name(".debug_info") is not None,
        }


def test_files_of_this_system_say_what_another_reader_finds() -> None:
    files = of_this_system()
    assert len(files) > 5
    for path in files:
        found, other = read(path), by_another_reader(path)
        assert found
        assert {name: getattr(found, name) for name in other} == other, path
        assert (found.bits, found.target, found.sanitizers, found.engine) == (64, False, (), ""), path


def test_python_is_a_program_and_what_it_loads_are_libraries() -> None:
    python, shell, *libraries = of_this_system()
    kinds = {path.name: facts.kind for path in libraries if (facts := read(path))}
    assert [one.kind for path in (python, shell) if (one := read(path))] == ["program", "program"]
    assert set(kinds.values()) == {"library"}
    assert any(name.startswith("libc.so") for name in kinds), "that has a loader like a program"


def test_python_needs_no_newer_glibc_than_this_system_has() -> None:
    found = read(Path(sys.executable).resolve())
    assert found
    assert (2, 2) < release(found.glibc) <= release(os.confstr("CS_GNU_LIBC_VERSION").split()[1])  # type: ignore[union-attr]


def test_all_that_a_file_says(tmp_path: Path) -> None:
    elf = Elf(
        needed=("libz.so.1", "libc.so.6"),
        runpath="$ORIGIN/lib:${ORIGIN}:/out",
        rpath="/not/this",
        build_id="0123456789abcdef0123456789abcdef01234567",
        versions={"libc.so.6": ("GLIBC_2.9", "GLIBC_2.17"), "libz.so.1": ("ZLIB_1.2.9",)},
        sections=(".text", ".debug_info"),
        exported=("__asan_init",),
        text=LIBFUZZER + CHECKED,
    )
    assert facts(tmp_path, elf) == ElfFacts(
        machine="x86-64",
        bits=64,
        kind="program",
        interpreter=LOADER,
        needed=("libz.so.1", "libc.so.6"),
        search=("$ORIGIN/lib", "${ORIGIN}", "/out"),
        inherited=False,
        soname="",
        build_id="0123456789abcdef0123456789abcdef01234567",
        sanitizers=("address", "undefined"),
        engine="libFuzzer",
        target=True,
        debug=True,
        glibc="2.17",
    )


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("little", [True, False])
def test_every_width_and_order_of_bytes(tmp_path: Path, wide: bool, little: bool) -> None:
    elf = Elf(
        wide=wide,
        little=little,
        machine=20,
        rpath="/x",
        build_id="00ff",
        versions={"libc.so.6": ("GLIBC_2.4",)},
        sections=(".debug_info",),
    )
    found = facts(tmp_path, elf)
    assert (found.machine, found.bits, found.kind) == ("PowerPC", 64 if wide else 32, "program")
    assert (found.needed, found.search, found.inherited) == (("libc.so.6",), ("/x",), True)
    assert (found.build_id, found.glibc, found.debug, found.interpreter) == ("00ff", "2.4", True, LOADER)


@pytest.mark.parametrize(
    ("number", "name"), [(3, "80386"), (62, "x86-64"), (183, "AArch64"), (243, "RISC-V"), (999, "machine 999")]
)
def test_machines(tmp_path: Path, number: int, name: str) -> None:
    assert facts(tmp_path, Elf(machine=number)).machine == name


@pytest.mark.parametrize(
    ("elf", "kind"),
    [
        (Elf(kind=2, flags=0), "program"),
        (Elf(kind=2, interpreter="", needed=(), flags=0), "program"),
        (Elf(), "program"),
        (Elf(flags=0), "program"),
        (Elf(interpreter="", needed=()), "program"),
        (Elf(interpreter="", needed=(), flags=0), "program"),
        (Elf(interpreter="", needed=(), flags=0, entry=0), "library"),
        (Elf(interpreter="", flags=0, soname="libx.so"), "library"),
        (Elf(flags=0, soname="libc.so.6"), "library"),  # as glibc's own, which can be run, too
        (Elf(interpreter="", flags=0), "library"),  # a module of Python: old linkers give all an entry point
        (Elf(kind=1), "object"),
        (Elf(kind=4), "other"),
    ],
)
def test_kinds(tmp_path: Path, elf: Elf, kind: str) -> None:
    assert facts(tmp_path, elf).kind == kind


@pytest.mark.parametrize(
    ("versions", "glibc"),
    [
        (("GLIBC_2.9", "GLIBC_2.34", "GLIBC_2.4"), "2.34"),
        (("GLIBC_2.2.5",), "2.2.5"),
        (("GLIBC_2.17", "?GLIBC_2.38"), "2.17"),
        (("GLIBC_2.17", "GLIBC_ABI_DT_RELR"), "2.36"),
        (("GLIBC_2.38", "GLIBC_ABI_DT_RELR"), "2.38"),
        (("GLIBC_PRIVATE", "GLIBCXX_3.4", "GLIBC_2.x", "GLIBC_"), ""),
        ((), ""),
    ],
)
def test_the_glibc_that_is_needed(tmp_path: Path, versions: tuple[str, ...], glibc: str) -> None:
    assert facts(tmp_path, Elf(versions={"libm.so.6": (), "libc.so.6": versions})).glibc == glibc


def test_releases_are_compared_by_number() -> None:
    assert sorted(["2.36", "2.9", "", "2.36.1", "10.1"], key=release) == ["", "2.9", "2.36", "2.36.1", "10.1"]


@pytest.mark.parametrize(
    ("elf", "sanitizers"),
    [
        (Elf(exported=("__asan_init",)), ("address",)),
        (Elf(exported=("__msan_init",)), ("memory",)),
        (Elf(exported=("__tsan_init",)), ("thread",)),
        (Elf(exported=("__hwasan_init",)), ("hwaddress",)),
        (Elf(exported=("__lsan_init",)), ("leak",)),
        (Elf(exported=("__dfsan_arg_tls",)), ("dataflow",)),
        (Elf(exported=("__ubsan_handle_add_overflow_minimal",)), ("undefined",)),
        (Elf(exported=("__asan_init",), text=CHECKED), ("address", "undefined")),
        (Elf(text=b"\xff\xff\0\0'struct node *'\0"), ("undefined",)),
        (Elf(text=b"\x01\0\x40\0'double'\0"), ("undefined",)),
        (Elf(needed=("libclang_rt.asan-x86_64.so", "libc.so.6")), ("address",)),
        (Elf(needed=("libasan.so.8", "libubsan.so.1")), ("address", "undefined")),
        (Elf(needed=("libclang_rt.hwasan-x86_64.so",)), ("hwaddress",)),
        # All programs with -fsanitize=fuzzer have these
        (Elf(exported=("__ubsan_handle_add_overflow", "__ubsan_handle_add_overflow_abort")), ()),
        (Elf(needed=("libclang_rt.ubsan_standalone-x86_64.so",)), ()),
        (Elf(exported=("__asan_init_not", "__lsan_disable")), ()),
        # A compiler knows these names, too
        (Elf(text=b"\0__asan_init\0__msan_init\0"), ()),
        (Elf(text=b"\0 has 'no' type, or 'none'\0\0'quoted'\0"), ()),
        # A static program has no other place for them
        (Elf(kind=1, unloaded=b"\0__asan_init\0"), ("address",)),
    ],
)
def test_sanitizers(tmp_path: Path, elf: Elf, sanitizers: tuple[str, ...]) -> None:
    assert facts(tmp_path, elf).sanitizers == sanitizers


@pytest.mark.parametrize(
    ("text", "engine", "target"),
    [
        (LIBFUZZER, "libFuzzer", True),
        (b"==%lu== ERROR: libFuzzer: out-of-memory (malloc(%zd))\n\0", "libFuzzer", False),
        (b"LLVMFuzzerRunDriver\0", "libFuzzer", True),
        (b"LLVMFuzzerTestOneInput\0", "", True),
        (b"LLVMFuzzerTestOneInput LLVMFuzzerRunDriver ##SIG_AFL_PERSISTENT##\0", "AFL++", True),
        (b"LLVMFuzzerTestOneInput\0\x01_LIBHFUZZ_PERSISTENT_BINARY_SIGNATURE_\x02\xff\0", "honggfuzz", True),
        (b"LLVMFuzzerRunDriver\0CENTIPEDE_RUNNER_FLAGS\0", "Centipede", True),
        (LIBFUZZER + b"Lcom/code_intelligence/jazzer/runtime/CoverageMap;\0", "Jazzer", True),
        (b"LLVMFuzzerInitialize\0", "", False),
    ],
)
def test_engines(tmp_path: Path, text: bytes, engine: str, target: bool) -> None:
    found = facts(tmp_path, Elf(text=text))
    assert (found.engine, found.target) == (engine, target)


@pytest.mark.parametrize("before", [(1 << 20) - 400 - shift for shift in range(0, 500, 7)])
def test_marks_are_found_across_the_chunks_that_are_read(tmp_path: Path, before: int) -> None:
    found = facts(tmp_path, Elf(text=b"." * before + CHECKED + LIBFUZZER))
    assert (found.engine, found.target, found.sanitizers) == ("libFuzzer", True, ("undefined",))


def test_the_mark_counts_where_nothing_is_loaded(tmp_path: Path) -> None:
    found = facts(tmp_path, Elf(unloaded=b"." * (3 << 20) + b"LLVMFuzzerTestOneInput\0"))
    assert (found.target, found.engine) == (True, "")


@pytest.mark.parametrize(("name", "debug"), [(".debug_info", True), (".zdebug_info", False), (".gnu_debuglink", False)])
def test_debug_information(tmp_path: Path, name: str, debug: bool) -> None:
    assert facts(tmp_path, Elf(sections=(".text", name))).debug is debug


@pytest.mark.parametrize("content", [b"", b"\x7fEL", b"#!/bin/sh\n", b"MZ\x7fELF"])
def test_what_is_no_elf_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert read(tmp_path / "file") is None


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read(tmp_path / "pipe") is None
    assert read(Path("/dev/null")) is None


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "file")


@pytest.mark.parametrize("size", [4, 15, 40, 100, 400, -1])
def test_a_file_that_is_cut_off(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(bytes(Elf(text=b"." * 1000, sections=(".debug_info",)))[:size])
    with pytest.raises(DamagedElfError, match=r"^it is cut off: it has \d+ bytes, and should have \d+ or more$"):
        read(tmp_path / "file")


@pytest.mark.parametrize(
    ("offset", "layout", "value", "problem"),
    [
        (4, "B", 7, "its header says neither 32 nor 64 bits"),
        (56, "<H", 2000, "it has 2000 segments"),
        (64 + 8, "<Q", 2**63, "it is cut off"),
        (64 + 16, "<Q", 2**40, "is in none of its segments"),
        (64 + 56 + 32, "<Q", 2**21, "its dynamic section has 2097152 bytes"),
        (64 + 56 * 2 + 32, "<Q", 4, "a name in it has no end"),
    ],
)
def test_what_cannot_be_true(tmp_path: Path, offset: int, layout: str, value: int, problem: str) -> None:
    data = bytearray(bytes(Elf(unloaded=bytes(3 << 20))))
    struct.pack_into(layout, data, offset, value)
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(DamagedElfError, match=problem):
        read(tmp_path / "file")


def test_libraries_without_a_name_and_too_many(tmp_path: Path) -> None:
    data = bytes(Elf(needed=("libz.so.1",))).replace(b"libz.so.1\0", b"\0ibz.so.1\0")
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(DamagedElfError, match="a library that it needs has no name"):
        read(tmp_path / "file")
    with pytest.raises(DamagedElfError, match="it needs 5000 libraries"):
        facts(tmp_path, Elf(needed=("libz.so.1",) * 5000))


def test_a_table_of_a_giant_costs_nothing(tmp_path: Path) -> None:
    """Holes are no data: it is refused by its size."""
    with (tmp_path / "file").open("wb") as stream:
        stream.write(bytes(Elf()))
        stream.truncate((4 << 30) + 1)
    with pytest.raises(DamagedElfError, match="it has 4294967297 bytes, more than any program"):
        read(tmp_path / "file")


SOUND = Elf(
    runpath="$ORIGIN",
    soname="libx.so",
    build_id="ab" * 20,
    versions={"libc.so.6": ("GLIBC_2.34", "?GLIBC_2.4"), "libm.so.6": ("GLIBC_2.29",)},
    sections=(".debug_info",),
    text=LIBFUZZER + CHECKED,
)


@given(
    changes=st.lists(st.tuples(st.integers(4, len(bytes(SOUND)) - 1), st.integers(0, 255)), max_size=20),
    size=st.integers(4, len(bytes(SOUND))) | st.just(len(bytes(SOUND))),
    wide=st.booleans(),
)
def test_no_damage_leads_to_another_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], size: int, wide: bool
) -> None:
    data = bytearray(bytes(SOUND if wide else Elf(**{**vars(SOUND), "wide": False})))
    file = tmp_path_factory.getbasetemp() / "damaged-elf"
    for offset, value in changes:
        data[offset % len(data)] = value
    file.write_bytes(data[:size])
    with suppress(DamagedElfError):
        found = read(file)
        assert found is None or found.bits in (32, 64)


def test_claims_that_repeat_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand segments of the whole file, and versions without end, are not looked through a thousand times."""
    data = bytearray(bytes(Elf(versions={"libc.so.6": ("GLIBC_2.34",)}, text=LIBFUZZER + bytes(1 << 20))))
    segments = bytes(data[64 : 64 + 4 * 56])
    struct.pack_into("<Q", data, 32, len(data))
    struct.pack_into("<H", data, 56, 1104)
    versions = data.index(struct.pack("<IHH", 0, 0, 2), 64 + 4 * 56) - 16
    struct.pack_into("<H", data, versions + 2, 0xFFFF)  # so many versions of this library
    struct.pack_into("<I", data, versions + 12, 0)  # this library again
    struct.pack_into("<I", data, versions + 28, 0)  # this version again
    struct.pack_into("<Q", data, data.index(struct.pack("<Q", 0x6FFFFFFF)) + 8, 2**40)  # so many libraries
    (tmp_path / "file").write_bytes(data + segments + segments[:56] * 1100)
    asked: list[int] = []
    pread = os.pread

    def counting(descriptor: int, length: int, offset: int) -> bytes:
        asked.append(length)
        assert len(asked) < 100_000
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", counting)
    found = read(tmp_path / "file")
    assert found
    assert (found.glibc, found.engine) == ("2.34", "libFuzzer")
    assert sum(length for length in asked if length > 4096) < 10 << 20


def test_a_name_outside_of_the_names(tmp_path: Path) -> None:
    data = bytearray(bytes(Elf(needed=("libz.so.1",))))
    struct.pack_into("<Q", data, data.index(struct.pack("<QQ", 1, 1)) + 8, 40)
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(DamagedElfError, match="a name lies outside of the table of names"):
        read(tmp_path / "file")


def test_constants_that_lie_with_the_code(tmp_path: Path) -> None:
    """So older linkers have it."""
    data = bytearray(bytes(Elf(text=LIBFUZZER + CHECKED)))
    struct.pack_into("<I", data, 64 + 4, 5)
    (tmp_path / "file").write_bytes(data)
    found = read(tmp_path / "file")
    assert found
    assert (found.engine, found.sanitizers) == ("libFuzzer", ("undefined",))


def test_sections_without_names_are_not_looked_at(tmp_path: Path) -> None:
    data = bytearray(bytes(Elf(sections=(".debug_info",))))
    struct.pack_into("<H", data, 62, 9)
    (tmp_path / "file").write_bytes(data)
    found = read(tmp_path / "file")
    assert found
    assert found.debug is False
