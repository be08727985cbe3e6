"""The real compiler in a place with signs in its path that mean something to clang, lld, the loader or make."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from pipeline.builds.demo import SYMBOLIZER, compiler, fuzzers
from pipeline.builds.demo.compiler import Compiler
from pipeline.builds.demo.fuzzers import headers, making

LONG = 200.0
ODD = "a %41 b=c,d;e:f'g\"h$x#\\(é*?[i"
SOURCES = ("crash_fuzzer.c", fuzzers.OPTIONS)


@pytest.fixture
def place(demo_parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the compiler, without what it has made itself, and some sources; TMPDIR is in it."""
    place = tmp_path / ODD
    (place / "tmp").mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(place / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    shutil.copytree((demo_parts / "demo/llvm").resolve(), place / "llvm", copy_function=os.link)
    for name in ("llvm-symbolizer", "libcurl.so.4"):
        (place / "llvm" / name).unlink()
    (place / "sources").mkdir()
    for name in SOURCES:
        shutil.copy(fuzzers.SOURCES / name, place / "sources")
    return place


def test_the_place_of_nothing_matters(demo_parts: Path, place: Path) -> None:
    with_headers = (place / "sources/crash_fuzzer.c").read_text()
    (place / "sources/crash_fuzzer.c").write_text(f'#include "more #1.h"\n{with_headers}')
    (place / "sources/more #1.h").touch()
    sysroot, listing = demo_parts / "demo/sysroot.tar", place / "headers.json"
    headers.find(place / "sources", Compiler(place / "llvm"), sysroot, listing, timeout=LONG)
    assert json.loads(listing.read_text())["headers"] == ["more #1.h"]

    (place / "sources/crash_fuzzer.c").write_text(with_headers)
    image, made = place / "fuzzers.cpio", place / "fuzzers"
    making.make(place / "sources", Compiler(place / "llvm"), sysroot, image, made, timeout=LONG)
    assert fuzzers.failures(made) == []
    found = list(made.glob(".build-id/*/*.debug"))
    assert len(found) == 3, "the fuzzer, libc and the sanitizer"
    for file in found:
        assert file.read_bytes() == (demo_parts / "demo/fuzzers" / file.relative_to(made)).read_bytes()
    assert list((place / "tmp").iterdir()) == []


def test_the_symbolizer_is_made_and_finds_its_libraries_and_what_it_is_asked_for(demo_parts: Path, place: Path) -> None:
    compiler._make_symbolizer(place / "llvm", place, LONG)  # noqa: SLF001  the packages that all is made of are gone
    llvm, ids = place / "llvm/llvm-symbolizer", place / "build ids"
    shutil.copytree(demo_parts / "demo/fuzzers/.build-id", ids)
    name = "LLVMFuzzerTestOneInput"
    (program,) = (path for path in ids.glob("*/*.debug") if b"crash_fuzzer.c\0" in path.read_bytes())
    words = [str(llvm), f"--obj={program}", "--output-style=JSON", name]
    (answer,) = json.loads(subprocess.run(words, capture_output=True, check=True, timeout=LONG).stdout)
    offset = answer["Loc"][0]["StartAddress"]
    line = f"    #0 0x55aa (/data/x+{offset}) (BuildId: {program.parent.name}{program.stem})\n"
    done = subprocess.run(
        [SYMBOLIZER, "-llvm-symbolizer", llvm, "-build-id-dir", ids],
        input=line.encode(),
        capture_output=True,
        check=True,
        timeout=LONG,
    )
    assert f" in {name} pipeline/builds/demo/fuzzers/crash_fuzzer.c:" in done.stdout.decode()
