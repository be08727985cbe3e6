"""The standard streams of Topcoat's programs, set up so that telling never ends doing.

What is told may have no listener: a pipe whose reader has gone, a full disk, a descriptor that was closed before the
program began, an encoding that lacks a character. stderr never raises: what cannot be written there is dropped. stdout
raises where its text is what was asked for, and drops like stderr inside `only_telling`, where work is done.
"""

import codecs
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

from pipeline.errors import StoreError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_ERRORS = "topcoat.readable"
_PLAIN = {"─": "-", "│": "|", "├": "|", "└": "`", "…": "...", "→": "->"}
"""What Topcoat prints beyond ASCII, and what stands for it where the encoding has none of it."""

_output: "_Descriptor | None" = None


class ReaderGone(BrokenPipeError):
    """stdout is a pipe whose reader, such as head, has seen enough."""


class OutputError(OSError):
    """stdout cannot be written, for another reason than that its reader has gone."""

    def explained(self) -> StoreError:
        """For people."""
        return StoreError(
            f"stdout cannot be written: {self.strerror}",
            hint="give it a file on a disk with space, a pipe, or a terminal",
        )


class _Descriptor(io.FileIO):
    """A standard stream. Where it is not `needed`, what cannot be written is dropped."""

    def __init__(self, number: int, *, open_: bool, needed: bool) -> None:
        super().__init__(number, "wb", closefd=False)
        self.is_open = open_
        self.needed = needed

    def write(self, data: "ReadableBuffer", /) -> int:
        """How many bytes count as written. Raises ReaderGone or OutputError if it is needed."""
        try:
            return self._write(data)
        except BrokenPipeError as error:
            if self.needed:
                raise ReaderGone(error.errno, error.strerror) from None
        except OSError as error:
            if self.needed:
                raise OutputError(error.errno, error.strerror) from error
        return memoryview(data).nbytes

    def _write(self, data: "ReadableBuffer") -> int:
        if not self.is_open:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        while (written := super().write(data)) is None:  # somebody else has made it non-blocking
            poll = select.poll()
            poll.register(self.fileno(), select.POLLOUT)
            poll.poll()
        return written


def set_up(*, needed: bool) -> None:
    """Make the streams of this process as the module promises; `needed`: stdout raises outside `only_telling`.

    To be called before any file is opened: descriptors 0, 1 and 2 that are closed become /dev/null, or the next file,
    such as a log, would become what all programs write their errors to. The first call counts; a stream that somebody
    has put in the place of Python's own stays.
    """
    global _output
    if _output is not None:
        return
    was_open = _occupy()
    if sys.stdout is sys.__stdout__:
        _output = _Descriptor(1, open_=was_open[1], needed=needed)
        sys.stdout = _text(_output, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Descriptor(2, open_=was_open[2], needed=False), sys.stderr)


def _occupy() -> list[bool]:
    """Open /dev/null in the place of each standard descriptor that is closed. Returns which were open."""
    was_open = []
    for number in range(3):
        try:
            os.fstat(number)
            was_open.append(True)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number is this one
            was_open.append(False)
    return was_open


def _text(raw: _Descriptor, before: TextIO | None) -> io.TextIOWrapper:
    codecs.register_error(_ERRORS, _readable)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before else "utf-8",
        errors=_ERRORS,
        line_buffering=raw.fileno() == 2 or raw.isatty(),
        write_through=getattr(before, "write_through", False),
    )


def _readable(error: UnicodeError) -> tuple[str | bytes, int]:
    """For one character that the encoding lacks: the byte of a path that is not UTF-8, plain ASCII, or an escape."""
    assert isinstance(error, UnicodeEncodeError)
    character, end = error.object[error.start], error.start + 1
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), end
    if "\u2800" <= character <= "\u28ff":  # Braille: what turns round beside a live line
        return "*", end
    return _PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode(), end


@contextmanager
def only_telling(when: bool = True) -> Iterator[None]:
    """During the body, what cannot be written to stdout is dropped: the body does work, and only tells of it."""
    if _output is None or not when:
        yield
        return
    needed, _output.needed = _output.needed, False
    try:
        yield
        sys.stdout.flush()
    finally:
        _output.needed = needed


def why_unheard() -> str:
    """Why nothing can be read that is written to stdout, as far as that is known before; empty if it may be."""
    if _output is not None and not _output.is_open:
        return "it is closed"
    return "its reader has gone" if _reader_gone() else ""


def require_reader() -> None:
    """Raise ReaderGone if nobody reads stdout any more: for those who wait, and have nothing to write meanwhile."""
    if _reader_gone():
        raise ReaderGone(errno.EPIPE, os.strerror(errno.EPIPE))


def _reader_gone() -> bool:
    with suppress(OSError, ValueError):  # what somebody has put there need not have a descriptor
        output = select.poll()
        output.register(sys.stdout.fileno(), 0)
        return bool(output.poll(0))
    return False


def give_up_output() -> None:
    """Drop what is still to be written to stdout, which has failed: it would fail again when the program ends."""
    if _output is not None:
        _output.needed = False
