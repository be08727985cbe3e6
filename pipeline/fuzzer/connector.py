"""What a fuzzer needs of the way into its guest."""

from pathlib import Path
from typing import Protocol


class CommandStream(Protocol):
    """What a command writes, as a binary file; `io.BufferedReader` has these."""

    def read1(self, size: int, /) -> bytes:
        """What there is, at most `size` bytes, as soon as there is any; none at the end."""

    def close(self) -> None:
        """Nobody wants any more of it. May come from another thread than `read1`, which then returns or raises."""


class Command(Protocol):
    """A command in the guest, made and not yet started."""

    def start(self) -> object:
        """Start it. Raises ConnectError or CommandError."""

    def stdout(self) -> CommandStream:
        """The stream of its output. To be asked for before `start`; a stream that is not asked for is collected."""

    def stderr(self) -> CommandStream:
        """The stream of its error output, likewise."""

    def wait(self, limit: float | None = None) -> None:
        """Wait for its end. Raises CommandExited unless it exited with 0, CommandError if its end is not known."""

    def kill(self) -> object:
        """Kill it. Does no harm if it has ended."""

    def run(self, limit: float | None = None) -> None:
        """Start it and wait for its end."""

    def output(self, limit: float | None = None) -> bytes:
        """The same, and what it has written."""


class Connector(Protocol):
    """The way into a guest."""

    def command(self, *words: str, shell: bool = False) -> Command:
        """A command of these words, as they are; or one word that is a line for the guest's shell."""

    def syslog(self, pid: int) -> bytes:
        """What the guest's system log has of this process."""

    def put(self, source: str, target: str) -> object:
        """Copy what matches `source` on the host into the directory `target` of the guest."""

    def get(self, source: str, target: Path) -> object:
        """Copy what matches `source` in the guest into the directory `target` of the host."""

    def rmdir(self, path: str) -> object:
        """Delete a directory of the guest with all that is in it."""
