"""Namespaces in which commands can harm nobody: they see no process of the host's, and can write to one directory.

What the tests have a server run includes what attackers have thought of, and runs as root in many places.
"""

import subprocess
import threading
from contextlib import suppress
from pathlib import Path

from tests import needs
from tests.waiting import SOON

# Its own /dev, without disks; all else becomes read-only but for "$0". It ends with its stdin
_SETUP = """
set -e
cd /
[ "$0" = / ] || mount --bind "$0" "$0"
dev=$(mktemp -d)
mount -t tmpfs dev "$dev"
for node in null zero full random urandom; do
    touch "$dev/$node"
    mount --bind "/dev/$node" "$dev/$node"
done
ln -s /proc/self/fd "$dev/fd"
mount --move "$dev" /dev
rmdir "$dev"
while read -r _ _ _ _ at _; do
    case $at in "${0%/}" | /dev | /dev/* | /proc | /proc/* | /sys | /sys/*) continue ;; esac
    mount -o remount,bind,ro "$at"
done </proc/self/mountinfo
echo ready
exec cat
"""


class CageClosed(Exception):
    """The cage was closed meanwhile."""


class Cage:
    """Made when it is first needed; all its commands see each other. `close` ends what is left of them.

    They can write to the directory `writable`; to nothing if that is the root.
    """

    def __init__(self, writable: Path) -> None:
        self._writable = writable
        self._holder: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = False

    def words(self, command: bytes, directory: Path) -> list[str | bytes]:
        """What runs a shell command in it, in this directory. Raises CageClosed."""
        try:
            first = self._first()
        except (OSError, ValueError):
            if self._closed:
                raise CageClosed from None
            raise
        enter = ["nsenter", "--target", str(first), "--mount", "--root", "--wd", "--pid", *needs.INTO_USER]
        # Without capabilities: root could make all writable again, and disks
        without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
        return [*enter, *without, "sh", "-c", 'cd "$0" && exec sh -c "$1"', str(directory), command]

    def _first(self) -> int:
        """The process that holds the namespaces."""
        with self._lock:
            if self._closed:  # a command may come late
                raise CageClosed
            if self._holder is None:
                pipe = subprocess.PIPE
                processes = ("--pid", "--fork", "--kill-child", "--mount-proc")
                words = needs.with_mounts(_SETUP, str(self._writable), more=processes)
                self._holder = subprocess.Popen(words, stdin=pipe, stdout=pipe)
                assert self._holder.stdout
                if self._holder.stdout.readline() != b"ready\n":
                    raise OSError("the namespaces could not be made")
        return int(Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text())

    def close(self) -> None:
        """End everything that runs in it."""
        with self._lock:
            self._closed = True
        if self._holder is not None:
            with suppress(ProcessLookupError):
                self._holder.kill()
            self._holder.communicate(timeout=SOON)
