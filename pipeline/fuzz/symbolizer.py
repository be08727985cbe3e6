"""Names for stack traces: all that a fuzzer writes passes through Fuchsia's symbolizer, a program of its own.

The program runs as long as the stream does, but it is not trusted to: if it dies, stalls or does not end, it is killed,
and whoever writes to it or waits for it gets an error.
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

from pipeline.builds.build import Build
from pipeline.errors import FuzzerTimeout, OutputLost, SymbolizerFailed, TopcoatError
from pipeline.fuzz.lines import LineEnds, LogPrefixes, through
from pipeline.host.deadline import Deadline
from pipeline.host.process import die_with_parent
from pipeline.host.worker import Worker
from pipeline.text.printable import one_line, tail

log = logging.getLogger("topcoat")

CHUNK = 65536
PATIENCE = 120.0
"""Seconds that the symbolizer may do nothing: in that time even gigabytes of debug symbols are read."""
JOIN_LIMIT = 10.0
"""Seconds within which a thread that reads a stream must end once the stream is closed."""

_STDERR_KEPT = 65536


class ByteStream(Protocol):
    """A stream of bytes that can be given up."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, about `size` at most; nothing at the end."""

    def close(self) -> None:
        """Give the stream up. May be called by another thread than `read`, which then returns or raises soon."""


class Writer(Protocol):
    """Where output goes: a binary file that is buffered, so that `write` takes all."""

    def write(self, data: bytes, /) -> object:
        """Take all of `data`."""

    def flush(self) -> object:
        """Hand on what is buffered."""


@dataclass(frozen=True)
class Symbolizer:
    """How the symbolizer is called, and for how many seconds it may do nothing while something waits for it."""

    argv: tuple[str, ...]
    patience: float = PATIENCE

    @classmethod
    def of(cls, build: Build) -> "Symbolizer":
        """The symbolizer of a build. Raises MissingResource if the build does not say where its symbolizer is."""
        program, llvm = build.paths("symbolizer", "llvm-symbolizer")
        ids = [word for path in build.build_ids for word in ("-build-id-dir", str(path))]
        modules = [
            word for guest, host in build.module_directories.items() for word in ("-module-dir", f"{guest}={host}")
        ]
        return cls((str(program), "-llvm-symbolizer", str(llvm), *ids, *modules))

    def symbolize(self, source: ByteStream, output: Writer, deadline: Deadline | None = None) -> None:
        """Pass all of `source` through the program and on to `output`, without the prefixes of Fuchsia's log.

        One carriage return before each newline is dropped, and the last line gets a newline if it has none. In the end,
        also after an error, `source` is closed, and the program and its thread have ended.

        Raises SymbolizerFailed, OutputLost if `output` takes no more, FuzzerTimeout when the deadline passes, and
        whatever reading from `source` raises.
        """
        _Stream(self, source, output, deadline).run()


class _Stream:
    """One run of the symbolizer: a thread feeds the program, and the caller's thread takes what comes out."""

    def __init__(self, symbolizer: Symbolizer, source: ByteStream, output: Writer, deadline: Deadline | None) -> None:
        self._symbolizer = symbolizer
        self._source = source
        self._output = output
        self._deadline = deadline
        self._fed = False
        """Whether the program has taken all of the source."""
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
            # Read before the source is closed, which may make the feeding thread raise
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

    # These run in the thread that feeds the program

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
        """Give the program all of the source. Returns whether it took all."""
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
        """Wait until the program takes more. Returns False if it does not, and nothing excuses it."""
        received = self._received
        with selectors.PollSelector() as selector:
            selector.register(stdin, selectors.EVENT_WRITE)
            ready = bool(selector.select(self._symbolizer.patience))
        return ready or self._delivering or received != self._received

    # These run in the caller's thread

    def _take(self, process: subprocess.Popen[bytes], wake: int) -> None:
        """Pass what the program writes to the output, until the program has ended."""
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
        """For how many seconds nothing may happen: no limit while the fuzzer runs, else `patience`.

        The deadline, if there is one, limits both. None means no limit.
        """
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
        """Leave nothing. The process group is killed before its leader is waited for: then its id could be reused."""
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
    """Give the body a descriptor that is readable once the process has ended. Nothing is waited for here."""
    descriptor = os.pidfd_open(process.pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
