"""The signals by which a user ends a program: SIGINT (Ctrl-C), SIGTERM (kill), SIGHUP (a terminal is closed)."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A signal that ends the program has come; `str(error)` is its name.

    It is a KeyboardInterrupt because luigi lets only that end everything; any other exception ends one task.
    """

    def explain(self) -> str:
        """The text for people, without a final newline."""
        return f"interrupted by {self}; what was begun is cleaned up\n  hint: the same command again goes on"


def numbers() -> tuple[signal.Signals, ...]:
    """The signals that end this program: SIGINT, SIGTERM, and SIGHUP unless it is ignored, as under nohup."""
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hangs_up else []))


@contextmanager
def deferred() -> Iterator[None]:
    """Hold back signals that end this program until the end of the body, which must be short.

    It is meant for the start of a process: an exception in between would lose the process, and nobody would end it.
    Outside the main thread it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    chosen = numbers()
    handlers = [signal.signal(number, lambda *arguments: came.append(arguments)) for number in chosen]
    try:
        yield
    finally:
        for number, handler in zip(chosen, handlers, strict=True):
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0][0])
