"""The symbolizer as a program that may do anything, by the tags of the Go tests and beyond."""

import contextlib
import os
import threading
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from pipeline.builds.build import Build, Resource
from pipeline.errors import CommandError, FuzzerTimeout, MissingResource, OutputLost, SymbolizerFailed
from pipeline.fuzz.symbolizer import Symbolizer
from pipeline.host.deadline import Deadline
from pipeline.host.process import Process
from tests.fuzz.fakes import SYMBOLIZER, Output
from tests.host.test_tools import gone
from tests.waiting import SOON, eventually


class Source:
    """Gives these pieces; then it ends, fails, or waits to be closed."""

    def __init__(self, *pieces: bytes, failure: Exception | None = None, waits: bool = False) -> None:
        self._pieces = list(pieces)
        self._failure = failure
        self._waits = waits
        self.closed = threading.Event()
        self.forgotten = False

    def read(self, _size: int, /) -> bytes:
        if self._pieces:
            return self._pieces.pop(0)
        if self._failure:
            raise self._failure
        if self._waits:
            self.forgotten = not self.closed.wait(SOON)
            raise OSError("closed")
        return b""

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[..., Symbolizer]:
    """Makes symbolizers of shell commands."""

    def make(text: str, patience: float = 20) -> Symbolizer:
        path = tmp_path / "symbolizer"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return Symbolizer((str(path), "word"), patience)

    return make


Scripted = Callable[..., Symbolizer]


def symbolized(symbolizer: Symbolizer, source: Source) -> bytes:
    output = Output()
    try:
        symbolizer.symbolize(source, output)
    finally:
        assert source.closed.is_set()
        assert not source.forgotten
    return bytes(output.data)


def test_b9_a_trace_gets_its_names() -> None:
    assert symbolized(SYMBOLIZER, Source(b"[1234.5][klog] INFO: {{{0x41}}}")) == b"wow.c:1\n"


def test_b9_nothing_becomes_nothing() -> None:
    assert symbolized(SYMBOLIZER, Source()) == b""


def build(kind: str, **paths: str) -> Build:
    names = {key.replace("_", "-"): path for key, path in paths.items()}
    resources = {key: Resource(key, Path(path), "") for key, path in names.items()}
    return Build(kind, "x64", "x", "", resources, (Path("/ids/1"), Path("/ids/2")))  # type: ignore[arg-type]


def test_the_arguments_are_those_of_the_build() -> None:
    made = Symbolizer.of(build("local", symbolizer="/bin/s", llvm_symbolizer="/bin/l"))
    assert made.argv == (
        "/bin/s", "-llvm-symbolizer", "/bin/l", "-build-id-dir", "/ids/1", "-build-id-dir", "/ids/2",
    )  # fmt: skip


def test_the_directories_of_the_guests_files_are_passed() -> None:
    made = build("demo", symbolizer="/bin/s", llvm_symbolizer="/bin/l")
    made = replace(made, module_directories={"/targets/files": Path("/store/a=b/files"), "/t": Path("/u")})
    assert Symbolizer.of(made).argv[-4:] == (
        "-module-dir", "/targets/files=/store/a=b/files", "-module-dir", "/t=/u",
    )  # fmt: skip


@pytest.mark.parametrize("paths", [{}, {"symbolizer": "/bin/s"}, {"llvm_symbolizer": "/bin/l"}])
def test_a_build_that_knows_no_symbolizer(paths: dict[str, str]) -> None:
    with pytest.raises(MissingResource):
        Symbolizer.of(build("local", **paths))


def test_the_arguments_arrive(scripted: Scripted) -> None:
    assert symbolized(scripted('echo "$@"; cat'), Source(b"x\n")) == b"word\nx\n"


def test_lines_have_no_limit() -> None:
    line = b"x" * 300_000
    assert symbolized(SYMBOLIZER, Source(line + b"{{{0x41}}}\n")) == line + b"wow.c:1\n"


@pytest.mark.parametrize("text", ["exit 3", "cat >/dev/null; exit 3", "head -n 1; exit 3", "kill -SEGV $$"])
def test_one_that_fails(scripted: Scripted, text: str) -> None:
    with pytest.raises(SymbolizerFailed, match=r"^failed during symbolization: symbolizer (exited with 3|.*signal 11)"):
        symbolized(scripted(text), Source(b"x\n" * 100_000))


def test_its_stderr_is_in_the_error_but_not_all(scripted: Scripted) -> None:
    noisy = scripted("yes noise | head -c 999996 >&2; echo '\033[31mthe reason' >&2; exit 1")
    with pytest.raises(SymbolizerFailed) as caught:
        symbolized(noisy, Source(waits=True))
    assert caught.value.detail.split("\n")[-1] == "the reason"
    assert len(caught.value.detail) < 10_000


def test_its_stderr_is_not_kept(scripted: Scripted) -> None:
    noisy = scripted("yes noise | head -c 30000000 >&2; cat")
    tracemalloc.start()
    try:
        symbolized(noisy, Source())
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_stderr_of_one_that_does_well_is_nothing(scripted: Scripted) -> None:
    assert symbolized(scripted("yes | head -c 1000000 >&2; exec 2>&-; cat"), Source(b"x\n")) == b"x\n"


