"""What starts and stops a guest, whatever runs it: the contract, and how often a start is tried.

The five operations are those of `undercoat`'s launcher, and so is the rule that a failed start releases everything.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from pipeline.errors import BootError

log = logging.getLogger("topcoat")

KILL_LIMIT = 3.0
"""Seconds that `Launcher.kill` may take."""

ATTEMPTS_OF_HOST = 3
"""How often a start is tried whose failure was the host's and may pass."""

_PAUSE = 1.0  # for a port, memory or a lock to become free


@dataclass(frozen=True)
class Result:
    """What a command in a guest left: its exit status and what it wrote."""

    status: int
    stdout: bytes
    stderr: bytes


class Connector(Protocol):
    """The way into a guest that has been started."""

    def run(self, command: str, limit: float) -> Result:
        """Run a shell command, connecting first if need be. Raises ConnectError or CommandError."""

    def close(self) -> None:
        """Close the connection, if there is one. The next `run` connects again."""


class Launcher(Protocol):
    """One guest. All of it can be called by another process than the one that started it, but for the connector."""

    def prepare(self) -> None:
        """Decide and check all that a start needs, and make nothing run. Does nothing the second time.

        `start` does it too. Raises MissingResource, SettingsError or StoreError.
        """

    def start(self) -> Connector:
        """Start the guest and return when it is ready.

        If it fails, or is interrupted, nothing runs and nothing is left but logs. Raises AlreadyRunning, and BootError
        for a guest that did not become ready.
        """

    def is_running(self) -> bool:
        """Whether the very guest that was started still runs."""

    def kill(self) -> None:
        """End the guest, however it is, and release all that it holds but its logs: within KILL_LIMIT seconds.

        Does nothing if there is none. Raises StopError if it survives.
        """

    def get_logs(self, into: BinaryIO) -> None:
        """Copy all that is kept of the guest's serial log, also when it has ended.

        Raises StoreError if there is none.
        """


def start(
    launcher: Launcher,
    of_guest: int = 1,
    of_host: int = ATTEMPTS_OF_HOST,
    pause: Callable[[float], object] = time.sleep,
) -> Connector:
    """Start a guest, again if it fails by the host's fault and that may pass, or by any fault `of_guest` times.

    Raises what the last attempt raised.
    """
    attempt = 1
    while True:
        try:
            return launcher.start()
        except BootError as error:
            if attempt >= (max(of_host, of_guest) if error.transient else of_guest):
                raise
            log.warning("attempt %d failed, trying again: %s", attempt, error)
            if error.transient:
                pause(_PAUSE)
        attempt += 1
