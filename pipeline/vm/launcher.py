"""The contract for whatever starts and stops a guest, and the rule how often a start is tried.

The five operations are those of `undercoat`'s launcher, and so is the rule that a failed start releases everything.
"""

import logging
import time
from collections.abc import Callable
from typing import BinaryIO, Protocol

from pipeline.errors import BootError
from pipeline.ssh.result import Result

log = logging.getLogger("topcoat")

KILL_LIMIT = 3.0
"""Seconds that `Launcher.kill` may take."""

ATTEMPTS_OF_HOST = 3
"""How many times a start is tried in all if its failure is the host's fault and may pass."""

_PAUSE = 1.0  # seconds, for a port, memory or a lock to become free


class GuestShell(Protocol):
    """Shell access to a guest that has been started."""

    def run(self, command: str, limit: float) -> Result:
        """Run a shell command for at most `limit` seconds, connecting first if need be.

        Raises ConnectError or CommandError.
        """

    def close(self) -> None:
        """Close the connection, if there is one. The next `run` connects again."""


class Launcher(Protocol):
    """Starts and stops one guest.

    Its operations may be called by another process than the one that started the guest; the shell that `start` returns
    belongs to that one.
    """

    def prepare(self) -> None:
        """Decide and check all that a start needs, without running anything. A second call does nothing.

        `start` does this too. Raises MissingResource, SettingsError or StoreError.
        """

    def start(self) -> GuestShell:
        """Start the guest and return when it is ready.

        If it fails, or is interrupted, nothing runs and nothing is left but logs. Raises AlreadyRunning, and BootError
        for a guest that did not become ready.
        """

    def is_running(self) -> bool:
        """Whether the very guest that was started still runs."""

    def kill(self) -> None:
        """End the guest, whatever its state, and release all that it holds but its logs, within KILL_LIMIT seconds.

        Does nothing if there is no guest. Raises StopError if it survives.
        """

    def get_logs(self, into: BinaryIO) -> None:
        """Copy all that is kept of the guest's serial log into a stream, also when the guest has ended.

        Raises StoreError if there is no log.
        """


def start(
    launcher: Launcher,
    of_guest: int = 1,
    of_host: int = ATTEMPTS_OF_HOST,
    pause: Callable[[float], object] = time.sleep,
) -> GuestShell:
    """Start a guest, in several attempts if one raises BootError.

    There are at most `of_guest` attempts in all; if the failure is transient, at most `of_host` if that is more, with a
    pause before each. Raises what the last attempt raised.
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
