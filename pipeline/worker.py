"""Threads whose end is waited for, and whose errors are not lost."""

import threading
from collections.abc import Callable


class Worker:
    """A function that runs in a thread of its own, at once."""

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self.failure: BaseException | None = None
        """What the function raised."""
        self._work = work
        # Not one that the interpreter waits for: one stuck in a broken connection must not keep it from ending
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001  whoever waits for this thread looks at it
            self.failure = error

    def join(self, seconds: float) -> bool:
        """Wait for the end of the function, at most `seconds`. Returns whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()
