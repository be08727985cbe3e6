"""Taking in the crashes of one attempt: stored, noted, and their inputs kept out of the corpus."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from pipeline.campaign.capsules import Capsules
from pipeline.campaign.failures import Failures
from pipeline.campaign.guest_fuzzer import CORPUS
from pipeline.campaign.guests import Guest, GuestWorkspace
from pipeline.campaign.judging import hit_own_limit
from pipeline.campaign.ledger import Crashed, LedgerEntry
from pipeline.campaign.work import Work, usual_limits
from pipeline.errors import CommandError, ConnectError
from pipeline.fuzz.corpus import Corpus
from pipeline.fuzz.corpus.files import name_of
from pipeline.fuzz.crashes import artifacts, rules
from pipeline.fuzz.crashes.artifacts import is_crash, unit_of
from pipeline.fuzz.crashes.crash import Crash, StoredCrash
from pipeline.fuzz.crashes.report import UNKNOWN, CrashReport
from pipeline.fuzz.crashes.store import CrashStore
from pipeline.text.printable import one_line
from pipeline.vm.capsule import CrashedProcess

log = logging.getLogger("topcoat")


ENOUGH = 20
"""After so many crashes of one bucket that a process has taken in, it only counts further ones."""


class SeenOften:
    """Which buckets a process has seen so often that more of their inputs would tell nothing new."""

    def __init__(self, enough: int = ENOUGH) -> None:
        self._enough = enough
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def enough(self, fuzzer: str, slug: str) -> bool:
        """Whether crashes of this bucket are only counted from now on."""
        return self._counts[fuzzer, slug] >= self._enough

    def add(self, fuzzer: str, slug: str) -> None:
        """Count a crash that was taken in. When it is enough, that is logged."""
        with self._lock:
            self._counts[fuzzer, slug] += 1
            reached = self._counts[fuzzer, slug] == self._enough
        if reached:
            log.info("%s: %s was seen %d times: from now on it is only counted", fuzzer, slug, self._enough)


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
    campaign: str = ""
    """The name of the campaign, which the crashes bear; empty for runs that belong to none."""
    often: SeenOften = field(default_factory=SeenOften)
    """Of which buckets no more inputs are wanted."""


@dataclass(frozen=True)
class RunSoFar:
    """What is known of a run so far."""

    output: bytes
    report: CrashReport | None
    """What the output says of a crash; None if nothing."""
    fetched: Mapping[str, bytes]
    """The contents of the artifacts that were fetched, by name."""
    torn: frozenset[str]
    """Names of artifacts that did not come whole."""
    workspace: GuestWorkspace | None
    """The fuzzer in the guest; None if it was never there."""
    asleep: int | None
    """The pid of the process that has crashed and sleeps; None if there is none."""


class CrashIntake:
    """Takes in the crashes of one attempt, each once. Any number of threads may use it."""

    def __init__(self, work: Work, guest: Guest, places: Places) -> None:
        self.noted: list[Crashed] = []
        """The ledger entries of all crashes so far."""
        self.losses: list[str] = []
        """What was lost of them, in one clause each."""
        self._work, self._guest, self._places = work, guest, places
        self._lock = threading.Lock()
        self._stored: set[str] = set()
        """Names of the artifacts whose crashes have been stored."""

    def new_in(self, so_far: RunSoFar) -> dict[str, bytes]:
        """The contents, by name, of the fetched artifacts whose crashes have not been taken yet."""
        fetched = so_far.fetched
        return {name: fetched[name] for name in fetched if is_crash(name) and name not in self._stored}

    def take(self, so_far: RunSoFar, *, ended: bool = False) -> None:
        """Store the crashes that were reported, and keep their inputs out of the corpus. Raises StoreError.

        Once the run has `ended`, crashes whose artifacts did not come whole are stored too: with the input that the
        output tells, or without one. Whatever else the guest has under the name of an artifact is not its content.
        """
        with self._lock:
            for name, content in self.new_in(so_far).items():
                self._take(name, content, so_far)
            for name in self._without_input(so_far) if ended else ():
                told = artifacts.told(name, so_far.report)
                if told is None and name and self.is_wanted(so_far.report):
                    self._lose(name)
                self._take(name, told, so_far)

    def is_wanted(self, report: CrashReport | None) -> bool:
        """Whether the input of the crash in this report is wanted: its bucket has not been seen often."""
        fuzzer = self._work.subject.fuzzer
        return report is None or not self._places.often.enough(fuzzer, rules.slug(report, fuzzer))

    def _without_input(self, so_far: RunSoFar) -> list[str]:
        """Names of the artifacts of crashes that did not come whole.

        If there is none, and no crash was stored although there is a report, the guest may have died with the artifact:
        then the last name in the report, or an empty one if it names none.
        """
        if names := sorted(set(filter(is_crash, so_far.torn)) - self._stored):
            return names
        return [] if so_far.report is None or self._stored else [next(reversed(so_far.report.artifacts), "")]

    def _lose(self, name: str) -> None:
        lost = f"the input of {one_line(name)} is lost: it did not come whole, and the output does not tell it"
        log.warning("%s: %s", self._work.source, lost)
        self.losses.append(lost)

    def _take(self, name: str, content: bytes | None, so_far: RunSoFar) -> None:
        """Store and note a crash, and see that its unit does not end the next attempt too.

        Without the content, the name of the artifact may still tell which unit it is. The empty unit needs no care: it
        ends no attempt.
        """
        work, corpus = self._work, self._places.corpus
        unit = unit_of(name) if content is None else name_of(content) if content else ""
        stays = hit_own_limit(so_far.report, dict(work.plan.options), usual_limits(self._guest))
        stored = self._store(name, content or b"", so_far) if self.is_wanted(so_far.report) else self._count(so_far)
        self._stored.add(name)
        digest = sha256(content or b"").hexdigest()
        passed_over = unit if stays else ""
        where, back = (work.subject, work.slice, work.attempt), stored.state == "back"
        crashed = Crashed(*where, stored.bucket, stored.new, digest, passed_over, back=back)
        self.noted.append(crashed)
        self._places.note(crashed)
        if self._places.capsules and so_far.asleep is not None:
            self._places.capsules.keep(self._guest, CrashedProcess(work.subject.fuzzer, so_far.asleep), stored)
        if passed_over or (unit and corpus.quarantine(content or unit, stored.bucket)):
            self._remove(unit, so_far.workspace)

    def _store(self, name: str, content: bytes, so_far: RunSoFar) -> StoredCrash:
        work = self._work
        stored = self._places.crash_store.add(
            Crash(
                fuzzer=work.subject.fuzzer,
                build=work.subject.build,
                campaign=self._places.campaign,
                slice=work.slice,
                attempt=work.attempt,
                boot_id=self._guest.boot_id,
                seed=work.seed,
                options=work.words(self._guest),
                environment=dict(work.plan.environment),
                artifact=name,
                input=content,
                output=so_far.output,
                serial=self._guest.serial(),
                report=so_far.report,
            )
        )
        self._places.often.add(work.subject.fuzzer, rules.slug(so_far.report or UNKNOWN, work.subject.fuzzer))
        return stored

    def _count(self, so_far: RunSoFar) -> StoredCrash:
        fuzzer, build = self._work.subject.fuzzer, self._work.subject.build
        slug = rules.slug(so_far.report or UNKNOWN, fuzzer)
        self._places.crash_store.count(fuzzer, slug, build, self._places.campaign)
        return StoredCrash(slug, "known", None, same=False)

    def _remove(self, unit: str, workspace: GuestWorkspace | None) -> None:
        """Delete a unit from the guest's corpus, where it would end the next attempt too."""
        if workspace and unit in workspace.known:
            try:
                workspace.guest_fuzzer.remove(CORPUS, [unit])
            except (ConnectError, CommandError) as error:
                log.warning("%s: %s", self._guest.instance, one_line(str(error)))
