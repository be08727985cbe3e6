"""The output of a running fuzzer, as a stream that can be given up."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from pipeline.errors import FuzzerError, TopcoatError
from pipeline.fuzz.connector import CommandStream, GuestCommand
from pipeline.fuzz.line_scanner import LIMIT
from pipeline.fuzz.lines import Stage
from pipeline.fuzz.symbolizer import CHUNK, JOIN_LIMIT, ByteStream, Writer
from pipeline.host.deadline import Clock
from pipeline.host.worker import Worker
from pipeline.text.printable import one_line

log = logging.getLogger("topcoat")

_MOST_PIECES = 16
_LULL = 0.01  # seconds: a fuzzer that writes line by line would wake up four threads and a program each time
_SMALL = CHUNK // 4
_DOCTOR = "is the guest alive? see what it said last: topcoat logs NAME"


class Gathered:
    """A stream whose small pieces are gathered, one each 10 ms at most. After a silence the next one comes at once.

    `close` may be called by another thread than `read1`.
    """

    def __init__(
        self, stream: CommandStream, clock: Clock = time.monotonic, closed: threading.Event | None = None
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._not_before = clock()
        self._closed = closed or threading.Event()

    def read1(self, size: int, /) -> bytes:
        """Return the next piece, at most `size` bytes; nothing at the end."""
        lull = self._not_before - self._clock()
        if lull > 0:
            self._closed.wait(lull)
        data = self._stream.read1(size)
        # After a large piece there is no pause: what is not read fills the SSH window, and the fuzzer would wait
        self._not_before = self._clock() + (_LULL if len(data) < _SMALL else 0)
        return data

    def close(self) -> None:
        """Close the stream, and end the pause of a `read1`."""
        self._closed.set()
        self._stream.close()


class MergedStream:
    """Several streams as one, in no fixed order. Lines stay whole, unless they are longer than 64 KiB."""

    def __init__(self, streams: Sequence[CommandStream]) -> None:
        self._streams = streams
        self._pieces: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._running = len(streams)
        self._closed = False
        self._workers = [Worker("fuzzer output", partial(self._pass_on, stream)) for stream in streams]

    def read(self, _size: int, /) -> bytes:
        """Return the next piece; nothing at the end. Raises what reading from a stream raised, once all have ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._pieces or not self._running)
            if self._pieces:
                self._changed.notify_all()
                return self._pieces.popleft()
        for worker in self._workers:
            worker.join(JOIN_LIMIT)
            if worker.failure:
                raise worker.failure
        return b""

    def close(self) -> None:
        """Close all streams, and wait until nobody reads from them."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        _close_all(self._streams)
        for worker in self._workers:
            if not worker.join(JOIN_LIMIT):
                log.error("a stream of the fuzzer was closed, and its reader still hangs after %g s", JOIN_LIMIT)

    def _pass_on(self, stream: CommandStream) -> None:
        try:
            for piece in _whole_lines(stream):
                self._put(piece)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _put(self, piece: bytes) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._pieces) < _MOST_PIECES)
            if not self._closed:
                self._pieces.append(piece)
                self._changed.notify_all()


def _whole_lines(stream: CommandStream) -> Iterator[bytes]:
    begun, torn = bytearray(), False
    while data := stream.read1(CHUNK):
        begun += data
        end = begun.rfind(b"\n", len(begun) - len(data)) + 1
        torn = not end and (torn or len(begun) > LIMIT)
        end = end or len(begun) * torn
        if end:
            yield bytes(begun[:end])
            del begun[:end]
    if begun or torn:
        yield bytes(begun + b"\n")


def _close_all(streams: Iterable[CommandStream]) -> None:
    for stream in streams:
        try:
            stream.close()
        except (OSError, TopcoatError) as error:
            log.warning("closing the output of a fuzzer: %s", one_line(str(error)))


class FuzzerOutput:
    """The output of a command that runs a fuzzer; `merged` includes its stderr. The command is started at once."""

    def __init__(self, command: GuestCommand, merged: bool) -> None:
        streams = [Gathered(command.stdout()), *([Gathered(command.stderr())] if merged else [])]
        self._command = command
        self._streams = streams
        self._ended = False
        command.start()
        self._merged = MergedStream(streams) if merged else None

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, in about the size that is asked for; nothing at the end."""
        data = self._merged.read(size) if self._merged else self._streams[0].read1(size)
        self._ended = not data
        return data

    def close(self) -> None:
        """Kill the command, unless all of its output has been read, and close its streams."""
        try:
            if not self._ended:
                self._command.kill()
        except (OSError, TopcoatError) as error:
            log.warning("killing a fuzzer: %s", one_line(str(error)))
        finally:
            self._close()

    def _close(self) -> None:
        if self._merged:
            self._merged.close()
        else:
            _close_all(self._streams)


class Scanned:
    """A stream that has passed through stages. Each stage has a name, for the message of the error if it fails."""

    def __init__(self, source: ByteStream, stages: Sequence[tuple[str, Stage]]) -> None:
        self._source = source
        self._pieces = self._read_source(stages[0][0])
        for name, stage in stages:
            self._pieces = _guarded(name, stage, self._pieces)

    def read(self, _size: int, /) -> bytes:
        """Return the next piece behind all stages; nothing at the end. Raises FuzzerError if anything fails."""
        return next((piece for piece in self._pieces if piece), b"")

    def close(self) -> None:
        """Close the stream in front of all stages."""
        self._source.close()

    def _read_source(self, name: str) -> Iterator[bytes]:
        try:
            while data := self._source.read(CHUNK):
                yield data
        except Exception as error:
            raise _failed(name, error) from error


class Staged:
    """A writer in front of which output passes stages. `flush` ends the stages: nothing may be written after it."""

    def __init__(self, stages: Sequence[Stage], output: Writer) -> None:
        self._stages, self._output = stages, output

    def write(self, data: bytes, /) -> int:
        """Take a piece of output. Returns its length."""
        self._pass_on(iter([data]), self._stages)
        return len(data)

    def flush(self) -> None:
        """Pass on what the stages hold back."""
        for number, stage in enumerate(self._stages):
            self._pass_on(stage.end(), self._stages[number + 1 :])
        self._output.flush()

    def _pass_on(self, pieces: Iterator[bytes], stages: Sequence[Stage]) -> None:
        for piece in pieces:
            if not stages:
                self._output.write(piece)
            else:
                self._pass_on(stages[0].feed(piece), stages[1:])


def _guarded(name: str, stage: Stage, pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield from _named(name, partial(stage.feed, piece))
    yield from _named(name, stage.end)


def _named(name: str, step: Callable[[], Iterator[bytes]]) -> Iterator[bytes]:
    try:
        yield from step()
    except Exception as error:
        raise _failed(name, error) from error


def _failed(name: str, error: Exception) -> FuzzerError:
    hint, detail = (error.hint, error.detail) if isinstance(error, TopcoatError) else (_DOCTOR, "")
    return FuzzerError(
        f"failed during {name}: {one_line(str(error)) or type(error).__name__}", hint=hint, detail=detail
    )
