"""One attempt at a slice: one run of the fuzzer in one guest, with all that it finds taken to the host."""

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from pipeline.campaign.capsules import Capsules
from pipeline.campaign.failures import KEPT, Failures
from pipeline.campaign.guest_fuzzer import CORPUS, DICTIONARY, PACKAGE
from pipeline.campaign.guests import Guest, GuestWorkspace, with_ending
from pipeline.campaign.harvest import Harvest
from pipeline.campaign.judging import hit_own_limit
from pipeline.campaign.ledger import Crashed, Ended, Harvested, LedgerEntry, Point, Result, Started
from pipeline.campaign.output import Capture
from pipeline.campaign.state import FAILURES
from pipeline.campaign.status import LiveAttempt
from pipeline.campaign.work import Work, usual_limits
from pipeline.errors import (
    CommandError,
    CommandTimeout,
    ConnectError,
    FuzzerError,
    FuzzerTimeout,
    StoreError,
    TopcoatError,
)
from pipeline.fuzz.corpus import Corpus
from pipeline.fuzz.corpus.files import name_of
from pipeline.fuzz.crashes import artifacts
from pipeline.fuzz.crashes import report as reports
from pipeline.fuzz.crashes.artifacts import is_crash, unit_of
from pipeline.fuzz.crashes.report import CrashReport
from pipeline.fuzz.crashes.store import Crash, CrashStore, StoredCrash
from pipeline.fuzz.stats import Final, ProgressScanner, Stats
from pipeline.host.deadline import Clock
from pipeline.settings import CampaignSettings
from pipeline.text.printable import one_line
from pipeline.vm.capsule import Crashed as CrashedProcess

log = logging.getLogger("topcoat")

REPORT_LIMIT = 5.0
"""Seconds to wait until the report of a fetched artifact has come through the symbolizer."""

_BY_ITSELF = "it ended by itself, before its time or its runs were over, and reported nothing"
_GOES_ON = "runtime error"
# Printed for -exit_on_src_pos and -exit_on_item: FuzzerLoop.cpp and FuzzerTracePC.cpp
_FOUND = re.compile(rb"^INFO: found (?:line matching|item with checksum) '.{0,1000}', exiting\.$", re.MULTILINE)

_NOTHING = Stats(seconds=0.0, event="", executions=0)


@dataclass(frozen=True)
class Places:
    """Where an attempt puts what it finds."""

    corpus: Corpus
    crash_store: CrashStore
    failures: Failures
    note: Callable[[LedgerEntry], None]
    """Adds an entry to the ledger."""
    passed_over: frozenset[str] = frozenset()
    """Names of units in the corpus that the fuzzer is not given, because they hit a limit of this campaign."""
    capsules: Capsules | None = None
    """Where guests are kept as they are at a crash; None if none are."""


