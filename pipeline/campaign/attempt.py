"""One attempt at a slice: the fuzzer runs once, in one guest, and whatever it brings is taken."""

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from pipeline.campaign.capture import Capture
from pipeline.campaign.failures import KEPT, Failures
from pipeline.campaign.guests import Guest, Room, with_ending
from pipeline.campaign.harvest import Harvest
from pipeline.campaign.judging import hit_own_limit
from pipeline.campaign.site import CORPUS, DICTIONARY, PACKAGE
from pipeline.campaign.state import FAILURES
from pipeline.campaign.status import Live
from pipeline.campaign.work import Work, usual_limits
from pipeline.corpus import Corpus
from pipeline.corpus.files import name_of
from pipeline.crashes import artifacts
from pipeline.crashes import report as reports
from pipeline.crashes.artifacts import is_crash, unit_of
from pipeline.crashes.report import CrashReport
from pipeline.crashes.vault import Crash, Vault
from pipeline.deadline import Clock
from pipeline.errors import CommandError, ConnectError, FuzzerError, FuzzerTimeout, StoreError, TopcoatError
from pipeline.fuzzer.progress import Final, Progress, ProgressScanner
from pipeline.ledger import Crashed, Ended, Entry, Harvested, Point, Result, Started
from pipeline.settings import Campaign
from pipeline.text import one_line

log = logging.getLogger("topcoat")

REPORT_LIMIT = 5.0
"""Seconds in which the report of an artifact that was fetched must have come through the symbolizer."""

_BY_ITSELF = "it ended by itself, before its time or its runs were over, and reported nothing"
_GOES_ON = "runtime error"
# FuzzerLoop.cpp and FuzzerTracePC.cpp, for -exit_on_src_pos and -exit_on_item
_FOUND = re.compile(rb"^INFO: found (?:line matching|item with checksum) '.{0,1000}', exiting\.$", re.MULTILINE)

_NOTHING = Progress(seconds=0.0, event="", executions=0)


@dataclass(frozen=True)
class Places:
    """Where everything goes."""

    corpus: Corpus
    vault: Vault
    failures: Failures
    note: Callable[[Entry], None]
    """Adds an entry to the ledger."""
    passed_over: frozenset[str] = frozenset()
    """Names of units of the corpus that the fuzzer is not given, as they hit a limit of this campaign."""


