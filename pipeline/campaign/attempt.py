"""One attempt at a slice: one run of the fuzzer in one guest, with all that it finds taken to the host."""

import logging
import os
import re
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pipeline.campaign.crash_intake import CrashIntake, Places, RunSoFar
from pipeline.campaign.failures import KEPT
from pipeline.campaign.guest_fuzzer import CORPUS, DICTIONARY, PACKAGE, BuiltWith, GuestFuzzer
from pipeline.campaign.guests import Guest, GuestWorkspace, with_ending
from pipeline.campaign.harvest import Harvest
from pipeline.campaign.ledger import Ended, Harvested, Point, Result, Started
from pipeline.campaign.output import Capture
from pipeline.campaign.state import FAILURES
from pipeline.campaign.status import LiveAttempt
from pipeline.campaign.work import Work
from pipeline.errors import (
    CommandError,
    CommandTimeout,
    ConnectError,
    FuzzerError,
    FuzzerTimeout,
    StoreError,
    TopcoatError,
)
from pipeline.fuzz.stats import Final, ProgressScanner, Stats
from pipeline.host.deadline import Clock
from pipeline.settings import CampaignSettings
from pipeline.text.printable import one_line

log = logging.getLogger("topcoat")

REPORT_LIMIT = 5.0
"""Seconds to wait until the report of a fetched artifact has come through the symbolizer."""

_BY_ITSELF = "it ended by itself, before its time or its runs were over, and reported nothing"
_GOES_ON = "runtime error"
# Printed for -exit_on_src_pos and -exit_on_item: FuzzerLoop.cpp and FuzzerTracePC.cpp
_FOUND = re.compile(rb"^INFO: found (?:line matching|item with checksum) '.{0,1000}', exiting\.$", re.MULTILINE)

_NOTHING = Stats(seconds=0.0, event="", executions=0)


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
        self._crashes = CrashIntake(work, guest, places)

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
            self._crashes.take(self._so_far(), ended=True)
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
        """Arguments for the dictionary and the seeds that the fuzzer was built with.

        A dictionary of the campaign takes the place of the fuzzer's own.
        """
        if workspace.built_with is None:
            workspace.built_with = workspace.guest_fuzzer.built_with() or self._looked_up(workspace.guest_fuzzer)
        dictionary, seeds = workspace.built_with.dictionary, workspace.built_with.seeds
        own = self.work.plan.dictionary is None and dictionary is not None
        return [*([f"-dict={dictionary}"] if own else []), *([seeds] if seeds else [])]

    def _looked_up(self, guest_fuzzer: GuestFuzzer) -> BuiltWith:
        """What there is in the guest of the usual files of a package."""
        dictionary, seeds = f"{self.work.subject.fuzzer.rpartition('/')[2]}.dict", f"{PACKAGE}/corpus"
        there = dictionary in guest_fuzzer.sizes(PACKAGE)
        return BuiltWith(f"{PACKAGE}/{dictionary}" if there else None, seeds if guest_fuzzer.sizes(seeds) else None)

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
        names = self._crashes.new_in(self._so_far())
        told = bool(names) and self._has_report(names)
        if self._progress.asleep is not None:
            try:
                self._crashes.take(self._so_far(), ended=True)
            finally:
                self._end_fuzzer()
        elif told:
            self._crashes.take(self._so_far())

    def _has_report(self, names: Iterable[str]) -> bool:
        """Wait until the output has a summary and names these artifacts, or is complete; false if it takes too long.

        If a process would sleep after its report, that it does, or has ended, is waited for.
        """

        def told() -> bool:
            if self._took is not None or self._progress.asleep is not None:
                return True
            end = self._capture.end(KEPT)
            whole = b"SUMMARY: " in end and all(os.fsencode(name) in end for name in names)
            return whole and self._places.capsules is None

        with self._said:
            return self._said.wait_for(told, REPORT_LIMIT)

    def _output(self) -> bytes:
        with self._said:
            return self._capture.content()

    def _so_far(self) -> RunSoFar:
        asleep = self._progress.asleep if self._took is None else None
        harvest = self._harvest
        fetched, torn = (dict(harvest.artifacts), frozenset(harvest.torn)) if harvest else ({}, frozenset())
        return RunSoFar(self._output(), fetched, torn, self._workspace, asleep)

    def _judge(self, error: TopcoatError | None) -> tuple[Result, str]:
        if isinstance(error, StoreError):
            return "host", one_line(str(error))
        if self._crashes.noted:
            return "crash", "; ".join((self._crashes.noted[0].group, *self._crashes.losses))
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
