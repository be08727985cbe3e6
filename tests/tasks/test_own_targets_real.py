"""A user's own targets, of three real libraries, built outside of Topcoat: found, fuzzed, crashed, and named."""

import json
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest

from pipeline.builds.linux.compiler import Compiler, unpack
from pipeline.builds.targets.listing import read
from pipeline.host.locks import locked
from tests.conftest import Workspace
from tests.tasks.libraries import LIBRARIES, LONG, build_all
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(600)

NAMES = [Path(one.target).stem for one in LIBRARIES]


@pytest.fixture(scope="session")
def built(demo_parts: Path) -> Path:
    """The directory `out` with the targets, and the numbers of the planted lines; made once for all workers."""
    place = demo_parts.parent / "own"
    with locked(place):
        if not (place / "lines.json").exists():
            shutil.rmtree(place, ignore_errors=True)
            (place / "out").mkdir(parents=True)
            (place / "work").mkdir()
            tools, sysroot = demo_parts / "demo/tools", demo_parts / "demo/sysroot.tar"
            lines = build_all(place / "out", place / "work", tools, sysroot)
            shutil.rmtree(place / "work")
            (place / "lines.json").write_text(json.dumps(lines))
    return place


@pytest.fixture
def own(demo: Workspace, built: Path) -> Workspace:
    """A workspace whose build is a directory of one's own with the three targets."""
    shutil.copytree(built / "out", demo.directory / "out-of-mine")
    demo.environment["TOPCOAT_TARGETS"] = "out-of-mine"
    return demo


def directory(own: Workspace) -> Path:
    return own.directory / "out-of-mine"


def listed(own: Workspace) -> dict[str, str]:
    """The targets in the guest with their digests."""
    found = read(own.store.images("linux-out-of-mine") / "targets/targets.json")
    return {one.name: one.digest for one in found.targets if one.package == "out-of-mine"}


def test_three_real_libraries_are_found_fuzzed_crashed_and_named(own: Workspace, built: Path) -> None:
    told = own.topcoat("targets")
    assert told.status == 0, told.text
    for name in NAMES:
        assert f"out-of-mine/{name} " in told.text
    outcome = own.luigi("FuzzCampaign", "--budget", "20s", "--slice-length", "10s", "--workers", "2")
    assert outcome.status == 0, outcome.text
    assert "build: linux-out-of-mine (TOPCOAT_TARGETS names targets)" in outcome.text
    assert "proved: the canary was found, reproduced and named" in outcome.text
    lines = json.loads((built / "lines.json").read_text())
    reports = [json.loads(path.read_text()) for path in own.store.crashes.glob("*/*/*/*/crash.json")]
    for library, name in zip(LIBRARIES, NAMES, strict=True):
        mine = [one["report"] for one in reports if one["fuzzer"] == f"out-of-mine/{name}"]
        assert mine, (name, outcome.text)
        assert {one["kind"] for one in mine} == {library.kind}
        tops = {(one["frames"][0]["file"], one["frames"][0]["line"]) for one in mine}
        assert tops == {(library.planted_in, lines[name])}
        assert all(library.function in one["frames"][0]["function"] for one in mine)


def test_another_program_makes_only_its_own_slices_stale(own: Workspace) -> None:
    assert own.luigi("TargetsImage").status == 0
    before = listed(own)
    with (directory(own) / "lz4_fuzzer").open("ab") as program:
        program.write(b"another build")
    outcome = own.luigi("TargetsImage")
    assert "TargetsImage: input out-of-mine files of lz4_fuzzer changed: b3:" in outcome.text
    after = listed(own)
    assert {name for name in after if after[name] != before[name]} == {"lz4_fuzzer"}
    (directory(own) / "shared.txt").write_text("a file that any of them may open")
    assert own.luigi("TargetsImage").status == 0
    assert {name for name in after if listed(own)[name] != after[name]} == {*after}
    assert " made " not in own.luigi("TargetsImage").text


