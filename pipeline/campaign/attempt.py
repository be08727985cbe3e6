"""One attempt at a slice: one run of the fuzzer, what it has said, and how it ended."""

import re
import threading
from collections.abc import Collection, Mapping
from dataclasses import replace

from pipeline.campaign.crash_intake import CrashIntake, Places, RunSoFar
from pipeline.campaign.failures import KEPT
from pipeline.campaign.guest_fuzzer import CORPUS
from pipeline.campaign.guests import Guest, GuestWorkspace, with_ending
from pipeline.campaign.ledger import Ended, Point, Result, Started
from pipeline.campaign.output import Capture
from pipeline.campaign.state import FAILURES
from pipeline.campaign.work import Work
from pipeline.errors import CommandError, ConnectError, FuzzerError, FuzzerTimeout, StoreError, TopcoatError
from pipeline.fuzz.crashes.report import CrashReport, parse
from pipeline.fuzz.stats import Final, ProgressScanner, Stats
from pipeline.host.deadline import Clock
from pipeline.text.printable import one_line

LEAST_WEIGHT = 1 << 16
"""About how many bytes an attempt takes that says nothing."""

MOST_CURVES = 100
"""Of so many attempts at a slice the ledger has the curves; of later ones, the last point. A guest can claim more."""

_BY_ITSELF = "it ended by itself, before its time or its runs were over, and reported nothing"
_GOES_ON = "runtime error"
# Printed for -exit_on_src_pos and -exit_on_item: FuzzerLoop.cpp and FuzzerTracePC.cpp
_FOUND = re.compile(rb"^INFO: found (?:line matching|item with checksum) '.{0,1000}', exiting\.$", re.MULTILINE)

_NOTHING = Stats(seconds=0.0, event="", executions=0)


