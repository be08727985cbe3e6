"""The canary: a fuzzer that is known to crash, and one that is known not to, go the way of all others.

A campaign that finds nothing proves nothing, unless it is known that it would have found something. So before the first
slice on a host, the crash must be found, its input fetched, its stack named, and the input must crash again; and the
other fuzzer must run and find nothing. The first link that is broken is named.
"""

import logging
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.campaign.attempt import Attempt, Places
from pipeline.campaign.capture import Capture
from pipeline.campaign.definition import Budget, FuzzerPlan
from pipeline.campaign.failures import Failures
from pipeline.campaign.guests import Guest
from pipeline.campaign.work import Work, as_words, options_in
from pipeline.corpus import Corpus
from pipeline.crashes import report as reports
from pipeline.crashes.report import CrashReport
from pipeline.crashes.vault import Vault
from pipeline.deadline import Clock
from pipeline.errors import TopcoatError
from pipeline.ledger import Ended, Entry, Subject
from pipeline.settings import Campaign
from pipeline.text import one_line

log = logging.getLogger("topcoat")

CRASH_LIMIT = 120
"""Seconds in which the crash must be found."""

CLEAN_SECONDS = 3
"""For which the clean fuzzer runs."""

REPRODUCE_LIMIT = 120.0
"""Seconds that the input may take to crash again."""

_SEED = 1
_INPUT = "canary-input"


class _Broken(Exception):
    """A link of the way; the text names it."""


@dataclass
class _Run:
    """One fuzzer's way."""

    guest: Guest
    name: str
    seconds: int
    directory: Path
    chosen: Campaign
    clock: Clock
    entries: list[Entry] = field(default_factory=list)

    @property
    def plan(self) -> FuzzerPlan:
        """One slice."""
        return FuzzerPlan(self.name, Budget(seconds=self.seconds), self.seconds)

    def ended(self) -> Ended:
        """Run it once as a campaign does."""
        work = Work(Subject(self.name, "", ""), self.plan, 1, 1, self.seconds, None, _SEED)
        corpus, vault = Corpus.of(self.directory, self.name), Vault(self.directory)
        places = Places(corpus, vault, Failures(self.directory), self.entries.append)
        return Attempt(work, self.guest, places, self.chosen, self.clock).run()


def look(guest: Guest, directory: Path, chosen: Campaign, clock: Clock = time.monotonic) -> str:
    """Look for the canary. Returns nothing if it is found as it must be, else which link of the way is broken.

    What it leaves is in `directory`, which is emptied first.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    try:
        crash, clean = (chosen.canary_crash, CRASH_LIMIT), (chosen.canary_clean, CLEAN_SECONDS)
        for check, (name, seconds) in ((_crash, crash), (_clean, clean)):
            check(_Run(guest, name, seconds, directory, chosen, clock))
            room = guest.room(name)  # the campaign may run the same fuzzer, with a corpus of its own
            room.known.clear()
            room.site.prepare()
    except _Broken as broken:
        return str(broken)
    except TopcoatError as error:
        return one_line(str(error))
    return ""


def _crash(run: _Run) -> None:
    ended = run.ended()
    if ended.result != "crash":
        raise _Broken(f"{run.name} did not crash within {run.seconds} s ({ended.result} {ended.reason})".rstrip(" ()"))
    stored = next(iter(sorted(run.directory.glob("crashes/*/*/input"))), None)
    content = stored.read_bytes() if stored else b""
    if stored is None or not content:
        raise _Broken(f"{run.name} crashed, and its input could not be fetched")
    found = _report((stored.parent / "output.txt").read_bytes(), run.name)
    again = _report(_reproduced(run, stored), run.name, "when it was given its input again")
    if reports.key(again) != reports.key(found):
        raise _Broken(f"{run.name} crashed elsewhere when it was given its input again: {again.summary}")


def _report(output: bytes, name: str, when: str = "in its output") -> CrashReport:
    """The report, which must name a function and a line."""
    report = reports.parse(output)
    if report is None:
        raise _Broken(f"{name} crashed, and no report of it was found {when}")
    if not any(frame.function and frame.file for frame in report.frames):
        raise _Broken(f"{name} crashed, and its stack has no names: the symbolizer does not work")
    return report


def _reproduced(run: _Run, stored: Path) -> bytes:
    site, said = run.guest.room(run.name).site, Capture(run.chosen.output_size)
    site.push({_INPUT: stored}, "data")
    words = as_words(options_in(run.guest, run.plan))
    site.run([*words, "-runs=1", f"data/{_INPUT}"], said, REPRODUCE_LIMIT, lambda _: None)
    return said.content()


def _clean(run: _Run) -> None:
    ended = run.ended()
    if ended.result != "done" or not ended.executions:
        raise _Broken(f"{run.name}, which never fails, failed: {ended.result} {ended.reason}".rstrip())
