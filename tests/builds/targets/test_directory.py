"""Which files of a directory are fuzz targets, and why the others are not."""

import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.builds import elf
from pipeline.builds.elf import ElfFacts
from pipeline.builds.targets import directory, entries
from pipeline.builds.targets.directory import FoundTarget, LeftOutFile, TargetsDirectory, scan
from pipeline.errors import SettingsError
from tests.builds.elves import LIBFUZZER, Elf

TARGET = bytes(Elf(text=LIBFUZZER))
OTHER_PROGRAM = bytes(Elf())
WRAPPER = b"#!/bin/sh\n# LLVMFuzzerTestOneInput for fuzzer detection\nexec java\n"


class Out:
    """A directory of targets that is being filled."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()

    def put(self, path: str, content: bytes = b"", *, executable: bool = False) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(0o755 if executable else 0o644)

    def program(self, path: str, content: bytes = TARGET) -> None:
        self.put(path, content, executable=True)

    def scan(self, facts: Callable[[Path], ElfFacts | None] = elf.read, *, glibc: str = "") -> TargetsDirectory:
        return scan(self.root, facts, glibc=glibc)

    def left_out(self) -> LeftOutFile:
        """The only file that is left out; then nothing is a target."""
        found = self.scan()
        assert found.targets == ()
        assert len(found.left_out) == 1
        return found.left_out[0]


@pytest.fixture
def out(tmp_path: Path) -> Out:
    return Out(tmp_path / "out")


def names(found: TargetsDirectory) -> list[str]:
    return [target.name for target in found.targets]


def others(found: TargetsDirectory) -> list[str]:
    return [str(path) for path in found.others]


def reasons(found: TargetsDirectory) -> dict[str, str]:
    """Those of files that somebody may take for targets."""
    return {str(left.path): left.reason for left in found.left_out if left.broken}


def test_a_target_and_all_that_lies_beside_it(out: Out) -> None:
    out.program("parser")
    for name in ("parser.dict", "parser.options", "parser_seed_corpus.zip", "parser_seed_corpus.tar.gz"):
        out.put(name)
    out.put("parser_seed_corpus/1", b"seed")
    assert out.scan() == TargetsDirectory(
        out.root,
        targets=(
            FoundTarget(
                name="parser",
                program=PurePosixPath("parser"),
                elf=elf.read(out.root / "parser"),  # type: ignore[arg-type]
                dictionary=PurePosixPath("parser.dict"),
                options=PurePosixPath("parser.options"),
                seeds=(
                    PurePosixPath("parser_seed_corpus"),
                    PurePosixPath("parser_seed_corpus.tar.gz"),
                    PurePosixPath("parser_seed_corpus.zip"),
                ),
                bytes=len(TARGET),
            ),
        ),
        left_out=(),
        others=(),
    )


def test_targets_lie_at_any_depth_and_have_their_own_neighbours(out: Out) -> None:
    out.program("b")
    out.program("deep/er/a")
    out.put("deep/er/a.dict")
    out.put("b_seed_corpus.tb2")
    out.put("deep/b.dict")
    found = out.scan()
    assert [(one.name, str(one.program), str(one.dictionary)) for one in found.targets] == [
        ("a", "deep/er/a", "deep/er/a.dict"),
        ("b", "b", "None"),
    ]
    assert found.targets[1].seeds == (PurePosixPath("b_seed_corpus.tb2"),)
    assert others(found) == ["deep/b.dict"]


@pytest.mark.parametrize("suffix", directory.ARCHIVES)
def test_every_kind_of_archive(out: Out, suffix: str) -> None:
    out.program("x")
    out.put(f"x_seed_corpus.{suffix}")
    out.put(f"gone_seed_corpus.{suffix}")
    out.put("x_seed_corpus.rar")
    found = out.scan()
    assert found.targets[0].seeds == (PurePosixPath(f"x_seed_corpus.{suffix}"),)
    assert others(found) == ["x_seed_corpus.rar"]


@pytest.mark.parametrize("name", ["x.exe", "x.par"])
def test_neighbours_are_named_without_the_extension(out: Out, name: str) -> None:
    out.program(name)
    out.put("x.options")
    found = out.scan()
    assert [(one.name, str(one.options)) for one in found.targets] == [(name, "x.options")]


def test_with_an_at_sign_dots_belong_to_the_name(out: Out) -> None:
    out.program("suite@Some.test")
    out.put("suite@Some.test.dict")
    assert [(one.name, str(one.dictionary)) for one in out.scan().targets] == [
        ("suite@Some.test", "suite@Some.test.dict")
    ]


@pytest.mark.parametrize(
    "program",
    [
        Elf(text=LIBFUZZER),
        Elf(text=b"libFuzzer: deadly signal\0"),  # stripped
        Elf(text=b"LLVMFuzzerRunDriver\0", needed=("libFuzzingEngine.so",)),
        Elf(text=LIBFUZZER, interpreter="", needed=()),  # static-pie
        Elf(text=LIBFUZZER, interpreter="", needed=(), kind=2, flags=0),
    ],
)
def test_what_is_a_target(out: Out, program: Elf) -> None:
    out.program("x", bytes(program))
    found = out.scan()
    assert names(found) == ["x"]
    assert (found.left_out, found.others) == ((), ())


@pytest.mark.parametrize(
    ("program", "reason", "hint"),
    [
        (Elf(machine=183, text=LIBFUZZER), "it is for AArch64 with 64 bits", "build it for x86-64"),
        (Elf(machine=3, wide=False, text=LIBFUZZER), "it is for 80386 with 32 bits", "build it for x86-64"),
        (Elf(wide=False, text=LIBFUZZER), "it is for x86-64 with 32 bits", "with 64 bits"),
        (
            Elf(interpreter="/lib/ld-musl-x86_64.so.1", text=LIBFUZZER),
            "it is made for musl, not for glibc: its loader is /lib/ld-musl-x86_64.so.1",
            "--target=x86_64-linux-gnu",
        ),
        (
            Elf(interpreter="/nix/store/\x1b[1mld.so", text=LIBFUZZER),
            "the guest does not have its loader, /nix/store/ld.so",
            "--dynamic-linker=/lib64/ld-linux-x86-64.so.2",
        ),
        (
            Elf(text=b"LLVMFuzzerTestOneInput\0"),
            "it has LLVMFuzzerTestOneInput, but no fuzzing engine in it",
            "-fsanitize=fuzzer",
        ),
        (
            Elf(text=b"LLVMFuzzerTestOneInput\0##SIG_AFL_PERSISTENT##\0"),
            "it is made for AFL++, not for libFuzzer",
            "-fsanitize=fuzzer",
        ),
        (
            Elf(interpreter="", flags=0, soname="x", text=LIBFUZZER),
            "it is a shared library, not a program",
            "-fsanitize=fuzzer",
        ),
    ],
)
def test_a_program_that_cannot_be_run(out: Out, program: Elf, reason: str, hint: str) -> None:
    out.program("x", bytes(program))
    left = out.left_out()
    assert (str(left.path), left.reason, left.broken) == ("x", reason, True)
    assert hint in left.hint
    assert out.scan().others == ()


@pytest.mark.parametrize("name", ["x_fuzzer", "x_fuzztest", "x_fuzz_test", "x_fuzzer.exe"])
def test_the_name_alone_makes_no_target(out: Out, name: str) -> None:
    out.program(name, OTHER_PROGRAM)
    left = out.left_out()
    assert left.broken
    assert left.reason == "its name is that of a target, but no fuzzing engine is in it"


def test_a_target_that_may_not_be_executed(out: Out) -> None:
    out.put("a lib/x", TARGET)
    left = out.left_out()
    assert (left.reason, left.hint, left.broken) == ("it may not be executed", "chmod +x 'a lib/x'", True)


@pytest.mark.parametrize(
    ("name", "content"),
    [("x", WRAPPER), ("x_fuzzer", b"#!/usr/bin/env python3\n"), ("x", b"#!\n" + b"#" * 60000 + WRAPPER)],
)
def test_a_script_is_no_target(out: Out, name: str, content: bytes) -> None:
    out.program(name, content)
    left = out.left_out()
    assert (left.reason, left.broken) == ("it is a script, which only starts another program", True)
    assert "Java, Python and JavaScript" in left.hint


def test_a_file_of_another_sort_with_the_name_of_a_target(out: Out) -> None:
    out.program("x_fuzzer", b"MZ")
    left = out.left_out()
    assert (left.reason, left.broken) == ("its name is that of a target, but it is no ELF file", True)


def test_a_damaged_program(out: Out) -> None:
    out.program("x", TARGET[:-1])
    left = out.left_out()
    assert left.broken
    assert left.reason.startswith("it is damaged: it is cut off: it has ")
    assert left.hint == "build it anew, or copy it again"


def test_a_damaged_file_that_nobody_runs_is_data(out: Out) -> None:
    out.put("sample.elf", TARGET[:-1])
    assert not out.left_out().broken
    assert others(out.scan()) == ["sample.elf"]
    out.put("x_fuzzer", TARGET[:-1])
    assert list(reasons(out.scan())) == ["x_fuzzer"]


@pytest.mark.parametrize("name", ["x.so_fuzzer", "x.v2", "x.debugged"])
def test_endings_that_no_target_has(out: Out, name: str) -> None:
    out.program(name)
    left = out.left_out()
    assert left.reason == f"no target's name ends with .{name.partition('.')[2]}"
    assert left.broken


@pytest.mark.parametrize(
    "name", ["-x", ".x", "a b", "a\nb", "ä", "@x", "a+b", "x" * 201, b"\xff".decode(errors="surrogateescape")]
)
def test_names_that_cannot_be_a_target(out: Out, name: str) -> None:
    out.program(name)
    left = out.left_out()
    assert (left.reason, left.broken) == ("its name cannot be a target's", True)
    assert left.hint.isprintable()


@pytest.mark.parametrize("name", ["x", "x" * 200, "_x-1", "9", "a@b.c"])
def test_names_that_targets_have(out: Out, name: str) -> None:
    out.program(name)
    assert names(out.scan()) == [name]


@pytest.mark.parametrize(
    ("needs", "guest", "runs"),
    [
        ("GLIBC_2.36", "2.36", True),
        ("GLIBC_2.38", "2.36", False),
        ("GLIBC_2.9", "2.36", True),
        ("GLIBC_2.36", "2.9", False),
        ("GLIBC_2.38", "", True),
    ],
)
def test_a_program_for_a_newer_glibc(out: Out, needs: str, guest: str, runs: bool) -> None:
    out.program("x", bytes(Elf(text=LIBFUZZER, versions={"libc.so.6": (needs,)})))
    found = out.scan(glibc=guest)
    assert names(found) == (["x"] if runs else [])
    assert list(reasons(found).values()) == ([] if runs else [f"it needs glibc {needs[6:]}, and the guest has {guest}"])


def test_of_two_of_one_name_the_nearest_to_the_top_counts(out: Out) -> None:
    out.program("a/b/x")
    out.program("z/x")
    out.program("b/x")
    found = out.scan()
    assert [str(target.program) for target in found.targets] == ["b/x"]
    assert reasons(found) == {"a/b/x": "b/x has the same name", "z/x": "b/x has the same name"}
    assert found.others == ()


def test_what_is_no_target_and_nobody_takes_for_one(out: Out) -> None:
    out.program("helper", OTHER_PROGRAM)
    out.program("run.sh", b"#!/bin/sh\n")
    out.program("jazzer_driver_with_sanitizer")
    out.program("jazzerjs")
    out.program("__extra_build/x")
    out.put("x.o", bytes(Elf(kind=1, unloaded=LIBFUZZER)))
    out.put("x", bytes(Elf(kind=1, unloaded=LIBFUZZER)))
    out.put("libx.a", b"!<arch>\nLLVMFuzzerTestOneInput")
    found = out.scan()
    assert names(found) == []
    assert {str(left.path): left.reason for left in found.left_out} == {
        "__extra_build/x": "it lies in __extra_build, where nothing is a target",
        "helper": "it has neither LLVMFuzzerTestOneInput nor libFuzzer in it",
        "jazzer_driver_with_sanitizer": "it runs fuzz targets of Java or JavaScript",
        "jazzerjs": "it runs fuzz targets of Java or JavaScript",
        "libx.a": "it is an object file, not a program",
        "run.sh": "it is a script",
        "x": "it is an object file, not a program",
        "x.o": "it is an object file, not a program",
    }
    assert reasons(found) == {}
    assert others(found) == ["helper", "jazzer_driver_with_sanitizer", "jazzerjs", "run.sh"]


def test_what_targets_may_need_when_they_run(out: Out) -> None:
    out.program("x")
    for name in ("libx.so", "libx.so.1.2", "module.so"):
        out.program(f"lib/{name}", bytes(Elf(interpreter="", flags=0, soname=name, text=LIBFUZZER)))
    out.put("module", bytes(Elf(interpreter="", flags=0)))
    out.put("data/table.bin", b"\x7fELF")
    out.put("data/words", b"#!/bin/sh LLVMFuzzerTestOneInput\n")
    out.program("data/may_be_executed", b"MZ")
    (out.root / "lib" / "libx.so.1").symlink_to("libx.so.1.2")
    found = out.scan()
    assert names(found) == ["x"]
    assert sorted(others(found)) == [
        "data/may_be_executed",
        "data/table.bin",
        "data/words",
        "lib/libx.so",
        "lib/libx.so.1",
        "lib/libx.so.1.2",
        "lib/module.so",
        "module",
    ]
    assert reasons(found) == {}


METADATA = ["x.options", "other.options", "x.owners", "x.labels", "x.components", "x.issue_metadata", "x.debug"]
SEEDS = ["gone_seed_corpus.zip", "gone_seed_corpus/1"]


@pytest.mark.parametrize("name", [*METADATA, *SEEDS, "llvm-symbolizer", "topcoat-targets.toml"])
def test_what_targets_never_need(out: Out, name: str) -> None:
    out.program("x")
    out.program(name, OTHER_PROGRAM)
    found = out.scan()
    assert names(found) == ["x"]
    assert (found.left_out, found.others) == ((), ())


def test_a_link_to_a_target_is_a_target_under_its_own_name(out: Out) -> None:
    out.program("multi/all")
    (out.root / "one").symlink_to("multi/all")
    found = out.scan()
    assert [(target.name, str(target.program), target.bytes) for target in found.targets] == [
        ("all", "multi/all", len(TARGET)),
        ("one", "one", len(TARGET)),
    ]


def test_links_that_lead_out_are_not_followed(out: Out, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(TARGET)
    (tmp_path / "secret").chmod(0o755)
    (tmp_path / "words").write_bytes(b"words")
    (tmp_path / "out2").mkdir()
    for name, target in {"x": "../secret", "words": "../words", "near": "../out2", "root": "/"}.items():
        (out.root / name).symlink_to(target)
    asked: list[Path] = []
    found = out.scan(lambda path: asked.append(path))
    assert asked == []
    assert (found.targets, found.others) == ((), ())
    assert {str(left.path): (left.reason, left.broken) for left in found.left_out} == {
        name: ("it is a link that leads out of the directory", name == "x") for name in ("near", "root", "words", "x")
    }


def test_links_that_lead_nowhere_or_to_directories(out: Out) -> None:
    out.program("real/x")
    (out.root / "alias").symlink_to("real")
    (out.root / "gone").symlink_to("nothing")
    (out.root / "loop").symlink_to("loop")
    found = out.scan()
    assert names(found) == ["x"]
    assert {str(left.path): left.reason.partition(":")[0] for left in found.left_out} == {
        "alias": "it is a link to a directory",
        "gone": "it is a link that cannot be followed",
        "loop": "it is a link that cannot be followed",
    }
    assert reasons(found) == {}


def test_the_directory_may_be_a_link_itself(out: Out, tmp_path: Path) -> None:
    out.program("x")
    (out.root / "y").symlink_to("x")
    (tmp_path / "link").symlink_to(out.root)
    assert names(scan(tmp_path / "link", elf.read)) == ["x", "y"]


def test_nothing_but_files_is_opened(out: Out) -> None:
    os.mkfifo(out.root / "pipe_fuzzer")
    (out.root / "pipe_fuzzer").chmod(0o777)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(out.root / "socket_fuzzer"))
        found = out.scan()
    assert (found.targets, found.others) == ((), ())
    assert {str(left.path): left.reason for left in found.left_out} == dict.fromkeys(
        ("pipe_fuzzer", "socket_fuzzer"), "it is neither a file nor a directory"
    )


def test_a_file_that_vanishes_is_passed_over(out: Out) -> None:
    out.program("a")
    out.program("b")

    def facts(path: Path) -> ElfFacts | None:
        (out.root / "b").unlink(missing_ok=True)
        return elf.read(path)

    found = out.scan(facts)
    assert names(found) == ["a"]
    assert (found.left_out, found.others) == ((), ())


def test_a_file_that_cannot_be_read(out: Out) -> None:
    out.program("x")
    out.put("y", TARGET)

    def facts(path: Path) -> ElfFacts | None:
        raise PermissionError(13, "Permission denied", str(path))

    found = out.scan(facts)
    assert found.targets == ()
    assert [(str(left.path), left.reason, left.broken) for left in found.left_out] == [
        ("x", "it cannot be read: Permission denied", True),
        ("y", "it cannot be read: Permission denied", False),
    ]


def test_a_directory_in_it_that_cannot_be_read(out: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    out.program("x")
    out.program("closed/y")
    listed = entries._listed  # noqa: SLF001

    def refusing(path: Path) -> list[os.DirEntry[str]]:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(entries, "_listed", refusing)
    found = out.scan()
    assert names(found) == ["x"]
    assert reasons(found) == {"closed": "it cannot be read: Permission denied"}


def test_an_empty_directory_is_no_error(out: Out) -> None:
    assert out.scan() == TargetsDirectory(out.root, (), (), ())


def test_a_directory_that_is_not_there_or_none(out: Out) -> None:
    for name, reason in {"none": "No such file or directory", "file": "Not a directory"}.items():
        out.put("file")
        with pytest.raises(
            SettingsError, match=f"^the directory of targets cannot be read: .*/{name}: {reason}$"
        ) as caught:
            scan(out.root / name, elf.read)
        assert "$OUT" in caught.value.hint
    (out.root / "loop").symlink_to("loop")
    with pytest.raises(SettingsError, match=r"/loop: "):
        scan(out.root / "loop", elf.read)


def test_too_many_files(out: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "MOST_ENTRIES", 5)
    for number in range(3):
        out.put(f"some/{number}")
    out.put("more")
    for number in range(9):
        out.put(f"x_seed_corpus/{number}")
    with pytest.raises(SettingsError, match="/out holds more than 5 files") as caught:
        out.scan()
    assert caught.value.hint.startswith("is it the directory of targets?")
    (out.root / "more").unlink()
    assert len(out.scan().others) == 3


def test_of_a_giant_only_so_much_is_listed(out: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "MOST_ENTRIES", 20)
    for number in range(90):
        out.put(f"{number // 9}/{number}")
    listed, asked = entries._listed, []  # noqa: SLF001

    def counting(path: Path) -> list[os.DirEntry[str]]:
        asked.append(path)
        return listed(path)

    monkeypatch.setattr(entries, "_listed", counting)
    with pytest.raises(SettingsError, match="/out holds more than 20 files"):
        out.scan()
    assert len(asked) == 3


def test_too_deep(out: Out) -> None:
    deep = "/".join(["d"] * 32)
    out.program(f"{deep}/x")
    assert names(out.scan()) == ["x"]
    out.put(f"{deep}/d/y")
    with pytest.raises(SettingsError, match="more than 32 directories in each other"):
        out.scan()


def test_ordinary_files_cost_little(out: Out) -> None:
    for number in range(2000):
        out.put(f"{number % 20}/{number}.dat", b"data")
    before = time.process_time()
    found = out.scan(lambda path: pytest.fail(f"{path} is read"))
    assert time.process_time() - before < 1  # a tenth of it on a slow machine
    assert len(found.others) == 2000


def test_a_program_of_this_system_is_no_target(out: Out) -> None:
    shutil.copy(Path(sys.executable).resolve(), out.root / "python")
    left = out.left_out()
    assert (left.reason, left.broken) == ("it has neither LLVMFuzzerTestOneInput nor libFuzzer in it", False)


NEVER_NEEDED = (
    *(".options", ".owners", ".labels", ".components", ".issue_metadata", ".debug", ".dwo", ".dwp"),
    *("llvm-symbolizer", "topcoat-targets.toml"),
    *(f"_seed_corpus.{suffix}" for suffix in directory.ARCHIVES),
)
NAME = st.text(st.characters(exclude_characters="/\0", max_codepoint=0x2FF), min_size=1, max_size=12)
CONTENTS = st.sampled_from([b"", b"data", b"\x7fELF", TARGET, TARGET[:200], OTHER_PROGRAM, WRAPPER])


@given(files=st.dictionaries(NAME.filter(lambda name: name not in (".", "..")), st.tuples(CONTENTS, st.booleans())))
def test_every_file_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, tuple[bytes, bool]]
) -> None:
    root = tmp_path_factory.mktemp("any")
    for name, (content, executable) in files.items():
        (root / name).write_bytes(content)
        (root / name).chmod(0o755 if executable else 0o644)
    found = scan(root, elf.read)
    told = {target.name for target in found.targets} | {left.path.name for left in found.left_out}
    told |= {path.name for path in found.others} | {str(target.dictionary) for target in found.targets} - {"None"}
    assert told <= set(files)
    assert {name for name in set(files) - told if not name.endswith(NEVER_NEEDED)} == set()
    for target in found.targets:
        assert files[target.name] == (TARGET, True)
    assert not {left.path for left in found.left_out if left.broken} & set(found.others)
    shutil.rmtree(root)
