"""The way into a guest: connects when it is first needed, and offers commands and file transfers."""

import os
import shlex
import shutil
import tempfile
import threading
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.deadline import Deadline
from pipeline.errors import ConnectError, KeyGone, KeyRefused, WrongServer
from pipeline.faults import host_faults
from pipeline.instance import SSH
from pipeline.launcher import Result
from pipeline.settings import Timeouts
from pipeline.ssh.command import Command
from pipeline.ssh.connection import Connection, connect
from pipeline.ssh.landing import Limits
from pipeline.ssh.sftp import Sftp
from pipeline.ssh.transfer import Transfer

PREFIX = "undercoat-ffx-cache-"
"""How the names of temporary directories begin; the original's, as others clean up after it by name."""

_SYSLOG = 60.0
_SMALL = 60.0  # for what does next to nothing, in a guest that is busy


@dataclass(frozen=True)
class Retries:
    """How often a guest that does not answer is tried."""

    attempts: int = 6
    pause: float = 15.0
    """Seconds between two attempts."""
    limit: float = 180.0
    """Seconds for all of it. No attempt and no pause goes on for longer."""


class Connector:
    """A way into a guest that connects when it is first needed. See pipeline.launcher.Connector.

    Everything that needs the guest raises ConnectError if it does not answer after all retries, with the last cause,
    and at once KeyGone, KeyRefused and WrongServer, for which retries are of no use, and SettingsError for a key that
    cannot be read. A connection that has broken is made anew by what comes next. Several threads can use a connector
    at once; `close` from one of them ends the waiting of all.

    `temporary` is a directory that belongs to the connector, made at the first connect unless given. It stays until
    `cleanup`; `keep_files` is False for who needs none.
    """

    def __init__(
        self,
        address: SSH,
        timeouts: Timeouts,
        retries: Retries | None = None,
        limits: Limits | None = None,
        temporary: Path | None = None,
        *,
        keep_files: bool = False,
    ) -> None:
        self.address = address
        self.temporary = temporary
        self._timeouts = timeouts
        self._retries = retries or Retries()
        self._limits = limits or Limits()
        self._keep_files = keep_files
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._open = ExitStack()
        self._connection: Connection | None = None
        self._interrupted = False

    def connected(self) -> Connection:
        """The connection, made if there is none that lives."""
        with self._lock:
            if self._connection is None or self._interrupted or not self._connection.alive:
                self._disconnect()
                self._interrupted = False
                if self.temporary is None and self._keep_files:
                    self.temporary = _temporary()
                self._connection = self._persistently(Deadline(self._retries.limit))
            return self._connection

    def _persistently(self, deadline: Deadline) -> Connection:
        for attempt in range(1, self._retries.attempts + 1):
            try:
                return self._open.enter_context(connect(self.address, self._timeouts, max(0.001, deadline.remaining)))
            except (KeyGone, KeyRefused, WrongServer):
                raise
            except ConnectError as error:
                last = error
            if attempt < self._retries.attempts and not deadline.expired:
                self._closing.wait(deadline.within(self._retries.pause))
            if deadline.expired or self._closing.is_set():
                break
        how = "was closed" if self._closing.is_set() else f"gave up after {deadline.elapsed:.1f} s"
        raise ConnectError(
            f"error connecting ssh: {last}; {how}, at attempt {attempt} of {self._retries.attempts}",
            stage=last.stage,
            hint=last.hint,
            detail=last.detail,
        ) from last

    def run(self, command: str, limit: float) -> Result:
        """See pipeline.launcher.Connector. Connecting has limits of its own."""
        with self._left_at_interrupts():
            return self.connected().run(command, limit)

    def command(self, *words: str, shell: bool = False) -> Command:
        """A command for the guest, not started yet. Its words arrive as they are.

        With `shell` they are joined by blanks and the guest's shell reads the line: its globs, its variables, its `|`.
        """
        return Command(self.connected, " ".join(words) if shell else shlex.join(words))

    def put(self, source: str, target: str) -> None:
        """Copy what the pattern `source` finds on the host into the directory `target` in the guest.

        The pattern is pipeline.goglob's. `target` and its parents are made if needed. A file arrives as target/NAME, a
        directory as target/NAME with all that is in it, empty directories too; of "directory/" only what is in it. What
        is there already is kept or overwritten. Links to files arrive as files; links to directories and what is
        neither file nor directory are left out, with a warning. Files have the mode 0644, directories 0755.

        Raises NoMatch, UsageError for a bad pattern, StoreError if something cannot be read, CommandError if the guest
        does not take it, and CommandTimeout if nothing goes on for Limits.stall seconds. What has arrived stays.
        """
        with self._left_at_interrupts():
            self._transfer().put(source, target)

    def get(self, source: str, directory: Path) -> None:
        """Copy what the pattern `source` finds in the guest into the directory on the host, which must be there.

        A file arrives as directory/NAME, a directory as directory/NAME with all that is in it, empty directories too.
        Directories are merged with what is there, files replaced, each at once when it is complete; none is left half.
        Files named .live_corpus are left out. Links to files arrive as files; links to directories and what is neither
        file nor directory are left out, with a warning.

        Whatever the guest says, nothing outside of the directory is touched, no link in it is followed, and no more
        is written than Limits say: TransferRefused. Raises NoMatch, UsageError for a bad pattern, a destination that
        is no directory or where something else is in the way, StoreError if the host cannot store it, CommandError
        and CommandTimeout as `put`. What has arrived stays.
        """
        with self._left_at_interrupts():
            self._transfer().get(source, directory)

    def sizes(self, directory: str) -> dict[str, int]:
        """The sizes of the files that are in the directory in the guest, by their names; none if there is no such one.

        The guest says so: a file need not be as large when it comes. Raises CommandError and CommandTimeout.
        """
        return self._transfer().sizes(directory)

    def fetch(self, directory: str, names: Collection[str], target: Path) -> None:
        """Copy the files with these names in a directory of the guest into `target` on the host, as `get` does.

        What has gone meanwhile is left out, without a warning: a fuzzer replaces its units all the time. `target` holds
        no other files.
        """
        self._transfer().fetch(directory, names, target)

    @contextmanager
    def _left_at_interrupts(self) -> Iterator[None]:
        """Ctrl-C can come when paramiko has just taken a lock, which nobody releases then: the connection is left."""
        try:
            yield
        except KeyboardInterrupt:
            self._interrupted = True
            raise

    def _transfer(self) -> Transfer:
        return Transfer(self.connected(), self.command, self._limits)

    def isdir(self, path: str) -> bool:
        """Whether there is a directory at the path in the guest. A link counts as what it leads to."""
        with Sftp(self.connected(), self._limits) as sftp:
            found = sftp.stat(path)
            return found is not None and found.directory

    def rmdir(self, path: str) -> None:
        """Remove the directory in the guest and all that is in it; nothing happens if it is not there."""
        self.command("rm", "-rf", f"./{path}" if path.startswith("-") else path).run(_SMALL)

    def syslog(self, pid: int) -> bytes:
        """What a Fuchsia guest's log has of this process, while another command may run."""
        return self.command("log_listener", "--dump_logs", "--pid", str(pid)).output(_SYSLOG)

    def close(self) -> None:
        """See pipeline.launcher.Connector."""
        self._closing.set()
        with self._lock:
            self._closing.clear()
            self._disconnect()

    def _disconnect(self) -> None:
        self._connection = None
        self._open.close()

    def cleanup(self) -> None:
        """Close, and remove the temporary directory. Raises StoreError if that cannot be done."""
        self.close()
        if self.temporary is not None:
            with host_faults("removing a temporary directory", "temporary"):
                if self.temporary.exists():
                    shutil.rmtree(self.temporary)
            self.temporary = None


def _temporary() -> Path:
    """A new directory in $TMPDIR. Python would fall back to another one if that is not there, unseen by its owner."""
    with host_faults("making a temporary directory", "temporary"):
        return Path(tempfile.mkdtemp(prefix=PREFIX, dir=os.environ.get("TMPDIR") or "/tmp"))
