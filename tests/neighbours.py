"""Another user of the host, as which only root can run anything."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

OTHER = 65534
"""Debian's nobody."""

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can run something as another user")


def command(script: str, *words: str, user: int = OTHER) -> list[str]:
    """A command that runs this Python as another user, who has none of root's groups and rights."""
    # Once it is another user, it may not be able to import anything
    become = f"import fcntl, os, socket, sys; os.setgroups([]); os.setgid({user}); os.setuid({user})\n"
    return [sys.executable, "-c", (become if os.getuid() == 0 else "import fcntl, os, socket, sys\n") + script, *words]


def run(script: str, *words: str) -> str:
    """Run this Python as another user; the last line of what it says."""
    done = subprocess.run(command(script, *words), capture_output=True, text=True, timeout=60, check=False)
    return (done.stdout + done.stderr).strip().rpartition("\n")[2]


@contextmanager
def commons() -> Iterator[Path]:
    """A directory of ours that others can look into, which those of pytest are not."""
    made = Path(tempfile.mkdtemp(prefix="topcoat-test-", dir="/tmp"))
    try:
        made.chmod(0o755)
        yield made
    finally:
        shutil.rmtree(made)
