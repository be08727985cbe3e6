"""The demo build's symbolizer with an LLVM that is played: what it is asked, what becomes of frames, how it ends."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.builds.linux import SYMBOLIZER
from pipeline.host.process import Process
from tests.waiting import SOON, eventually

ID = "05dd" * 10
LLVM = """#!/usr/bin/env python3
import json, os, sys
with open({log!r}, "a", errors="surrogateescape") as log:
    for line in sys.stdin:
        path, offset = line.removeprefix('CODE "').split('" ')
        open(path).close()
        log.write(os.path.realpath(path) + " " + offset)
        log.flush()
        offset = offset.strip()
        inlined = [("deep", "./src/a.c", 3, 7), ("outer", "src/b.c", 9, 0)]
        known = {{"0x10": inlined, "0x20": [("main", "src/m.c", 5, 1)]}}
        known |= {{"0x50": [("__clang_trap_msg$a$b.h:1: c\\n", "", 0, 0), ("f", "a\\nb.c", 3, 0)]}}
        known |= {{"0x30": [("start", "crt.c", 0, 0)], "0x40": [("", "", 0, 0)]}}
        keys = ("FunctionName", "FileName", "Line", "Column")
        answer = {{"Symbol": [dict(zip(keys, one)) for one in known.get(offset, [])]}}
        print(json.dumps(answer), flush=True)
"""


class Symbolizer:
    """The program with a played LLVM, and a directory in which one build id is known."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.log, self.llvm = directory, directory / "asked", directory / "llvm"
        self.modules: list[str] = []
        self.unstripped = directory / "ids" / ID[:2] / f"{ID[2:]}.debug"
        self.unstripped.parent.mkdir(parents=True)
        self.unstripped.touch()
        self.play(LLVM.format(log=str(self.log)))

    def play(self, text: str) -> None:
        self.llvm.write_text(text)
        self.llvm.chmod(0o755)

    @property
    def argv(self) -> list[str]:
        ids = ["-build-id-dir", str(self.directory / "none"), f"--build-id-dir={self.directory / 'ids'}"]
        return [str(SYMBOLIZER), "-llvm-symbolizer", str(self.llvm), *ids, *self.modules]

    def run(self, stream: bytes) -> bytes:
        return subprocess.run(self.argv, input=stream, capture_output=True, check=True, timeout=30).stdout

    def failed(self, stream: bytes) -> str:
        done = subprocess.run(self.argv, input=stream, capture_output=True, check=False, timeout=30)
        assert done.returncode == 1
        return done.stderr.decode()

    def asked(self) -> list[str]:
        return self.log.read_text(errors="surrogateescape").splitlines() if self.log.exists() else []


@pytest.fixture
def symbolizer(tmp_path: Path) -> Symbolizer:
    return Symbolizer(tmp_path)


def frame(number: int, offset: str, said: str = "", build_id: str = ID, module: str = "/data/x/pkg/x") -> bytes:
    told = f" (BuildId: {build_id})" if build_id else ""
    return os.fsencode(f"    #{number} 0x55aa{said} ({module}+{offset}){told}\n")


def test_a_frame_gets_function_and_line(symbolizer: Symbolizer) -> None:
    assert symbolizer.run(frame(0, "0x20")) == b"    #0 0x55aa in main src/m.c:5:1\n"
    assert symbolizer.asked() == [f"{symbolizer.unstripped} 0x20"]


def test_quotes_blanks_and_newlines_in_a_path_do_no_harm(tmp_path: Path) -> None:
    symbolizer = Symbolizer(tmp_path / 'a b"c\' "\nd')
    assert symbolizer.run(frame(0, "0x20")) == b"    #0 0x55aa in main src/m.c:5:1\n"


def test_what_the_guest_said_of_the_function_is_replaced(symbolizer: Symbolizer) -> None:
    assert symbolizer.run(frame(0, "0x20", " in x(int, (y))")) == b"    #0 0x55aa in main src/m.c:5:1\n"


def test_inlined_functions_get_frames_and_the_rest_of_the_stack_new_numbers(symbolizer: Symbolizer) -> None:
    stack = b"".join([frame(0, "0x20"), frame(1, "0x10"), frame(2, "0x99"), frame(3, "0x20"), frame(4, "0x10")])
    assert symbolizer.run(stack + b"between\n" + frame(0, "0x20")).decode().splitlines() == [
        "    #0 0x55aa in main src/m.c:5:1",
        "    #1 0x55aa in deep src/a.c:3:7",
        "    #2 0x55aa in outer src/b.c:9",
        f"    #3 0x55aa (/data/x/pkg/x+0x99) (BuildId: {ID})",
        "    #4 0x55aa in main src/m.c:5:1",
        "    #5 0x55aa in deep src/a.c:3:7",
        "    #6 0x55aa in outer src/b.c:9",
        "between",
        "    #0 0x55aa in main src/m.c:5:1",
    ]


