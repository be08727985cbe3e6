"""The output of a fuzzer as streams of bytes: merged, large, given up."""

import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import CommandError, FuzzerError
from pipeline.fuzz import streams
from pipeline.fuzz.lines import LineEnds
from pipeline.fuzz.streams import FuzzerOutput, Gathered, MergedStream, Scanned
from pipeline.host.worker import Worker
from tests.fuzz.fakes import FakeCommand, FakeConnector, Guest, Output
from tests.waiting import SOON


class Pieces:
    """A stream of these pieces. `gate` holds back all but the first."""

    def __init__(self, *pieces: bytes, failure: Exception | None = None, gate: threading.Event | None = None) -> None:
        self._pieces = list(pieces)
        self._failure = failure
        self._gate = gate
        self._given = 0
        self.closed = False

    def read1(self, _size: int, /) -> bytes:
        if self._gate and self._given:
            assert self._gate.wait(SOON)
        self._given += 1
        if self._pieces:
            return self._pieces.pop(0)
        if self._failure:
            raise self._failure
        return b""

    def close(self) -> None:
        self.closed = True
        if self._gate:
            self._gate.set()


def everything(merged: MergedStream) -> bytes:
    taken = bytearray()
    while data := merged.read(65536):
        taken += data
    merged.close()
    return bytes(taken)


