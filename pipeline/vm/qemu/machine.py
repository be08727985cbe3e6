"""The QEMU process: how it is started as a daemon, and ended if its boot fails.

QEMU must outlive the process that boots it and must not be in its process tree, because luigi kills the tree of a task
that times out. QEMU's own `-daemonize` does not work: it forks after the sandbox has forbidden that (SIGSYS). So
`setsid --fork` sends QEMU to the background. What QEMU says on stderr, at its start and later, is kept in qemu.log.
"""

import logging
import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

from pipeline.errors import StopError
from pipeline.host import interrupt
from pipeline.host.deadline import Deadline
from pipeline.host.pidfile import owner_of_pidfile
from pipeline.host.process import Process
from pipeline.vm.instance import Instance
from pipeline.vm.qemu import environment
from pipeline.vm.qemu.command_line import RUNAS, SANDBOX, with_run_with, without_sandbox
from pipeline.vm.qemu.stopping import stop_qemu

log = logging.getLogger("topcoat")

_CLEANUP_LIMIT = 3.0  # seconds
_START_POLL = 0.005  # seconds; nothing signals that a QEMU that was started in this way is up


class NotStartedError(Exception):
    """QEMU has not come up; its own words are in its log."""

    def __init__(self, problem: str, *, ended: bool) -> None:
        super().__init__(problem)
        self.ended = ended
        """Whether QEMU has ended, or was never started; otherwise it hangs."""


@dataclass(frozen=True)
class Start:
    """What a QEMU is started with."""

    argv: tuple[str, ...]
    instance: Instance
    """The instance in whose directory QEMU works, and to whose qemu.log its stdout and stderr go."""
    held: tuple[int, ...]
    """Descriptors that QEMU holds open as long as it lives."""


@contextmanager
def running(start: Start, limit: float) -> Iterator[Process]:
    """Start QEMU for the body. If the body fails or is interrupted, QEMU is ended; otherwise it runs on.

    The start may take `limit` seconds. Raises NotStartedError.
    """
    try:
        yield _start(start, Deadline(limit))
    except BaseException:
        try:
            stop_qemu(start.instance.pidfile, start.instance.qmp_socket, _CLEANUP_LIMIT)
        except StopError as error:  # logged, not raised: it must not hide the error that led here
            log.error("%s", error.explain())
        raise


def _start(start: Start, deadline: Deadline) -> Process:
    while True:
        try:
            return _launch(start, deadline)
        except NotStartedError:
            said = start.instance.qemu_log.read_bytes() if start.instance.qemu_log.exists() else b""
            if RUNAS in start.argv and f"{RUNAS}: invalid option".encode() in said:
                start = replace(start, argv=with_run_with(start.argv))
            elif SANDBOX[0] in start.argv and b"sandbox" in said:
                log.warning("this QEMU knows no sandbox; booting without it")
                start = replace(start, argv=without_sandbox(start.argv))
            else:
                raise


def _launch(start: Start, deadline: Deadline) -> Process:
    instance = start.instance
    reader, writer = os.pipe()  # QEMU inherits the writer, so the reader tells at once when QEMU has ended
    try:
        try:
            instance.qemu_log.unlink(missing_ok=True)
            with instance.qemu_log.open(
                "ab"
            ) as output:  # opened to append, so that QEMU writes on at the end after a rotation
                _detach(start, output, writer, deadline)
        finally:
            os.close(writer)
        alive = select.poll()
        alive.register(reader)
        while not (instance.qmp_socket.exists() and (process := owner_of_pidfile(instance.pidfile))):
            if alive.poll(_START_POLL * 1000):
                raise NotStartedError("QEMU has ended", ended=True)
            if deadline.expired:
                raise NotStartedError(f"QEMU was not up after {deadline.seconds:g} s", ended=False)
        return process
    finally:
        os.close(reader)


def _detach(start: Start, output: BinaryIO, inherited: int, deadline: Deadline) -> None:
    try:
        with interrupt.deferred():  # until setsid has become QEMU, `strays` would not find it
            done = subprocess.run(
                ("setsid", "--fork", *start.argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[inherited, *start.held],
                cwd=start.instance.directory,
                env=environment.of_qemu(),
                timeout=deadline.remaining,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotStartedError(f"setsid: {error}", ended=True) from error
    if done.returncode != 0:
        raise NotStartedError(f"setsid ended with exit code {done.returncode}", ended=True)
