"""The way into a guest: it connects when it is first needed, and offers commands and file transfers."""

import os
import shlex
import shutil
import tempfile
import threading
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConnectError, KeyGone, KeyRefused, WrongServer
from pipeline.host.deadline import Deadline
from pipeline.host.faults import host_faults
from pipeline.settings import Timeouts
from pipeline.ssh.address import Address
from pipeline.ssh.command import Command
from pipeline.ssh.connection import Connection, connect
from pipeline.ssh.landing import TransferLimits
from pipeline.ssh.result import Result
from pipeline.ssh.sftp import Sftp
from pipeline.ssh.transfer import Transfer

PREFIX = "undercoat-ffx-cache-"
"""The beginning of temporary directories' names. It is that of the original undercoat: others clean up by it."""

_SYSLOG = 60.0
_SMALL = 60.0  # seconds for a small command in a guest that is busy


@dataclass(frozen=True)
class Retries:
    """How often, and for how long, to try to connect to a guest that does not answer."""

    attempts: int = 6
    pause: float = 15.0
    """Seconds between two attempts."""
    limit: float = 180.0
    """Seconds for all attempts and pauses together."""


class Connector:
    """A way into a guest that connects when it is first needed. It implements pipeline.vm.launcher.GuestShell.

    Every method that needs the guest raises ConnectError, with the last cause, if the guest does not answer after all
    retries. KeyGone, KeyRefused and WrongServer, which retries cannot help, are raised at once, as is SettingsError for
    a private key that cannot be read. After a connection has broken, the next call makes a new one. Several threads can
    use a connector at once; `close` in one of them ends the waiting of all.

    `temporary` is a directory that belongs to the connector, and stays until `cleanup`. If none is given, one is made
    at the first connect, but only with `keep_files`.
    """

    def __init__(
        self,
        address: Address,
        timeouts: Timeouts,
        retries: Retries | None = None,
        limits: TransferLimits | None = None,
        temporary: Path | None = None,
        *,
        keep_files: bool = False,
    ) -> None:
        self.address = address
        self.temporary = temporary
        self._timeouts = timeouts
        self._retries = retries or Retries()
        self._limits = limits or TransferLimits()
        self._keep_files = keep_files
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._open = ExitStack()
        self._connection: Connection | None = None
        self._interrupted = False

    def connected(self) -> Connection:
        """Return the connection; make a new one if there is none, or it has broken."""
        with self._lock:
            if self._connection is None or self._interrupted or not self._connection.alive:
                self._disconnect()
                self._interrupted = False
                if self.temporary is None and self._keep_files:
                    self.temporary = _temporary()
                self._connection = self._persistently(Deadline(self._retries.limit))
            return self._connection

    def _renewed(self, lost: Connection) -> Connection | None:
        """A connection in the place of one that was lost; None if that is still there, or was closed on purpose."""
        with self._lock:
            closed = self._connection is None
        return None if closed or lost.alive else self.connected()

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
        """See pipeline.vm.launcher.GuestShell. The limit does not include connecting, which has its own."""
        with self._left_at_interrupts():
            return self.connected().run(command, limit)

    def command(self, *words: str, shell: bool = False) -> Command:
        """Make a command for the guest, which is not started yet. Its words arrive as they are.

        With `shell`, the words are joined by blanks, and the guest's shell reads that line: globs, variables and `|`
        have their meaning.
        """
        return Command(self.connected, " ".join(words) if shell else shlex.join(words), self._renewed)

    def put(self, source: str, target: str) -> None:
        """Copy what the pattern `source` finds on the host into the directory `target` in the guest.

        The pattern follows the rules of pipeline.text.goglob. `target` and its parents are made if needed. A file
        arrives as target/NAME, a directory as target/NAME with all that is in it, empty directories too; of
        "directory/", with a slash at the end, only the contents arrive. Files that are there already are overwritten if
        they have the same name, and else kept. Links to files arrive as files; links to directories, and what is
        neither file nor directory, are left out with a warning. Files get the mode 0644, directories 0755.

        Raises NoMatch, UsageError for a bad pattern, StoreError if something cannot be read, CommandError if the guest
        does not take it, and CommandTimeout if nothing moves for TransferLimits.stall seconds, or all is too slow. What
        has arrived stays.
        """
        with self._left_at_interrupts():
            self._transfer().put(source, target)

    def get(self, source: str, directory: Path) -> None:
        """Copy what the pattern `source` finds in the guest into the directory on the host, which must be there.

        A file arrives as directory/NAME, a directory as directory/NAME with all that is in it, empty directories too.
        Directories are merged with those that are there; files replace those that are there, each at once when it is
        complete. Files named .live_corpus are left out. Links to files arrive as files; links to directories, and what
        is neither file nor directory, are left out with a warning.

        Whatever the guest says, nothing outside the directory is touched, no link in it is followed, and no more is
        written than TransferLimits allow: else TransferRefused is raised. Raises also NoMatch, UsageError for a bad
        pattern, for a destination that is no directory or where something else is in the way, StoreError if the host
        cannot store it, and CommandError and CommandTimeout as `put` does. What has arrived stays.
        """
        with self._left_at_interrupts():
            self._transfer().get(source, directory)

    def sizes(self, directory: str) -> dict[str, int]:
        """Return the bytes of each file in a directory of the guest, by name; nothing if there is no such directory.

        The guest claims them: a file may have another size when it comes. Raises CommandError and CommandTimeout.
        """
        with self._left_at_interrupts():
            return self._transfer().sizes(directory)

    def fetch(self, directory: str, names: Collection[str], target: Path) -> None:
        """Copy the files with these names from a directory of the guest into `target` on the host, as `get` does.

        A file that has gone meanwhile is left out without a warning: a fuzzer replaces its units all the time. `target`
        must be empty.
        """
        with self._left_at_interrupts():
            self._transfer().fetch(directory, names, target)

    @contextmanager
    def _left_at_interrupts(self) -> Iterator[None]:
        """Give up the connection at Ctrl-C: paramiko may just have taken a lock, which nobody would release then."""
        try:
            yield
        except KeyboardInterrupt:
            self._interrupted = True
            raise

    def _transfer(self) -> Transfer:
        return Transfer(self.connected(), self.command, self._limits)

    def isdir(self, path: str) -> bool:
        """Whether the path in the guest is a directory, or a link to one."""
        with self._left_at_interrupts(), Sftp(self.connected(), self._limits) as sftp:
            found = sftp.stat(path)
            return found is not None and found.directory

    def rmdir(self, path: str) -> None:
        """Remove a directory of the guest with all that is in it. Does nothing if it is not there."""
        self.command("rm", "-rf", f"./{path}" if path.startswith("-") else path).run(_SMALL)

    def syslog(self, pid: int) -> bytes:
        """Return what a Fuchsia guest's log has of the process with this pid. Another command may run meanwhile."""
        return self.command("log_listener", "--dump_logs", "--pid", str(pid)).output(_SYSLOG)

    def close(self) -> None:
        """See pipeline.vm.launcher.GuestShell."""
        self._closing.set()
        with self._lock:
            self._closing.clear()
            self._disconnect()

    def _disconnect(self) -> None:
        self._connection = None
        self._open.close()

    def cleanup(self) -> None:
        """Close the connection, and remove the temporary directory. Raises StoreError if it cannot be removed."""
        self.close()
        if self.temporary is not None:
            with host_faults("removing a temporary directory", "temporary"):
                if self.temporary.exists():
                    shutil.rmtree(self.temporary)
            self.temporary = None


def _temporary() -> Path:
    """Make a new directory in $TMPDIR. Python would silently take another place if $TMPDIR cannot be used."""
    with host_faults("making a temporary directory", "temporary"):
        return Path(tempfile.mkdtemp(prefix=PREFIX, dir=os.environ.get("TMPDIR") or "/tmp"))
