"""The canary: a fuzzer that is known to crash, and one that is known not to, go the way of all other fuzzers.

A campaign that finds nothing proves nothing, unless it is known that it would have found something. So before the first
slice on a host, the crash must be found, its input fetched, its stack symbolized, and the input must crash again; and
the other fuzzer must run and find nothing. If a link of this chain is broken, the first such link is named.
"""

import logging
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.campaign.crash_intake import Places
from pipeline.campaign.failures import Failures
from pipeline.campaign.guests import Guest
from pipeline.campaign.ledger import Ended, LedgerEntry, Proved, Subject
from pipeline.campaign.plan.definition import Budget, FuzzerPlan
from pipeline.campaign.proofs import Claim, Proofs
from pipeline.campaign.supervised import SupervisedSlice
from pipeline.campaign.trying import Conditions, Tried, try_each
from pipeline.campaign.work import Work, options_in
from pipeline.errors import TopcoatError
from pipeline.fuzz.corpus import Corpus
from pipeline.fuzz.crashes import report as reports
from pipeline.fuzz.crashes import rules
from pipeline.fuzz.crashes.report import CrashReport
from pipeline.fuzz.crashes.store import CrashStore
from pipeline.host.deadline import Clock
from pipeline.settings import CampaignSettings
from pipeline.text.printable import one_line

log = logging.getLogger("topcoat")

CRASH_LIMIT = 120
"""Seconds in which the crash must be found."""

CLEAN_SECONDS = 3
"""Seconds for which the fuzzer that must not crash runs."""

_SEED = 1


class _Broken(Exception):
    """A link of the canary's chain is broken; the text names it."""


@dataclass
class _Run:
    """One of the canary's fuzzers, and what its run needs."""

    guest: Guest
    name: str
    seconds: int
    directory: Path
    chosen: CampaignSettings
    clock: Clock
    entries: list[LedgerEntry] = field(default_factory=list)

    @property
    def plan(self) -> FuzzerPlan:
        """The fuzzer's plan, with a budget of one slice."""
        return FuzzerPlan(self.name, Budget(seconds=self.seconds), self.seconds)

    def ended(self) -> Ended:
        """Run the fuzzer once as a campaign does, and return how that ended."""
        work = Work(Subject(self.name, "", ""), self.plan, 1, 1, self.seconds, None, _SEED)
        corpus, crash_store = Corpus.of(self.directory, self.name), CrashStore(self.directory)
        places = Places(corpus, crash_store, Failures(self.directory), self.entries.append)
        return SupervisedSlice(work, self.guest, places, self.chosen, self.clock).run()


def prove(
    claim: Claim,
    proofs: Proofs,
    campaign: str,
    lend: Callable[[], AbstractContextManager[Guest]],
    directory: Path,
    chosen: CampaignSettings,
    clock: Clock = time.monotonic,
) -> Proved:
    """Whether the claim holds: by an earlier proof, else by looking for the canary now, in a guest that `lend` leases.

    A new proof is added to `proofs`, in the name of the campaign. Raises StoreError, and what `lend` raises.
    """
    if before := proofs.find(claim):
        log.info("the canary was found on this host before: by %s", one_line(before))
        return Proved(claim.host, claim.key, True, "", 0.0)
    began = clock()
    with lend() as guest:
        reason = look(guest, directory, chosen, clock)
    seconds = round(clock() - began, 3)
    if not reason:
        proofs.add(claim, campaign)
        log.info("the canary was found, reproduced and named in %.0f s", seconds)
    return Proved(claim.host, claim.key, not reason, reason, seconds)


def look(guest: Guest, directory: Path, chosen: CampaignSettings, clock: Clock = time.monotonic) -> str:
    """Look for the canary. Returns an empty text if it was found as it must be, else which link is broken.

    All files of this go to `directory`, which is emptied first.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    try:
        crash, clean = (chosen.canary_crash, CRASH_LIMIT), (chosen.canary_clean, CLEAN_SECONDS)
        for check, (name, seconds) in ((_crash, crash), (_clean, clean)):
            check(_Run(guest, name, seconds, directory, chosen, clock))
            workspace = guest.workspace(name)  # the campaign may run the same fuzzer, with a corpus of its own
            workspace.known.clear()
            workspace.guest_fuzzer.prepare()
    except _Broken as broken:
        return str(broken)
    except TopcoatError as error:
        return one_line(str(error))
    return ""


def _crash(run: _Run) -> None:
    ended = run.ended()
    if ended.result != "crash":
        raise _Broken(f"{run.name} did not crash within {run.seconds} s ({ended.result} {ended.reason})".rstrip(" ()"))
    stored = next(iter(sorted(run.directory.glob("crashes/*/*/*/*/input"))), None)
    content = stored.read_bytes() if stored else b""
    if stored is None or not content:
        raise _Broken(f"{run.name} crashed, and its input could not be fetched")
    found = _report((stored.parent / "output.txt").read_bytes(), run.name)
    tried = _tried_again(run, content)
    again = _report(tried.output, run.name, "when it was given its input again")
    if tried.slug != rules.slug(found, run.name):
        raise _Broken(f"{run.name} crashed elsewhere when it was given its input again: {again.summary}")


def _report(output: bytes, name: str, when: str = "in its output") -> CrashReport:
    """The report in the output. Raises _Broken if there is none, or if its stack names no function and file."""
    report = reports.parse(output)
    if report is None:
        raise _Broken(f"{name} crashed, and no report of it was found {when}")
    if not any(frame.function and frame.file for frame in report.frames):
        raise _Broken(f"{name} crashed, and its stack has no names: the symbolizer does not work")
    return report


def _tried_again(run: _Run, content: bytes) -> Tried:
    conditions = Conditions(run.name, options_in(run.guest, run.plan))
    (tried,) = try_each(run.guest, conditions, [content], run.clock)
    return tried


def _clean(run: _Run) -> None:
    ended = run.ended()
    if ended.result != "done" or not ended.executions:
        raise _Broken(f"{run.name}, which never fails, failed: {ended.result} {ended.reason}".rstrip())
