"""Giving stack traces their names: Fuchsia's symbolizer, through which all that a fuzzer writes goes.

The program runs as long as the stream does. It cannot be trusted to: one that dies, stalls or does not end is killed,
and whoever writes into the stream, or waits for it, is told.
"""

import logging
import os
import selectors
import signal
import subprocess
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.build import Build
from pipeline.deadline import Deadline
from pipeline.errors import FuzzerTimeout, OutputLost, SymbolizerFailed, TopcoatError
from pipeline.lines import LineEnds, LogPrefixes, through
from pipeline.process import die_with_parent
from pipeline.text import one_line, tail
from pipeline.worker import Worker

log = logging.getLogger("topcoat")

CHUNK = 65536
PATIENCE = 120.0
"""Seconds: even gigabytes of debug symbols are read in that time."""
JOIN_LIMIT = 10.0
"""Seconds that a closed stream has to let go of who reads it."""

_STDERR_KEPT = 65536


class Reader(Protocol):
    """A stream of bytes that can be given up."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most `size` or a few more; none at the end."""

    def close(self) -> None:
        """Nobody wants any more of it. May come from another thread than `read`, which then returns or raises soon."""


class Writer(Protocol):
    """Where bytes go to: a binary file, buffered, so that `write` takes all."""

    def write(self, data: bytes, /) -> object:
        """Take all of `data`."""

    def flush(self) -> object:
        """Hand on what is held back."""


@dataclass(frozen=True)
class Symbolizer:
    """How the symbolizer is called, and how many seconds it may do nothing while something waits for it."""

    argv: tuple[str, ...]
    patience: float = PATIENCE

    @classmethod
    def of(cls, build: Build) -> "Symbolizer":
        """The build's. Raises MissingResource for a build that does not know where its symbolizer is."""
        program, llvm = build.paths("symbolizer", "llvm-symbolizer")
        ids = [word for path in build.build_ids for word in ("-build-id-dir", str(path))]
        return cls((str(program), "-llvm-symbolizer", str(llvm), *ids))

    def symbolize(self, source: Reader, output: Writer, deadline: Deadline | None = None) -> None:
        """Pass all of `source` through the program and on to `output`, without the prefixes of Fuchsia's log.

        One carriage return before each newline is dropped, and the last line gets a newline if it has none. On return
        `source` is closed, and no process or thread of this is left.

        Raises SymbolizerFailed, OutputLost if `output` takes no more, FuzzerTimeout when the deadline passes, and what
        reading from `source` raised.
        """
        _Stream(self, source, output, deadline).run()


