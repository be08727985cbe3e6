"""Targets that are compiled from sources: what comes out, and when it is made again."""

import json
import os
import shutil
import subprocess
from pathlib import Path, PurePath

import pytest

from pipeline.builds.demo import TARGETS
from pipeline.builds.linux.compiler import Compiler
from pipeline.builds.targets import compiling, headers, sources
from pipeline.builds.targets.listing import TargetsListing, read
from pipeline.errors import ToolFailed
from pipeline.host.tools import Tool, run
from tests.builds.linux.fuzzing import NAMES
from tests.conftest import Workspace, prepare_demo

LONG = 60.0
EXAMPLES = [
    "crash_fuzzer", "maze_fuzzer", "noisy_fuzzer", "noop_fuzzer", "out_of_memory_fuzzer", "overflow_fuzzer",
    "parser_fuzzer", "toy_example_arbitrary",
]  # fmt: skip
BROKEN = "int LLVMFuzzerTestOneInput(void) { return nothing; }\n"


@pytest.fixture(scope="session")
def listing(demo_parts: Path) -> TargetsListing:
    return read(demo_parts / "images/demo/targets/targets.json")


def test_the_examples_of_the_original_are_there(listing: TargetsListing) -> None:
    assert NAMES == EXAMPLES
    assert [target.full_name for target in listing.targets] == [f"example-fuzzers/{name}" for name in EXAMPLES]
    assert listing.left_out == ()


def test_what_the_list_tells_of_a_target(listing: TargetsListing) -> None:
    (maze,) = (target for target in listing.targets if target.name == "maze_fuzzer")
    (noop,) = (target for target in listing.targets if target.name == "noop_fuzzer")
    place = "/targets/files/example-fuzzers"
    assert (maze.program, maze.dictionary, maze.seeds) == (
        f"{place}/maze_fuzzer", f"{place}/maze_fuzzer.dict", f"{place}/maze_fuzzer_seed_corpus",
    )  # fmt: skip
    assert (noop.dictionary, noop.seeds, noop.sanitizers, noop.problems) == (None, None, ("address",), ())
    assert len({target.digest for target in listing.targets}) == len(EXAMPLES)


def test_each_program_is_kept_with_debug_information_and_found_by_its_build_id(demo_parts: Path) -> None:
    made = demo_parts / "images/demo/targets"
    for name in EXAMPLES:
        program = made / "files/example-fuzzers" / name
        assert b".debug_info\0" in program.read_bytes()
        assert [link for link in made.glob(".build-id/*/*.debug") if link.samefile(program)] != []


def copied(directory: Path, *names: str) -> Path:
    """Some of the sources, elsewhere, with what a directory says of them."""
    directory.mkdir(parents=True)
    for name in names:
        shutil.copy(TARGETS / name, directory / name)
    declared(directory, *(name.removesuffix(".c") for name in names if name.endswith(".c")))
    return directory


def declared(directory: Path, *names: str, more: str = "") -> None:
    targets = "".join(f'[[target]]\nname = "{name}"\n' for name in names)
    (directory / sources.NAME).write_text(f'package = "mine"\n{more}{targets}')


def made(directory: Path, name: str, demo_parts: Path, output: Path) -> Path:
    """Compile one target. Returns the file with the compiler's words."""
    compiler, sysroot = Compiler(demo_parts / "demo/tools"), demo_parts / "demo/sysroot.tar"
    target, said = sources.read(directory).target(name), output.with_suffix(".txt")
    output.parent.mkdir(parents=True, exist_ok=True)
    compiling.make(directory, target, compiler, sysroot, said, output, timeout=LONG)
    return said


def test_the_same_sources_give_the_same_bytes_wherever_they_are(demo_parts: Path, tmp_path: Path) -> None:
    programs = []
    for place in ("here", "there/and deeper, with blanks"):
        directory = copied(tmp_path / place / "sources", "noop_fuzzer.c")
        assert made(directory, "noop_fuzzer", demo_parts, tmp_path / place / "made").read_text() == ""
        programs.append((tmp_path / place / "made/noop_fuzzer").read_bytes())
    assert programs[0] == programs[1]
    assert os.fsencode(tmp_path) not in programs[0]


