"""Logging in to a booting guest again and again until it answers, in a thread beside the one that watches the boot."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Self

from pipeline.errors import CommandError, ConnectError, HostFault, KeyGone, WrongServer
from pipeline.host.deadline import Deadline
from pipeline.settings import Timeouts
from pipeline.ssh.address import Address
from pipeline.text.printable import printable

_REFUSALS = 3  # how many times the guest must refuse our key before that counts as final
_STAGES = ("tcp", "banner", "auth", "echo")
_NEXT = dict(pairwise(_STAGES))


class LoginProbe:
    """A thread that, once it is told to `begin`, tries to run `command` in the guest and expects `answer` as output.

    As a context manager it starts with the body, and loads at once what it needs, while the guest boots; it ends with
    the body. `reached` is called with each stage that was passed.
    """

    def __init__(
        self,
        address: Address,
        command: str,
        answer: str,
        timeouts: Timeouts,
        deadline: Deadline,
        reached: Callable[[str], object],
    ) -> None:
        self.address: Address | None = None
        """The address with the host key that the guest showed; None until it has answered."""
        self.failure: ConnectError | None = None
        """Why the last attempt failed; None if none has failed."""
        self.stage = "tcp"
        """The stage that the current attempt is waiting for."""
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
        # It is not joined: an attempt under way ends by its own limits, and nobody needs to wait for that
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
        """Give up: from now on `reached` is not called any more."""
        with self._lock:
            self._ended.set()
        self._wanted.set()

    def fileno(self) -> int:
        """A descriptor that becomes readable once the probe is over."""
        return self._signal

    @property
    def blame(self) -> tuple[str, str]:
        """The stage that was not passed, and what the client says about it: by the last attempt, or the current one.

        The current attempt counts if it has come further: the guest did not listen before, and now lets us in but
        hangs.
        """
        failure, stage = self.failure, self.stage
        if failure is None or (failure.stage in _NEXT and _STAGES.index(stage) > _STAGES.index(failure.stage)):
            return stage, f"nothing came within {self._timeouts.command:g} s" if stage == "echo" else "no answer"
        return failure.stage, str(failure)

    def begin(self) -> None:
        """Start trying: the guest is there."""
        self._wanted.set()

    @property
    def over(self) -> bool:
        """Whether the guest has answered, or certainly will not. Raises an error that the thread did not expect."""
        if self._bug is not None:
            raise self._bug
        return self._over.is_set()

    def _run(self) -> None:
        try:
            from pipeline.ssh.connection import private_key

            private_key(Path(self._to.key))
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

    def _once(self) -> Address:
        from pipeline.ssh.connection import connect

        limit = max(1.0, self._deadline.remaining)
        try:
            with connect(self._to, self._timeouts, limit, self._passed) as connection:
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
