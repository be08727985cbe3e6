"""What fuzzers said last before their attempts failed, kept for whoever wants to know why."""

import logging
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.fuzz.pid_scanner import NO_LOG
from pipeline.host.faults import host_faults
from pipeline.store.publish import publish_bytes, remove
from pipeline.text.printable import one_line, tail

log = logging.getLogger("topcoat")

KEPT = 64 << 10
"""Bytes that are kept of one attempt's output, from its end."""

MOST = 10
"""The number of attempts of one fuzzer whose output is kept: the latest."""

LINES = 3
"""The number of lines that are told at once, in the reason of the failure."""

_WIDTH = 160


@dataclass(frozen=True)
class Failures:
    """The kept outputs of a campaign, in `failures/PACKAGE/FUZZER/SLICE.ATTEMPT.txt` below its directory."""

    campaign: Path

    def keep(self, fuzzer: str, attempt: str, output: bytes) -> str:
        """Keep the end of what an attempt said, and delete all but the fuzzer's `MOST` latest ones.

        Returns the last lines as one line, with the file that has more; empty if the attempt said nothing. If the file
        cannot be written, that is only logged: how the attempt itself ended tells more.
        """
        said = [one for one in tail(output[-KEPT:], LINES + 1, _WIDTH).splitlines() if not one.startswith(NO_LOG)]
        if not said:
            return ""
        words = f"it said last: {' | '.join(map(one_line, said[-LINES:]))}"
        file = self.campaign / "failures" / fuzzer / f"{attempt}.txt"
        try:
            with host_faults("keeping what a fuzzer said last"):
                publish_bytes(file, output[-KEPT:])
                kept = sorted(file.parent.glob("*.txt"), key=lambda path: (path.stat().st_mtime_ns, path.name))
                remove(*kept[:-MOST])
        except StoreError as error:
            log.warning("%s", error.message)
            return words
        return f"{words} ({file.relative_to(self.campaign)})"
