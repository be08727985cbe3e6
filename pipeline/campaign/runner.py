"""Running a campaign: workers, each with a leased guest, share out what is left of every fuzzer's budget."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial

from pipeline.campaign import budget, canary, found, ledger, merging, reading, seeds
from pipeline.campaign.capsules import Capsules
from pipeline.campaign.crash_intake import Places, SeenOften
from pipeline.campaign.failures import Failures
from pipeline.campaign.found import FoundBucket
from pipeline.campaign.guests import Guest, Guests, spoil_if_short
from pipeline.campaign.judging import value_profile
from pipeline.campaign.leases import Leases
from pipeline.campaign.ledger import Benched, Closed, Ended, Ledger, LedgerEntry, Opened
from pipeline.campaign.plan.definition import Definition, FuzzerPlan
from pipeline.campaign.proofs import Claim, Proofs
from pipeline.campaign.reading import LEDGER
from pipeline.campaign.result import RESULT
from pipeline.campaign.schedule import Only, Schedule
from pipeline.campaign.state import FuzzerState, State
from pipeline.campaign.status import CampaignState, FuzzerStatus, Status, of_campaign, of_fuzzer
from pipeline.campaign.subjects import Subjects
from pipeline.campaign.supervised import SupervisedSlice
from pipeline.campaign.work import Work
from pipeline.errors import BootError, CampaignError, ConnectError, NotProved, TopcoatError
from pipeline.fuzz.corpus import Corpus, CorpusLimits
from pipeline.fuzz.crashes.store import CrashStore, OwnFiles, no_files
from pipeline.host.deadline import Clock, Deadline, utc_now
from pipeline.host.process import Process
from pipeline.host.worker import Worker
from pipeline.settings import CampaignSettings, Store
from pipeline.store.publish import remove

log = logging.getLogger("topcoat")


MOST_ATTEMPTS = 10_000
"""The largest number of attempts at one slice: a guest can claim that its fuzzer crashes without end."""

HALT_AGAIN = 5.0
"""Seconds after which whatever still runs is halted again."""

HALT_LIMIT = 120.0
"""Seconds to take in all that runs when the campaign is to end."""

_LOCK_LIMIT = 60.0  # seconds; a process that was interrupted may still be taking in what it has


class Runner:
    """The work of this process at a campaign. All methods but `run` can be called from any thread."""

    def __init__(
        self,
        definition: Definition,
        subjects: Subjects,
        guests: Guests,
        store: Store,
        chosen: CampaignSettings,
        workers: int,
        only: Only | None = None,
        clock: Clock = time.monotonic,
        *,
        capsules: bool = False,
        own_files: OwnFiles = no_files,
    ) -> None:
        """With `only`, all work is confined to that piece, and no canary is looked for.

        With `capsules`, guests are kept as they are at the first crash of each bucket. `own_files` tells the files that
        are kept of a target that has crashed.
        """
        self.definition = definition
        self.active: dict[str, SupervisedSlice] = {}
        """The slices that are worked at now, by fuzzer."""
        self.subjects = subjects
        self._only = only
        self._schedule = Schedule(definition, subjects, only)
        self._plans = {plan.name: plan for plan in definition.fuzzers}
        self._store, self._chosen = store, chosen
        self._workers, self._clock = workers, clock
        self.directory = store.campaigns / definition.name
        self._crash_store = CrashStore(store.root, size=chosen.crash_size, own_files=own_files)
        self._capsules = Capsules(self._crash_store, chosen) if capsules else None
        self._claim = Claim.of(socket.gethostname(), subjects.boot or subjects.build, chosen)
        self._proofs = Proofs(store.root / "canary.json")
        self._book: Ledger | None = None
        self._changed = threading.Condition(threading.RLock())
        self._busy: set[str] = set()
        self._merging: dict[str, Callable[[], None]] = {}
        """Functions that end the merge of a fuzzer's corpus early, by fuzzer."""
        self._warned: set[str] = set()
        self._often = SeenOften()
        self._guests = guests
        self._leases = Leases(guests, lambda entry: self.note(entry))
        self._stopping = False
        self._failure: BaseException | None = None

    # What others ask

    @property
    def state(self) -> State:
        """All that was done so far, by whatever process."""
        return self._schedule.state

    def corpus(self, fuzzer: str) -> Corpus:
        """The corpus of a fuzzer, which all campaigns share."""
        return Corpus.of(self._store.root, fuzzer, CorpusLimits.of(self._chosen))

    def fuzzer_state(self, fuzzer: str) -> FuzzerState:
        """How a fuzzer stands, as it is built and planned today."""
        return self._schedule.fuzzer_state(fuzzer)

    def status(self) -> Status:
        """How the whole campaign stands at this moment."""
        with self._changed:
            fuzzers = tuple(self._status(plan) for plan in self.definition.fuzzers)
            merges = any(self._schedule.merges(plan) for plan in self.definition.fuzzers)
            done = not merges and all(one.state in ("done", "benched") for one in fuzzers)
            what: CampaignState = "done" if done else "stopped" if self._stopping else "running"
            proof = self.state.proof(self._claim.host, self._claim.key)
            return of_campaign(self.definition, self.state, fuzzers, proof, self._workers, what)

    def buckets(self) -> list[FoundBucket]:
        """All buckets that the campaign has found crashes of so far."""
        return found.find(self._crash_store, self.directory, self.state, self.subjects.of.values())

    def _status(self, plan: FuzzerPlan) -> FuzzerStatus:
        fuzzer_state, active = self.fuzzer_state(plan.name), self.active.get(plan.name)
        # Its end is added up while it is still active: nothing may count twice, or not at all
        live = active.live if active and fuzzer_state.is_open(active.work.slice, active.work.attempt) else None
        merging = plan.name in self._busy and not self._schedule.runs(plan) and active is None
        return of_fuzzer(plan, fuzzer_state, budget.left(plan, fuzzer_state), live, merging=merging)

    # The run

    def run(self, tick: Callable[["Runner"], None] | None = None, every: float = 1.0) -> State:
        """Work until every budget is used or its fuzzer benched. Returns how all stand then.

        `tick` is called first, at least each `every` seconds, and when all has ended, for whatever reason.

        If interrupted, takes in what runs and raises KeyboardInterrupt. Raises InstanceBusy, most likely a
        CampaignBusy, if another process works at this campaign, StoreError, NotProved, and BootError if no guest can be
        had: what was done until then is kept.
        """
        path = self.directory / LEDGER
        reading.require_free(self.directory)
        with ledger.opened(path, _LOCK_LIMIT) as self._book:
            remove(self.directory / RESULT)  # it would claim that all is done, whatever ends this run
            self._schedule.state = State.of(ledger.read(path))
            self._open()
            with self._told(tick):
                self._work_all(tick, every)
        if self._failure:
            raise self._failure
        return self.state

    @contextmanager
    def _told(self, tick: Callable[["Runner"], None] | None) -> Iterator[None]:
        """Call `tick` before the body and after it, however it ends."""
        if tick:
            tick(self)
        try:
            yield
        except BaseException:
            self.stop()
            self._tell(tick)
            raise
        if tick:
            tick(self)

    def _tell(self, tick: Callable[["Runner"], None] | None) -> None:
        """Call `tick`. Its errors are only logged, so as not to hide why the campaign ends."""
        try:
            if tick:
                tick(self)
        except TopcoatError as error:
            log.error("%s", error.explain())

    def _work_all(self, tick: Callable[["Runner"], None] | None, every: float) -> None:
        self._import_seeds()
        self._guests.expect(min(self._workers, self._schedule.open))
        self._prove()
        workers = [Worker(f"campaign {number}", self._work) for number in range(self._workers)]
        try:
            self._watch(workers, tick, every)
        except KeyboardInterrupt:
            log.info("interrupted: what runs is ended and taken in")
            raise
        finally:
            self._halt(workers, tick)

    def note(self, entry: LedgerEntry) -> None:
        """Write an entry to the ledger, and add it to the state."""
        with self._changed:
            assert self._book is not None
            self._book.append(entry)
            self.state.add(entry)
            self._changed.notify_all()

    def stop(self) -> None:
        """Have everything end soon: what runs is halted, and what it has found is taken in."""
        with self._changed:
            self._stopping = True
            halts = [*(one.halt for one in self.active.values()), *self._merging.values()]
            self._changed.notify_all()
        for halt in halts:
            halt()

    def _open(self) -> None:
        """Note the end of attempts whose process is gone, as far as it is known, and the beginning of this process."""
        for started in self.state.interrupted():
            one = self.state.fuzzer_state(started.subject).slices[started.slice]
            last = one.checkpoint
            self.note(
                Ended(
                    *(started.subject, started.slice, started.attempt, "interrupted"),
                    "the process that ran it is gone",
                    *((last.seconds, last.executions, last.edges, last.features) if last else (0.0, 0, 0, 0)),
                    units=len(self.corpus(started.subject.fuzzer).units()),
                    added=last.added if last else 0,
                    peak_rss=0,
                )
            )
        for subject in self.subjects.of.values():
            self._crash_store.note_build(subject.fuzzer, subject.build)
        ours = Process.find(os.getpid())
        assert ours is not None
        self.note(
            Opened(
                *(self._claim.host, ours.pid, self.definition.encode(), utc_now(), asdict(ours), self._workers),
                builds={name: subject.build for name, subject in self.subjects.of.items()},
                proof=self._claim.key,
                part=self._only is not None,
            )
        )

    def _import_seeds(self) -> None:
        """Import the seeds of all fuzzers that will run; a merge by itself imports none."""
        only = self._only
        plans = [one for one in self.definition.fuzzers if not only or (only.slice and only.fuzzer == one.name)]
        for plan in plans:
            self.corpus(plan.name).count_value_profile(value_profile(dict(plan.options)))
        seeds.bring(plans, self.corpus, self.state.seeded, lambda name: self.fuzzer_state(name).attempts > 0, self.note)

    def _prove(self) -> None:
        """Look for the canary, unless any campaign has found it on this host with such guests.

        Raises NotProved if it is not found and `[campaign] canary` is on.
        """
        claim = self._claim
        if self._only or self._chosen.canary == "off" or self.state.proof(claim.host, claim.key)[0]:
            return
        lend, place = self._leases.one, self.directory / "canary"
        proved = canary.prove(claim, self._proofs, self.definition.name, lend, place, self._chosen, self._clock)
        self.note(proved)
        if not proved.proved:
            error = NotProved(
                f"the canary was not found: {proved.reason}",
                hint="a campaign would find nothing either; to run it all the same, unproved: [campaign] canary = warn",
            )
            if self._chosen.canary == "on":
                raise error
            log.warning("%s; whatever this campaign says is unproved", error.message)

    def _watch(self, workers: list[Worker], tick: Callable[["Runner"], None] | None, every: float) -> None:
        def ended() -> bool:
            return all(worker.join(0) for worker in workers)

        while not ended():
            with self._changed:
                self._changed.wait_for(ended, every)
            if tick:
                tick(self)

    def _halt(self, workers: list[Worker], tick: Callable[["Runner"], None] | None) -> None:
        with self._changed:
            self._stopping = True
        try:
            self._tell(tick)  # first: a process that would go on with the campaign then waits, and is not refused
        finally:
            self._join(workers)

    def _join(self, workers: list[Worker]) -> None:
        self.stop()
        deadline = Deadline(HALT_LIMIT)
        for worker in workers:
            while not worker.join(deadline.within(HALT_AGAIN)):
                if deadline.expired:
                    log.error("a worker of the campaign still hangs after %g s", HALT_LIMIT)
                    break
                self.stop()  # what was about to start in a guest did not hear it
            self._failure = self._failure or worker.failure

    # One worker

    def _work(self) -> None:
        try:
            while (name := self._next()) is not None:
                try:
                    self._serve(self._plans[name])
                finally:
                    self._release(name)
        except BaseException as failure:  # noqa: BLE001  run raises it
            with self._changed:
                self._failure = self._failure or failure
            self.stop()

    def _next(self) -> str | None:
        """The fuzzer to work at next, reserved for this worker; None if nothing is left to do."""
        with self._changed:
            while not self._stopping:
                if name := self._schedule.choose(self._busy):
                    self._busy.add(name)
                    return name
                if not self._busy:
                    return None
                self._changed.wait()
            return None

    def _release(self, name: str) -> None:
        with self._changed:
            self._busy.discard(name)
            self.active.pop(name, None)
            self._changed.notify_all()

    def _serve(self, plan: FuzzerPlan) -> None:
        try:
            if self._schedule.runs(plan):
                with self._leases.one() as guest:
                    self._slice(plan, guest)
            else:
                self._merge(plan)
        except ConnectError as error:  # it answered when it was booted: the next lease will be another boot
            log.warning("%s: %s", plan.name, error)
            self._leases.failed(error)
        except BootError as error:
            self._leases.failed(error)

    def _slice(self, plan: FuzzerPlan, guest: Guest) -> None:
        """Work at the fuzzer's present slice until it is over, or the guest must not be used any more."""
        number = self._schedule.slice_of(plan)
        short = False
        while (work := self._work_left(plan, number)) is not None and not short:
            with self._changed:
                passed_over = frozenset(self.fuzzer_state(plan.name).passed_over)
            what = (self.corpus(plan.name), self._crash_store, Failures(self.directory), self.note)
            places = Places(*what, passed_over, self._capsules, self.definition.name, self._often)
            # A budget of runs is checked between two: only here it is known how many a run has made
            most = 1 if work.runs is not None else MOST_ATTEMPTS - work.attempt + 1
            supervised = SupervisedSlice(work, guest, places, self._chosen, self._clock, most=most)
            with self._changed:
                self.active[plan.name] = supervised
                if self._stopping:
                    return
            ended = supervised.run()
            self._warn(ended)
            self._bench(plan)
            if ended.result in ("hang", "guest died") or supervised.guest_is_left or guest.ending():
                guest.spoil(f"{plan.name}: {ended.result}: {ended.reason}")
                return
            short = spoil_if_short(guest, plan.name)

    def _work_left(self, plan: FuzzerPlan, number: int) -> Work | None:
        """The next attempt at this slice; None if work is to stop, or if the slice is used up, which is closed then.

        Raises CampaignError for a slice that was asked for by its number, but for which no budget is left.
        """
        subject, runs = self.subjects.of[plan.name], plan.budget.runs
        with self._changed:
            fuzzer_state = self.fuzzer_state(plan.name)
            attempts = fuzzer_state.slices[number].attempts if number in fuzzer_state.slices else 0
            seconds = budget.left_of_slice(plan, fuzzer_state, number)
            if self._stopping or fuzzer_state.benched:
                return None
            if seconds and attempts < MOST_ATTEMPTS:
                limit = None if runs is None else int(budget.left(plan, fuzzer_state))
                seed = self._schedule.seed(plan.name, number, attempts + 1)
                return Work(subject, plan, number, attempts + 1, seconds, limit, seed)
        if not attempts:  # it was asked for by its number
            raise CampaignError(
                f"nothing of the budget of {plan.name} is left for slice {number}",
                hint="see what was done: topcoat campaign status; for more, raise --budget",
            )
        reason = "attempts" if attempts >= MOST_ATTEMPTS else "time" if runs is None else "runs"
        self.note(Closed(subject, number, reason))
        return None

    def _warn(self, ended: Ended) -> None:
        """Warn, once for each fuzzer, of a run that counts as good although a sanitizer reported something."""
        fuzzer = ended.subject.fuzzer
        if ended.result != "done" or not ended.reason:
            return
        with self._changed:
            told = fuzzer in self._warned
            self._warned.add(fuzzer)
        if not told:
            log.warning("%s: %s: nothing is kept of that; have it halt, see docs/campaign.md", fuzzer, ended.reason)

    def _bench(self, plan: FuzzerPlan) -> None:
        subject, fuzzer_state = self.subjects.of[plan.name], self.fuzzer_state(plan.name)
        if fuzzer_state.strikes >= self._chosen.strikes:
            self.note(
                Benched(subject, f"{fuzzer_state.strikes} failures in a row, the last one: {fuzzer_state.failure}")
            )
            log.warning("%s is benched: %s", plan.name, fuzzer_state.benched)

    def _merge(self, plan: FuzzerPlan) -> None:
        subject, corpus, lend = self.subjects.of[plan.name], self.corpus(plan.name), partial(self._lent, plan)
        merged = merging.merge(subject, plan, lend, corpus, self._chosen, self._clock, lambda: self._stopping)
        if merged.accepted or not self._stopping:  # one that was ended early is made another time
            self.note(merged)

    @contextmanager
    def _lent(self, plan: FuzzerPlan, anew: str) -> Iterator[Guest]:
        """Lease a guest for a merge, which `stop` ends early."""
        with self._leases.one(anew) as guest:
            with self._changed:
                self._merging[plan.name] = partial(merging.halt, plan, guest)
            try:
                yield guest
                spoil_if_short(guest, plan.name)
            finally:
                with self._changed:
                    del self._merging[plan.name]
