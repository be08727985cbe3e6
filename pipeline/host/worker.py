"""Threads that can be waited for, and whose errors are not lost."""

import threading
from collections.abc import Callable


class Worker:
    """A function that runs at once in a thread of its own."""

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self.failure: BaseException | None = None
        """The exception that the function raised, if it did."""
        self._work = work
        # A daemon: a thread that is stuck in a broken connection must not keep the interpreter from ending
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001  whoever waits for this thread looks at it
            self.failure = error

    def join(self, seconds: float) -> bool:
        """Wait at most `seconds` for the end of the function. Returns whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()
