#!/usr/bin/env -S python3 -I
"""The demo build's symbolizer: it adds functions and lines to the stack frames in a stream.

As a command it replaces Fuchsia's symbolizer, with the same arguments::

    symbolizer.py -llvm-symbolizer LLVM [-build-id-dir DIR]... <STREAM

A frame as AddressSanitizer writes it where there is no symbolizer, such as

    #1 0x55d3c0de1234  (/data/fuzz/example-fuzzers/x/pkg/x+0xc1234) (BuildId: 05…dd)

becomes `#1 0x55d3c0de1234 in FUNCTION FILE:LINE:COLUMN`, if DIR/05/…dd.debug exists and tells that. Where functions
were inlined, it becomes a frame for each of them, and the later frames of the stack are renumbered. All else passes
unchanged. Before it waits for more, it writes all that it has. It ends with 1 if LLVM fails, whatever is left in the
stream.

The file needs nothing but Python's own library, as callers start it by itself.
"""

import argparse
import json
import os
import posixpath
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

_CHUNK = 65536
_LONGEST_FRAME = 16384  # bytes; a longer line is no frame, and need not be kept until it ends
_LIMIT = 60.0  # seconds that LLVM may take for one frame; before the first it reads all debug information

_FRAME = re.compile(
    rb"(?P<indent>[ \t]*)#(?P<number>\d{1,6}) (?P<pc>0x[0-9a-f]{1,16}) .*"
    rb"(?P<where>\([^()]+\+(?P<offset>0x[0-9a-f]{1,16})\) \(BuildId: (?P<id>[0-9a-f]{4,64})\))[ \t]*(?P<end>\r?\n?)"
)


class Failed(Exception):
    """LLVM's program cannot be used; the text says why."""


class Llvm:
    """LLVM's llvm-symbolizer, started when it is needed."""

    def __init__(self, program: str, directories: list[Path]) -> None:
        self._program = program
        self._directories = directories
        self._opened: dict[tuple[int, int], int] = {}
        """For each directory in which something was found, by device and inode, an open descriptor."""
        self._process: subprocess.Popen[bytes] | None = None
        self.locate = cache(self._locate)

    def _locate(self, build_id: str, offset: str) -> tuple[tuple[str, str], ...]:
        """Function and place of the offset, the innermost inlined function first; nothing if no function is known."""
        path = self._unstripped(f"{build_id[:2]}/{build_id[2:]}.debug")
        if path is None:
            return ()
        answer = self._ask(f'CODE "{path}" {offset}\n')
        frames = [(str(symbol.get("FunctionName", "")), _place(symbol)) for symbol in answer.get("Symbol", ())]
        return tuple((function, place) for function, place in frames if function)

    def _unstripped(self, name: str) -> Path | None:
        for directory in self._directories:
            with suppress(OSError):  # the directory has just been replaced
                if (directory / name).exists():
                    return self._plain(directory) / name
        return None

    def _plain(self, directory: Path) -> Path:
        """A plain name of the directory for LLVM, which takes lines, and knows no escape for quotes in them."""
        facts = directory.stat()
        which = facts.st_dev, facts.st_ino
        if which not in self._opened:
            self._opened[which] = os.open(directory, os.O_PATH | os.O_CLOEXEC)
        return Path(f"/proc/{os.getpid()}/fd/{self._opened[which]}")

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


def _place(symbol: dict[str, Any]) -> str:
    """The place as FILE:LINE:COLUMN; nothing if the line is not known, as the file is a guess then."""
    name, line, column = symbol.get("FileName"), symbol.get("Line"), symbol.get("Column")
    if not name or not line:
        return ""
    return ":".join([posixpath.normpath(str(name)), str(line), *([str(column)] if column else [])])


class Stacks:
    """Puts names into the frames of a stream of lines."""

    def __init__(self, llvm: Llvm) -> None:
        self._llvm = llvm
        self._more = 0
        """The number of frames that inlined functions have added to this stack so far."""

    def named(self, line: bytes) -> bytes:
        """The line with names in it if it is a frame; it may become several lines. Raises Failed."""
        frame = _FRAME.fullmatch(line)
        if frame is None:
            return line
        number = int(frame["number"])
        if number == 0:
            self._more = 0
        number += self._more
        located = self._llvm.locate(frame["id"].decode(), frame["offset"].decode())
        self._more += max(len(located) - 1, 0)
        parts = [b"%b in %b%b" % (frame["pc"], _shown(at, frame), frame["end"]) for at in located]
        parts = parts or [line[frame.start("pc") :]]
        return b"".join(b"%b#%d %b" % (frame["indent"], number + at, part) for at, part in enumerate(parts))


def _shown(located: tuple[str, str], frame: re.Match[bytes]) -> bytes:
    function, place = located
    return b"%b %b" % (os.fsencode(function), os.fsencode(place) if place else frame["where"])


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
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns 0, or 1 after an error, which is one line on stderr."""
    options = _options(arguments)
    llvm = Llvm(options.llvm_symbolizer, options.directories)
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