class Attempt:
    """One run of a fuzzer, and a writer for its output. Several threads may use it."""

    def __init__(
        self, work: Work, guest: Guest, places: Places, output_size: int, clock: Clock, entered: float | None = None
    ) -> None:
        """Make an attempt on which time has been spent since `entered`, by the clock; None: from now on."""
        self.work = work
        self.said = threading.Condition()
        """Notified when the run has said something, and when it has ended."""
        self.crashes = CrashIntake(work, guest, places)
        self.workspace: GuestWorkspace | None = None
        """The fuzzer in the guest; None if it was never there."""
        self.halted = False
        """Whether somebody asked for its end."""
        self.torn: Collection[str] = ()
        """Names of artifacts that did not come whole."""
        self.fetched: Mapping[str, bytes] = {}
        """The contents of the artifacts that came, by name."""
        self.error: TopcoatError | None = None
        """What went wrong with the run itself."""
        self._guest, self._places, self._clock = guest, places, clock
        self._progress = ProgressScanner(clock)
        self._capture = Capture(output_size)
        self._entered = clock() if entered is None else entered
        self._report: tuple[int, CrashReport | None] = (0, None)
        """For how many bytes of output it was read, and what it says of a crash."""
        self._began: float | None = None
        self._took: float | None = None
        """Seconds for which the fuzzer ran; None until it has ended."""
        self.over_at = 0.0
        """When it ended, by the clock."""
        self._stopped_after: float | None = None
        """Seconds after which it was halted, or a crash ended its work; None until then."""

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
    def asleep(self) -> int | None:
        """The pid of a process that has crashed and sleeps; None if there is none."""
        return self._progress.asleep if self._took is None else None

    @property
    def has_begun(self) -> bool:
        """Whether the run has begun."""
        return self._began is not None

    @property
    def has_ended(self) -> bool:
        """Whether the run has ended."""
        return self._took is not None

    @property
    def weight(self) -> int:
        """About how many bytes of memory it takes."""
        return LEAST_WEIGHT + self._capture.held

    def started(self) -> Started:
        """The ledger entry of its begin."""
        work, guest = self.work, self._guest
        what = (work.subject, work.slice, work.attempt, guest.instance, guest.boot_id, work.seed)
        return Started(*what, work.words(guest))

    def begin(self) -> None:
        """Note that the fuzzer runs from now on."""
        self._began, self._progress = self._clock(), ProgressScanner(self._clock)

    def end(self) -> None:
        """Note that the fuzzer has ended."""
        # If halted, the time until then: on a busy host, a killed fuzzer may take long to be gone
        self._took, self.over_at = self.seconds, self._clock()
        with self.said:
            self.said.notify_all()

    def stop_counting(self) -> None:
        """Note that the time from now on is not the fuzzer's, although it has not ended."""
        if self._stopped_after is None:
            self._stopped_after = self.seconds

    def write(self, data: bytes, /) -> int:
        """Take a piece of the fuzzer's output. Returns its length."""
        with self.said:
            for piece in self._progress.feed(data):
                self._capture.write(piece)
            self.said.notify_all()
        return len(data)

    def flush(self) -> None:
        """Do nothing: no output is held back for long."""

    def so_far(self) -> RunSoFar:
        """What is known of the run so far."""
        with self.said:
            output, written = self._capture.content(), self._capture.written
        if written != self._report[0]:
            self._report = written, parse(output)
        fetched, torn = dict(self.fetched), frozenset(self.torn)
        return RunSoFar(output, self._report[1], fetched, torn, self.workspace, self.asleep)

    def output_end(self) -> bytes:
        """The end of what it has said."""
        with self.said:
            return self._capture.end(KEPT)

    def ended(self, added: int, *, last: bool, guest_is_left: bool = False) -> Ended:
        """Take in what it has reported and was not taken yet, and return the ledger entry of its end.

        `added` is the number of new units. What took time after the `last` run counts, as no other one began meanwhile.
        `guest_is_left` says that the guest was still sending when the wait for it was given up. What the run said last
        is kept if it has failed.
        """
        try:
            self.crashes.take(self.so_far(), ended=True)
        except StoreError as failure:
            self.error = failure
        result, reason = self._judge(guest_is_left)
        work = self.work
        if result in (*FAILURES, "host"):
            kept = self._places.failures.keep(work.subject.fuzzer, f"{work.slice}.{work.attempt}", self.output_end())
            reason = "; ".join(filter(None, (reason, kept)))
        now, took = self.latest, self._took or 0.0
        over = self._clock() if last else self.over_at
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
            added,
            now.rss,
            tuple(_point(one) for one in self._progress.curve[0 if work.attempt <= MOST_CURVES else -1 :]),
            round(max(0.0, over - self._entered - took), 3),
        )

    def _judge(self, guest_is_left: bool) -> tuple[Result, str]:
        error = self.error
        if isinstance(error, StoreError):
            return "host", one_line(str(error))
        if self.crashes.noted:
            return "crash", "; ".join((self.crashes.noted[0].group, *self.crashes.losses))
        if self.halted:
            return "stopped", "it was asked to"
        if error is None:
            return ("done", self._passed_over()) if self._is_over() else ("failed", _BY_ITSELF)
        result = self._fault(error, guest_is_left)
        dead = result in ("hang", "guest died")
        return result, with_ending(self._guest, error) if dead else one_line(str(error))

    def _is_over(self) -> bool:
        """Whether the fuzzer told that its time or runs were over, or that it found what it was told to look for.

        The good end of its command proves nothing: the target can end the process by `_exit(0)`.
        """
        return bool(self._progress.done or self._progress.final) or _FOUND.search(self.output_end()) is not None

    def _passed_over(self) -> str:
        """What a sanitizer reported and the target survived, so that no input of it was kept; empty if nothing."""
        return next((f"it went on after a {problem}" for problem in self._progress.problems if _GOES_ON in problem), "")

    def _fault(self, error: TopcoatError, guest_is_left: bool) -> Result:
        if isinstance(error, FuzzerTimeout) or guest_is_left:
            return "hang"
        if isinstance(error, FuzzerError | ConnectError | CommandError) and error.fault == "guest":
            return "failed" if self._answers() else "guest died"
        return "host"

    def _answers(self) -> bool:
        try:
            return (
                self.workspace is not None
                and self.workspace.guest_fuzzer.alive()
                and self.workspace.guest_fuzzer.sizes(CORPUS) is not None
            )
        except TopcoatError:
            return False


def _point(one: Stats) -> Point:
    return (round(one.seconds, 3), one.executions, one.edges, one.features, one.units)
