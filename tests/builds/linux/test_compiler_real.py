"""The real compiler in a place with signs in its path that mean something to clang, lld, the loader or make."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from pipeline.builds.demo import TARGETS
from pipeline.builds.linux import SYMBOLIZER, compiler
from pipeline.builds.linux.compiler import Compiler
from pipeline.builds.targets import compiling, headers, sources

LONG = 200.0
ODD = "a %41 b=c,d;e:f'g\"h$x#\\(é*?[i"
SOURCES = ("crash_fuzzer.c", sources.NAME)


@pytest.fixture
def place(demo_parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the compiler, without what it has made itself, and some sources; TMPDIR is in it."""
    place = tmp_path / ODD
    (place / "tmp").mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(place / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    shutil.copytree((demo_parts / "demo/tools").resolve(), place / "tools", copy_function=os.link)
    for name in ("llvm-symbolizer", "libcurl.so.4"):
        (place / "tools" / name).unlink()
    (place / "sources").mkdir()
    for name in SOURCES:
        shutil.copy(TARGETS / name, place / "sources")
    return place


def test_the_place_of_nothing_matters(demo_parts: Path, place: Path) -> None:
    directory = place / "sources"
    sound = (directory / "crash_fuzzer.c").read_text()
    (directory / "crash_fuzzer.c").write_text(f'#include "more #1.h"\n{sound}')
    (directory / "more #1.h").touch()
    sysroot, listing, clang = demo_parts / "demo/sysroot.tar", place / "headers.json", Compiler(place / "tools")
    target = sources.read(directory).target("crash_fuzzer")
    headers.find(directory, target, clang, sysroot, listing, timeout=LONG)
    assert json.loads(listing.read_text())["headers"] == ["more #1.h"]

    (directory / "crash_fuzzer.c").write_text(sound)
    compiling.make(directory, target, clang, sysroot, place / "said.txt", place / "made", timeout=LONG)
    assert (place / "said.txt").read_text() == ""
    kept = demo_parts / "images/demo/targets/files/example-fuzzers/crash_fuzzer"
    assert (place / "made/crash_fuzzer").read_bytes() == kept.read_bytes()
    clang.squash(place / "made", place / "image", timeout=LONG)
    assert (place / "image").read_bytes()[:4] == b"hsqs"
    assert list((place / "tmp").iterdir()) == []


def test_the_symbolizer_is_made_and_finds_its_libraries_and_what_it_is_asked_for(demo_parts: Path, place: Path) -> None:
    compiler._make_symbolizer(place / "tools", place, LONG)  # noqa: SLF001  the packages that all is made of are gone
    llvm, ids = place / "tools/llvm-symbolizer", place / "build ids"
    shutil.copytree(demo_parts / "images/demo/targets/.build-id", ids)
    name = "LLVMFuzzerTestOneInput"
    (program,) = (path for path in ids.glob("*/*.debug") if b"crash_fuzzer.c\0" in path.read_bytes())
    words = [str(llvm), f"--obj={program}", "--output-style=JSON", name]
    (answer,) = json.loads(subprocess.run(words, capture_output=True, check=True, timeout=LONG).stdout)
    offset = answer["Loc"][0]["StartAddress"]
    build_id = f"{program.parent.name}{program.stem}"
    files = place / "files"
    files.mkdir()
    os.link(program, files / "x")
    lines = [
        f"    #0 0x55aa (/data/x+{offset}) (BuildId: {build_id})\n",
        f"    #1 0x55aa  (/targets/files/x+{offset})\n",
        f"    #2 0x55aa  (/targets/files/x+{offset}) (BuildId: {build_id[:-1]}{'10'[build_id[-1] == '1']})\n",
    ]
    done = subprocess.run(
        [SYMBOLIZER, "-llvm-symbolizer", llvm, "-build-id-dir", ids, "-module-dir", f"/targets/files={files}"],
        input="".join(lines).encode(),
        capture_output=True,
        check=True,
        timeout=LONG,
    )
    by_id, by_module, of_another_build = done.stdout.decode().splitlines(keepends=True)
    assert f" in {name} crash_fuzzer.c:" in by_id
    assert by_module == by_id.replace("#0", "#1")
    assert of_another_build == lines[2]
