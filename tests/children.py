"""Processes that tests start, look at, and end."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.host.process import Process

LOCKS = {
    "POSIX": "fcntl.lockf(f, fcntl.LOCK_EX)",
    "OFD": "fcntl.fcntl(f, fcntl.F_OFD_SETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))",
    "flock": "fcntl.flock(f, fcntl.LOCK_EX)",
    "POSIX read": "fcntl.lockf(f, fcntl.LOCK_SH)",
    "none": "",
}
"""Ways to lock the whole of the open file `f`, as Python."""


@contextmanager
def child(*words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that ends when its stdin does; killed at the end."""
    with subprocess.Popen(words or ("cat",), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as popen:
        try:
            yield popen
        finally:
            popen.kill()


def found(popen: "subprocess.Popen[bytes]") -> Process:
    """The process, which lives."""
    process = Process.find(popen.pid)
    assert process is not None
    return process


@contextmanager
def holder(path: Path, lock: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has written its pid to `path` and holds a lock on it."""
    code = f"import fcntl, os, struct, sys\nf = open({str(path)!r}, 'w+')\n{LOCKS[lock]}\n"
    code += "f.write(f'{os.getpid()}\\n'); f.flush(); print('ready', flush=True); sys.stdin.read()"
    with child(sys.executable, "-c", code) as popen:
        assert popen.stdout is not None
        assert popen.stdout.readline() == b"ready\n"
        yield popen


@contextmanager
def helper(code: str, *arguments: str | Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A Python process that has run `code` up to its line "ready" and then waits for its end."""
    preface = "import sys, os\nfrom pathlib import Path\nfrom pipeline.host.locks import *\n"
    preface += "from pipeline.store.publish import *\ntarget = Path(sys.argv[1])\n"
    preface += "def ready():\n    print('ready', flush=True)\n    sys.stdin.read()\n"
    words = [sys.executable, "-c", preface + code, *map(str, arguments)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()
