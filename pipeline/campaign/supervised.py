"""Working at a slice in one guest: the fuzzer runs, is started again after each crash, and what it finds is taken in.

Each run is an attempt of its own in the ledger. While one runs, a thread takes in what those before have found, in the
order in which it happened: so a run never waits for the host.
"""

import logging
import os
import posixpath
import threading
import time
from collections.abc import Collection, Sequence

from pipeline.campaign.attempt import Attempt
from pipeline.campaign.crash_intake import Places
from pipeline.campaign.guest_fuzzer import CORPUS, DICTIONARY, PACKAGE, BuiltWith, GuestFuzzer
from pipeline.campaign.guests import Guest, GuestWorkspace
from pipeline.campaign.harvest import Harvest
from pipeline.campaign.ledger import Ended, Harvested
from pipeline.campaign.status import LiveAttempt
from pipeline.campaign.work import Work
from pipeline.errors import CommandError, CommandTimeout, ConnectError, FuzzerError, TopcoatError
from pipeline.fuzz.crashes import artifacts
from pipeline.fuzz.crashes.artifacts import is_crash
from pipeline.fuzz.repetition import Repetition
from pipeline.fuzz.symbolizer import Writer
from pipeline.host.deadline import Clock
from pipeline.settings import CampaignSettings
from pipeline.text.printable import one_line

log = logging.getLogger("topcoat")

REPORT_LIMIT = 5.0
"""Seconds to wait until the report of an artifact has come through the symbolizer."""