def test_a_campaign_does_not_go_on_with_another_program_under_the_same_name(own: Workspace) -> None:
    """In each slice a new guest is booted, which has what the disk has now."""
    words = ("FuzzCampaign", "--fuzzers", "*/lz4_fuzzer", "--budget", "300s", "--slice-length", "5s")
    command = own.command("luigi", "--module", "tasks", *words)
    with subprocess.Popen(command, cwd=own.directory, env=own.environment, stderr=subprocess.PIPE) as campaign:
        ledger = own.store.campaigns / "campaign/ledger.jsonl"
        eventually(lambda: ledger.exists() and b'"ended"' in ledger.read_bytes())
        with (directory(own) / "lz4_fuzzer").open("ab") as program:
            program.write(b"another build")
        remade = own.luigi("TargetsImage")
        assert remade.status == 0, remade.text
        _, said = campaign.communicate(timeout=200)
    assert campaign.returncode == 30, said
    assert b"out-of-mine/lz4_fuzzer was made again while it was being fuzzed" in said
    assert b"Traceback" not in said


LOADS = """
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
const char *zlibVersion(void);
int answer(void);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int told;
    (void)data; (void)size;
    if (!told++) fprintf(stderr, "zlib %s, answer %d, mode %s\\n", zlibVersion(), answer(), getenv("MODE"));
    return 0;
}
"""


def linked(demo_parts: Path, place: Path, output: Path, *words: str) -> None:
    """Compile and link with the compiler of the store, in `place`."""
    root = place / "root"
    if not root.exists():
        unpack(demo_parts / "demo/sysroot.tar", root)
    Compiler(demo_parts / "demo/tools").link(*words, directory=place, output=output, root=root, timeout=LONG)


@pytest.fixture
def loading(demo: Workspace, demo_parts: Path, tmp_path: Path) -> Workspace:
    """A target that loads a library beside it, in lib/, and one that only Debian has; with options and seeds."""
    place, out = tmp_path / "sources", demo.directory / "loading"
    (out / "lib").mkdir(parents=True)
    place.mkdir()
    (place / "loads.c").write_text(LOADS)
    (place / "z.c").write_text('const char *zlibVersion(void) { return "none"; }\n')
    (place / "own.c").write_text("int answer(void) { return 42; }\n")
    linked(demo_parts, place, place / "libz.so", "-shared", "-fPIC", "-Wl,-soname,libz.so.1", "z.c")
    linked(demo_parts, place, out / "lib/libown.so", "-shared", "-fPIC", "-Wl,-soname,libown.so", "own.c")
    words = ("-g", "-fsanitize=fuzzer,address", "loads.c", str(place / "libz.so"), str(out / "lib/libown.so"))
    linked(demo_parts, place, out / "loads", *words, "-lstdc++", "-lm")
    (out / "loads.options").write_text("[libfuzzer]\nmax_len = 7\n[env]\nMODE = own\n[asan]\nredzone = 64\n")
    with zipfile.ZipFile(out / "loads_seed_corpus.zip", "w") as seeds:
        seeds.writestr("../../x", b"seed")
    demo.environment["TOPCOAT_TARGETS"] = str(out)
    return demo


def test_libraries_come_from_the_directory_and_from_debian(loading: Workspace) -> None:
    told = loading.topcoat("targets")
    assert "libown.so libz.so.1 (Debian)" in told.text, told.text
    outcome = loading.luigi("BootInstance")
    assert outcome.status == 0, outcome.text
    line = "cd /data/fuzz/loading/loads && ls pkg/loads_seed_corpus && LD_LIBRARY_PATH=pkg/lib MODE=x pkg/loads -runs=1"
    ran = loading.topcoat("ssh", "i0", "--", line)
    assert ran.status == 0, ran.text
    assert "zlib 1." in ran.text
    assert ", answer 42, mode x" in ran.text
    campaign = loading.luigi("FuzzCampaign", "--budget", "5s")
    assert campaign.status == 0, campaign.text
    ledger = (loading.store.campaigns / "campaign/ledger.jsonl").read_text()
    assert "-max_len=7" in ledger
    assert campaign.text.count("loading/loads  done") == 1


