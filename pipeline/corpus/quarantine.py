"""Units that crash their fuzzer or take too long. They are kept for people, and never become units again.

::

    {"at": "2026-11-25T14:00:00Z", "bytes": 3, "reason": "timeout", "schema": 1, "source": "seed"}

is the note beside each, `<SHA-1>.json`. It is written last and removed first: content without a note is what a killed
process has left behind. Whoever writes holds the lock of the corpus.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.corpus.files import is_name, write_new
from pipeline.deadline import utc_now
from pipeline.publish import publish_json, remove, sync_one, target_of_remains
from pipeline.text import one_line

SCHEMA = 1
"""Of a note. Tests hold a frozen sample."""

MOST = 1000
"""Units that are kept. For the next one, the oldest goes."""

_NOTE = ".json"
_LONGEST = 1 << 16  # bytes of a note that are read


class Quarantine:
    """The directory. Its methods raise OSError and StoreError."""

    def __init__(self, directory: Path, most: int = MOST) -> None:
        self._directory = directory
        self._most = most

    def names(self) -> set[str]:
        """Of all units in it."""
        return {name[: -len(_NOTE)] for name in self._listing() if _is_note(name)}

    def reasons(self) -> Mapping[str, str]:
        """Why each unit is in it. A note that cannot be understood gives an empty reason."""
        return {name: self._reason(name) for name in sorted(self.names())}

    def put(self, name: str, content: bytes, reason: str, source: str) -> None:
        """Keep a unit that is not in it."""
        self._make_room()
        write_new(self._directory / name, content)
        sync_one(self._directory)
        facts = {"bytes": len(content), "reason": one_line(reason), "source": source}
        publish_json(self._note(name), {"schema": SCHEMA, "at": utc_now(), **facts})

    def sweep(self) -> None:
        """Remove what killed processes have left behind."""
        names = self.names()
        for name in self._listing():
            if is_name(name) and name not in names:
                remove(self._directory / name)
            elif target_of_remains(name) is not None:
                shutil.rmtree(self._directory / name, ignore_errors=True)

    def _make_room(self) -> None:
        by_age = sorted(self.names(), key=lambda name: (self._note(name).lstat().st_mtime_ns, name))
        for name in by_age[: max(0, len(by_age) - self._most + 1)]:
            remove(self._note(name), self._directory / name)

    def _listing(self) -> list[str]:
        try:
            return os.listdir(self._directory)  # noqa: PTH208  a Path for each takes its time
        except FileNotFoundError:
            return []

    def _note(self, name: str) -> Path:
        return self._directory / f"{name}{_NOTE}"

    def _reason(self, name: str) -> str:
        try:
            with self._note(name).open("rb") as stream:
                note: Any = json.loads(stream.read(_LONGEST))
            return str(note["reason"]) if note["schema"] == SCHEMA else ""
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return ""


def _is_note(name: str) -> bool:
    return name.endswith(_NOTE) and is_name(name[: -len(_NOTE)])
