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
from pathlib import Path
from typing import BinaryIO

from pipeline.deadline import Deadline
from pipeline.errors import QemuRefused, StopError
from pipeline.process import Process, locked_by_someone, owner_of_pidfile
from pipeline.qemu import qmp
from pipeline.qemu.command import SANDBOX, without_sandbox
from pipeline.text import tail

log = logging.getLogger("topcoat")

_STAGE = "QEMU's start"
_BY_HAND = "see the command line that was used: topcoat argv NAME"
_CLEANUP_LIMIT = 3.0
_DYING = 1.0
_START_POLL = 0.005  # nothing tells when a QEMU that was started this way is up


@contextmanager
def running(argv: tuple[str, ...], pidfile: Path, qmp_socket: Path, qemu_log: Path, limit: float) -> Iterator[Process]:
    """Start QEMU for the body. If the body fails or is interrupted, QEMU is gone afterwards; else it stays.

    `limit` bounds the start, in seconds. What QEMU says goes to `qemu_log`. Raises QemuRefused.
    """
    try:
        yield _start(argv, pidfile, qmp_socket, qemu_log, Deadline(limit))
    except BaseException:
        try:
            stop(pidfile, qmp_socket, _CLEANUP_LIMIT)
        except StopError as error:  # must not hide the error that led here
            log.error("%s", error.explain())
        raise


def _strays(pidfile: Path) -> list[Process]:
    """Processes with this pidfile on their command line, which they may not have written yet."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it has ended meanwhile
            if b"-pidfile" in words and os.fsencode(pidfile) in words and (process := Process.find(int(entry.name))):
                found.append(process)
    return found


def _start(argv: tuple[str, ...], pidfile: Path, qmp_socket: Path, qemu_log: Path, deadline: Deadline) -> Process:
    try:
        return _launch(argv, pidfile, qmp_socket, qemu_log, deadline)
    except QemuRefused:
        if SANDBOX[0] not in argv or b"sandbox" not in qemu_log.read_bytes():
            raise
    log.warning("this QEMU knows no sandbox; booting without it")
    return _launch(without_sandbox(argv), pidfile, qmp_socket, qemu_log, deadline)


def _launch(argv: tuple[str, ...], pidfile: Path, qmp_socket: Path, qemu_log: Path, deadline: Deadline) -> Process:
    reader, writer = os.pipe()  # QEMU holds the writer, so the reader tells at once when it has ended
    try:
        try:
            with qemu_log.open("wb") as output:
                _detach(argv, output, writer, deadline)
        finally:
            os.close(writer)
        alive = select.poll()
        alive.register(reader)
        while not (qmp_socket.exists() and (process := owner_of_pidfile(pidfile))):
            if alive.poll(_START_POLL * 1000):
                raise _refused("QEMU did not start", qemu_log)
            if deadline.expired:
                raise _refused(f"QEMU was not up after {deadline.seconds:g} s", qemu_log)
        return process
    finally:
        os.close(reader)


def _detach(argv: tuple[str, ...], output: BinaryIO, inherited: int, deadline: Deadline) -> None:
    words = ("setsid", "--fork", *argv)
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[inherited],
            timeout=deadline.remaining,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QemuRefused(
            f"QEMU cannot be started in the background: {error}",
            stage=_STAGE,
            hint="is the program setsid (package util-linux) there?",
        ) from error
    if done.returncode != 0:
        raise QemuRefused(f"setsid ended with exit code {done.returncode}", stage=_STAGE, hint=_BY_HAND)


def _refused(message: str, qemu_log: Path) -> QemuRefused:
    return QemuRefused(message, stage=_STAGE, hint=_BY_HAND, detail=tail(qemu_log.read_bytes()))


def stop(pidfile: Path, qmp_socket: Path, limit: float) -> str:
    """End the QEMU of `pidfile`: by QMP, then SIGTERM, then SIGKILL, within `limit` seconds in all.

    One that has not come as far as its pidfile, because its starter was killed, is killed too.

    Returns "quit", "SIGTERM", "SIGKILL" or "not running". Raises StopError if it still holds its pidfile's lock.
    """
    process = owner_of_pidfile(pidfile)
    how = _end(process, pidfile, qmp_socket, limit) if process else "not running"
    for stray in _strays(pidfile):
        stray.send(signal.SIGKILL)
        stray.wait(_DYING)
    return how


def _end(process: Process, pidfile: Path, qmp_socket: Path, limit: float) -> str:
    deadline = Deadline(limit)
    share = limit / 4  # asking by QMP, waiting for that, waiting for SIGTERM; the rest is SIGKILL's
    for how, patience in (("quit", share), ("SIGTERM", share), ("SIGKILL", limit)):
        _ask_to_end(process, how, qmp_socket, deadline.within(share))
        if process.wait(deadline.within(patience)) and not locked_by_someone(pidfile):
            return how
    raise StopError(
        f"QEMU (pid {process.pid}) survived SIGKILL",
        hint="it waits for a broken disk or network file system; when that answers again, the process ends",
    )


def _ask_to_end(process: Process, how: str, qmp_socket: Path, limit: float) -> None:
    if how != "quit":
        process.send(signal.Signals[how])
        return
    try:
        qmp.quit_qemu(qmp_socket, limit)
    except qmp.MonitorError as error:
        log.info("QEMU does not take the request to quit (%s); sending signals", error)
