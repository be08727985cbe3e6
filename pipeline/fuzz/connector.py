"""The way into a guest, as far as a fuzzer needs it. pipeline.ssh.connector provides it."""

from pathlib import Path
from typing import Protocol


class CommandStream(Protocol):
    """The output of a command, as a binary file; `io.BufferedReader` has these methods."""

    def read1(self, size: int, /) -> bytes:
        """Return what there is, at most `size` bytes, as soon as there is any; nothing at the end."""

    def close(self) -> None:
        """Give the stream up. May be called by another thread than `read1`, which then returns or raises."""


class GuestCommand(Protocol):
    """A command in the guest, which is made first and started later."""

    def start(self) -> object:
        """Start the command. Raises ConnectError or CommandError."""

    def stdout(self) -> CommandStream:
        """Return its stdout as a stream. To be called before `start`; output that nobody asks for is dropped."""

    def stderr(self) -> CommandStream:
        """Return its stderr as a stream, like `stdout`; if nobody asks for it, its end is kept for the error."""

    def wait(self, limit: float | None = None) -> None:
        """Wait for its end, at most `limit` seconds; then it is ended.

        Raises CommandExited for an exit status other than 0, CommandTimeout at the limit, and CommandError if nobody
        knows how it ended.
        """

    def kill(self) -> object:
        """Kill the command. Does no harm if it has ended."""

    def run(self, limit: float | None = None) -> None:
        """Start the command, and wait for its end as `wait` does."""

    def output(self, limit: float | None = None) -> bytes:
        """Start the command, wait for its end as `wait` does, and return what it has written."""


class GuestConnector(Protocol):
    """A way into a guest: it runs commands there, and copies files in both directions."""

    def command(self, *words: str, shell: bool = False) -> GuestCommand:
        """Make a command of these words, which arrive as they are; with `shell`, of a line for the guest's shell."""

    def syslog(self, pid: int) -> bytes:
        """Return what the guest's system log has of the process with this pid."""

    def put(self, source: str, target: str) -> object:
        """Copy what matches `source` on the host into the directory `target` of the guest."""

    def get(self, source: str, target: Path) -> object:
        """Copy what matches `source` in the guest into the directory `target` of the host."""

    def rmdir(self, path: str) -> object:
        """Delete a directory of the guest with all that is in it."""
