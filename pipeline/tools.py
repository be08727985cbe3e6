"""Running the programs of the host that prepare images (`zbi`, `fvm`, `cp`, `apt-get`).

They run through `sh` in a session of their own, without a terminal, with captured output and a time limit; when the
limit passes or the caller is interrupted, the whole session is killed, grandchildren too.
"""

import os
import shlex
import shutil
import signal
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ToolFailed, ToolLied, ToolMissing, ToolTimeout
from pipeline.process import Process
from pipeline.text import tail

_KEPT = 256
"""Chunks of at most 4096 characters that are kept of each stream, so that a tool gone mad cannot fill the memory."""


@dataclass(frozen=True)
class Tool:
    """A host program: its name for people, and the words that start it."""

    name: str
    argv: tuple[str, ...]

    @classmethod
    def at(cls, name: str, path: Path) -> "Tool":
        """The program in the file `path`."""
        return cls(name, (str(path),))

    @classmethod
    def module(cls, name: str, module: str) -> "Tool":
        """One of Topcoat's own programs, run by this Python."""
        return cls(name, (sys.executable, "-m", module))

    @classmethod
    def in_path(cls, name: str, *, hint: str) -> "Tool":
        """The program `name` of PATH. Raises ToolMissing."""
        found = shutil.which(name)
        if found is None:
            raise ToolMissing(f"there is no program named {name} in PATH", hint=hint)
        return cls(name, (found,))


def run(tool: Tool, *arguments: str | Path, timeout: float, cwd: Path | None = None) -> str:
    """Run `tool` and return its standard output (its last 1 MiB).

    Raises ToolMissing, ToolFailed or ToolTimeout, each with the command line and the end of the tool's stderr.
    `timeout` is in seconds.
    """
    import sh  # 0.13 s to import, and most runs of Topcoat find nothing to prepare

    words = [*tool.argv[1:], *map(str, arguments)]
    line = shlex.join([tool.argv[0], *words])
    stdout: deque[str] = deque(maxlen=_KEPT)
    stderr: deque[str] = deque(maxlen=_KEPT)
    try:
        with open(os.devnull, "rb") as nothing:
            process = sh.Command(tool.argv[0])(
                *words,
                _bg=True,
                _bg_exc=False,
                _new_session=True,
                _in=nothing,
                _tty_in=False,
                _tty_out=False,
                _out=stdout.append,
                _err=stderr.append,
                _out_bufsize=4096,
                _err_bufsize=4096,
                _cwd=str(cwd) if cwd else None,
                _decode_errors="replace",
            )
    except (sh.CommandNotFound, OSError) as error:
        raise ToolMissing(
            f"{tool.name} cannot be run: {tool.argv[0]}",
            hint=f"is the file there, and executable? [build] {tool.name} = PATH names another one",
            detail=str(error),
        ) from error
    try:
        # sh's own limits poll, up to a second apart, and know nothing of grandchildren
        started = Process.find(process.pid)
        in_time = started is None or started.wait(timeout)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def evidence() -> str:
        return f"{line}\n{tail(''.join(stderr) or ''.join(stdout))}"

    if not in_time:
        raise ToolTimeout(
            f"{tool.name} did not end within {timeout:g} s and was killed",
            hint="if it only needs longer, raise [tools] timeout",
            detail=evidence(),
        )
    try:
        process.wait()
    except sh.ErrorReturnCode as error:
        how = f"by signal {-error.exit_code}" if error.exit_code < 0 else f"with exit code {error.exit_code}"
        raise ToolFailed(
            f"{tool.name} failed {how}",
            hint="its own words are above; run that command by hand to look closer",
            detail=evidence(),
        ) from None
    return "".join(stdout)


def require_output(tool: Tool, path: Path) -> None:
    """Raise ToolLied unless `tool` left a file with something in it at `path`."""
    if not path.is_file() or path.stat().st_size == 0:
        raise ToolLied(
            f"{tool.name} ended well but left no {path.name}" + (" (it is empty)" if path.exists() else ""),
            hint=f"is it the right program? {shlex.join(tool.argv)}",
        )
