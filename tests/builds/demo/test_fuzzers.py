"""What is made of the fuzzers: the guest's archive, the lists, the files for symbolizers; and when it is made again."""

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from pipeline.builds.demo import fuzzers
from pipeline.builds.demo.compiler import Compiler
from pipeline.builds.demo.fuzzers import SOURCES, headers, making
from pipeline.errors import ToolFailed
from pipeline.host.tools import Tool, run
from pipeline.images import cpio
from tests.builds.demo.fuzzing import NAMES
from tests.conftest import Workspace

LONG = 60.0
EXAMPLES = [
    "crash_fuzzer", "maze_fuzzer", "noisy_fuzzer", "noop_fuzzer", "out_of_memory_fuzzer", "overflow_fuzzer",
    "parser_fuzzer", "toy_example_arbitrary",
]  # fmt: skip


@pytest.fixture(scope="session")
def image(demo_parts: Path) -> dict[str, cpio.CpioEntry]:
    return {entry.name: entry for entry in cpio.decode((demo_parts / "demo/fuzzers.cpio").read_bytes())}


def test_the_examples_of_the_original_are_there() -> None:
    assert NAMES == EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_fuzzer_has_a_name_space_in_the_guest(image: dict[str, cpio.CpioEntry], name: str) -> None:
    home = f"data/fuzz/example-fuzzers/{name}"
    for directory in (home, f"{home}/data", f"{home}/tmp", f"{home}/pkg"):
        assert stat.S_ISDIR(image[directory].mode)
    program = image[f"{home}/pkg/{name}"]
    assert program.mode == 0o100755
    assert program.data.startswith(b"\x7fELF")
    assert len(program.data) < 500_000


def test_seeds_and_dictionaries_are_in_the_guest(image: dict[str, cpio.CpioEntry]) -> None:
    parser = "data/fuzz/example-fuzzers/parser_fuzzer/pkg"
    assert image[f"{parser}/corpus/empty"].data == b"TC"
    assert image[f"{parser}/parser_fuzzer.dict"].data == (SOURCES / "parser_fuzzer.dict").read_bytes()
    assert "data/fuzz/example-fuzzers/noop_fuzzer/pkg/corpus" not in image


def test_the_guest_boots_system_programs_and_fuzzers(demo_parts: Path) -> None:
    demo = demo_parts / "demo"
    assert (demo / "initramfs.cpio").read_bytes() == b"".join(
        (demo / name).read_bytes() for name in ("system.cpio", "programs.cpio", "fuzzers.cpio")
    )


def test_each_program_is_filed_with_debug_information_by_its_build_id(
    image: dict[str, cpio.CpioEntry], demo_parts: Path
) -> None:
    for name in EXAMPLES:
        found = making.build_id(image[f"data/fuzz/example-fuzzers/{name}/pkg/{name}"].data)
        assert found is not None
        unstripped = (demo_parts / f"demo/fuzzers/.build-id/{found[:2]}/{found[2:]}.debug").read_bytes()
        assert making.build_id(unstripped) == found
        assert b".debug_info\0" in unstripped
        assert b".debug_info\0" not in image[f"data/fuzz/example-fuzzers/{name}/pkg/{name}"].data


def test_a_file_without_a_build_id() -> None:
    assert making.build_id(b"\x7fELF GNU\0") is None


def test_fuzzers_json_has_texts_only_and_all_entries_have_labels(demo_parts: Path) -> None:
    entries = json.loads((demo_parts / "demo/fuzzers/fuzzers.json").read_text())
    merged: dict[str, dict[str, str]] = {}
    for entry in entries:
        assert all(isinstance(value, str) and value for value in entry.values())
        merged.setdefault(entry["label"], {}).update(entry)
    assert [entry["fuzzer"] for entry in merged.values()] == EXAMPLES
    assert {entry["package"] for entry in merged.values()} == {"example-fuzzers"}
    maze = merged["//pipeline/builds/demo/fuzzers:maze_fuzzer"]
    assert (maze["dictionary"], maze["corpus"]) == ("pkg/maze_fuzzer.dict", "pkg/corpus")


def test_tests_json_has_the_rule_and_the_url_of_each_fuzzer(demo_parts: Path) -> None:
    entries = json.loads((demo_parts / "demo/fuzzers/tests.json").read_text())
    assert {entry["test"]["build_rule"] for entry in entries} == {"fuchsia_fuzzer_package"}
    assert [entry["test"]["package_url"] for entry in entries] == [
        f"fuchsia-pkg://fuchsia.com/example-fuzzers#meta/{name}.cm" for name in EXAMPLES
    ]


