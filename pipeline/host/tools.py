"""Running host programs that prepare images (`zbi`, `fvm`, `cp`, `apt-get`).

They run through the library `sh`, in a session of their own, without a terminal, with captured output and a time limit.
When the limit passes or the caller is interrupted, the whole process group is killed, grandchildren too.
"""

import codecs
import errno
import os
import shlex
import shutil
import signal
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from pipeline.errors import ToolFailed, ToolLied, ToolMissing, ToolTimeout
from pipeline.host import interrupt
from pipeline.host.faults import hint_for
from pipeline.host.process import Process, die_with_parent
from pipeline.host.resources import NOEXEC_HINT, is_noexec
from pipeline.text.printable import tail

if TYPE_CHECKING:
    from sh import RunningCommand

_FULL = os.strerror(errno.ENOSPC)
_CANNOT_EXECUTE = 126
_CODEC = "topcoat_arguments"
_KEPT = 256
"""How many chunks of 4096 bytes are kept of each stream: a tool that writes without end cannot fill the memory."""


@dataclass(frozen=True)
class Tool:
    """A host program."""

    name: str
    """The name for people."""
    argv: tuple[str, ...]
    """The words that start the program, without further arguments."""
    files: tuple[Path, ...]
    """The files that make up the program: if their content changes, it counts as another one."""
    own: bool = False
    """Whether the program is one of Topcoat's, not one of the build or the host."""

    @classmethod
    def at(cls, name: str, path: Path) -> "Tool":
        """The program in the file `path`."""
        return cls(name, (str(path),), (path,))

    @classmethod
    def module(cls, name: str, module: str) -> "Tool":
        """One of Topcoat's own programs: a module or package that this Python runs with -m."""
        found = find_spec(module)
        assert found is not None
        assert found.origin is not None
        origin = Path(found.origin)
        files = sorted(origin.parent.glob("*.py")) if found.submodule_search_locations else [origin]
        return cls(name, (sys.executable, "-m", module), tuple(files), own=True)

    @classmethod
    def in_path(cls, name: str, *, hint: str) -> "Tool":
        """The program `name` found in PATH. Raises ToolMissing, with the hint, if there is none."""
        found = shutil.which(name)
        if found is None:
            raise ToolMissing(f"there is no program named {name} in PATH", hint=hint)
        return cls(name, (found,), (Path(found),))


def run(tool: Tool, *arguments: str | PurePath, timeout: float, cwd: Path | None = None) -> str:
    """Run `tool` and return its standard output (its last 1 MiB).

    Raises ToolMissing, ToolFailed or ToolTimeout, each with the command line and the end of the tool's stderr.
    `timeout` is in seconds.
    """
    import sh  # 0.13 s to import, and most runs of Topcoat find nothing to prepare

    words = [*tool.argv[1:], *map(str, arguments)]
    said = _Said(shlex.join([tool.argv[0], *words]))
    with _running(tool, words, cwd, said) as process:
        # sh's own limits poll, up to a second apart, and know nothing of grandchildren
        started = Process.find(process.pid)
        in_time = started is None or started.wait(timeout)
    code = 0
    try:
        process.wait()  # only after this has all its output been read
    except sh.ErrorReturnCode as error:
        code = error.exit_code
    if not in_time:
        raise ToolTimeout(
            f"{tool.name} did not end within {timeout:g} s and was killed",
            hint="if it only needs longer, raise [tools] timeout",
            detail=said.evidence(),
        )
    if code == _CANNOT_EXECUTE:  # a shell says so, such as that of a wrapper script
        _require_exec(tool, said.evidence())
    if code != 0:
        failure = ToolFailed(
            f"{tool.name} failed " + (f"by signal {-code}" if code < 0 else f"with exit code {code}"),
            hint=hint_for(errno.ENOSPC) if _FULL in said.evidence() else "run that command by hand to look closer",
            detail=said.evidence(),
        )
        failure.code = code
        raise failure
    return "".join(said.stdout)


class _Said:
    """A command line and the end of its output."""

    def __init__(self, line: str) -> None:
        self.line = line
        self.stdout: deque[str] = deque(maxlen=_KEPT)
        self.stderr: deque[str] = deque(maxlen=_KEPT)

    def evidence(self) -> str:
        return f"{self.line}\n{tail(''.join(self.stderr) or ''.join(self.stdout))}"


@contextmanager
def _running(tool: Tool, words: list[str], cwd: Path | None, said: _Said) -> "Iterator[RunningCommand]":
    """Start the tool for the body; afterwards its whole process group is killed, whatever happened."""
    process = None
    try:
        with interrupt.deferred():
            process = _start(tool, words, cwd, said)
        yield process
    finally:
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _start(tool: Tool, words: list[str], cwd: Path | None, said: _Said) -> "RunningCommand":
    import sh

    try:
        with open(os.devnull, "rb") as nothing:
            return sh.Command(tool.argv[0])(
                *words,
                _bg=True,
                _bg_exc=False,
                _new_session=True,
                _in=nothing,
                _tty_in=False,
                _tty_out=False,
                _out=said.stdout.append,
                _err=said.stderr.append,
                _out_bufsize=4096,
                _err_bufsize=4096,
                _cwd=str(cwd) if cwd else None,
                _preexec_fn=die_with_parent(),
                _encoding=_CODEC,
                _decode_errors="replace",
            )
    except (sh.CommandNotFound, sh.ForkException, OSError, ValueError) as error:
        _require_exec(tool, tail(str(error), 1))
        raise ToolMissing(
            f"{tool.name} cannot be run: {tool.argv[0]}",
            hint=f"is the file there, and executable? [build] {tool.name} = PATH names another one",
            detail=tail(str(error), 1),
        ) from error


def _require_exec(tool: Tool, evidence: str) -> None:
    """Raise ToolMissing if a file of the tool is on a file system mounted noexec; for after the tool has failed."""
    for file in tool.files:
        if is_noexec(file):
            raise ToolMissing(
                f"{tool.name} cannot be run: the file system of {file} is mounted noexec",
                hint=NOEXEC_HINT,
                detail=evidence,
            )


def _codec(name: str) -> codecs.CodecInfo | None:
    """The codec that decodes as UTF-8 and encodes by os.fsencode: sh by itself refuses paths that are not UTF-8."""
    if name != _CODEC:
        return None
    return codecs.CodecInfo(
        lambda text, errors="strict": (os.fsencode(text), len(text)), codecs.lookup("utf-8").decode, name=_CODEC
    )


codecs.register(_codec)


def require_output(tool: Tool, path: Path) -> None:
    """Raise ToolLied unless `tool` left a file with something in it at `path`."""
    if not path.is_file() or path.stat().st_size == 0:
        raise ToolLied(
            f"{tool.name} ended well but left no {path.name}" + (" (it is empty)" if path.exists() else ""),
            hint=f"is it the right program? {shlex.join(tool.argv)}",
        )
