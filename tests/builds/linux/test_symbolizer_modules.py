"""The symbolizer with the files of the guest on the host: which file a module's name leads to, and which it never does.

LLVM is played; it opens each file that it is asked for, and notes its real name.
"""

import os
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.builds.linux import SYMBOLIZER
from tests.builds.linux.test_symbolizer import ID, Symbolizer, frame

GUEST = "/targets/files"
NAMED = b"    #0 0x55aa in main src/m.c:5:1\n"


def elf(build_id: bytes = b"", notes: bytes | None = None) -> bytes:
    """An ELF file with a segment that is loaded, and one of notes: of an ABI, and a build id if one is given."""
    if notes is None:
        notes = struct.pack("<III4s16x", 4, 16, 1, b"GNU\0")
        notes += struct.pack("<III4s", 4, len(build_id), 3, b"GNU\0") + build_id if build_id else b""
    start = 64 + 2 * 56
    header = struct.pack("<4sBBB9xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    segments = [struct.pack("<IIQQQQQQ", kind, 4, start, 0, 0, len(notes), len(notes), 4) for kind in (1, 4)]
    return header + b"".join(segments) + notes


class Host(Symbolizer):
    """The program with a directory of the host that stands for one of the guest."""

    def __init__(self, directory: Path, name: str = "files") -> None:
        super().__init__(directory)
        self.files = directory / name
        self.files.mkdir(parents=True)
        self.modules = ["-module-dir", f"{GUEST}={self.files}"]

    def add(self, name: str, content: bytes = b"") -> Path:
        path = self.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def module(name: str, offset: str = "0x20", build_id: str = "") -> bytes:
    return frame(0, offset, " ", build_id, f"{GUEST}/{name}")


def test_a_frame_without_a_build_id_is_looked_up_by_its_module(host: Host) -> None:
    program, library = host.add("x"), host.add("lib/liba.so.1")
    assert host.run(module("x") + module("lib/liba.so.1")) == NAMED * 2
    assert host.asked() == [f"{program} 0x20", f"{library} 0x20"]


def test_a_directory_that_takes_the_place_of_the_first_is_not_looked_into(host: Host) -> None:
    """It has the files of another build: its lines would be those of other code."""
    host.add("x")
    moved = host.files.with_name("moved")
    with subprocess.Popen(host.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(module("x"))
        process.stdin.flush()
        assert process.stdout.readline() == NAMED
        host.files.rename(moved)
        host.add("y")
        process.stdin.write(module("y"))
        process.stdin.close()
        assert process.stdout.read() == module("y")


def test_what_the_guest_said_of_the_function_is_replaced(host: Host) -> None:
    host.add("x")
    assert host.run(frame(0, "0x20", " in f(int, (y))", "", f"{GUEST}/x")) == NAMED


def test_a_function_without_a_line_keeps_its_module(host: Host) -> None:
    host.add("x")
    assert host.run(module("x", "0x30")) == f"    #0 0x55aa in start ({GUEST}/x+0x30)\n".encode()


@pytest.mark.parametrize("name", ["a b", "a(1)/b (x86)+0x1) c", "a\"'%", "ä\udcff", "#0 0x1", "a" * 255])
def test_a_module_may_be_called_anything(host: Host, name: str) -> None:
    host.add(name)
    assert host.run(module(name)) == NAMED


@pytest.mark.parametrize("name", ["a=b", "a\nb", "a \"b\" 'c'", "=", "ä\udcff"])
def test_the_directory_may_be_called_anything(tmp_path: Path, name: str) -> None:
    host = Host(tmp_path, name)
    host.add("x")
    assert host.run(module("x")) == NAMED


def test_build_ids_are_searched_first(host: Host) -> None:
    host.add("x", elf(bytes.fromhex(ID)))
    assert host.run(module("x", build_id=ID)) == NAMED
    assert host.asked() == [f"{host.unstripped} 0x20"]


OTHER = "ab" * 20


def test_a_build_id_that_is_the_files_own(host: Host) -> None:
    program = host.add("x", elf(bytes.fromhex(OTHER)))
    assert host.run(module("x", build_id=OTHER)) == NAMED
    assert host.asked() == [f"{program} 0x20"]


@pytest.mark.parametrize(
    "content",
    [
        elf(bytes.fromhex("cd" * 20)),
        elf(),
        elf(notes=struct.pack("<III4s", 4, 20, 3, b"LLD\0") + bytes.fromhex(OTHER)),
        elf(notes=struct.pack("<III4s", 4, 20, 4, b"GNU\0") + bytes.fromhex(OTHER)),
        elf(notes=struct.pack("<III", 2**32 - 1, 2**32 - 1, 3)),
        elf(bytes.fromhex(OTHER))[:100],
        struct.pack("<4sBB26xQ14xHH", b"\x7fELF", 2, 1, 2**64 - 1, 65535, 65535),
        b"\x7fELF",
        b"",
    ],
    ids=["other", "none", "name", "kind", "broken note", "cut off", "far", "short", "empty"],
)
def test_a_file_with_another_build_id_names_nothing(host: Host, content: bytes) -> None:
    host.add("x", content)
    said = module("x", build_id=OTHER)
    assert host.run(said) == said
    assert host.asked() == []
    assert host.run(module("x")) == NAMED, "a sanitizer that tells no build id does not say that there is none"


def test_of_a_long_build_id_sanitizers_print_the_beginning(host: Host) -> None:
    host.add("x", elf(b"\xab" * 40))
    assert host.run(module("x", build_id="ab" * 32)) == NAMED


def test_the_id_of_a_real_library(host: Host) -> None:
    compiled = subprocess.run(["/usr/bin/env", "cc", "--version"], capture_output=True, check=False)
    if compiled.returncode:
        pytest.skip("there is no compiler")
    build = ["cc", "-shared", "-nostdlib", f"-Wl,--build-id=0x{OTHER}", "-x", "c", "/dev/null", "-o"]
    subprocess.run([*build, str(host.files / "x")], check=True)
    assert host.run(module("x", build_id=OTHER)) == NAMED
    wrong = module("x", build_id=OTHER[:-1] + "0")
    assert host.run(wrong) == wrong


def test_a_path_that_stays_inside_is_resolved(host: Host) -> None:
    library = host.add("lib/liba.so.1.2")
    (host.files / "lib/liba.so.1").symlink_to("liba.so.1.2")
    (host.files / "more").symlink_to(host.files / "lib")
    names = ("bin/../lib/liba.so.1", "/more/./liba.so.1", "../files/more/liba.so.1")
    assert host.run(b"".join(map(module, names))) == NAMED * 3
    assert host.asked() == [f"{library} 0x20"] * 3


def leads_nowhere(host: Host, name: str) -> None:
    said = module(name)
    assert host.run(said) == said
    assert host.asked() == []


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "x/../../secret",
        "lib/../../../secret",
        "../files-too/x",
        "link",
        "linked/secret",
        "absolute",
        "loop",
        "../../../../../../../../../etc/passwd",
        "",
        ".",
        "lib",
        "lib/",
        "none",
        "x/y",
        "x\0",
        "\0",
        "a" * 256,
        "a/" * 6000,
        "../" * 4000,
        "lib/../" * 500 + "none",
    ],
)
def test_no_name_leads_outside(host: Host, name: str) -> None:
    host.add("x")
    host.add("lib/y")
    (host.directory / "files-too").mkdir()
    for path in ("secret", "files-too/x"):
        (host.directory / path).touch()
    (host.files / "link").symlink_to("../secret")
    (host.files / "linked").symlink_to("..")
    (host.files / "absolute").symlink_to(host.directory / "secret")
    (host.files / "loop").symlink_to("loop")
    leads_nowhere(host, name)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