def copied(directory: Path, *names: str) -> Path:
    """Some of the sources, elsewhere."""
    directory.mkdir(parents=True)
    for name in ("options.c", *names):
        shutil.copy(SOURCES / name, directory / name)
    return directory


def test_the_same_sources_give_the_same_bytes_wherever_they_are(demo_parts: Path, tmp_path: Path) -> None:
    made = []
    for place in ("here", "there/and deeper, with blanks"):
        at, sources = tmp_path / place, copied(tmp_path / place / "sources", "noop_fuzzer.c")
        compiler, sysroot = Compiler(demo_parts / "demo/llvm"), demo_parts / "demo/sysroot.tar"
        making.make(sources, compiler, sysroot, at / "image", at / "made", timeout=LONG)
        files = sorted(path for path in (at / "made").rglob("*") if path.is_file())
        made.append({str(path.relative_to(at)): path.read_bytes() for path in (at / "image", *files)})
    assert made[0] == made[1]
    assert not [name for name, data in made[0].items() if os.fsencode(tmp_path) in data]


BROKEN = "int LLVMFuzzerTestOneInput(void) { return nothing; }\n"


def test_if_no_source_compiles_that_is_an_error(demo_parts: Path, tmp_path: Path) -> None:
    sources = copied(tmp_path / "sources")
    (sources / "broken_fuzzer.c").write_text(BROKEN)
    compiler, sysroot = Compiler(demo_parts / "demo/llvm"), demo_parts / "demo/sysroot.tar"
    with pytest.raises(ToolFailed) as caught:
        making.make(sources, compiler, sysroot, tmp_path / "image", tmp_path / "made", timeout=LONG)
    assert "use of undeclared identifier 'nothing'" in caught.value.detail
    assert not (tmp_path / "image").exists()


