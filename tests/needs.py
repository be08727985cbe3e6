"""What some tests need of the machine, and a bare chroot or a container refuses: then they are skipped and say why."""

import os
import pty
import subprocess
from functools import cache

import pytest

_UNSHARE = ("unshare", "--mount", *(() if os.getuid() == 0 else ("--map-root-user",)))

INTO_USER = () if os.getuid() == 0 else ("--user", "--preserve-credentials")
"""What nsenter needs besides, for the namespaces of a process that `with_mounts` has started."""


def openpty() -> tuple[int, int]:
    """A terminal: the descriptors of its two sides."""
    try:
        return pty.openpty()
    except OSError as error:
        pytest.skip(f"there are no terminals here: {error}; is /dev/pts mounted?")


def with_mounts(script: str, *words: str, more: tuple[str, ...] = ()) -> list[str]:
    """A command that runs a shell script, with `words` as $0, $1 and so on, where its mounts are nobody else's.

    No root is needed, and no mount is left behind. `more`: further words for unshare.
    """
    if refusal := _refusal():
        pytest.skip(f"there are no mount namespaces here: {refusal}")
    return [*_UNSHARE, *more, "sh", "-c", script, *words]


@cache
def _refusal() -> str:
    """Why no tmpfs can be mounted in a mount namespace. Empty: one can."""
    command = [*_UNSHARE, "mount", "-t", "tmpfs", "none", "/proc"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"unshare ended with {done.returncode}"
