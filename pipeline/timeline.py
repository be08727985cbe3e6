"""When a boot reached each stage: timeline.jsonl in the instance's directory, kept when the instance has ended.

One JSON object a line. The first says {"schema": 2, "started": UTC}. Each of the others has `event`, `seconds` on the
monotonic clock since the first, and `attempt`, from 1 on. The events of one attempt, in order, as far as it came:
`attempt` (with its boot_id), `spawn`, `first byte`, `port`, `marker`, `tcp`, `banner`, `auth`, `echo`, and at the end
`ready`, `interrupted`, or `failed` with `cause`, `stage` and `fault`. `tcp` to `echo` come again with each login.
"""

import json
import time
from pathlib import Path

from pipeline.deadline import Clock, utc_now

SCHEMA = 2
"""Tests hold a frozen sample."""


class Timeline:
    """Written line by line as things happen, so that a kill loses nothing that came before it."""

    def __init__(self, path: Path, clock: Clock = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._started = clock()
        self._attempt = 0
        path.write_text(json.dumps({"schema": SCHEMA, "started": utc_now()}, sort_keys=True) + "\n")

    def attempt(self, boot_id: str) -> None:
        """Begin the next attempt."""
        self._attempt += 1
        self.reached("attempt", boot_id=boot_id)

    def reached(self, event: str, **facts: str) -> None:
        """Note that something has happened now."""
        seconds = round(self._clock() - self._started, 4)
        line = {"event": event, "seconds": seconds, "attempt": self._attempt, **facts}
        with self._path.open("a") as stream:
            stream.write(json.dumps(line, sort_keys=True) + "\n")


def ready_seconds(path: Path) -> float | None:
    """How long the last attempt took until the guest was ready; None if it failed, or nobody knows."""
    try:
        header, *events = [json.loads(line) for line in path.read_text().splitlines()]
        at = {event["event"]: float(event["seconds"]) for event in events}
        return at["ready"] - at.get("attempt", 0.0) if header["schema"] in (1, SCHEMA) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
