"""What fuzzers said last before their attempts failed: where somebody looks who wants to know why."""

import logging
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.faults import host_faults
from pipeline.fuzzer.pid_scanner import NO_LOG
from pipeline.publish import publish_bytes, remove
from pipeline.text import one_line, tail

log = logging.getLogger("topcoat")

KEPT = 64 << 10
"""Bytes of one attempt's output, from its end."""

MOST = 10
"""Attempts of one fuzzer, the latest, of which it is kept."""

LINES = 3
"""That are told at once."""

_WIDTH = 160


@dataclass(frozen=True)
class Failures:
    """Those of a campaign, in `failures/PACKAGE/FUZZER/SLICE.ATTEMPT.txt` below its directory."""

    campaign: Path

    def keep(self, fuzzer: str, attempt: str, output: bytes) -> str:
        """Keep the end of what an attempt said; of the fuzzer's older ones only some stay.

        Returns its last lines on one line, and where there is more; nothing if it said nothing. A disk on which it
        cannot be kept is warned of: the attempt's own end tells more.
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