CXX = """
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>
extern "C" int shift(int by);
extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    std::vector<std::string> words;
    if (size == 3) words.push_back(std::string(data, data + size));
    if (size > 100) throw std::runtime_error("too long");
    return words.size() == 2 ? shift(static_cast<int>(size)) : 0;
}
"""


@pytest.mark.parametrize("sanitizers", [["address", "undefined"], ["memory"], ["undefined"], []])
def test_c_and_cxx_together_with_each_sanitizer(demo_parts: Path, tmp_path: Path, sanitizers: list[str]) -> None:
    directory = tmp_path / "sources"
    (directory / "lib").mkdir(parents=True)
    (directory / "both.cc").write_text(CXX)
    (directory / "lib/shift.c").write_text('#include "shift.h"\nint shift(int by) { return ANSWER << by; }\n')
    (directory / "lib/shift.h").write_text("int shift(int by);\n")
    (directory / sources.NAME).write_text(
        f'[[target]]\nname = "both"\nsources = ["both.cc", "lib/shift.c"]\ninclude = ["lib"]\n'
        f'defines = ["ANSWER=42"]\nsanitizers = {json.dumps(sanitizers)}\n'
    )
    said = made(directory, "both", demo_parts, tmp_path / "made")
    assert said.read_text() == ""
    program = tmp_path / "made/both"
    done = subprocess.run(
        [program, "-runs=100", "-max_len=50"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, "Done 100 runs" in done.stderr) == (0, True), done.stderr


CRASHES = """
#include <stdlib.h>
#include <stddef.h>
#include <stdint.h>
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size > 2) abort();
    return data && size == 1;
}
"""


def test_the_variant_for_coverage_keeps_its_counts_when_it_crashes(workspace: Workspace, demo_parts: Path) -> None:
    prepare_demo(workspace, demo_parts)
    directory = workspace.directory / "sources"
    directory.mkdir()
    (directory / "crashes.c").write_text(CRASHES)
    declared(directory, "crashes", more='sanitizers = ["address"]\n')
    workspace.environment["TOPCOAT_TARGETS"] = str(directory)
    asked = ("CompiledTarget", "--package", "mine", "--name", "crashes", "--variant", "coverage")
    outcome = workspace.luigi(*asked)
    assert outcome.status == 0, outcome.text
    assert " made " not in workspace.luigi(*asked).text
    program, counts = workspace.store.targets / "mine/coverage/crashes/crashes", workspace.directory / "counts.profraw"
    assert b"__asan_init" not in program.read_bytes()
    (workspace.directory / "input").write_bytes(b"abc")
    words = [str(program), str(workspace.directory / "input")]
    environment = {**workspace.environment, "LLVM_PROFILE_FILE": f"{counts}%c"}
    done = subprocess.run(words, env=environment, capture_output=True, check=False, timeout=60)
    assert b"deadly signal" in done.stderr
    assert counts.stat().st_size > 100


def test_a_source_that_is_wrong_is_told_in_the_words_of_the_compiler(demo_parts: Path, tmp_path: Path) -> None:
    directory = copied(tmp_path / "sources")
    (directory / "broken.c").write_text(BROKEN)
    declared(directory, "broken")
    said = made(directory, "broken", demo_parts, tmp_path / "made")
    assert "use of undeclared identifier 'nothing'" in said.read_text()
    assert list((tmp_path / "made").iterdir()) == []
    failure = compiling.failure(sources.read(directory).target("broken"), said)
    assert failure is not None
    assert failure.message == "broken does not compile, so the guest has to do without it"
    assert "mend broken.c" in failure.hint


@pytest.mark.parametrize(
    "script", ["kill -9 $$", "echo 'error: unable to open output file: No space left on device' >&2; exit 1"]
)
def test_what_is_no_fault_of_the_source_is_an_error(
    demo_parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    directory = copied(tmp_path / "sources", "noop_fuzzer.c")

    def killed(self: Compiler, *words: str | PurePath, timeout: float, **more: Path) -> None:
        run(Tool("clang", ("sh",), ()), "-c", script, timeout=timeout)

    monkeypatch.setattr(Compiler, "clang", killed)
    with pytest.raises(ToolFailed, match=r"^clang failed "):
        made(directory, "noop_fuzzer", demo_parts, tmp_path / "made")


@pytest.fixture
def edited(demo: Workspace) -> Workspace:
    """A linux build with sources that can be edited: just two targets, which have been made."""
    directory = copied(demo.directory / "sources", "noop_fuzzer.c", "crash_fuzzer.c")
    demo.environment["TOPCOAT_TARGETS"] = str(directory)
    assert remade(demo) == ["noop_fuzzer", "crash_fuzzer", "TargetsImage"]
    assert remade(demo) == []
    return demo


def remade(workspace: Workspace) -> list[str]:
    """What making the disk makes again: names of targets, and tasks that have none."""
    outcome = workspace.luigi("TargetsImage")
    assert outcome.status == 0, outcome.text
    lines = [line.partition(": ") for line in outcome.text.splitlines()]
    made = [name for name, _, rest in lines if rest.startswith("made ")]
    names = [name.partition("name=")[2].rstrip(")") or name for name in made]
    order = ["noop_fuzzer", "crash_fuzzer", "TargetsImage"]  # luigi may take the first two in any order
    return sorted(names, key=lambda name: order.index(name) if name in order else -1)


def append(workspace: Workspace, name: str, text: str) -> None:
    with (workspace.directory / "sources" / name).open("a") as stream:
        stream.write(text)


def digests(workspace: Workspace) -> dict[str, str]:
    """The digests of all targets that a guest gets."""
    listing = read(workspace.store.images("linux-mine") / "targets/targets.json")
    return {target.full_name: target.digest for target in listing.targets}


def test_an_edited_source_remakes_what_depends_on_it_and_nothing_else(edited: Workspace) -> None:
    before = digests(edited)
    append(edited, "noop_fuzzer.c", "int more(void);\nint more(void) { return 1; }\n")
    assert remade(edited) == ["noop_fuzzer", "TargetsImage"]
    after = digests(edited)
    assert [name for name in after if after[name] != before[name]] == ["mine/noop_fuzzer"]
    assert sorted(after) == [
        "example-fuzzers/crash_fuzzer", "example-fuzzers/noop_fuzzer", "mine/crash_fuzzer", "mine/noop_fuzzer",
    ]  # fmt: skip


def test_a_source_that_compiles_to_the_same_remakes_no_disk(edited: Workspace) -> None:
    append(edited, "noop_fuzzer.c", "// a remark\n")
    assert remade(edited) == ["noop_fuzzer"]


@pytest.mark.parametrize("more", ['defines = ["X=1"]\n', 'flags = ["-O2"]\n', 'sanitizers = ["undefined"]\n'])
def test_other_words_for_the_compiler_compile_anew(edited: Workspace, more: str) -> None:
    declared(edited.directory / "sources", "noop_fuzzer", "crash_fuzzer", more=more)
    assert {"noop_fuzzer", "crash_fuzzer"} <= {*remade(edited)}


TOLD = """warning: noop_fuzzer does not compile, so the guest has to do without it
  | noop_fuzzer.c:"""
EVERY = "hint: mend noop_fuzzer.c, or what it includes, or what topcoat-targets.toml says; the next run makes it"


def test_one_that_does_not_compile_is_left_out_and_told_at_each_run(edited: Workspace) -> None:
    source = edited.directory / "sources/noop_fuzzer.c"
    sound = source.read_text()
    append(edited, "noop_fuzzer.c", "int more(void) { return nothing; }\n")
    assert remade(edited) == ["noop_fuzzer", "TargetsImage"]
    assert "mine/crash_fuzzer" in digests(edited)
    assert "mine/noop_fuzzer" not in digests(edited)
    outcome = edited.luigi("TargetsImage")
    assert outcome.status == 0
    assert TOLD in outcome.text
    assert "error: use of undeclared identifier 'nothing'" in outcome.text
    assert outcome.text.count(EVERY) == 1
    assert " made " not in outcome.text
    refused = edited.luigi("FuzzCampaign", "--fuzzers", "*/noop_fuzzer")
    assert refused.status == 2
    assert "it does not compile; mend noop_fuzzer.c" in refused.text
    source.write_text(sound)
    outcome = edited.luigi("TargetsImage")
    assert "does not compile" not in outcome.text
    assert "mine/noop_fuzzer" in digests(edited)


def test_if_none_compiles_any_more_the_old_disk_stays(edited: Workspace) -> None:
    image = edited.store.images("linux-mine") / "targets.squashfs"
    before = image.read_bytes()
    for name in ("noop_fuzzer.c", "crash_fuzzer.c"):
        append(edited, name, "#error none\n")
    outcome = edited.luigi("TargetsImage")
    assert outcome.status == 2, outcome.text
    assert "there are no targets in " in outcome.text
    assert image.read_bytes() == before
    assert not image.with_name("targets.squashfs.made.json").exists()


def test_one_that_was_just_added_is_compiled_before_a_campaign_is_judged(edited: Workspace) -> None:
    shutil.copy(TARGETS / "noop_fuzzer.c", edited.directory / "sources/x.c")
    declared(edited.directory / "sources", "noop_fuzzer", "crash_fuzzer", "x")
    edited.module(
        "judged",
        "from tasks import *\nFuzzCampaign.work = lambda self: exit(print(self.definition().fuzzers[0].name))\n",
    )
    outcome = edited.run("luigi", "--module", "judged", "FuzzCampaign", "--fuzzers", "*/x")
    assert "no fuzzer of the build" not in outcome.text
    assert "mine/x" in outcome.stdout.decode().splitlines(), outcome.text


def test_a_name_that_none_has_is_refused_whether_the_targets_are_made_or_stale(edited: Workspace) -> None:
    said = "no fuzzer of the build is named */nop_fuzzer"
    for _ in range(2):
        outcome = edited.luigi("FuzzCampaign", "--fuzzers", "*/nop_fuzzer")
        assert (outcome.status, said in outcome.text, "Traceback" in outcome.text) == (2, True, False), outcome.text
        assert "did you mean mine/noop_fuzzer" in outcome.text
        append(edited, "noop_fuzzer.c", "// a remark\n")


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
    assert remade(edited) == ["noop_fuzzer", "TargetsImage"]
    assert remade(edited) == []
    path.write_text("#define ANSWER 2\n")
    assert remade(edited) == ["noop_fuzzer", "TargetsImage"]
    record = json.loads((edited.store.targets / "mine/compiled/noop_fuzzer.txt.made.json").read_text())
    assert header in record["inputs"]
    assert str(edited.directory) not in str(record)


def test_a_header_of_a_header_that_is_missing_is_noticed_when_it_comes(edited: Workspace) -> None:
    directory = edited.directory / "sources"
    (directory / "first.h").write_text('#include "second.h"\n')
    append(edited, "noop_fuzzer.c", f'#include "first.h"\n{USE}')
    assert remade(edited) == ["noop_fuzzer", "TargetsImage"]
    assert "mine/noop_fuzzer" not in digests(edited)
    (directory / "second.h").write_text("#define ANSWER 1\n")
    assert remade(edited) == ["noop_fuzzer", "TargetsImage"]
    assert "mine/noop_fuzzer" in digests(edited)


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


def test_what_was_made_of_the_targets_is_watched(edited: Workspace) -> None:
    kept = edited.store.images("linux-mine") / "targets"
    (kept / "targets.json").write_text("[]")
    assert remade(edited) == ["TargetsImage"]
    (kept / "files/mine/noop_fuzzer").write_bytes(b"")
    assert remade(edited) == ["TargetsImage"]
    assert (kept / "files/mine/noop_fuzzer").read_bytes().startswith(b"\x7fELF")


def test_a_host_without_apt_is_told_which_packages_the_compiler_needs(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    workspace.environment["PATH"] = str(tmp_path / "bin")
    outcome = workspace.luigi("TargetsImage")
    assert outcome.status == 30
    assert "there is no apt to fetch them" in outcome.text
    assert "clang-19" in outcome.text
    assert "libclang-rt-19-dev" in outcome.text
    assert "[demo] packages" in outcome.text
    assert "Traceback" not in outcome.text


def test_provided_packages_without_the_compiler_are_told(workspace: Workspace) -> None:
    (workspace.directory / "debs").mkdir()
    workspace.configure("[demo]\npackages = debs\n")
    outcome = workspace.luigi("TargetsImage")
    assert outcome.status == 30
    assert "put clang-19_VERSION_amd64.deb of Debian there" in outcome.text
    assert "Traceback" not in outcome.text


def test_the_programs_run_without_any_of_the_hosts_libraries_but_libc(demo_parts: Path) -> None:
    for name in ("clang", "ld.lld", "llvm-objcopy", "llvm-symbolizer-19", "mksquashfs"):
        program = demo_parts / "demo/tools" / name
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