def test_a_library_that_nobody_has_costs_only_its_target(own: Workspace, demo_parts: Path, tmp_path: Path) -> None:
    place = tmp_path / "sources"
    place.mkdir()
    (place / "lost.c").write_text("int lost(void) { return 1; }\n")
    (place / "loses.c").write_text(
        "#include <stddef.h>\n#include <stdint.h>\nint lost(void);\n"
        "int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) { (void)data; return size ? 0 : lost() - 1; }\n"
    )
    linked(demo_parts, place, place / "liblost.so", "-shared", "-fPIC", "-Wl,-soname,liblost-of-mine.so.3", "lost.c")
    words = ("-fsanitize=fuzzer", "loses.c", str(place / "liblost.so"), "-lstdc++", "-lm")
    linked(demo_parts, place, directory(own) / "loses", *words)
    outcome = own.luigi("TargetsImage")
    assert outcome.status == 0, outcome.text
    assert {*listed(own)} == {*NAMES}
    again = own.luigi("TargetsImage").text
    assert again.count("loses is left out: it loads liblost-of-mine.so.3, which neither the directory nor") == 1
    assert "packages = [...] in topcoat-targets.toml" in again


def odd(out: Path) -> dict[str, str]:
    """Put all that is no target beside the three; returns what must be said of each."""
    sound = (out / "lz4_fuzzer").read_bytes()

    def put(name: str, data: bytes, mode: int = 0o755) -> None:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(data)
        (out / name).chmod(mode)

    put("not_executable", sound, 0o644)
    put("script_fuzzer", b"#!/bin/sh\nexec java LLVMFuzzerTestOneInput\n")
    put("of_arm", sound[:18] + struct.pack("<H", 183) + sound[20:])
    put("of_musl", sound.replace(b"/lib64/ld-linux-x86-64.so.2", b"/lib/ld-musl-x86_64.so.1\0\0\0", 1))
    put("cut_fuzzer", sound[:5000])
    put("deeper/json_fuzzer", sound)
    put("no name", sound)
    (out / "leads_out").symlink_to("/bin/true")
    return {
        "not_executable": "chmod +x", "script_fuzzer": "it is a script", "of_arm": "it is for AArch64",
        "of_musl": "musl", "cut_fuzzer": "damaged", "deeper/json_fuzzer": "json_fuzzer has the same name",
        "no name": "its name cannot be a target's", "leads_out": "a link that leads out of the directory",
    }  # fmt: skip


def test_what_is_no_target_is_told_with_what_to_do_and_stops_nothing(own: Workspace) -> None:
    out = directory(own)
    said = odd(out)
    (out / "lz4_fuzzer.options").write_bytes(b"\0\xff nonsense\n[libfuzzer\nmax_len = many\n[libfuzzer]\nruns = 3\n")
    (out / "lz4_fuzzer.dict").write_text("no dictionary\n")
    (out / "json_fuzzer_seed_corpus.zip").write_bytes(b"PK\3\4 cut off")
    (out / "data").mkdir()
    for number in range(10_000):
        (out / f"data/{number}").touch()
    outcome = own.luigi("TargetsImage")
    assert outcome.status == 0, outcome.text
    told, again = own.topcoat("targets"), own.luigi("TargetsImage")
    for name, reason in said.items():
        for text in (told.text, again.text):
            lines = [line for line in text.splitlines() if name in line and reason in line]
            assert len(lines) == 1, (name, text)
    assert "Traceback" not in told.text + again.text
    for word in ("lz4_fuzzer: its dictionary lz4_fuzzer.dict is passed over", "json_fuzzer_seed_corpus.zip", "runs"):
        assert word in again.text + told.text, word
    booted = own.luigi("BootInstance")
    assert booted.status == 0, booted.text
    ran = own.topcoat("ssh", "i0", "--", "ls /targets/files/out-of-mine/data | wc -l; ls /data/fuzz/out-of-mine")
    assert ran.stdout.decode().split() == ["10000", *sorted(NAMES)]


def test_a_directory_without_any_target_is_refused(demo: Workspace) -> None:
    (demo.directory / "empty").mkdir()
    (demo.directory / "empty/note.txt").write_text("nothing")
    demo.environment["TOPCOAT_TARGETS"] = "empty"
    outcome = demo.luigi("BootInstance")
    assert outcome.status == 2, outcome.text
    assert f"there are no targets in {demo.directory}/empty" in outcome.text
    assert "topcoat targets" in outcome.text
    assert "Traceback" not in outcome.text
