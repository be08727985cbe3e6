#!/usr/bin/env -S python3 -I
"""The demo build's symbolizer: it adds functions and lines to the stack frames in a stream.

As a command it replaces Fuchsia's symbolizer, with the same arguments::

    symbolizer.py -llvm-symbolizer LLVM [-build-id-dir DIR]... [-module-dir GUEST=HOST]... <STREAM

A frame as the sanitizers and libFuzzer write it where there is no symbolizer, such as

    #1 0x55d3c0de1234  (/data/fuzz/example-fuzzers/x/pkg/x+0xc1234) (BuildId: 05…dd)

becomes `#1 0x55d3c0de1234 in FUNCTION FILE:LINE:COLUMN`, if DIR/05/…dd.debug exists and tells that. If no directory has
the build id, or the frame has none, as programs by upstream's clang, a module GUEST/NAME is looked up as HOST/NAME. A
file there that has another build id than the frame is another build's, and names nothing. Links are followed as long
as they stay in HOST: the module is the guest's own text, and tells of no other file.

Where functions were inlined, the frame becomes one for each of them, and the later frames of the stack are renumbered.
All else passes unchanged. Before it waits for more, it writes all that it has. It ends with 1 if LLVM fails, whatever
is left in the stream.

The file needs nothing but Python's own library, as callers start it by itself.
"""

import argparse
import json
import os
import posixpath
import re
import select
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

_CHUNK = 65536
_LONGEST_FRAME = 16384  # bytes; a longer line is no frame, and need not be kept until it ends
_LIMIT = 60.0  # seconds that LLVM may take for one frame; before the first it reads all debug information

_REMEMBERED = 16384  # answers of LLVM; a guest can make up frames without end
_MOST_OPEN = 256  # files and directories; they stay open, as LLVM takes a descriptor's number for the same file always
_LONGEST_PATH = 4096  # PATH_MAX of Linux
_MOST_NOTES = 65536  # bytes of a segment of notes that are read

_FRAME = re.compile(
    rb"(?P<indent>[ \t]*)#(?P<number>\d{1,6}) (?P<pc>0x[0-9a-f]{1,16}) (?P<head>.*)\+(?P<offset>0x[0-9a-f]{1,16})\)"
    rb"(?P<told> \(BuildId: (?P<id>[0-9a-f]{4,64})\))?[ \t]*(?P<end>\r?\n?)"
)
_ONLY_MODULE = b" (/"  # a second blank where the function would be: then the module's name may have brackets in it

# ELF of 64 bits, little-endian: the header up to e_phnum, a program header, and the header of a note
_ELF = struct.Struct("<4sBB26xQ14xHH")
_SEGMENT = struct.Struct("<I4xQ16xQ")
_NOTE = struct.Struct("<III")
_PT_NOTE, _NT_GNU_BUILD_ID = 4, 3


class Failed(Exception):
    """LLVM's program cannot be used; the text says why."""


class Unstripped:
    """Finds the files with symbols, in directories by build id and in directories with the files of the guest.

    Those are the pairs GUEST, which ends with a slash, and HOST.
    """

    def __init__(self, directories: list[Path], modules: list[tuple[bytes, Path]]) -> None:
        self._directories = directories
        self._modules = [(guest, _pinned(host)) for guest, host in modules]
        self._opened: dict[tuple[int, int], int] = {}
        """For each directory or file in which something was found, by device and inode, an open descriptor."""

    def find(self, module: bytes, build_id: str) -> Path | None:
        """A plain name of the file of a frame's module for LLVM. It takes lines, and knows no escape for quotes."""
        return (self._by_id(build_id) if build_id else None) or self._by_name(module, build_id)

    def _by_id(self, build_id: str) -> Path | None:
        name = f"{build_id[:2]}/{build_id[2:]}.debug"
        for directory in self._directories:
            with suppress(OSError):  # the directory has just been replaced
                if (directory / name).exists():
                    plain = self._plain(os.open(directory, os.O_PATH | os.O_CLOEXEC))
                    return plain and plain / name
        return None

    def _by_name(self, module: bytes, build_id: str) -> Path | None:
        if len(module) > _LONGEST_PATH or b"\0" in module:
            return None
        name = posixpath.normpath(module)
        for guest, host in self._modules:
            if name.startswith(guest):
                with suppress(OSError):  # there is no such file
                    descriptor = _opened_below(host, os.fsdecode(name.removeprefix(guest)))
                    if _is_of_build(descriptor, build_id):
                        return self._plain(descriptor)
                    os.close(descriptor)
        return None

    def _plain(self, descriptor: int) -> Path | None:
        """The name by which LLVM can open what the descriptor, which is kept or closed, has open; None for too many."""
        facts = os.fstat(descriptor)
        which = facts.st_dev, facts.st_ino
        if which in self._opened or len(self._opened) >= _MOST_OPEN:
            os.close(descriptor)
        else:
            self._opened[which] = descriptor
        return Path(f"/proc/{os.getpid()}/fd/{self._opened[which]}") if which in self._opened else None


