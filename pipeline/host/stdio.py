"""The standard streams of Topcoat's programs, set up so that output that cannot be written does not stop the work.

Writing can fail: the reader of a pipe has gone, the disk is full, a descriptor was closed before the program began, the
encoding lacks a character. stderr never raises: what cannot be written there is dropped. stdout raises where its text
is what the user asked for; inside `only_telling`, where the program does work, it drops text as stderr does.
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
"""The characters beyond ASCII that Topcoat prints, and their replacements where the encoding lacks them."""

_output: "_Descriptor | None" = None


class ReaderGone(BrokenPipeError):
    """stdout is a pipe whose reader, such as head, has seen enough."""


class OutputError(OSError):
    """stdout cannot be written for another reason than that its reader has gone."""

    def explained(self) -> StoreError:
        """The error to show to a person, with a hint."""
        return StoreError(
            f"stdout cannot be written: {self.strerror}",
            hint="give it a file on a disk with space, a pipe, or a terminal",
        )


class _Descriptor(io.FileIO):
    """A standard stream for writing; if it is not `needed`, what cannot be written is dropped."""

    def __init__(self, number: int, *, open_: bool, needed: bool) -> None:
        super().__init__(number, "wb", closefd=False)
        self.is_open = open_
        self.needed = needed

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write, and return how many bytes count as written. Raises ReaderGone or OutputError if it is `needed`."""
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
        while (written := super().write(data)) is None:  # a process that shares it has made it non-blocking
            poll = select.poll()
            poll.register(self.fileno(), select.POLLOUT)
            poll.poll()
        return written


def set_up(*, needed: bool) -> None:
    """Set up the standard streams of this process as the module promises.

    With `needed`, stdout raises outside `only_telling`. Must be called before any file is opened: closed descriptors
    among 0, 1 and 2 become /dev/null, for else the next file that is opened, such as a log, would get what programs
    write to them. Only the first call has an effect; streams that are not Python's original ones are left alone.
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
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number, which is this one
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
    """Replace one character that the encoding lacks by the raw byte of a path, by plain ASCII, or by an escape.

    It is a handler for codecs.register_error.
    """
    assert isinstance(error, UnicodeEncodeError)
    character, end = error.object[error.start], error.start + 1
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), end
    if "\u2800" <= character <= "\u28ff":  # Braille: the spinner beside a live line
        return "*", end
    return _PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode(), end


@contextmanager
def only_telling(when: bool = True) -> Iterator[None]:
    """Drop what cannot be written to stdout during the body, which does work and only reports on it.

    Does nothing if `when` is false.
    """
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
    """Why nobody can read what is written to stdout, as far as that is known beforehand; "" if somebody may."""
    if _output is not None and not _output.is_open:
        return "it is closed"
    return "its reader has gone" if _reader_gone() else ""


def require_reader() -> None:
    """Raise ReaderGone if nobody reads stdout any more; for programs that wait and write nothing meanwhile."""
    if _reader_gone():
        raise ReaderGone(errno.EPIPE, os.strerror(errno.EPIPE))


def _reader_gone() -> bool:
    with suppress(OSError, ValueError):  # a replaced sys.stdout need not have a descriptor
        output = select.poll()
        output.register(sys.stdout.fileno(), 0)
        return bool(output.poll(0))
    return False


def give_up_output() -> None:
    """Drop what is still buffered for stdout, after a failure: it would fail again when the program ends."""
    if _output is not None:
        _output.needed = False