def test_no_name_makes_lines_of_its_own(symbolizer: Symbolizer) -> None:
    assert symbolizer.run(frame(0, "0x50")).decode().splitlines() == [
        f"    #0 0x55aa in __clang_trap_msg$a$b.h:1: c (/data/x/pkg/x+0x50) (BuildId: {ID})",
        "    #1 0x55aa in f a b.c:3",
    ]


def test_a_function_without_a_line_keeps_its_module(symbolizer: Symbolizer) -> None:
    expected = f"    #0 0x55aa in start (/data/x/pkg/x+0x30) (BuildId: {ID})\n"
    assert symbolizer.run(frame(0, "0x30")).decode() == expected


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"no newline at the end",
        b"\0\xff\x80 not text\r\n\n\n",
        b"    #0 0x55aa  (/data/x+0x20)\n",
        b"{{{reset}}}\n[1234.5][klog] INFO: {{{0x41}}}\n",
        frame(0, "0x20", build_id="ffff" * 10),
        frame(0, "0x99"),
        frame(0, "0x40"),
        b"SUMMARY: AddressSanitizer: SEGV (/data/x/pkg/x+0x20) (BuildId: " + ID.encode() + b")\n",
        b"x" * 3_000_000 + b"\n" + b"y" * 100_000,
        b" " * 20_000 + frame(0, "0x20"),
    ],
    ids=[
        "empty",
        "no newline",
        "bytes",
        "no id",
        "markup",
        "unknown id",
        "nothing",
        "no name",
        "summary",
        "long",
        "late",
    ],
)
def test_all_else_passes_as_it_is(symbolizer: Symbolizer, stream: bytes) -> None:
    assert symbolizer.run(stream) == stream


def test_a_line_after_a_long_one_is_looked_at(symbolizer: Symbolizer) -> None:
    long = b"x" * 500_000 + b"\n"
    assert symbolizer.run(long + frame(0, "0x20")) == long + b"    #0 0x55aa in main src/m.c:5:1\n"


def test_llvm_is_asked_once_for_a_frame_that_comes_often_and_not_without_frames(symbolizer: Symbolizer) -> None:
    assert symbolizer.run(b"nothing\n") == b"nothing\n"
    assert symbolizer.asked() == []
    assert symbolizer.run(frame(0, "0x20") * 1000).count(b"in main") == 1000
    assert len(symbolizer.asked()) == 1


def test_a_carriage_return_stays(symbolizer: Symbolizer) -> None:
    assert symbolizer.run(frame(0, "0x20").replace(b"\n", b"\r\n")) == b"    #0 0x55aa in main src/m.c:5:1\r\n"


@pytest.fixture
def running(symbolizer: Symbolizer) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(symbolizer.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        yield process
        process.kill()


def test_what_is_known_is_written_before_more_is_waited_for(running: subprocess.Popen[bytes]) -> None:
    assert running.stdin
    assert running.stdout
    for line in (b"first\n", b"second\n", b"z" * 20_000):
        running.stdin.write(line)
        got = b""
        while len(got) < len(line):
            got += os.read(running.stdout.fileno(), 65536)
        assert got == line


@pytest.mark.parametrize(
    ("llvm", "why"),
    [
        ("#!/bin/sh\nexit 3\n", "ended with 3"),
        ("#!/bin/sh\nread question; kill -9 $$\n", "was ended by signal 9"),
        ("#!/bin/sh\nread question; printf '{\"Sym'; exit 0\n", "ended with 0"),
        ("#!/bin/sh\nread question; echo no JSON; cat >/dev/null\n", "gave no JSON"),
        ("#!/none/such\n", "No such file or directory"),
    ],
    ids=["exits", "is killed", "in the midst", "rubbish", "cannot start"],
)
def test_an_llvm_that_fails_is_an_error_and_no_hang(symbolizer: Symbolizer, llvm: str, why: str) -> None:
    symbolizer.play(llvm)
    said = symbolizer.failed(frame(0, "0x20") * 10_000)
    assert said == f"symbolizer: {symbolizer.llvm}{'' if why[0].islower() else ':'} {why}\n"


def test_a_reader_that_goes_ends_it(running: subprocess.Popen[bytes]) -> None:
    assert running.stdin
    assert running.stdout
    running.stdout.close()
    running.stdin.write(b"line\n")
    assert running.wait(SOON) == 1


def test_it_leaves_no_llvm_behind(symbolizer: Symbolizer, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    symbolizer.play(
        f"#!/bin/sh\necho $$ >'{pid}'; trap '' TERM; while read question; do echo '{{}}'; done; exec sleep 1000\n"
    )
    assert symbolizer.run(frame(0, "0x20")) == frame(0, "0x20")
    eventually(lambda: not Process.find(int(pid.read_text())))


def test_wrong_arguments_are_refused() -> None:
    done = subprocess.run(
        [str(SYMBOLIZER), "-build-id-dir", "x"], capture_output=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2
    assert b"-llvm-symbolizer" in done.stderr