class _Stream:
    """One run of the symbolizer. A thread feeds it; whoever called takes what it gives."""

    def __init__(self, symbolizer: Symbolizer, source: Reader, output: Writer, deadline: Deadline | None) -> None:
        self._symbolizer = symbolizer
        self._source = source
        self._output = output
        self._deadline = deadline
        self._fed = False
        """Whether the program has been given all."""
        self._broken: BaseException | None = None
        """What reading from the source raised."""
        self._delivering = False
        self._received = 0
        self._stderr = bytearray()

    def run(self) -> None:
        try:
            process = self._start()
        except BaseException:
            self._close_source()
            raise
        with ExitStack() as stack:
            wake = os.eventfd(0, os.EFD_CLOEXEC)
            stack.callback(os.close, wake)
            feeder = Worker("symbolizer input", lambda: self._feed(process, wake))
            stack.callback(self._end, process, feeder)
            self._take(process, wake)
            # Asked before the source is closed, which may make it raise
            unfinished, broken = not self._fed, self._broken
        self._judge(process.returncode, unfinished, broken)

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                self._symbolizer.argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        except (OSError, ValueError) as error:
            raise self._failed(f"{self._symbolizer.argv[0]}: {getattr(error, 'strerror', error)}") from error

    def _failed(self, why: str) -> SymbolizerFailed:
        return SymbolizerFailed(
            f"failed during symbolization: {why}",
            hint="is it the right program, and executable? [build] symbolizer = PATH names another one",
            detail=tail(bytes(self._stderr)),
        )

    # In the thread that feeds

    def _feed(self, process: subprocess.Popen[bytes], wake: int) -> None:
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        try:
            self._fed = self._feed_all(process.stdin.fileno())
        except BaseException as error:  # noqa: BLE001  run raises it
            self._broken = error
        finally:
            process.stdin.close()
            os.eventfd_write(wake, 1)

    def _feed_all(self, stdin: int) -> bool:
        """Returns whether the program took all."""
        while data := self._source.read(CHUNK):
            if not self._write(stdin, memoryview(data)):
                return False
        return True

    def _write(self, stdin: int, data: memoryview) -> bool:
        while data:
            try:
                data = data[os.write(stdin, data) :]
            except BlockingIOError:
                if not self._writable(stdin):
                    return False
            except BrokenPipeError:
                return False
        return True

    def _writable(self, stdin: int) -> bool:
        """Wait until the program takes more. False if it is to blame that it does not."""
        received = self._received
        with selectors.PollSelector() as selector:
            selector.register(stdin, selectors.EVENT_WRITE)
            ready = bool(selector.select(self._symbolizer.patience))
        return ready or self._delivering or received != self._received

    # In the thread of the caller

    def _take(self, process: subprocess.Popen[bytes], wake: int) -> None:
        """Pass on what the program gives, until it has ended."""
        assert process.stdout is not None
        assert process.stderr is not None
        with closing(self._pieces(process, process.stdout.fileno(), process.stderr.fileno(), wake)) as pieces:
            for piece in through(LogPrefixes(), through(LineEnds(), pieces)):
                self._deliver(piece)

    def _deliver(self, data: bytes) -> None:
        self._delivering = True
        try:
            self._output.write(data)
            self._output.flush()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            raise OutputLost(
                f"failed during symbolization: the output cannot be written: {error}",
                hint="keep the reading side open until the fuzzer has ended, and the disk from being full",
            ) from error
        finally:
            self._delivering = False

    def _pieces(self, process: subprocess.Popen[bytes], stdout: int, stderr: int, wake: int) -> Generator[bytes]:
        with selectors.DefaultSelector() as selector, _ended(process) as ended:
            waited = {stdout, ended}
            for descriptor in (stdout, stderr, wake, ended):
                selector.register(descriptor, selectors.EVENT_READ)
            while waited:
                ready = {
                    key.fd for key, _ in selector.select(self._limit(wake in selector.get_map() and len(waited) == 2))
                }
                self._check(ready)
                done = ready & {wake, ended}
                if stderr in ready and not self._keep_stderr(stderr):
                    done.add(stderr)
                if stdout in ready:
                    data = os.read(stdout, CHUNK)
                    self._received += len(data)
                    if data:
                        yield data
                    else:
                        done.add(stdout)
                for descriptor in done:
                    selector.unregister(descriptor)
                waited -= done

    def _limit(self, fuzzing: bool) -> float | None:
        """How long nothing may happen: while the fuzzer runs at will, else as long as there is patience."""
        limits = [] if fuzzing else [self._symbolizer.patience]
        limits += [self._deadline.remaining] if self._deadline else []
        return min(limits, default=None)

    def _check(self, ready: set[int]) -> None:
        if self._deadline and self._deadline.expired:
            raise FuzzerTimeout(
                f"failed during wait: the fuzzer did not end within {self._deadline.seconds:g} s and was killed",
                hint="give it less to do (-runs, -max_total_time), or more time",
            )
        if not ready:
            raise self._failed(f"{self._symbolizer.argv[0]} did nothing for {self._symbolizer.patience:g} s")

    def _keep_stderr(self, stderr: int) -> bool:
        data = os.read(stderr, CHUNK)
        self._stderr += data
        del self._stderr[:-_STDERR_KEPT]
        return bool(data)

    def _end(self, process: subprocess.Popen[bytes], feeder: Worker) -> None:
        """Leave nothing: the whole process group goes, before its leader is waited for and the number can be reused."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(JOIN_LIMIT)
        self._close_source()
        if not feeder.join(JOIN_LIMIT):
            log.error("the fuzzer's output was closed, and its reader still hangs after %g s", JOIN_LIMIT)
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()

    def _close_source(self) -> None:
        try:
            self._source.close()
        except (OSError, TopcoatError) as error:
            log.warning("closing the fuzzer's output: %s", one_line(str(error)))

    def _judge(self, code: int, unfinished: bool, broken: BaseException | None) -> None:
        name = Path(self._symbolizer.argv[0]).name
        if code:
            how = f"was ended by signal {-code}" if code < 0 else f"exited with {code}"
            raise self._failed(f"{name} {how}") from broken
        if broken:
            raise broken
        if unfinished:
            raise self._failed(f"{name} ended before its input did")


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """A descriptor that is readable once the process has ended. It is not waited for before."""
    descriptor = os.pidfd_open(process.pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