@pytest.mark.parametrize("make", [fifo, bound])
@pytest.mark.parametrize("build_id", ["", OTHER])
def test_what_is_no_file_is_not_opened(
    host: Host, make: Callable[[Path], None], build_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(host.files)
    make(host.files / "x")
    said = module("x", build_id=build_id)
    assert host.run(said) == said
    assert host.asked() == []


@pytest.mark.parametrize("where", ["/targets/files2/x", "/targets/file", "targets/files/x", "/x", "/targets/files"])
def test_other_directories_are_not_looked_up(host: Host, where: str) -> None:
    host.add("x")
    said = frame(0, "0x20", " ", "", where)
    assert host.run(said) == said


def test_there_may_be_several_directories(host: Host, tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("1", "2", "3"))
    for path in (first / "x", second / "x", second / "y", third / "z"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    host.modules = [f"-module-dir=/t/={first}", "--module-dir", f"/t={second}", f"-module-dir=/u={third}"]
    assert host.run(b"".join(frame(0, "0x20", " ", "", name) for name in ("/t/x", "/t/y", "/u/z"))) == NAMED * 3
    assert host.asked() == [f"{path} 0x20" for path in (first / "x", second / "y", third / "z")]


def test_a_directory_that_is_not_there_is_no_error(host: Host) -> None:
    host.files.rmdir()
    leads_nowhere(host, "x")


def test_many_files_do_not_use_up_the_descriptors(host: Host) -> None:
    for number in range(300):
        host.add(str(number))
    lines = host.run(b"".join(module(str(number)) for number in [*range(300), 0])).splitlines(keepends=True)
    assert lines[:256] == [NAMED] * 256
    assert lines[256:-1] == [module(str(number)).rstrip(b"\n") + b"\n" for number in range(256, 300)]
    assert lines[-1] == NAMED
    assert len(set(host.asked())) == 256


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.lists(st.sampled_from(["..", ".", "", "up", "lib", "x", "secret"]), max_size=8), min_size=8))
def test_only_files_of_the_directory_are_opened(host: Host, names: list[list[str]]) -> None:
    host.add("x")
    host.add("lib/x")
    (host.directory / "secret").touch()
    if not (host.files / "up").exists():
        (host.files / "up").symlink_to("..")
    host.run(b"".join(module("/".join(parts)) for parts in names))
    assert {line.rpartition(" ")[0] for line in host.asked()} <= {str(host.files / name) for name in ("x", "lib/x")}


@pytest.mark.parametrize("word", ["", "/targets", "/targets=", "=x", "targets=x"])
def test_a_wrong_pair_is_refused(word: str) -> None:
    done = subprocess.run(
        [str(SYMBOLIZER), "-llvm-symbolizer", "x", "-module-dir", word],
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 2
    assert b"is not GUEST=HOST" in done.stderr
