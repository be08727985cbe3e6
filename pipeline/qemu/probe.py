"""Logging in to a guest that boots, again and again until it answers, beside whoever watches the boot."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Self

from pipeline.deadline import Deadline
from pipeline.errors import CommandError, ConnectError, HostFault, KeyGone, WrongServer
from pipeline.instance import SSH
from pipeline.settings import Timeouts
from pipeline.text import printable

_REFUSALS = 3  # of our key, before the guest is believed
_STAGES = ("tcp", "banner", "auth", "echo")
_NEXT = dict(pairwise(_STAGES))


class Probe:
    """A thread that runs `command` in the guest, once it is told to `begin`, and wants `answer` for it.

    What it needs for that it loads at once, while the guest boots. As a context manager it ends with the body.
    """

    def __init__(
        self,
        address: SSH,
        command: str,
        answer: str,
        timeouts: Timeouts,
        deadline: Deadline,
        reached: Callable[[str], object],
    ) -> None:
        self.address: SSH | None = None
        """Set once the guest has answered: the address with the host key that it showed."""
        self.failure: ConnectError | None = None
        """Why the last attempt failed."""
        self.stage = "tcp"
        """What the attempt under way is waiting for."""
        self.answered = False
        """Whether an SSH server has ever sent its first line."""
        self._to, self._command, self._answer = address, command, answer
        self._timeouts, self._deadline, self._reached = timeouts, deadline, reached
        self._bug: BaseException | None = None
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._ended = threading.Event()
        self._over = threading.Event()
        self._signal = os.eventfd(0, os.EFD_CLOEXEC)
        # Not joined: an attempt under way ends by its own limits, and nobody needs to wait for that
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._thread.start()
        except RuntimeError as error:
            raise HostFault(
                f"the host gives Topcoat no more threads: {error}",
                stage="tcp",
                hint="see ulimit -u, and topcoat doctor",
                cause="host limits",
                transient=True,
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Give up: from here on `reached` is not called any more."""
        with self._lock:
            self._ended.set()
        self._wanted.set()

    def fileno(self) -> int:
        """Readable once the probe is over."""
        return self._signal

    @property
    def blame(self) -> tuple[str, str]:
        """The stage that was not passed, and the client's words: of the last attempt, or of the one under way.

        The latter counts if it has come further: a guest that first did not listen, and now lets us in, but hangs.
        """
        failure, stage = self.failure, self.stage
        if failure is None or (failure.stage in _NEXT and _STAGES.index(stage) > _STAGES.index(failure.stage)):
            return stage, f"nothing came within {self._timeouts.command:g} s" if stage == "echo" else "no answer"
        return failure.stage, str(failure)

    def begin(self) -> None:
        """The guest is there: try it."""
        self._wanted.set()

    @property
    def over(self) -> bool:
        """Whether the guest has answered, or it is certain that it will not. Raises what the thread did not expect."""
        if self._bug is not None:
            raise self._bug
        return self._over.is_set()

    def _run(self) -> None:
        try:
            from pipeline import ssh

            ssh.private_key(Path(self._to.key))
            self._wanted.wait()
            self._try_until_over()
        except BaseException as error:  # noqa: BLE001  the watcher raises it
            self._bug = error
        finally:
            self._over.set()
            os.eventfd_write(self._signal, 1)

    def _try_until_over(self) -> None:
        refusals = 0
        while not self._ended.is_set():
            try:
                self.stage = "tcp"
                self.address = self._once()
                return
            except KeyGone:
                raise
            except ConnectError as error:
                self.failure, self.stage = error, error.stage
                refusals += error.stage == "auth"
            if isinstance(self.failure, WrongServer) or refusals >= _REFUSALS:
                return
            self._ended.wait(self._timeouts.retry)

    def _once(self) -> SSH:
        from pipeline import ssh

        limit = max(1.0, self._deadline.remaining)
        try:
            with ssh.connect(self._to, self._timeouts, limit, self._passed) as connection:
                result = connection.run(self._command, min(self._timeouts.command, limit))
                self._compare(result.status, result.stdout)
                self._passed("echo")
                return replace(self._to, host_key=connection.host_key)
        except CommandError as error:
            raise ConnectError(error.message, stage="echo", hint=error.hint, detail=error.detail) from error

    def _passed(self, stage: str) -> None:
        with self._lock:
            if not self._ended.is_set():
                self._reached(stage)
        self.stage = _NEXT.get(stage, stage)
        self.answered = self.answered or stage == "banner"

    def _compare(self, status: int, said: bytes) -> None:
        answer = printable(said).strip()[:80]
        if status == 0 and answer == self._answer:
            return
        other_boot = status == 0 and len(answer) == len(self._answer)
        kind = WrongServer if other_boot else ConnectError
        raise kind(
            f"another boot answers: {answer}, not {self._answer}"
            if other_boot
            else f"to {self._command!r} it answers {answer!r}, with status {status}",
            stage="boot id" if other_boot else "echo",
            hint="see what the guest says: topcoat logs NAME",
        )

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self._signal)