class Attempt:
    """One run of a fuzzer: `run` does it, and `halt`, called from another thread, ends it early."""

    def __init__(
        self, work: Work, guest: Guest, places: Places, chosen: CampaignSettings, clock: Clock = time.monotonic
    ) -> None:
        self.work = work
        self._progress = ProgressScanner(clock)
        self._guest, self._places, self._chosen = guest, places, chosen
        self._clock = clock
        self._capture = Capture(chosen.output_size)
        self._workspace: GuestWorkspace | None = None
        self._harvest: Harvest | None = None
        self._entered = clock()
        self._began: float | None = None
        self._took: float | None = None
        """Seconds for which the fuzzer ran; None until it has ended."""
        self._stopped_after: float | None = None
        """Seconds after which it was halted, or a crash ended its work; None until then."""
        self._halted = threading.Event()
        self._said = threading.Condition()
        self._storing = threading.Lock()
        self._crashes: list[Crashed] = []
        self._losses: list[str] = []
        self._stored: set[str] = set()
        """Names of the artifacts whose crashes have been stored."""

    @property
    def seconds(self) -> float:
        """The seconds for which the fuzzer has been running, or ran until it ended, crashed, or was told to end."""
        if self._took is not None:
            return self._took
        if self._stopped_after is not None:
            return self._stopped_after
        return 0.0 if self._began is None else self._clock() - self._began

    @property
    def latest(self) -> Stats:
        """The last progress that the fuzzer reported, with executions and memory of its final statistics if larger."""
        now, final = self._progress.progress or _NOTHING, self._progress.final or Final()
        return replace(now, executions=max(now.executions, final.executions), rss=max(now.rss, final.rss))

    @property
    def live(self) -> LiveAttempt:
        """What the attempt adds while its end is not noted; no number of it exceeds the one that will be noted."""
        return LiveAttempt(self.seconds, self.latest, self._harvest.added if self._harvest else 0)

    @property
    def guest_is_left(self) -> bool:
        """Whether the guest was still sending what was found when the wait for it was given up."""
        return self._harvest is not None and isinstance(self._harvest.failure, CommandTimeout)

    def halt(self) -> None:
        """End the fuzzer early: `run` takes in what was found so far, and returns soon.

        If it does not, call `halt` again.
        """
        if self._stopped_after is None:
            self._stopped_after = self.seconds
        self._halted.set()
        self._end_fuzzer()

    def _end_fuzzer(self) -> None:
        if self._workspace is not None and self._took is None:  # later it would end what fetches the units, too
            try:
                self._workspace.guest_fuzzer.stop()
            except (ConnectError, CommandError) as error:  # the run's own end tells more
                log.debug("%s: %s", self._guest.instance, one_line(str(error)))

    def run(self) -> Ended:
        """Make the attempt, note each ledger entry of it, and return the last one, which tells how it ended.

        A fault of the guest or the fuzzer is a result, not an error. Raises what is the host's fault, such as
        StoreError or SymbolizerFailed: it would not be better next time.
        """
        work, guest = self.work, self._guest
        self._entered = self._clock()
        started = Started(
            *(work.subject, work.slice, work.attempt, guest.instance, guest.boot_id, work.seed), work.words(guest)
        )
        self._places.note(started)
        error = self._tried()
        try:
            self._take_crashes(ended=True)
        except StoreError as failure:
            error = failure
        result, reason = self._judge(error)
        if result in (*FAILURES, "host"):
            said = self._places.failures.keep(work.subject.fuzzer, f"{work.slice}.{work.attempt}", self._end())
            reason = "; ".join(filter(None, (reason, said)))
        ended = self._ended(result, reason)
        self._places.note(ended)
        if error and ended.result == "host":
            raise error
        return ended

    def _tried(self) -> TopcoatError | None:
        """Fill the guest, run the fuzzer and harvest. Returns the error if anything went wrong."""
        try:
            self._workspace = self._guest.workspace(self.work.subject.fuzzer)
            self._fill(self._workspace)
            self._run(self._workspace, (*self.work.words(self._guest), *self._built_with(self._workspace)))
        except TopcoatError as error:
            return error
        return self._harvest.failure if self._harvest else None

    def _fill(self, workspace: GuestWorkspace) -> None:
        """Give the guest the dictionary and the units that it lacks, and remove those that are passed over."""
        plan = self.work.plan
        if plan.dictionary is not None:
            directory, _, name = DICTIONARY.rpartition("/")
            workspace.guest_fuzzer.push({name: plan.dictionary}, directory)
        there = workspace.guest_fuzzer.sizes(CORPUS).keys()
        if unwanted := sorted(there & self._places.passed_over):
            workspace.guest_fuzzer.remove(CORPUS, unwanted)
        lacking = self._places.corpus.lacking(there | self._places.passed_over)
        workspace.guest_fuzzer.push({path.name: path for path in lacking}, CORPUS)
        workspace.known.update(path.name for path in lacking)

    def _built_with(self, workspace: GuestWorkspace) -> list[str]:
        """Arguments for the dictionary and the seeds in the fuzzer's package, as far as they are there.

        A dictionary of the campaign takes the place of the package's.
        """
        dictionary, seeds = f"{PACKAGE}/{self.work.subject.fuzzer.rpartition('/')[2]}.dict", f"{PACKAGE}/corpus"
        if workspace.package is None:
            there = {f"{PACKAGE}/{name}" for name in workspace.guest_fuzzer.sizes(PACKAGE)} & {dictionary}
            workspace.package = frozenset(there | ({seeds} if workspace.guest_fuzzer.sizes(seeds) else set()))
        own = self.work.plan.dictionary is None and dictionary in workspace.package
        return [*([f"-dict={dictionary}"] if own else []), *([seeds] if seeds in workspace.package else [])]

    def _run(self, workspace: GuestWorkspace, words: Sequence[str]) -> None:
        chosen, corpus = self._chosen, self._places.corpus
        harvest = Harvest(workspace, corpus, self.work.source, chosen.harvest, chosen.unit_size, self._take_reported)
        self._harvest = harvest
        harvester = harvest.start(self._checkpoint, self.halt)
        try:
            self._began, self._progress = self._clock(), ProgressScanner(self._clock)
            if not self._halted.is_set():
                lasting = self._places.capsules is not None
                workspace.guest_fuzzer.run(words, self, self.work.limit, harvest.found, lasting=lasting)
        finally:
            # If halted, the time until then: on a busy host, a killed fuzzer may take long to be gone
            self._took = self.seconds
            with self._said:
                self._said.notify_all()
            harvest.end(harvester)

    def write(self, data: bytes, /) -> int:
        """Take a piece of the fuzzer's output. Returns its length."""
        with self._said:
            for piece in self._progress.feed(data):
                self._capture.write(piece)
            self._said.notify_all()
        if self._progress.asleep is not None and self._stopped_after is None and self._harvest:
            self._stopped_after = self.seconds
            self._harvest.over()
        return len(data)

    def flush(self) -> None:
        """Do nothing: no output is held back for long."""

    def _checkpoint(self, added: int) -> None:
        now, work = self.latest, self.work
        self._places.note(
            Harvested(
                *(work.subject, work.slice, work.attempt, round(self.seconds, 3)),
                *(now.executions, now.edges, now.features, added),
            )
        )

    def _take_reported(self) -> None:
        """Store the crashes reported so far: until the fuzzer has ended and its units are fetched can be long.

        One that has crashed and sleeps is ended then: all that it had to say was said.
        """
        if self._progress.asleep is not None:
            try:
                self._take_crashes(ended=True)
            finally:
                self._end_fuzzer()
        elif self._inputs() and self._has_report(self._inputs()):
            self._take_crashes()

    def _has_report(self, names: Iterable[str]) -> bool:
        """Wait until the output has a summary and names these artifacts, or is complete; false if it takes too long."""

        def told() -> bool:
            end = self._capture.end(KEPT)
            return self._took is not None or (b"SUMMARY: " in end and all(os.fsencode(name) in end for name in names))

        with self._said:
            return self._said.wait_for(told, REPORT_LIMIT)

    def _output(self) -> bytes:
        with self._said:
            return self._capture.content()

    def _inputs(self) -> dict[str, bytes]:
        """The contents, by name, of the fetched artifacts whose crashes have not been stored yet."""
        fetched = dict(self._harvest.artifacts) if self._harvest else {}
        return {name: fetched[name] for name in fetched if is_crash(name) and name not in self._stored}

    def _take_crashes(self, *, ended: bool = False) -> None:
        """Store the crashes that were reported, and keep their inputs out of the corpus.

        Once the run has `ended`, crashes whose artifacts did not come whole are stored too: with the input that the
        output tells, or without one. Whatever else the guest has under the name of an artifact is not its content.
        """
        with self._storing:
            report = reports.parse(self._output())
            for name, content in self._inputs().items():
                self._take_crash(name, content, report)
            for name in self._without_input(report) if ended else ():
                told = artifacts.told(name, report)
                if told is None and name:
                    self._lose(name)
                self._take_crash(name, told, report)

    def _without_input(self, report: CrashReport | None) -> list[str]:
        """Names of the artifacts of crashes that did not come whole.

        If there is none, and no crash was stored although there is a report, the guest may have died with the artifact:
        then the last name in the report, or an empty one if it names none.
        """
        torn = filter(is_crash, tuple(self._harvest.torn) if self._harvest else ())
        if names := sorted(set(torn) - self._stored):
            return names
        return [] if report is None or self._stored else [next(reversed(report.artifacts), "")]

    def _lose(self, name: str) -> None:
        lost = f"the input of {one_line(name)} is lost: it did not come whole, and the output does not tell it"
        log.warning("%s: %s", self.work.source, lost)
        self._losses.append(lost)

    def _take_crash(self, name: str, content: bytes | None, report: CrashReport | None) -> None:
        """Store and note a crash, and see that its unit does not end the next attempt too.

        Without the content, the name of the artifact may still tell which unit it is. The empty unit needs no care: it
        ends no attempt.
        """
        work, corpus = self.work, self._places.corpus
        unit = unit_of(name) if content is None else name_of(content) if content else ""
        stays = hit_own_limit(report, dict(work.plan.options), usual_limits(self._guest))
        stored = self._places.crash_store.add(
            Crash(
                fuzzer=work.subject.fuzzer,
                slice=work.slice,
                attempt=work.attempt,
                boot_id=self._guest.boot_id,
                seed=work.seed,
                options=work.words(self._guest),
                builds={"fuzzer": work.subject.build},
                artifact=name,
                input=content or b"",
                output=self._output(),
                serial=self._guest.serial(),
                report=report,
            )
        )
        self._stored.add(name)
        self._keep_guest(stored)
        digest = sha256(content or b"").hexdigest()
        passed_over = unit if stays else ""
        crashed = Crashed(work.subject, work.slice, work.attempt, stored.bucket, stored.new, digest, passed_over)
        self._crashes.append(crashed)
        self._places.note(crashed)
        if passed_over or (unit and corpus.quarantine(content or unit, stored.bucket)):
            self._remove(unit)

    def _keep_guest(self, stored: StoredCrash) -> None:
        """Keep the guest as it is, if the process that has crashed is still there."""
        pid = self._progress.asleep
        if self._places.capsules and pid is not None and self._took is None:
            self._places.capsules.keep(self._guest, CrashedProcess(self.work.subject.fuzzer, pid), stored)

    def _remove(self, unit: str) -> None:
        """Delete a unit from the guest's corpus, where it would end the next attempt too."""
        if self._workspace and unit in self._workspace.known:
            try:
                self._workspace.guest_fuzzer.remove(CORPUS, [unit])
            except (ConnectError, CommandError) as error:
                log.warning("%s: %s", self._guest.instance, one_line(str(error)))

    def _judge(self, error: TopcoatError | None) -> tuple[Result, str]:
        if isinstance(error, StoreError):
            return "host", one_line(str(error))
        if self._crashes:
            return "crash", "; ".join((self._crashes[0].group, *self._losses))
        if self._halted.is_set():
            return "stopped", "it was asked to"
        if error is None:
            return ("done", self._passed_over()) if self._is_over() else ("failed", _BY_ITSELF)
        result = self._fault(error)
        dead = result in ("hang", "guest died")
        return result, with_ending(self._guest, error) if dead else one_line(str(error))

    def _is_over(self) -> bool:
        """Whether the fuzzer told that its time or runs were over, or that it found what it was told to look for.

        The good end of its command proves nothing: the target can end the process by `_exit(0)`.
        """
        return bool(self._progress.done or self._progress.final) or _FOUND.search(self._end()) is not None

    def _passed_over(self) -> str:
        """What a sanitizer reported and the target survived, so that no input of it was kept; empty if nothing."""
        return next((f"it went on after a {problem}" for problem in self._progress.problems if _GOES_ON in problem), "")

    def _fault(self, error: TopcoatError) -> Result:
        if isinstance(error, FuzzerTimeout) or self.guest_is_left:
            return "hang"
        if isinstance(error, FuzzerError | ConnectError | CommandError) and error.fault == "guest":
            return "failed" if self._answers() else "guest died"
        return "host"

    def _answers(self) -> bool:
        try:
            return (
                self._workspace is not None
                and self._workspace.guest_fuzzer.alive()
                and self._workspace.guest_fuzzer.sizes(CORPUS) is not None
            )
        except TopcoatError:
            return False

    def _end(self) -> bytes:
        with self._said:
            return self._capture.end(KEPT)

    def _ended(self, result: Result, reason: str) -> Ended:
        work, now, took = self.work, self.latest, self._took or 0.0
        return Ended(
            work.subject,
            work.slice,
            work.attempt,
            result,
            reason,
            round(took, 3),
            now.executions,
            now.edges,
            now.features,
            len(self._places.corpus.units()),
            self._harvest.added if self._harvest else 0,
            now.rss,
            tuple(_point(one) for one in self._progress.curve),
            round(max(0.0, self._clock() - self._entered - took), 3),
        )


def _point(one: Stats) -> Point:
    return (round(one.seconds, 3), one.executions, one.edges, one.features, one.units)
