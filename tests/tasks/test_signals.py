"""Signals that come at the worst moment."""

import subprocess
import sys
from pathlib import Path

BOTH = """
import os, signal, tasks
both = {signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, both)
for number in both:
    os.kill(os.getpid(), number)
try:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
finally:
    os.kill(os.getpid(), signal.SIGINT)
    print("cleaned up", flush=True)
"""


def test_both_at_once_end_it_cleanly_and_once(tmp_path: Path) -> None:
    """As when Ctrl-C reaches a worker together with the word of luigi's own process that it is to end."""
    done = subprocess.run([sys.executable, "-c", BOTH], cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (130, b"cleaned up\n")
    first, *rest = done.stderr.decode().splitlines()
    assert first == "error: interrupted by SIGINT; what was begun is cleaned up"
    assert rest == ["  hint: the same command again goes on"]