class SupervisedSlice:
    """The runs of a fuzzer at one slice: `run` makes them, and `halt`, called from another thread, ends them early."""

    def __init__(
        self,
        work: Work,
        guest: Guest,
        places: Places,
        chosen: CampaignSettings,
        clock: Clock = time.monotonic,
        *,
        most: int = 1,
    ) -> None:
        """Prepare at most `most` runs, of which `work` is the first."""
        self._guest, self._places, self._chosen = guest, places, chosen
        self._clock, self._most = clock, most
        self._halted = threading.Event()
        self._in_guest: GuestFuzzer | None = None
        """The fuzzer while its command runs in the guest; later, to end it would end what fetches the units, too."""
        self._harvest: Harvest | None = None
        self._fatal: TopcoatError | None = None
        """The host's fault for which what came after it cannot be taken in; None until there is one."""
        self._added = 0
        """The number of new units that the ledger's ends of attempts have."""
        self._running = self._attempt(work)
        """The attempt that runs, or ran last."""
        self._noted = self._running
        """The attempt that has begun by the ledger, and not ended."""

    def _attempt(self, work: Work, entered: float | None = None) -> Attempt:
        return Attempt(work, self._guest, self._places, self._chosen.output_size, self._clock, entered)

    @property
    def work(self) -> Work:
        """The work of the attempt that is open in the ledger."""
        return self._noted.work

    @property
    def live(self) -> LiveAttempt:
        """What that attempt adds while its end is not noted; no number of it exceeds the one that will be noted."""
        attempt = self._noted
        return LiveAttempt(attempt.seconds, attempt.latest, self._harvest.added - self._added if self._harvest else 0)

    @property
    def guest_is_left(self) -> bool:
        """Whether the guest was still sending what was found when the wait for it was given up."""
        return self._harvest is not None and isinstance(self._harvest.failure, CommandTimeout)

    def halt(self) -> None:
        """End the fuzzer early: `run` takes in what was found so far, and returns soon.

        If it does not, call `halt` again.
        """
        self._halted.set()
        self._running.halted = True
        self._running.stop_counting()
        self._end_fuzzer()

    def _end_fuzzer(self) -> None:
        if guest_fuzzer := self._in_guest:
            try:
                guest_fuzzer.stop()
            except (ConnectError, CommandError) as error:  # the run's own end tells more
                log.debug("%s: %s", self._guest.instance, one_line(str(error)))

    def run(self) -> Ended:
        """Make the runs, note each ledger entry of them, and return the last one, which tells how the last run ended.

        A fault of the guest or the fuzzer is a result, not an error. Raises what is the host's fault, such as
        StoreError or SymbolizerFailed: it would not be better next time.
        """
        self._places.note(self._running.started())
        error = self._tried()
        if self._fatal:
            raise self._fatal
        last = self._running
        last.error, last.halted = error or last.error, self._halted.is_set()
        ended = last.ended(self._new_units(), last=True, guest_is_left=self.guest_is_left)
        self._places.note(ended)
        if last.error and ended.result == "host":
            raise last.error
        return ended

    def _tried(self) -> TopcoatError | None:
        """Fill the guest, run the fuzzer and harvest. Returns the error if anything went wrong."""
        try:
            work = self._running.work
            self._running.workspace = workspace = self._guest.workspace(work.subject.fuzzer)
            self._fill(workspace)
            self._run(workspace, (*work.words(self._guest), *self._built_with(workspace)))
        except TopcoatError as error:
            return error
        return self._harvest.failure if self._harvest else None

    def _fill(self, workspace: GuestWorkspace) -> None:
        """Give the guest the dictionary and the units that it lacks, and remove those that are passed over."""
        plan = self._running.work.plan
        if plan.dictionary is not None:
            directory, _, name = DICTIONARY.rpartition("/")
            workspace.guest_fuzzer.push({name: plan.dictionary}, directory)
        there = workspace.guest_fuzzer.sizes(CORPUS).keys() if workspace.used else frozenset[str]()
        workspace.used = True
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
        own = self._running.work.plan.dictionary is None and dictionary is not None
        return [*([f"-dict={dictionary}"] if own else []), *([seeds] if seeds else [])]

    def _looked_up(self, guest_fuzzer: GuestFuzzer) -> BuiltWith:
        """What there is in the guest of the usual files of a package."""
        fuzzer = self._running.work.subject.fuzzer
        dictionary, seeds = f"{fuzzer.rpartition('/')[2]}.dict", f"{PACKAGE}/corpus"
        there = dictionary in guest_fuzzer.sizes(PACKAGE)
        return BuiltWith(f"{PACKAGE}/{dictionary}" if there else None, seeds if guest_fuzzer.sizes(seeds) else None)

    def _run(self, workspace: GuestWorkspace, words: Sequence[str]) -> None:
        chosen, work, lasting = self._chosen, self._running.work, self._places.capsules is not None
        harvest = Harvest(
            *(workspace, self._places.corpus, work.source, chosen.harvest, chosen.unit_size),
            came=self._take_reported,
            wanted=self._must_be_fetched,
        )
        self._harvest = harvest
        self._keep_in_view(self._running)
        harvester = harvest.start(self._checkpoint, self.halt)
        try:
            if not self._halted.is_set():
                # One that sleeps after a crash, for a capsule, is ended by what would end the loop, too
                repetition = Repetition(work.seconds, work.seed, 1 if lasting else self._most)
                self._in_guest = workspace.guest_fuzzer
                workspace.guest_fuzzer.repeat(words, repetition, self, work.limit, lasting=lasting)
        finally:
            self._in_guest = None
            if not self._running.has_ended:
                self._running.end()
            try:
                harvest.end(harvester)
            finally:
                for step in harvest.left() if not self._fatal else ():
                    step()

    # What the runs tell: see pipeline.fuzz.loop.Runs. A thread of the harvest takes it in

    def begin(self) -> Writer:
        """See Runs."""
        before = self._running
        if before.has_begun:
            assert self._harvest is not None
            self._running = after = self._attempt(before.work.after(before.seconds), before.over_at)
            after.workspace, after.halted = before.workspace, self._halted.is_set()
            self._harvest.post(lambda: self._turn(before, after), before.weight)
        self._running.begin()
        return self

    def write(self, data: bytes, /) -> int:
        """Take a piece of the fuzzer's output. Returns its length."""
        attempt = self._running
        attempt.write(data)
        if attempt.asleep is not None and self._harvest and not self._harvest.is_over:
            attempt.stop_counting()
            self._harvest.over()
        return len(data)

    def flush(self) -> None:
        """Do nothing: no output is held back for long."""

    def found(self, path: str) -> None:
        """See Runs."""
        assert self._harvest is not None
        self._harvest.found(path)

    def end(self, error: FuzzerError | None) -> bool:
        """See Runs."""
        self._running.error = error
        self._running.end()
        return error is None and not self._halted.is_set()

    # These run in the thread of the harvest

    def _turn(self, before: Attempt, after: Attempt) -> None:
        """Note the end of one attempt and the begin of the next. Raises StoreError."""
        ended = before.ended(self._new_units(), last=False)
        self._places.note(ended)
        if before.error and ended.result == "host":
            self._fatal = before.error
            raise before.error
        self._noted = after
        self._keep_in_view(after)
        self._places.note(after.started())

    def _keep_in_view(self, attempt: Attempt) -> None:
        """Show the attempt the artifacts that are fetched from now on."""
        assert self._harvest is not None
        attempt.fetched, attempt.torn = self._harvest.begin()

    def _new_units(self) -> int:
        """The number of units that have come since this was asked last."""
        added = self._harvest.added - self._added if self._harvest else 0
        self._added += added
        return added

    def _checkpoint(self, added: int) -> None:
        attempt = self._noted
        now, work = attempt.latest, attempt.work
        self._places.note(
            Harvested(
                *(work.subject, work.slice, work.attempt, round(attempt.seconds, 3)),
                *(now.executions, now.edges, now.features, added),
            )
        )

    def _must_be_fetched(self, path: str) -> bool:
        """Whether the guest must give an artifact: its content may have been told, or may not be wanted any more."""
        attempt, name = self._noted, posixpath.basename(path)
        if not is_crash(name) or not self._has_report(attempt, [name]):
            return True
        report = attempt.so_far().report
        content = artifacts.told(name, report)
        if content is not None and self._harvest:
            self._harvest.artifacts[name] = content
        return content is None and attempt.crashes.is_wanted(report)

    def _take_reported(self) -> None:
        """Store the crashes reported so far: until the fuzzer has ended and its units are fetched can be long.

        One that has crashed and sleeps is ended then: all that it had to say was said.
        """
        attempt = self._noted
        if not attempt.fetched and attempt.asleep is None:
            return
        names = attempt.crashes.new_in(attempt.so_far())
        told = bool(names) and self._has_report(attempt, names)
        if attempt.asleep is not None:
            try:
                attempt.crashes.take(attempt.so_far(), ended=True)
            finally:
                self._end_fuzzer()
        elif told:
            attempt.crashes.take(attempt.so_far())

    def _has_report(self, attempt: Attempt, names: Collection[str]) -> bool:
        """Wait until the output has a summary and names these artifacts, or is complete; false if it takes too long.

        If a process would sleep after its report, that it does, or has ended, is waited for.
        """

        def told() -> bool:
            if attempt.has_ended or attempt.asleep is not None:
                return True
            end = attempt.output_end()
            whole = b"SUMMARY: " in end and all(os.fsencode(name) in end for name in names)
            return whole and self._places.capsules is None

        with attempt.said:
            return attempt.said.wait_for(told, REPORT_LIMIT)
