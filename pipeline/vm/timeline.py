"""When a boot reached each stage: timeline.jsonl in the instance's directory, which stays when the instance has ended.

It has one JSON object a line. The first is {"schema": 2, "started": UTC}. Each of the others has `event`, `seconds` on
the monotonic clock since the first, and `attempt`, from 1 on. The events of one attempt, in order, as far as it came:
`attempt` (with its boot_id, and `how`: boot, clone, or capsule if one was opened), `spawn`, `port`, of a boot
`first byte`, of a saved guest `restored`, of a clone `renewed`, `marker`, `tcp`, `banner`, `auth`, `echo`, and at the
end `ready`, `interrupted`, or `failed` with `cause`, `stage` and `fault`. `tcp` to `echo` come again with each login.
"""

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.host.deadline import Clock, utc_now
from pipeline.store import document

SCHEMA = 2
"""The version of the format of timeline.jsonl; a sample of it is frozen in the tests."""


How = Literal["boot", "clone", "capsule"]


class Timeline:
    """A new timeline at `path`, written line by line as things happen, so that a kill loses nothing before it."""

    def __init__(self, path: Path, clock: Clock = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._started = clock()
        self._attempt = 0
        path.write_text(json.dumps({"schema": SCHEMA, "started": utc_now()}, sort_keys=True) + "\n")

    def attempt(self, boot_id: str, how: How) -> None:
        """Note that the next attempt begins, with this boot id."""
        self._attempt += 1
        self.reached("attempt", boot_id=boot_id, how=how)

    def reached(self, event: str, **facts: str) -> None:
        """Note that an event happens now; `facts` are further fields of its line."""
        seconds = round(self._clock() - self._started, 4)
        line = {"event": event, "seconds": seconds, "attempt": self._attempt, **facts}
        with self._path.open("a") as stream:
            stream.write(json.dumps(line, sort_keys=True) + "\n")


@dataclass(frozen=True)
class _Event:
    event: str
    seconds: float


def ready_seconds(path: Path) -> float | None:
    """How many seconds the last attempt took until the guest was ready; None if it failed, or that is not known."""
    with suppress(OSError, ValueError, KeyError):
        header, *lines = path.read_bytes().splitlines()
        document.content(header, SCHEMA)
        events = (document.convert(json.loads(line), _Event) for line in lines)
        at = {event.event: event.seconds for event in events}
        return at["ready"] - at.get("attempt", 0.0)
    return None
