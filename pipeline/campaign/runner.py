"""Running a campaign: workers, each with a guest on lease, that share out what is left of every fuzzer's budget."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256

from pipeline import ledger
from pipeline.campaign import allocation, budget, canary, merging, reading, seeds
from pipeline.campaign.allocation import Candidate
from pipeline.campaign.attempt import Attempt, Places
from pipeline.campaign.definition import Definition, FuzzerPlan
from pipeline.campaign.failures import Failures
from pipeline.campaign.guests import Guest, Guests, spoil_if_short
from pipeline.campaign.judging import value_profile
from pipeline.campaign.leases import Leases
from pipeline.campaign.proofs import Claim, Proofs
from pipeline.campaign.reading import LEDGER
from pipeline.campaign.result import RESULT
from pipeline.campaign.state import Standing, State
from pipeline.campaign.status import CampaignState, FuzzerStatus, Status, of_campaign, of_fuzzer
from pipeline.campaign.subjects import Subjects
from pipeline.campaign.work import Work
from pipeline.corpus import Corpus, Limits
from pipeline.crashes.vault import Group, Vault
from pipeline.deadline import Clock, Deadline, utc_now
from pipeline.errors import BootError, CampaignError, ConnectError, NotProved, TopcoatError
from pipeline.ledger import Benched, Closed, Ended, Entry, Ledger, Opened, Proved
from pipeline.process import Process
from pipeline.publish import remove
from pipeline.settings import Campaign, Store
from pipeline.text import one_line
from pipeline.worker import Worker

log = logging.getLogger("topcoat")


@dataclass(frozen=True)
class Only:
    """One piece of a campaign that is to be done by itself."""

    fuzzer: str
    slice: int | None
    """Its number; None for a merge of the corpus."""


MOST_ATTEMPTS = 100
"""At one slice: a fuzzer that crashes each second must not run for ever on a budget of an hour."""

HALT_AGAIN = 5.0
"""Seconds after which what still runs is halted again."""

HALT_LIMIT = 120.0
"""Seconds for all that runs to be taken in when the campaign is interrupted."""

_LOCK_LIMIT = 60.0  # a process that was interrupted may still be taking in what it has


class Runner:
    """One process that works at a campaign. Its methods but `run` can be called from any thread."""

    def __init__(
        self,
        definition: Definition,
        subjects: Subjects,
        guests: Guests,
        store: Store,
        chosen: Campaign,
        workers: int,
        only: Only | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """`only` is a piece to which all is confined; then no canary is looked for."""
        self.definition = definition
        self.state = State()
        self.active: dict[str, Attempt] = {}
        """What runs now, by fuzzer."""
        self.subjects = subjects
        self._only = only
        self._plans = {plan.name: plan for plan in definition.fuzzers}
        self._store, self._chosen = store, chosen
        self._workers, self._clock = workers, clock
        self.directory = store.campaigns / definition.name
        self._vault = Vault(self.directory, size=chosen.crash_size)
        self._claim = Claim.of(socket.gethostname(), subjects.boot or subjects.build, chosen)
        self._proofs = Proofs(store.root / "canary.json")
        self._book: Ledger | None = None
        self._changed = threading.Condition(threading.RLock())
        self._busy: set[str] = set()
        self._merging: dict[str, Callable[[], None]] = {}
        """What ends the merge of a fuzzer's corpus early."""
        self._warned: set[str] = set()
        self._turn = 0
        self._leases = Leases(guests, lambda entry: self.note(entry))
        self._stopping = False
        self._failure: BaseException | None = None

    # What others ask

    def corpus(self, fuzzer: str) -> Corpus:
        """The corpus of a fuzzer, which all campaigns share."""
        return Corpus.of(self._store.root, fuzzer, Limits.of(self._chosen))

    def standing(self, fuzzer: str) -> Standing:
        """How a fuzzer stands, as it is built today."""
        return self.state.standing(self.subjects.of[fuzzer])

    def status(self) -> Status:
        """How all stand at this moment."""
        with self._changed:
            fuzzers = tuple(self._status(plan) for plan in self.definition.fuzzers)
            merges = any(self._merges(plan) for plan in self.definition.fuzzers)
            done = not merges and all(one.state in ("done", "benched") for one in fuzzers)
            what: CampaignState = "done" if done else "stopped" if self._stopping else "running"
            proof = self.state.proof(self._claim.host, self._claim.key)
            return of_campaign(self.definition, self.state, fuzzers, proof, self._workers, what)

    def groups(self) -> list[Group]:
        """All crashes so far, by their causes."""
        return self._vault.groups()

    def _status(self, plan: FuzzerPlan) -> FuzzerStatus:
        standing, attempt = self.standing(plan.name), self.active.get(plan.name)
        # Its end is noted, and added up, before it is not active any more: nothing may count twice, or not at all
        live = attempt.live if attempt and standing.is_open(attempt.work.slice, attempt.work.attempt) else None
        merging = plan.name in self._busy and not self._runs(plan) and attempt is None
        return of_fuzzer(plan, standing, budget.left(plan, standing), live, merging=merging)

    # The run

    def run(self, tick: Callable[["Runner"], None] | None = None, every: float = 1.0) -> State:
        """Work until every budget is used or its fuzzer benched.

        `tick` is called first, at least each `every` seconds, and when all has ended, whatever was the reason.

        If interrupted, takes in what runs and raises KeyboardInterrupt. Raises CampaignBusy if another process works at
        this campaign, StoreError, and BootError if no guest can be had: what was done until then is kept.
        """
        path = self.directory / LEDGER
        reading.require_free(self.directory)
        with ledger.opened(path, _LOCK_LIMIT) as self._book:
            remove(self.directory / RESULT)  # it would say that all is done, whatever ends this run
            self.state = State.of(ledger.read(path))
            self._open()
            with self._told(tick):
                self._work_all(tick, every)
        if self._failure:
            raise self._failure
        return self.state

    @contextmanager
    def _told(self, tick: Callable[["Runner"], None] | None) -> Iterator[None]:
        """Tell how the campaign stands before the body, and after it, however that ends."""
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
        """Tell how it stands, without hiding why it ends."""
        try:
            if tick:
                tick(self)
        except TopcoatError as error:
            log.error("%s", error.explain())

    def _work_all(self, tick: Callable[["Runner"], None] | None, every: float) -> None:
        self._import_seeds()
        self._prove()
        workers = [Worker(f"campaign {number}", self._work) for number in range(self._workers)]
        try:
            self._watch(workers, tick, every)
        except KeyboardInterrupt:
            log.info("interrupted: what runs is ended and taken in")
            raise
        finally:
            self._halt(workers, tick)

    def note(self, entry: Entry) -> None:
        """Write an entry in the ledger, and add it up."""
        with self._changed:
            assert self._book is not None
            self._book.append(entry)
            self.state.add(entry)
            self._changed.notify_all()

    def stop(self) -> None:
        """Have everything end soon: what runs is halted and taken in."""
        with self._changed:
            self._stopping = True
            halts = [*(attempt.halt for attempt in self.active.values()), *self._merging.values()]
            self._changed.notify_all()
        for halt in halts:
            halt()

    def _open(self) -> None:
        """Close what a process that is gone has left open, with the time that is known for certain."""
        for started in self.state.interrupted():
            one = self.state.standing(started.subject).slices[started.slice]
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
        """Give the corpora of whatever will run their seeds; a merge by itself brings nothing."""
        only = self._only
        plans = [one for one in self.definition.fuzzers if not only or (only.slice and only.fuzzer == one.name)]
        for plan in plans:
            self.corpus(plan.name).count_value_profile(value_profile(dict(plan.options)))
        seeds.bring(plans, self.corpus, self.state.seeded, lambda name: self.standing(name).attempts > 0, self.note)

    def _prove(self) -> None:
        """Look for the canary, unless it has been found on this host with such guests, for whatever campaign."""
        claim = self._claim
        if self._only or self._chosen.canary == "off" or self.state.proof(claim.host, claim.key)[0]:
            return
        if before := self._proofs.find(claim):
            log.info("the canary was found on this host before: by %s", one_line(before))
            self.note(Proved(claim.host, claim.key, True, "", 0.0))
            return
        began = self._clock()
        with self._leases.one() as guest:
            reason = canary.look(guest, self.directory / "canary", self._chosen, self._clock)
        seconds = round(self._clock() - began, 3)
        self.note(Proved(claim.host, claim.key, not reason, reason, seconds))
        if not reason:
            self._proofs.add(claim, self.definition.name)
            log.info("the canary was found, reproduced and named in %.0f s", seconds)
            return
        error = NotProved(
            f"the canary was not found: {reason}",
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
            self._tell(tick)  # first: who would go on with it waits for this, and is not refused
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
                self.stop()  # what was just about to start in a guest did not hear it
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
        """The fuzzer to work at next, which is this worker's from now on; None if nothing is left to do."""
        with self._changed:
            while not self._stopping:
                if name := self._choice():
                    self._busy.add(name)
                    return name
                if not self._busy:
                    return None
                self._changed.wait()
            return None

    def _choice(self) -> str | None:
        idle = [plan for plan in self.definition.fuzzers if plan.name not in self._busy]
        if merged := next((plan.name for plan in idle if self._merges(plan)), None):
            return merged
        candidates = [self._candidate(plan) for plan in idle if self._runs(plan)]
        if not candidates:
            return None
        self._turn += 1
        return allocation.choose(candidates, self._turn, self.definition.allocation).name

    def _candidate(self, plan: FuzzerPlan) -> Candidate:
        standing = self.standing(plan.name)
        return Candidate(plan.name, budget.used_part(plan, standing), standing.recent_gain, standing.attempts)

    def _runs(self, plan: FuzzerPlan) -> bool:
        standing = self.standing(plan.name)
        if standing.benched:
            return False
        if self._only:
            one = standing.slices.get(self._only.slice or 0)
            return (
                self._only == Only(plan.name, self._only.slice)
                and self._only.slice is not None
                and not (one and one.closed)
            )
        return budget.left(plan, standing) > 0

    def _merges(self, plan: FuzzerPlan) -> bool:
        """Whether its corpus is to be merged: it has grown, and its budget is used."""
        standing = self.standing(plan.name)
        if self._only:
            return self._only == Only(plan.name, None) and standing.unmerged > 0
        return not self._runs(plan) and not standing.benched and standing.unmerged > 0 and standing.units > 1

    def _release(self, name: str) -> None:
        with self._changed:
            self._busy.discard(name)
            self.active.pop(name, None)
            self._merging.pop(name, None)
            self._changed.notify_all()

    def _serve(self, plan: FuzzerPlan) -> None:
        try:
            with self._leases.one() as guest:
                if self._runs(plan):
                    self._slice(plan, guest)
                else:
                    self._merge(plan, guest)
        except ConnectError as error:  # it answered when it was booted: the next lease will be another boot
            log.warning("%s: %s", plan.name, error)
            self._leases.failed(error)
        except BootError as error:
            self._leases.failed(error)

    def _slice(self, plan: FuzzerPlan, guest: Guest) -> None:
        """Work at the fuzzer's present slice until it is over, or the guest is not to be used any more."""
        number = (self._only and self._only.slice) or self.standing(plan.name).current
        short = False
        while (work := self._work_left(plan, number)) is not None and not short:
            with self._changed:
                passed_over = frozenset(self.standing(plan.name).passed_over)
            places = Places(self.corpus(plan.name), self._vault, Failures(self.directory), self.note, passed_over)
            attempt = Attempt(work, guest, places, self._chosen, self._clock)
            with self._changed:
                self.active[plan.name] = attempt
                if self._stopping:
                    return
            ended = attempt.run()
            self._warn(ended)
            self._bench(plan)
            if ended.result in ("hang", "guest died"):
                guest.spoil(f"{plan.name}: {ended.result}: {ended.reason}")
                return
            short = spoil_if_short(guest, plan.name)

    def _work_left(self, plan: FuzzerPlan, number: int) -> Work | None:
        """The next attempt at this slice; None, and the slice is closed, if nothing of it is left."""
        subject, runs = self.subjects.of[plan.name], plan.budget.runs
        with self._changed:
            standing = self.standing(plan.name)
            attempts = standing.slices[number].attempts if number in standing.slices else 0
            seconds = budget.left_of_slice(plan, standing, number)
            if self._stopping or standing.benched:
                return None
            if seconds and attempts < MOST_ATTEMPTS:
                limit = None if runs is None else int(budget.left(plan, standing))
                seed = self._seed(plan.name, number, attempts + 1)
                return Work(subject, plan, number, attempts + 1, seconds, limit, seed)
        if not attempts:  # what was asked for by its number
            raise CampaignError(
                f"nothing of the budget of {plan.name} is left for slice {number}",
                hint="see what was done: topcoat campaign status; for more, raise --budget",
            )
        reason = "attempts" if attempts >= MOST_ATTEMPTS else "time" if runs is None else "runs"
        self.note(Closed(subject, number, reason))
        return None

    def _seed(self, fuzzer: str, number: int, attempt: int) -> int:
        """Of libFuzzer: never 0, which it would replace, and the same whenever the campaign is run anew."""
        text = f"{self.definition.seed}/{fuzzer}/{number}/{attempt}"
        return int.from_bytes(sha256(text.encode()).digest()[:4], "big") % 0x7FFFFFFF + 1

    def _warn(self, ended: Ended) -> None:
        """Of a run that counts as good although something was found, once for each fuzzer."""
        fuzzer = ended.subject.fuzzer
        if ended.result != "done" or not ended.reason:
            return
        with self._changed:
            told = fuzzer in self._warned
            self._warned.add(fuzzer)
        if not told:
            log.warning("%s: %s: nothing is kept of that; have it halt, see docs/campaign.md", fuzzer, ended.reason)

    def _bench(self, plan: FuzzerPlan) -> None:
        subject, standing = self.subjects.of[plan.name], self.standing(plan.name)
        if standing.strikes >= self._chosen.strikes:
            self.note(Benched(subject, f"{standing.strikes} failures in a row, the last one: {standing.failure}"))
            log.warning("%s is benched: %s", plan.name, standing.benched)

    def _merge(self, plan: FuzzerPlan, guest: Guest) -> None:
        with self._changed:
            if self._stopping:
                return
            self._merging[plan.name] = partial(merging.halt, plan, guest)
        subject, corpus = self.subjects.of[plan.name], self.corpus(plan.name)
        merged = merging.merge(subject, plan, guest, corpus, self._chosen, self._clock, lambda: self._stopping)
        if merged.accepted or not self._stopping:  # one that was ended early is made another time
            self.note(merged)
        spoil_if_short(guest, plan.name)
