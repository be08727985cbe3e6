"""How tests wait. A test asserts what happens, never how fast: others may be busy on the same machine.

What must happen is waited for up to `SOON`, which only a test that fails uses up. What must not be waited for, as a
command that hangs, would take `NEVER`: then SOON passes in between, and no clock need be read.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

SOON = 60.0
"""Seconds. What takes a moment on an idle machine has happened by then on one that is as busy as it gets."""

NEVER = 1000
"""Seconds. Whoever waits for this is killed with its test."""


Value = TypeVar("Value")


def eventually(condition: Callable[[], Value | None]) -> Value:
    """Return what the condition gives once that is true; fail if it is not soon."""
    limit = time.monotonic() + SOON
    while not (value := condition()):
        assert time.monotonic() < limit, f"not within {SOON:g} s"
        time.sleep(0.01)
    return value


@contextmanager
def meanwhile(begun: Callable[[], object], act: Callable[[], object]) -> Iterator[None]:
    """Act, in a thread of its own, as soon as something has begun in the body."""
    over = threading.Event()

    def wait_and_act() -> None:
        if eventually(lambda: over.is_set() or begun()) and not over.is_set():
            act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(SOON)