@pytest.mark.parametrize(
    "script", ["kill -9 $$", "echo 'error: unable to open output file: No space left on device' >&2; exit 1"]
)
def test_what_is_no_fault_of_the_source_leaves_nothing_out(
    demo_parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    sources = copied(tmp_path / "sources", "noop_fuzzer.c", "crash_fuzzer.c")
    really = Compiler.compile

    def killed(self: Compiler, files: tuple[Path, ...], output: Path, root: Path, *, timeout: float) -> None:
        if files[0].stem == "noop_fuzzer":
            run(Tool("clang", ("sh",), ()), "-c", script, timeout=timeout)
        really(self, files, output, root, timeout=timeout)

    monkeypatch.setattr(Compiler, "compile", killed)
    compiler, sysroot = Compiler(demo_parts / "demo/llvm"), demo_parts / "demo/sysroot.tar"
    with pytest.raises(ToolFailed, match=r"^clang failed "):
        making.make(sources, compiler, sysroot, tmp_path / "image", tmp_path / "made", timeout=LONG)


def test_inputs_are_all_files_of_fuzzers_and_no_others(tmp_path: Path) -> None:
    sources = copied(tmp_path / "sources", "maze_fuzzer.c", "maze_fuzzer.dict")
    (sources / "maze_fuzzer.corpus").mkdir()
    (sources / "maze_fuzzer.corpus/a").touch()
    (sources / "notes.txt").touch()
    assert list(fuzzers.inputs(sources)) == [
        "options.c", "maze_fuzzer.c", "maze_fuzzer.dict", "maze_fuzzer.corpus/a",
    ]  # fmt: skip
    assert {"parser_fuzzer.corpus/records", "crash_fuzzer.c"} < set(fuzzers.inputs(SOURCES))


def test_what_is_no_file_is_no_input_and_keeps_no_other_fuzzer_from_being_made(
    demo_parts: Path, tmp_path: Path
) -> None:
    sources = copied(tmp_path / "sources", "noop_fuzzer.c", "crash_fuzzer.c")
    odd = [sources / name for name in ("crash_fuzzer.corpus/sub", "crash_fuzzer.dict", "other.c")]
    for directory in odd:
        directory.mkdir(parents=True)
    for link in (sources / "another.c", sources / "crash_fuzzer.corpus/gone", sources / "noop_fuzzer.dict"):
        link.symlink_to("nothing")
        odd.append(link)
    os.mkfifo(sources / "crash_fuzzer.corpus/fifo")
    assert fuzzers.left_out(sources) == sorted([*odd, sources / "crash_fuzzer.corpus/fifo"])
    (sources / "crash_fuzzer.corpus/seed").write_text("seed")
    assert [*fuzzers.inputs(sources)] == [
        "options.c", "crash_fuzzer.c", "crash_fuzzer.corpus/seed", "noop_fuzzer.c",
    ]  # fmt: skip
    compiler, sysroot = Compiler(demo_parts / "demo/llvm"), demo_parts / "demo/sysroot.tar"
    making.make(sources, compiler, sysroot, tmp_path / "image", tmp_path / "made", timeout=LONG)
    assert fuzzers.failures(tmp_path / "made") == []
    names = [entry.name for entry in cpio.decode((tmp_path / "image").read_bytes())]
    assert [name for name in names if "/corpus/" in name] == ["data/fuzz/example-fuzzers/crash_fuzzer/pkg/corpus/seed"]


EDITED = """
import os
from pathlib import Path
from pipeline.builds.demo import fuzzers
fuzzers.SOURCES = Path(os.environ["SOURCES"])
from tasks import *
"""


@pytest.fixture
def edited(demo: Workspace) -> Workspace:
    """The demo guest's parts, with sources that can be edited: just two fuzzers, which have been made."""
    sources = copied(demo.directory / "sources", "noop_fuzzer.c", "crash_fuzzer.c")
    demo.module("edited", EDITED)
    demo.environment["SOURCES"] = str(sources)
    assert remade(demo) == ["DemoFuzzers", "DemoInitramfs", "InitrdWithKey"]
    assert remade(demo) == []
    return demo


def remade(workspace: Workspace) -> list[str]:
    outcome = workspace.run("luigi", "--module", "edited", "InitrdWithKey")
    assert outcome.status == 0, outcome.text
    return [name for name, _, rest in (line.partition(": ") for line in outcome.text.splitlines()) if "made " in rest]


def append(workspace: Workspace, name: str, text: str) -> None:
    with (workspace.directory / "sources" / name).open("a") as stream:
        stream.write(text)


def test_an_edited_source_remakes_what_depends_on_it_and_nothing_else(edited: Workspace) -> None:
    append(edited, "noop_fuzzer.c", "int more(void);\nint more(void) { return 1; }\n")
    assert remade(edited) == ["DemoFuzzers", "DemoInitramfs", "InitrdWithKey"]


def test_a_source_that_compiles_to_the_same_remakes_no_image(edited: Workspace) -> None:
    append(edited, "noop_fuzzer.c", "// a remark\n")
    assert remade(edited) == ["DemoFuzzers"]


def in_guest(workspace: Workspace) -> list[str]:
    """The fuzzers that a guest gets."""
    entries = cpio.decode((workspace.store.demo / "initramfs.cpio").read_bytes())
    return sorted(Path(entry.name).name for entry in entries if Path(entry.name).parent.name == "example-fuzzers")


TOLD = """warning: noop_fuzzer does not compile, so the guest has to do without it
  | noop_fuzzer.c:"""
EVERY = "hint: mend noop_fuzzer.c, or what it includes; the next run makes it"


def test_one_that_does_not_compile_is_left_out_and_told_at_each_run(edited: Workspace) -> None:
    source = edited.directory / "sources/noop_fuzzer.c"
    sound = source.read_text()
    append(edited, "noop_fuzzer.c", "int more(void) { return nothing; }\n")
    assert remade(edited) == ["DemoFuzzers", "DemoInitramfs", "InitrdWithKey"]
    assert in_guest(edited) == ["crash_fuzzer"]
    for words in (("luigi", "--module", "edited", "InitrdWithKey"), ("luigi", "--module", "edited", "DemoFuzzers")):
        outcome = edited.run(*words)
        assert outcome.status == 0
        assert TOLD in outcome.text
        assert "error: use of undeclared identifier 'nothing'" in outcome.text
        assert outcome.text.count(EVERY) == 1
        assert " made " not in outcome.text
    tests = json.loads((edited.store.demo / "fuzzers/tests.json").read_text())
    assert ["crash_fuzzer" in test["test"]["label"] for test in tests] == [True]
    source.write_text(sound)
    outcome = edited.run("luigi", "--module", "edited", "InitrdWithKey")
    assert "does not compile" not in outcome.text
    assert in_guest(edited) == ["crash_fuzzer", "noop_fuzzer"]


def test_if_none_compiles_any_more_the_old_ones_stay(edited: Workspace) -> None:
    def made() -> dict[str, bytes]:
        files = [edited.store.demo / name for name in ("fuzzers.cpio", "initramfs.cpio")]
        files += [path for path in (edited.store.demo / "fuzzers").rglob("*") if path.is_file()]
        return {str(path): path.read_bytes() for path in files}

    before = made()
    append(edited, "options.c", "#error none\n")
    outcome = edited.run("luigi", "--module", "edited", "InitrdWithKey")
    assert outcome.status == 30
    assert "options.c" in outcome.text
    assert "error: none" in outcome.text
    assert made() == before
    assert not (edited.store.demo / "fuzzers.cpio.made.json").exists()


def test_what_is_no_file_is_told_at_each_run(edited: Workspace) -> None:
    (edited.directory / "sources/noop_fuzzer.corpus/sub").mkdir(parents=True)
    for _ in range(2):
        outcome = edited.run("luigi", "--module", "edited", "InitrdWithKey")
        assert outcome.status == 0
        said = f"{edited.directory}/sources/noop_fuzzer.corpus/sub is left out of the fuzzers: it is no file"
        assert outcome.text.count(said) == 1
        assert " made " not in outcome.text


def test_a_fuzzer_that_has_just_been_added_is_compiled_before_a_campaign_is_judged(edited: Workspace) -> None:
    shutil.copy(SOURCES / "noop_fuzzer.c", edited.directory / "sources/x.c")
    edited.module(
        "edited", EDITED + "FuzzCampaign.work = lambda self: exit(print(self.definition().fuzzers[0].name))\n"
    )
    outcome = edited.run("luigi", "--module", "edited", "FuzzCampaign", "--fuzzers", "*/x")
    assert "no fuzzer of the build" not in outcome.text
    assert "example-fuzzers/x" in outcome.stdout.decode().splitlines(), outcome.text


def test_a_name_that_none_has_is_refused_whether_the_fuzzers_are_made_or_stale(edited: Workspace) -> None:
    said = "no fuzzer of the build is named */nop_fuzzer"
    for _ in range(2):
        outcome = edited.run("luigi", "--module", "edited", "FuzzCampaign", "--fuzzers", "*/nop_fuzzer")
        assert (outcome.status, said in outcome.text, "Traceback" in outcome.text) == (2, True, False), outcome.text
        assert "did you mean example-fuzzers/noop_fuzzer" in outcome.text
        append(edited, "noop_fuzzer.c", "// a remark\n")


def test_a_fuzzer_that_does_not_compile_is_not_taken_for_a_wrong_name(edited: Workspace) -> None:
    (edited.directory / "sources/broken_fuzzer.c").write_text(BROKEN)
    for _ in range(2):
        outcome = edited.run("luigi", "--module", "edited", "FuzzCampaign", "--fuzzers", "*/broken_fuzzer")
        assert outcome.status == 2, outcome.text
        assert "broken_fuzzer.c does not compile; what is wrong with it: luigi --module tasks Demo" in outcome.text
        assert "did you mean" not in outcome.text


USE = "volatile int used; __attribute__((constructor)) static void use(void) { used = ANSWER; }\n"


@pytest.mark.parametrize(
    ("include", "header"),
    [
        ('"shared.h"', "shared.h"),
        ('"sub/a name with #$ in it.h"', "sub/a name with #$ in it.h"),
        ('"../elsewhere.h"', "../elsewhere.h"),
    ],
)
def test_a_header_that_is_edited_remakes_what_includes_it(edited: Workspace, include: str, header: str) -> None:
    path = edited.directory / "sources" / header
    path.parent.mkdir(exist_ok=True)
    path.write_text("#define ANSWER 1\n")
    append(edited, "noop_fuzzer.c", f"#include {include}\n{USE}")
    assert remade(edited) == ["DemoFuzzers", "DemoInitramfs", "InitrdWithKey"]
    assert remade(edited) == []
    path.write_text("#define ANSWER 2\n")
    assert remade(edited) == ["DemoFuzzers", "DemoInitramfs", "InitrdWithKey"]
    record = json.loads((edited.store.demo / "fuzzers.cpio.made.json").read_text())
    assert header in record["inputs"]
    assert str(edited.directory) not in str(record)


def test_a_header_of_a_header_that_is_missing_is_noticed_when_it_comes(edited: Workspace) -> None:
    sources = edited.directory / "sources"
    (sources / "first.h").write_text('#include "second.h"\n')
    append(edited, "noop_fuzzer.c", f'#include "first.h"\n{USE}')
    assert remade(edited) == ["DemoFuzzers", "DemoInitramfs", "InitrdWithKey"]
    assert in_guest(edited) == ["crash_fuzzer"]
    (sources / "second.h").write_text("#error not yet\n#define ANSWER 1\n")
    assert remade(edited) == ["DemoFuzzers"], "what comes out is the same"
    (sources / "second.h").write_text("#define ANSWER 1\n")
    assert remade(edited) == ["DemoFuzzers", "DemoInitramfs", "InitrdWithKey"]
    assert in_guest(edited) == ["crash_fuzzer", "noop_fuzzer"]


def test_the_list_of_headers(tmp_path: Path) -> None:
    """A frozen sample, and files that are of no use."""
    listing = tmp_path / "headers.json"
    (tmp_path / "there.h").touch()
    listing.write_text('{\n  "headers": [\n    "gone.h",\n    "there.h"\n  ],\n  "schema": 1\n}\n')
    assert headers.known(tmp_path, listing) == {"there.h": tmp_path / "there.h"}
    for text in ("", "{", "[]", '{"schema": 2, "headers": ["there.h"]}', '{"schema": 1, "headers": 7}'):
        listing.write_text(text)
        assert headers.known(tmp_path, listing) == {}
    listing.unlink()
    assert headers.known(tmp_path, listing) == {}


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("a.o: a.c", ["a.c"]),
        ("a.o: a.c x.h \\\n  ../y.h\n", ["a.c", "x.h", "../y.h"]),
        ("a.o: a\\ b.c c\\#d.h e$$f.h\n", ["a b.c", "c#d.h", "e$f.h"]),
        ("a.o: a.c dir/a:b.h back\\slash.h\n", ["a.c", "dir/a:b.h", "back\\slash.h"]),
    ],
)
def test_a_rule_of_make(rule: str, names: list[str]) -> None:
    assert list(headers.prerequisites(rule)) == names