class Simulated(threading.Event):
    """A stream, a clock and an event in a time of their own; a piece of 100 bytes arrives at each of these seconds."""

    def __init__(self, *arrivals: float, size: int = 100) -> None:
        super().__init__()
        self.now = 0.0
        self._arrivals = list(arrivals)
        self._size = size
        self.given: list[tuple[float, int]] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.now += timeout
        return False

    def read1(self, size: int, /) -> bytes:
        if not self._arrivals:
            return b""
        self.now = max(self.now, self._arrivals[0])
        arrived = [at for at in self._arrivals if at <= self.now][: size // self._size]
        del self._arrivals[: len(arrived)]
        self.given.append((round(self.now, 3), len(arrived)))
        return bytes(self._size * len(arrived))

    def close(self) -> None:
        self._arrivals.clear()


def read_all(gathered: Gathered) -> int:
    return sum(len(data) for data in iter(lambda: gathered.read1(65536), b""))


def test_pieces_that_follow_each_other_closely_are_read_together() -> None:
    stream = Simulated(*(number * 0.0015 for number in range(1, 28)))
    assert read_all(Gathered(stream, stream, stream)) == 2700
    assert [pieces for _, pieces in stream.given] == [1, 6, 7, 7, 6]
    assert stream.given[-1][0] == pytest.approx(0.0415, abs=0.001)


def test_a_piece_after_a_silence_does_not_wait() -> None:
    stream = Simulated(1, 2, 3)
    read_all(Gathered(stream, stream, stream))
    assert stream.given == [(1, 1), (2, 1), (3, 1)]


def test_a_flood_is_not_slowed_down() -> None:
    stream = Simulated(*[1.0] * 100, size=65536)
    assert read_all(Gathered(stream, stream, stream)) == 100 * 65536
    assert stream.given == [(1, 1)] * 100


def test_closing_ends_the_wait_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_LULL", 60)
    gathered = Gathered(Pieces(b"one", b"two"))
    assert gathered.read1(100) == b"one"
    read: list[bytes] = []
    reader = Worker("reader", lambda: read.append(gathered.read1(100)))
    gathered.close()
    assert reader.join(SOON)
    assert read == [b"two"]


def test_u1_both_streams_come() -> None:
    lines = everything(MergedStream([Pieces(b"out 1\nou", b"t 2\n"), Pieces(b"err", b" 1\nerr 2")])).split(b"\n")
    assert sorted(lines) == [b"", b"err 1", b"err 2", b"out 1", b"out 2"]
    assert lines.index(b"out 1") < lines.index(b"out 2")
    assert lines.index(b"err 1") < lines.index(b"err 2")


def test_u1_a_stream_that_is_quiet_does_not_hold_back_the_other() -> None:
    gate = threading.Event()
    merged = MergedStream([Pieces(b"half a li", b"ne\n", gate=gate), Pieces(b"error\n")])
    assert merged.read(1) == b"error\n"
    gate.set()
    assert everything(merged) == b"half a line\n"


def test_long_lines_do_not_wait_for_their_end() -> None:
    gate = threading.Event()
    merged = MergedStream([Pieces(b"x" * 65537, b"y\n", gate=gate), Pieces()])
    assert merged.read(1) == b"x" * 65537
    gate.set()
    assert everything(merged) == b"y\n"


def test_short_lines_are_not_torn_however_much_there_is() -> None:
    lines = [b"%d %s\n" % (number, b"x" * 90) for number in range(3000)]
    text = b"".join(lines)
    streams = [Pieces(*(text[at : at + 65536] for at in range(0, len(text), 65536))) for _ in range(2)]
    assert sorted(everything(MergedStream(streams)).splitlines(keepends=True)) == sorted(lines * 2)


def test_a_long_line_that_has_no_end_gets_one() -> None:
    gate = threading.Event()
    merged = MergedStream([Pieces(b"x" * 65537), Pieces(b"", b"y\n", gate=gate)])
    assert everything(merged) == b"x" * 65537 + b"\n"


def test_what_one_stream_raises_comes_after_all_else() -> None:
    merged = MergedStream([Pieces(b"a\n", failure=CommandError("broken", hint="none")), Pieces(b"b\n")])
    assert {merged.read(1), merged.read(1)} == {b"a\n", b"b\n"}
    with pytest.raises(CommandError, match="broken"):
        merged.read(1)
    merged.close()


def test_nobody_reads_ahead_without_limit() -> None:
    streams = [Pieces(*[b"x\n"] * 1000), Pieces()]
    merged = MergedStream(streams)
    time.sleep(0.2)
    left = len(streams[0]._pieces)  # noqa: SLF001
    assert left > 900
    merged.close()


def test_closing_ends_who_waits_to_put() -> None:
    streams = [Pieces(*[b"x\n"] * 1000), Pieces(b"y\n", gate=threading.Event())]
    MergedStream(streams).close()
    assert [stream.closed for stream in streams] == [True, True]


@pytest.fixture
def connector() -> Iterator[FakeConnector]:
    made = FakeConnector("/bin/sh")
    yield made
    made.close()


def command(connector: FakeConnector, script: str) -> FakeCommand:
    return connector.command("run", "URL", "-c", script)


@pytest.mark.parametrize("merged", [True, False])
def test_to_close_the_output_early_is_to_kill(connector: FakeConnector, merged: bool) -> None:
    output = FuzzerOutput(command(connector, "echo x; sleep 1000"), merged)
    assert output.read(10) == b"x\n"
    output.close()
    assert len(connector.killed) == 1


@pytest.mark.parametrize("merged", [True, False])
def test_to_close_it_at_its_end_is_not(connector: FakeConnector, merged: bool) -> None:
    run = command(connector, "echo x")
    output = FuzzerOutput(run, merged)
    assert output.read(10) == b"x\n"
    assert output.read(10) == b""
    run.wait(SOON)
    output.close()
    assert connector.killed == []


def test_a_connection_that_cannot_even_kill_is_closed(
    connector: FakeConnector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = command(connector, "echo x")
    output = FuzzerOutput(run, False)
    run.wait(SOON)

    def kill() -> bool:
        raise CommandError("no \x1b[0mconnection", hint="none")

    monkeypatch.setattr(run, "kill", kill)
    output.close()
    assert "killing a fuzzer: no connection" in caplog.text


def test_what_reading_raises_names_the_first_stage() -> None:
    class Broken:
        def read(self, _size: int, /) -> bytes:
            raise ValueError

        def close(self) -> None: ...

    with pytest.raises(FuzzerError, match=r"^failed during PID scanning: ValueError$"):
        Scanned(Broken(), [("PID scanning", LineEnds()), ("artifact scanning", LineEnds())]).read(1)


def test_what_a_stage_raises_has_its_name() -> None:
    class Bad(LineEnds):
        def end(self) -> Iterator[bytes]:
            raise RuntimeError("a bug")

    class Empty:
        def read(self, _size: int, /) -> bytes:
            return b""

        def close(self) -> None: ...

    with pytest.raises(FuzzerError, match=r"^failed during artifact scanning: a bug$"):
        Scanned(Empty(), [("PID scanning", LineEnds()), ("artifact scanning", Bad())]).read(1)


class Counted(Output):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def write(self, data: bytes, /) -> None:
        self.count += len(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    ["head -c 100000000 /dev/zero | tr '\\0' 0", "yes '#123 NEW cov: 1 MS: 2 ==3==' | head -c 100000000"],
    ids=["one line", "many lines"],
)
def test_100_megabytes_pass_in_little_memory(tmp_path: Path, script: str) -> None:
    guest = Guest("v1", tmp_path)
    guest.install(f"#!/bin/sh\n{script}\n")
    guest.symbolize_by("cat")
    output = Counted()
    tracemalloc.start()
    try:
        guest.run("data/corpus", output=output)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    guest.connector.close()
    assert 0 <= output.count - 100_000_000 < 200
    assert peak < 8 << 20


def test_64_kib_without_a_newline_pass(guest: Guest) -> None:
    guest.install("#!/bin/sh\nhead -c 65536 /dev/zero | tr '\\0' x; printf 'Test unit written to tmp/a'\n")
    found, said = guest.run()
    assert said.startswith("x" * 65536 + "Test unit written to tmp/a\n")
    assert found == []


def test_lines_made_to_be_slow_to_look_at_are_not(tmp_path: Path) -> None:
    """What an expression could try again and again from each byte on."""
    guest = Guest("v1", tmp_path)
    bad = ["0" * 65000 + " files found in tmp", "Using '" * 9000, "[" * 65000 + "[klog] INFO", "==" + "1" * 65000]
    guest.install("#!/bin/sh\ncat <<'END'\n" + "\n".join(bad * 5) + "\nEND\n")
    guest.symbolize_by("cat")
    began = time.thread_time()  # the CPU's, of this thread: what scans is in it
    _, said = guest.run()
    guest.connector.close()
    assert time.thread_time() - began < 10, "an expression that goes back takes minutes"
    assert all(line in said for line in bad)


def test_the_output_is_not_read_ahead_of_who_takes_it(tmp_path: Path) -> None:
    guest = Guest("fuzz_ctl", tmp_path)
    progress = tmp_path / "progress"
    guest.install(f"#!/bin/sh\nhead -c 10000000 /dev/zero; touch {progress}\n")
    guest.symbolize_by("cat")

    class Stopped(Output):
        def write(self, data: bytes, /) -> None:
            if not self.data:
                time.sleep(0.3)
                assert not progress.exists()
            super().write(data)

    output = Stopped()
    guest.run("data/corpus", output=output)
    guest.connector.close()
    assert progress.exists()
    assert len(output.data) > 10_000_000