def test_one_that_ends_early_and_well_is_an_error(scripted: Scripted) -> None:
    with pytest.raises(SymbolizerFailed, match="ended before its input did"):
        symbolized(scripted("head -n 1"), Source(b"x\n", waits=True))


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [[], [b"x" * 1_000_000]], ids=["at the end", "in the midst"])
def test_one_that_hangs_is_killed(scripted: Scripted, pieces: list[bytes], tmp_path: Path) -> None:
    hanging = scripted(f"echo $$ >{tmp_path}/pid; sleep 1000 & echo $! >>{tmp_path}/pid; wait", 3)
    with pytest.raises(SymbolizerFailed, match="did nothing for 3 s"):
        symbolized(hanging, Source(*pieces))
    assert all(gone(int(pid)) for pid in (tmp_path / "pid").read_text().split())


def test_one_that_closes_its_output_and_stays_is_killed(scripted: Scripted) -> None:
    with pytest.raises(SymbolizerFailed, match=r"did nothing for 0\.3 s"):
        symbolized(scripted("exec >&-; sleep 1000", 0.3), Source(waits=True))


def test_children_that_it_leaves_are_killed(scripted: Scripted, tmp_path: Path) -> None:
    leaving = scripted(f"cat; sleep 1000 >/dev/null 2>&1 <&- & echo $! >{tmp_path}/pid")
    assert symbolized(leaving, Source(b"x\n")) == b"x\n"
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.slow
def test_a_fuzzer_that_is_quiet_is_no_hang(scripted: Scripted) -> None:
    class Quiet(Source):
        def read(self, size: int, /) -> bytes:
            time.sleep(2.5)
            return super().read(size)

    assert symbolized(scripted("exec 2>&-; exec cat", 2.0), Quiet(b"x\n")) == b"x\n"


@pytest.mark.slow
def test_one_that_reads_nothing_but_writes_is_no_hang(scripted: Scripted) -> None:
    busy = scripted("for n in 1 2 3 4 5 6 7; do echo busy; sleep 0.4; done; cat >/dev/null", 2.0)
    assert symbolized(busy, Source(b"x" * 1_000_000)) == b"busy\n" * 7


class Slow(Output):
    def write(self, data: bytes, /) -> None:
        if not self.data:
            time.sleep(2.5)
        super().write(data)


@pytest.mark.slow
def test_an_output_that_is_slow_is_no_hang() -> None:
    output = Slow()
    Symbolizer(("cat",), 2.0).symbolize(Source(*[b"x" * 65536] * 10), output)
    assert len(output.data) == 655_361


@pytest.mark.parametrize("path", ["/invalid/path", "/", "/etc/passwd", "a\0b"])
def test_a_program_that_cannot_be_run(path: str) -> None:
    source = Source(waits=True)
    with pytest.raises(SymbolizerFailed, match=r"^failed during symbolization: "):
        Symbolizer((path,)).symbolize(source, Output())
    assert source.closed.is_set()


def test_what_reading_raises_is_raised_after_all_has_come_out() -> None:
    output = Output()
    with pytest.raises(CommandError, match="broken"):
        SYMBOLIZER.symbolize(Source(b"{{{0x41}}}\n", failure=CommandError("broken", hint="none")), output)
    assert output.data == b"wow.c:1\n"


def test_a_symbolizer_that_fails_counts_more_than_what_reading_raised(scripted: Scripted) -> None:
    with pytest.raises(SymbolizerFailed) as caught:
        symbolized(scripted("cat; exit 1"), Source(failure=CommandError("broken", hint="none")))
    assert str(caught.value.__cause__) == "broken"


@pytest.mark.parametrize("what", ["closed here", "closed there", "a full disk"])
def test_an_output_that_takes_nothing_is_an_error(what: str) -> None:
    source = Source(b"x\n", waits=True)
    with contextlib.suppress(OSError), _output(what) as file, pytest.raises(OutputLost, match="cannot be written"):
        SYMBOLIZER.symbolize(source, file)
    assert source.closed.is_set()


def _output(what: str) -> BinaryIO:
    if what == "a full disk":
        return open("/dev/full", "wb")
    if what == "closed here":
        file = open("/dev/null", "wb")  # noqa: SIM115
        file.close()
        return contextlib.nullcontext(file)  # type: ignore[return-value]
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "wb")


@pytest.mark.slow
def test_a_deadline_ends_it() -> None:
    source = Source(b"x\n", waits=True)
    output = Output()
    with pytest.raises(FuzzerTimeout, match="within 3 s"):
        SYMBOLIZER.symbolize(source, output, Deadline(3))
    assert output.data == b"x\n"
    assert source.closed.is_set()


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    """Even one that does not read its input, and so does not see its end."""
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        try:
            argv = ("/bin/sh", "-c", f"echo $$ >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; exec sleep 1000")
            Symbolizer(argv).symbolize(Source(waits=True), Output())
        finally:
            os._exit(1)
    eventually((tmp_path / "pid").exists)
    symbolizer = int((tmp_path / "pid").read_text())
    assert Process.find(symbolizer)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert gone(symbolizer)