def test_what_was_made_of_the_fuzzers_is_watched(edited: Workspace) -> None:
    (edited.store.demo / "fuzzers/tests.json").write_text("[]")
    assert remade(edited) == ["DemoFuzzers"]
    assert json.loads((edited.store.demo / "fuzzers/tests.json").read_text())


def test_a_host_without_apt_is_told_which_packages_the_compiler_needs(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    workspace.environment["PATH"] = str(tmp_path / "bin")
    outcome = workspace.luigi("DemoFuzzers")
    assert outcome.status == 30
    assert "there is no apt to fetch them" in outcome.text
    assert "clang-19" in outcome.text
    assert "libclang-rt-19-dev" in outcome.text
    assert "[demo] packages" in outcome.text
    assert "Traceback" not in outcome.text


def test_provided_packages_without_the_compiler_are_told(workspace: Workspace) -> None:
    (workspace.directory / "debs").mkdir()
    workspace.configure("[demo]\npackages = debs\n")
    outcome = workspace.luigi("DemoFuzzers")
    assert outcome.status == 30
    assert "put clang-19_VERSION_amd64.deb of Debian there" in outcome.text
    assert "Traceback" not in outcome.text


def test_the_compiler_runs_without_any_of_the_hosts_libraries_but_libc(demo_parts: Path) -> None:
    for name in ("clang", "ld.lld", "llvm-objcopy", "llvm-symbolizer-19"):
        program = demo_parts / "demo/llvm" / name
        loader = "/lib64/ld-linux-x86-64.so.2"
        done = subprocess.run(
            [loader, "--library-path", program.parent, "--list", program], capture_output=True, text=True, check=True
        )
        found = dict(line.split()[:3:2] for line in done.stdout.splitlines() if "=>" in line)
        hosts = {library for library, path in found.items() if not path.startswith(str(program.parent))}
        assert hosts <= {
            "libc.so.6",
            "libm.so.6",
            "ld-linux-x86-64.so.2",
            "libdl.so.2",
            "libpthread.so.0",
            "librt.so.1",
        }
