"""The QEMU process: started as a daemon, stopped for certain.

QEMU must outlive the process that boots it and must not be in its tree, because luigi kills the tree of a task that
times out. Its own `-daemonize` would do that, but forks after the sandbox has forbidden it to (SIGSYS); so `setsid
--fork` sends it to the background. What it says on stderr, at its start and later, is kept in qemu.log.
"""

import logging
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

from pipeline.deadline import Deadline
from pipeline.errors import StopError
from pipeline.process import Process, has_moved, locked_by_someone, owner_of_pidfile
from pipeline.qemu import qmp
from pipeline.qemu.command import SANDBOX, without_sandbox

log = logging.getLogger("topcoat")

How = Literal["powerdown", "quit", "SIGTERM", "SIGKILL", "not running"]
"""What a QEMU ended by."""

_CLEANUP_LIMIT = 3.0
_DYING = 1.0
_START_POLL = 0.005  # nothing tells when a QEMU that was started this way is up


class NotStartedError(Exception):
    """QEMU is not up. Whoever starts it knows what that means; its own words are in its log."""

    def __init__(self, problem: str, *, ended: bool) -> None:
        super().__init__(problem)
        self.ended = ended
        """Whether it has ended, or was never there; else it hangs."""


@dataclass(frozen=True)
class Start:
    """What a QEMU is started with."""

    argv: tuple[str, ...]
    pidfile: Path
    qmp_socket: Path
    log: Path
    """Takes what QEMU says, at its start and later."""
    held: tuple[int, ...]
    """Descriptors that QEMU holds open as long as it lives."""


@contextmanager
def running(start: Start, limit: float) -> Iterator[Process]:
    """Start QEMU for the body. If the body fails or is interrupted, QEMU is gone afterwards; else it stays.

    `limit` bounds the start, in seconds. Raises NotStartedError.
    """
    try:
        yield _start(start, Deadline(limit))
    except BaseException:
        try:
            stop(start.pidfile, start.qmp_socket, _CLEANUP_LIMIT)
        except StopError as error:  # must not hide the error that led here
            log.error("%s", error.explain())
        raise


def strays(pidfile: Path) -> list[Process]:
    """Processes with this pidfile on their command line, which they may not have written yet.

    A guest whose store was moved away while it ran is none: it holds its pidfile at another place.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it has ended meanwhile
            if b"-pidfile" in words and os.fsencode(pidfile) in words and (process := Process.find(int(entry.name))):
                found += [] if has_moved(process, pidfile) else [process]
    return found


def _start(start: Start, deadline: Deadline) -> Process:
    try:
        return _launch(start, deadline)
    except NotStartedError:
        if SANDBOX[0] not in start.argv or b"sandbox" not in start.log.read_bytes():
            raise
    log.warning("this QEMU knows no sandbox; booting without it")
    return _launch(replace(start, argv=without_sandbox(start.argv)), deadline)


def _launch(start: Start, deadline: Deadline) -> Process:
    reader, writer = os.pipe()  # QEMU holds the writer, so the reader tells at once when it has ended
    try:
        try:
            start.log.unlink(missing_ok=True)
            with start.log.open("ab") as output:  # to append, so that QEMU writes on at the end after a rotation
                _detach(start, output, writer, deadline)
        finally:
            os.close(writer)
        alive = select.poll()
        alive.register(reader)
        while not (start.qmp_socket.exists() and (process := owner_of_pidfile(start.pidfile))):
            if alive.poll(_START_POLL * 1000):
                raise NotStartedError("QEMU has ended", ended=True)
            if deadline.expired:
                raise NotStartedError(f"QEMU was not up after {deadline.seconds:g} s", ended=False)
        return process
    finally:
        os.close(reader)


def _detach(start: Start, output: BinaryIO, inherited: int, deadline: Deadline) -> None:
    try:
        done = subprocess.run(
            ("setsid", "--fork", *start.argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[inherited, *start.held],
            timeout=deadline.remaining,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotStartedError(f"setsid: {error}", ended=True) from error
    if done.returncode != 0:
        raise NotStartedError(f"setsid ended with exit code {done.returncode}", ended=True)


def stop(pidfile: Path, qmp_socket: Path, limit: float, *, gently: bool = False) -> How:
    """End the QEMU of `pidfile`: by QMP, then SIGTERM, then SIGKILL, within `limit` seconds in all.

    `gently` presses the guest's power button first, and gives it half of the time. A QEMU that has not come as far as
    its pidfile, because its starter was killed, is killed too. Returns what it ended by. Raises StopError if it
    survives.
    """
    process = owner_of_pidfile(pidfile)
    how = _end(process, pidfile, qmp_socket, limit, gently) if process else "not running"
    for stray in strays(pidfile):
        stray.send(signal.SIGKILL)
        if not stray.wait(_DYING):
            raise _survived(stray)
        how = "SIGKILL" if how == "not running" else how
    return how


def _end(process: Process, pidfile: Path, qmp_socket: Path, limit: float, gently: bool) -> How:
    deadline = Deadline(limit)
    # Whatever takes its whole share, some is left for SIGKILL
    share = limit / (6 if gently else 4)
    steps: list[tuple[How, float]] = [("quit", share), ("SIGTERM", share), ("SIGKILL", limit)]
    for how, patience in [("powerdown", 2 * share), *steps] if gently else steps:
        asked = _ask_to_end(process, how, qmp_socket, deadline.within(share))
        if process.wait(deadline.within(patience if asked else 0)) and not locked_by_someone(pidfile):
            return how
    raise _survived(process)


def _survived(process: Process) -> StopError:
    return StopError(
        f"QEMU (pid {process.pid}) survived SIGKILL",
        hint="it waits for a broken disk or network file system; when that answers again, the process ends",
    )


def _ask_to_end(process: Process, how: How, qmp_socket: Path, limit: float) -> bool:
    """Returns whether the request was taken."""
    if how in ("SIGTERM", "SIGKILL"):
        process.send(signal.Signals[how])
        return True
    try:
        (qmp.power_down if how == "powerdown" else qmp.quit_qemu)(qmp_socket, limit)
    except qmp.MonitorError as error:
        log.info("QEMU does not take the request to end (%s: %s)", how, error)
        return False
    return True