class Attempt:
    """One run of a fuzzer. `run` does it; `halt`, from another thread, ends it early."""

    def __init__(
        self, work: Work, guest: Guest, places: Places, chosen: Campaign, clock: Clock = time.monotonic
    ) -> None:
        self.work = work
        self._progress = ProgressScanner(clock)
        self._guest, self._places, self._chosen = guest, places, chosen
        self._clock = clock
        self._capture = Capture(chosen.output_size)
        self._room: Room | None = None
        self._harvest: Harvest | None = None
        self._entered = clock()
        self._began: float | None = None
        self._took: float | None = None
        """Seconds for which the fuzzer ran, once it has ended."""
        self._halted_after: float | None = None
        self._halted = threading.Event()
        self._said = threading.Condition()
        self._storing = threading.Lock()
        self._crashes: list[Crashed] = []
        self._losses: list[str] = []
        self._stored: set[str] = set()
        """Artifacts."""

    @property
    def seconds(self) -> float:
        """For which the fuzzer has been running, until it ended or was to be ended."""
        if self._took is not None:
            return self._took
        if self._halted_after is not None:
            return self._halted_after
        return 0.0 if self._began is None else self._clock() - self._began

    @property
    def latest(self) -> Progress:
        """What the fuzzer told last of how far it has come."""
        now, final = self._progress.progress or _NOTHING, self._progress.final or Final()
        return replace(now, executions=max(now.executions, final.executions), rss=max(now.rss, final.rss))

    @property
    def live(self) -> Live:
        """What it adds as long as its end is not noted. No number of it is larger than what will be noted then."""
        return Live(self.seconds, self.latest, self._harvest.added if self._harvest else 0)

    def halt(self) -> None:
        """End the fuzzer. `run` returns soon, and what was found until then is taken. Call it again if it does not."""
        if self._halted_after is None:
            self._halted_after = self.seconds
        self._halted.set()
        if self._room is not None and self._took is None:  # it would end too what fetches the units after the run
            try:
                self._room.site.stop()
            except (ConnectError, CommandError) as error:  # the run's own end tells more
                log.debug("%s: %s", self._guest.instance, one_line(str(error)))

    def run(self) -> Ended:
        """Do it. Every entry of it is noted, the one that is returned too; a guest at fault is no error.

        Raises what was the host's fault, such as StoreError or SymbolizerFailed: it would not be better next time.
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
        """Fill the guest, run the fuzzer and harvest. Returns what went wrong."""
        try:
            self._room = self._guest.room(self.work.subject.fuzzer)
            self._fill(self._room)
            self._run(self._room, (*self.work.words(self._guest), *self._built_with(self._room)))
        except TopcoatError as error:
            return error
        return self._harvest.failure if self._harvest else None

    def _fill(self, room: Room) -> None:
        """Give the guest what it lacks of the corpus, and the dictionary."""
        plan = self.work.plan
        if plan.dictionary is not None:
            directory, _, name = DICTIONARY.rpartition("/")
            room.site.push({name: plan.dictionary}, directory)
        there = room.site.sizes(CORPUS).keys()
        if unwanted := sorted(there & self._places.passed_over):
            room.site.remove(CORPUS, unwanted)
        lacking = self._places.corpus.lacking(there | self._places.passed_over)
        room.site.push({path.name: path for path in lacking}, CORPUS)
        room.known.update(path.name for path in lacking)

    def _built_with(self, room: Room) -> list[str]:
        """Arguments for the dictionary of the fuzzer's package, unless there is another one, and for its seeds."""
        dictionary, seeds = f"{PACKAGE}/{self.work.subject.fuzzer.rpartition('/')[2]}.dict", f"{PACKAGE}/corpus"
        if room.package is None:
            there = {f"{PACKAGE}/{name}" for name in room.site.sizes(PACKAGE)} & {dictionary}
            room.package = frozenset(there | ({seeds} if room.site.sizes(seeds) else set()))
        own = self.work.plan.dictionary is None and dictionary in room.package
        return [*([f"-dict={dictionary}"] if own else []), *([seeds] if seeds in room.package else [])]

    def _run(self, room: Room, words: Sequence[str]) -> None:
        chosen, corpus = self._chosen, self._places.corpus
        harvest = Harvest(room, corpus, self.work.source, chosen.harvest, chosen.unit_size, self._take_reported)
        self._harvest = harvest
        harvester = harvest.start(self._checkpoint, self.halt)
        try:
            self._began, self._progress = self._clock(), ProgressScanner(self._clock)
            if not self._halted.is_set():
                room.site.run(words, self, self.work.limit, harvest.found)
        finally:
            # On a busy host a fuzzer that was killed may take long to be gone
            self._took = self.seconds
            with self._said:
                self._said.notify_all()
            harvest.end(harvester)
            if harvest.failure is None:
                harvest.finish()

    def write(self, data: bytes, /) -> int:
        """Take the fuzzer's output."""
        with self._said:
            for piece in self._progress.feed(data):
                self._capture.write(piece)
            self._said.notify_all()
        return len(data)

    def flush(self) -> None:
        """Nothing is held back for long."""

    def _checkpoint(self, added: int) -> None:
        now, work = self.latest, self.work
        self._places.note(
            Harvested(
                *(work.subject, work.slice, work.attempt, round(self.seconds, 3)),
                *(now.executions, now.edges, now.features, added),
            )
        )

    def _take_reported(self) -> None:
        """Store what was reported while the fuzzer runs: until it ends, and all its units are here, can be long."""
        if self._inputs() and self._has_report(self._inputs()):
            self._take_crashes()

    def _has_report(self, names: Iterable[str]) -> bool:
        """Wait until the output tells of these artifacts, and what happened; or until all of it has come."""

        def told() -> bool:
            end = self._capture.end(KEPT)
            return self._took is not None or (b"SUMMARY: " in end and all(os.fsencode(name) in end for name in names))

        with self._said:
            return self._said.wait_for(told, REPORT_LIMIT)

    def _output(self) -> bytes:
        with self._said:
            return self._capture.content()

    def _inputs(self) -> dict[str, bytes]:
        """The artifacts of crashes that have not been stored yet."""
        fetched = dict(self._harvest.artifacts) if self._harvest else {}
        return {name: fetched[name] for name in fetched if is_crash(name) and name not in self._stored}

    def _take_crashes(self, *, ended: bool = False) -> None:
        """Store what was reported, and keep its input out of the corpus.

        Once it has `ended`, that without its input too: what else the guest has under an artifact's name is none.
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
        """The artifacts of crashes that did not come whole; of a guest that has died with one, what it told of."""
        torn = filter(is_crash, self._harvest.torn if self._harvest else ())
        if names := sorted(set(torn) - self._stored):
            return names
        return [] if report is None or self._stored else [next(reversed(report.artifacts), "")]

    def _lose(self, name: str) -> None:
        lost = f"the input of {one_line(name)} is lost: it did not come whole, and the output does not tell it"
        log.warning("%s: %s", self.work.source, lost)
        self._losses.append(lost)

    def _take_crash(self, name: str, content: bytes | None, report: CrashReport | None) -> None:
        """Without the content its artifact's name may tell which unit it is. The empty one ends no attempt."""
        work, corpus = self.work, self._places.corpus
        unit = unit_of(name) if content is None else name_of(content) if content else ""
        stays = hit_own_limit(report, dict(work.plan.options), usual_limits(self._guest))
        stored = self._places.vault.add(
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
        digest = sha256(content or b"").hexdigest()
        passed_over = unit if stays else ""
        crashed = Crashed(work.subject, work.slice, work.attempt, stored.group, stored.new, digest, passed_over)
        self._crashes.append(crashed)
        self._places.note(crashed)
        if passed_over or (unit and corpus.quarantine(content or unit, stored.group)):
            self._remove(unit)

    def _remove(self, unit: str) -> None:
        """Delete a unit in the guest, where it would end the next attempt."""
        if self._room and unit in self._room.known:
            try:
                self._room.site.remove(CORPUS, [unit])
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
        """Whether the fuzzer has told that its time or its runs were over, or that it found what it was to look for.

        That its command ended well says nothing: the target can end it, by `_exit(0)`.
        """
        return bool(self._progress.done or self._progress.final) or _FOUND.search(self._end()) is not None

    def _passed_over(self) -> str:
        """What a sanitizer told of, after which the target went on, so that no input of it was kept."""
        return next((f"it went on after a {problem}" for problem in self._progress.problems if _GOES_ON in problem), "")

    def _fault(self, error: TopcoatError) -> Result:
        if isinstance(error, FuzzerTimeout):
            return "hang"
        if isinstance(error, FuzzerError | ConnectError | CommandError) and error.fault == "guest":
            return "failed" if self._answers() else "guest died"
        return "host"

    def _answers(self) -> bool:
        try:
            return self._room is not None and self._room.site.alive() and self._room.site.sizes(CORPUS) is not None
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


def _point(one: Progress) -> Point:
    return (round(one.seconds, 3), one.executions, one.edges, one.features, one.units)