def _pinned(directory: Path) -> Path:
    """The directory as it is now: if another one takes its place, that one has the files of another build."""
    with suppress(OSError):  # it is not there
        return Path(f"/proc/self/fd/{os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)}")
    return directory


def _opened_below(directory: Path, name: str) -> int:
    """Open a regular file below the directory, only as a place (O_PATH): nothing can wait for it. Raises OSError.

    Links are followed first. What has become a link since then is not.
    """
    root = Path(os.path.realpath(directory))
    real = Path(os.path.realpath(root / name))
    if not real.is_relative_to(root):
        raise FileNotFoundError(name)
    descriptor = os.open(root, os.O_PATH | os.O_CLOEXEC)
    for part in real.relative_to(root).parts:
        outer = descriptor
        try:
            descriptor = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=outer)
        finally:
            os.close(outer)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(name)
    return descriptor


def _is_of_build(descriptor: int, build_id: str) -> bool:
    """Whether an open file can be the one of which a frame told a build id: has that one, if the frame has any."""
    if not build_id:
        return True
    with suppress(OSError, ValueError, struct.error), open(f"/proc/self/fd/{descriptor}", "rb") as file:
        # Sanitizers print at most 32 bytes of it
        return any(found.hex()[: len(build_id)] == build_id for found in _build_ids(file))
    return False


def _build_ids(file: BinaryIO) -> Iterator[bytes]:
    """The build id, by the notes of an ELF file. Raises OSError, ValueError or struct.error for a broken one."""
    magic, bits, order, headers, size, count = _ELF.unpack(file.read(_ELF.size))
    if (magic, bits, order) != (b"\x7fELF", 2, 1):
        return
    for at in range(count):
        file.seek(headers + at * size)
        kind, start, length = _SEGMENT.unpack(file.read(_SEGMENT.size))
        if kind == _PT_NOTE:
            file.seek(start)
            yield from _ids_in_notes(file.read(min(length, _MOST_NOTES)))


def _ids_in_notes(notes: bytes) -> Iterator[bytes]:
    at = 0
    while at + _NOTE.size <= len(notes):
        name, length, kind = _NOTE.unpack_from(notes, at)
        start = at + _NOTE.size + _aligned(name)
        if kind == _NT_GNU_BUILD_ID and notes[at + _NOTE.size : start] == b"GNU\0":
            yield notes[start : start + length]
        at = start + _aligned(length)


