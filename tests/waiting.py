"""How tests wait. A test asserts what happens, never how fast: others may be busy on the same machine.

What must happen is waited for up to `SOON`, which only a test that fails uses up. What must not be waited for, as a
command that hangs, would take `NEVER`: then SOON passes in between, and no clock need be read.
"""

import time
from collections.abc import Callable
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