def _aligned(size: int) -> int:
    return -(-size // 4) * 4


class Llvm:
    """LLVM's llvm-symbolizer, started when it is needed."""

    def __init__(self, program: str, unstripped: Unstripped) -> None:
        self._program = program
        self._unstripped = unstripped
        self._process: subprocess.Popen[bytes] | None = None
        self.locate = lru_cache(_REMEMBERED)(self._locate)

    def _locate(self, module: bytes, build_id: str, offset: str) -> tuple[tuple[str, str], ...]:
        """Function and place of the offset, the innermost inlined function first; nothing if no function is known."""
        path = self._unstripped.find(module, build_id)
        if path is None:
            return ()
        answer = self._ask(f'CODE "{path}" {offset}\n')
        frames = [(_one_line(symbol.get("FunctionName")), _place(symbol)) for symbol in answer.get("Symbol", ())]
        return tuple((function, place) for function, place in frames if function)

    def _ask(self, question: str) -> dict[str, Any]:
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(os.fsencode(question))
            answer = json.loads(self._answer(process))
        except BrokenPipeError:
            self._gone(process)
        except ValueError as error:
            raise Failed(f"{self._program} gave no JSON") from error
        return answer if isinstance(answer, dict) else {}

    def _start(self) -> subprocess.Popen[bytes]:
        words = [self._program, "--output-style=JSON", "--inlines", "--demangle"]
        try:
            self._process = subprocess.Popen(words, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise Failed(f"{self._program}: {error.strerror}") from error
        return self._process

    def _answer(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        answer = b""
        while not answer.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], _LIMIT)
            if not ready:
                raise Failed(f"{self._program} did not answer within {_LIMIT:g} s")
            data = os.read(process.stdout.fileno(), _CHUNK)
            if not data:
                self._gone(process)
            answer += data
        return answer

    def _gone(self, process: subprocess.Popen[bytes]) -> NoReturn:
        code = process.wait()
        raise Failed(f"{self._program} " + (f"was ended by signal {-code}" if code < 0 else f"ended with {code}"))

    def close(self) -> None:
        """End the program, if it runs."""
        if self._process:
            self._process.kill()
            self._process.wait()


def _one_line(name: object) -> str:
    """A name without newlines: clang's names for the reasons of traps are whole messages, which end with one."""
    return " ".join(str(name or "").split())


def _place(symbol: dict[str, Any]) -> str:
    """The place as FILE:LINE:COLUMN; nothing if the line is not known, as the file is a guess then."""
    name, line, column = symbol.get("FileName"), symbol.get("Line"), symbol.get("Column")
    if not name or not line:
        return ""
    return ":".join([posixpath.normpath(_one_line(name)), str(line), *([str(column)] if column else [])])


class Stacks:
    """Puts names into the frames of a stream of lines."""

    def __init__(self, llvm: Llvm) -> None:
        self._llvm = llvm
        self._more = 0
        """The number of frames that inlined functions have added to this stack so far."""

    def named(self, line: bytes) -> bytes:
        """The line with names in it if it is a frame; it may become several lines. Raises Failed."""
        frame = _FRAME.fullmatch(line)
        module = frame and _module(frame["head"])
        if not (frame and module):
            return line
        number = int(frame["number"])
        if number == 0:
            self._more = 0
        number += self._more
        located = self._llvm.locate(module, (frame["id"] or b"").decode(), frame["offset"].decode())
        self._more += max(len(located) - 1, 0)
        where = b"(%b+%b)%b" % (module, frame["offset"], frame["told"] or b"")
        parts = [b"%b in %b%b" % (frame["pc"], _shown(at, where), frame["end"]) for at in located]
        parts = parts or [line[frame.start("pc") :]]
        return b"".join(b"%b#%d %b" % (frame["indent"], number + at, part) for at, part in enumerate(parts))


def _module(head: bytes) -> bytes:
    """The module at the end of what stands between a frame's address and the offset in the module; empty if none is."""
    if head.startswith(_ONLY_MODULE):
        return head[len(_ONLY_MODULE) - 1 :]
    module = head[head.rfind(b"(") + 1 :] if b"(" in head else b""
    return b"" if b")" in module else module


def _shown(located: tuple[str, str], where: bytes) -> bytes:
    function, place = located
    return b"%b %b" % (os.fsencode(function), os.fsencode(place) if place else where)


def lines(stream: int) -> Iterator[tuple[bytes, bool]]:
    """The lines of a stream, with their ends, each with whether it is whole: a long line comes in parts, which are not.

    An empty part comes before each wait for more.
    """
    held, whole = b"", True
    while True:
        if not select.select([stream], [], [], 0)[0]:
            yield b"", False
        data = os.read(stream, _CHUNK)
        *complete, held = (held + data).split(b"\n")
        for line in complete:
            yield line + b"\n", whole and len(line) <= _LONGEST_FRAME
            whole = True
        if len(held) > _LONGEST_FRAME or (held and not data):
            yield held, whole and not data
            held, whole = b"", False
        if not data:
            return


def symbolize(llvm: Llvm, stream: int, output: int) -> None:
    """Copy the stream to the output, with names in its frames. Raises Failed, and OSError of stream or output."""
    stacks, pending = Stacks(llvm), bytearray()
    for line, whole in lines(stream):
        pending += stacks.named(line) if whole else line
        if not line or len(pending) > _CHUNK:
            _write(output, pending)
            pending.clear()
    _write(output, pending)


def _write(output: int, data: bytearray) -> None:
    rest = bytes(data)
    while rest:
        rest = rest[os.write(output, rest) :]


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="symbolizer", allow_abbrev=False, description="Name the frames of a stream.")
    # Go's flags may have one dash or two
    parser.add_argument("-llvm-symbolizer", "--llvm-symbolizer", required=True, metavar="LLVM")
    parser.add_argument(
        "-build-id-dir", "--build-id-dir", action="append", default=[], type=Path, metavar="DIR", dest="directories"
    )
    parser.add_argument(
        "-module-dir", "--module-dir", action="append", default=[], type=_pair, metavar="GUEST=HOST", dest="modules"
    )
    return parser.parse_args(arguments)


def _pair(text: str) -> tuple[bytes, Path]:
    guest, _, host = text.partition("=")
    if not (guest.startswith("/") and host):
        raise argparse.ArgumentTypeError(f"{text!r} is not GUEST=HOST, of which GUEST begins with /")
    return os.fsencode(posixpath.join(posixpath.normpath(guest), "")), Path(host)


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns 0, or 1 after an error, which is one line on stderr."""
    options = _options(arguments)
    llvm = Llvm(options.llvm_symbolizer, Unstripped(options.directories, options.modules))
    try:
        symbolize(llvm, sys.stdin.fileno(), sys.stdout.fileno())
    except (Failed, OSError) as error:
        with suppress(OSError):
            print(f"symbolizer: {error}", file=sys.stderr)
        return 1
    finally:
        llvm.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
