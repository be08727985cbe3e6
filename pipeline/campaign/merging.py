"""Merging the corpus of a fuzzer: libFuzzer's own merge, in a guest, finds fewer units that cover as much."""

import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

from pipeline.campaign.guest_fuzzer import CORPUS, MERGED, GuestFuzzer
from pipeline.campaign.guests import Guest, with_ending
from pipeline.campaign.harvest import LONGEST_NAME
from pipeline.campaign.judging import judging
from pipeline.campaign.ledger import Merged, Subject
from pipeline.campaign.output import Capture
from pipeline.campaign.plan.definition import FuzzerPlan
from pipeline.campaign.work import as_words, usual_limits
from pipeline.errors import CommandError, ConnectError, FuzzerError
from pipeline.fuzz.corpus import Corpus, Coverage, Manifest, Unit
from pipeline.fuzz.corpus.files import own_name
from pipeline.fuzz.stats import ProgressScanner
from pipeline.host.deadline import Clock
from pipeline.host.faults import host_faults
from pipeline.settings import CampaignSettings
from pipeline.store.publish import scratch
from pipeline.text.printable import one_line

log = logging.getLogger("topcoat")

LIMIT = 1800.0
"""Seconds that a merge may take, and each measurement of coverage as well."""

SOURCE = "merge"

Lend = Callable[[str], AbstractContextManager[Guest]]
"""Lends a guest for a body. The text is the reason why it must be booted for the body; empty if any will do."""

_NOTHING = Coverage(0, 0)
_EARLY = "it was ended early"
_ANOTHER_TIME = "the corpus stays as it is; it is merged another time"


def merge(
    subject: Subject,
    plan: FuzzerPlan,
    lend: Lend,
    corpus: Corpus,
    chosen: CampaignSettings,
    clock: Clock = time.monotonic,
    stopped: Callable[[], bool] = lambda: False,
) -> Merged:
    """Merge the corpus as it is now. The result takes its place if it covers no less, within the tolerance.

    A guest can claim what it likes. So a result that leaves few of the units counts only if a second guest, booted for
    this, agrees. That one does not merge anew, as it would choose other units: it measures all units and those that are
    kept, and what they cover decides. A unit that takes over every guest that runs it is not caught by this, but all
    units that are dropped are kept for some time, see pipeline.fuzz.corpus.replaced.

    The corpus belongs to all campaigns, so it is judged under options that hide nothing of it (see
    pipeline.campaign.judging). A merge that fails is no error: the corpus stays, and the result says why. Once
    `stopped` is true, no further step begins; `halt` ends the one that runs. Raises StoreError, and what lending a
    guest raises.
    """
    given = corpus.manifest()
    work = _Work(plan, corpus, given, clock, stopped)
    with lend("") as guest:
        claim = result = work.asked(guest, _merged)
        doubted = claim.suffices(chosen.tolerance) and len(claim.kept) < chosen.believed * len(given.units)
        if doubted:
            guest.retire(f"{plan.name}: another boot is to confirm its merge")
    if doubted and stopped():
        result = replace(claim, reason=_EARLY)
    elif doubted:
        with lend(f"{plan.name}: it is to confirm the merge of another boot") as other:
            result = work.asked(other, partial(_confirmed, claim))
    before, after, reason = result.before, result.after, result.reason
    accepted = not reason and corpus.replace(
        given.units, result.kept, (), before=before, after=after, tolerance=chosen.tolerance, source=SOURCE
    )
    if not reason and not accepted:
        reason = f"{after.features} features instead of {before.features}; the log says more"
    if result.boot_id != claim.boot_id and not accepted:
        said = f"{len(claim.kept):,} of {len(given.units):,} units cover as much, says {claim.boot_id}"
        reason = f"{said}; but {result.boot_id}, booted to confirm it: {reason}"
        log.warning("a merge of the corpus of %s is not taken: %s", plan.name, reason)
    return Merged(
        *(subject, len(given.units), len(corpus.units()), before.features, after.features, accepted, reason),
        seconds=round(claim.seconds + (result.seconds if doubted else 0.0), 3),
        confirmed_by=result.boot_id if doubted and accepted else "",
    )


def halt(plan: FuzzerPlan, guest: Guest) -> None:
    """End the merge that another thread makes in this guest."""
    try:
        guest.workspace(plan.name).guest_fuzzer.stop()
    except (ConnectError, CommandError) as error:  # the merge's own end tells more
        log.debug("%s: %s", guest.instance, one_line(str(error)))


@dataclass(frozen=True)
class _Result:
    """What a guest reports of a merge."""

    kept: Collection[str] = ()
    """The names of the units that remain."""
    before: Coverage = _NOTHING
    """What all given units cover."""
    after: Coverage = _NOTHING
    """What the remaining units cover by themselves."""
    reason: str = ""
    """Why the guest has nothing to report; empty if it has."""
    boot_id: str = ""
    """The boot id of the guest."""
    seconds: float = 0.0

    def suffices(self, tolerance: float) -> bool:
        """Whether the corpus would accept this result."""
        return not self.reason and self.before.features > 0 and self.after.suffices(self.before, tolerance)


@dataclass(frozen=True)
class _Work:
    """The merge of one corpus, in one guest or in two."""

    plan: FuzzerPlan
    corpus: Corpus
    given: Manifest
    clock: Clock
    stopped: Callable[[], bool]

    def asked(self, guest: Guest, ask: Callable[["_Judge"], _Result]) -> _Result:
        """The guest's answer to `ask`: only a reason if that fails. The guest is spoilt, unless the fuzzer failed."""
        began = self.clock()
        try:
            workspace = guest.workspace(self.plan.name)
            workspace.known.clear()
            workspace.used = True
            result = ask(_Judge(self, workspace.guest_fuzzer, self._options(guest)))
            result = result if result.kept else _Result(reason="nothing came of it")
        except (FuzzerError, ConnectError, CommandError) as error:
            result = _Result(reason=with_ending(guest, error))
            if not isinstance(error, FuzzerError):
                guest.spoil(f"{self.plan.name}: {result.reason}")
        return replace(result, boot_id=guest.boot_id, seconds=self.clock() - began)

    def go_on(self) -> None:
        """Raise FuzzerError if the merge is to stop."""
        if self.stopped():
            raise FuzzerError(_EARLY, hint=_ANOTHER_TIME)

    def _options(self, guest: Guest) -> Sequence[str]:
        largest = max((unit.bytes for unit in self.given.units.values()), default=0)
        return as_words(judging(dict(self.plan.options), usual_limits(guest), largest, self.given.value_profile))


@dataclass(frozen=True)
class _Judge:
    """The fuzzer in one guest. Its data there are deleted before, so that it has only the corpus, and afterwards."""

    work: _Work
    guest_fuzzer: GuestFuzzer
    options: Sequence[str]

    def run(self, *words: str) -> ProgressScanner:
        """Run the fuzzer with the options and these words. Returns what it told of its progress."""
        self.work.go_on()
        progress = ProgressScanner()
        self.guest_fuzzer.run([*self.options, *words], _Scan(progress), LIMIT)
        return progress

    def fill(self, units: Mapping[str, Unit]) -> None:
        """Give the fuzzer these units of the corpus, and nothing else."""
        self.work.go_on()
        self.guest_fuzzer.prepare()
        _fill(self.guest_fuzzer, self.work.corpus, units)

    def measure(self, units: Mapping[str, Unit]) -> Coverage:
        """What these units cover, which must be all that the fuzzer has."""
        return _measured(self.run("-runs=0", CORPUS), units)


def _merged(judge: _Judge) -> _Result:
    """Have libFuzzer choose among the given units, and measure what they cover before and afterwards."""
    given, corpus = judge.work.given.units, judge.work.corpus
    with _emptied(judge.guest_fuzzer):
        judge.fill(given)
        judge.guest_fuzzer.push({}, MERGED)
        judge.run("-merge=1", MERGED, CORPUS)
        kept = _kept(judge.guest_fuzzer, corpus, given)
        if not kept:
            return _Result()
        before = judge.measure(given)
        if kept == given:
            return _Result(kept, before, before)
        judge.fill(kept)
        return _Result(kept, before, judge.measure(kept))


def _confirmed(claim: _Result, judge: _Judge) -> _Result:
    """Measure what all units cover, and what those cover that another guest would keep.

    Units that have left the corpus meanwhile do not count.
    """
    there = judge.work.corpus.units()
    given = {name: unit for name, unit in judge.work.given.units.items() if name in there}
    kept = {name: unit for name, unit in given.items() if name in claim.kept}
    with _emptied(judge.guest_fuzzer):
        judge.fill(given)
        before = judge.measure(given)
        judge.fill(kept)
        return _Result(kept, before, judge.measure(kept) if kept else before)


def _fill(guest_fuzzer: GuestFuzzer, corpus: Corpus, units: Mapping[str, Unit]) -> None:
    """Give the fuzzer these units of the corpus. Raises FuzzerError if it does not have exactly these then.

    Empty files do not count: libFuzzer passes them over.
    """
    guest_fuzzer.push({name: corpus.path(name) for name in units}, CORPUS)
    there = {name: size for name, size in guest_fuzzer.sizes(CORPUS).items() if size}
    wanted = {name: unit.bytes for name, unit in units.items() if unit.bytes}
    if there != wanted:
        wrong = sum(there.get(name) != wanted.get(name) for name in there.keys() | wanted.keys())
        raise FuzzerError(f"the guest's corpus differs from what it was given: units: {wrong}", hint=_ANOTHER_TIME)


def _kept(guest_fuzzer: GuestFuzzer, corpus: Corpus, given: Mapping[str, Unit]) -> dict[str, Unit]:
    """The units of `given` that the merge has chosen, and that are still in the corpus.

    A file that is not named like a given unit counts by its content, and only if that is a given unit's. An empty unit
    stays: libFuzzer passes it over, so it was not judged.
    """
    came, there = guest_fuzzer.sizes(MERGED), corpus.units()
    chosen = {name for name in came if name in given}
    chosen |= {name for name, unit in given.items() if not unit.bytes}
    sizes = {unit.bytes for name, unit in given.items() if name not in chosen}
    foreign = [
        name
        for name, size in came.items()
        if name not in given and size in sizes and len(os.fsencode(name)) <= LONGEST_NAME
    ]
    chosen |= _own_names(guest_fuzzer, foreign[: len(given)]) & given.keys()
    return {name: unit for name, unit in given.items() if name in chosen and name in there}


def _own_names(guest_fuzzer: GuestFuzzer, names: Sequence[str]) -> set[str]:
    """The names that these files of the merge's result should have by their contents."""
    if not names:
        return set()
    with scratch("merge") as landing, host_faults("reading the result of a merge"):
        guest_fuzzer.fetch(MERGED, names, landing)
        return {own_name(path) for path in landing.iterdir()}


@contextmanager
def _emptied(guest_fuzzer: GuestFuzzer) -> Iterator[None]:
    """Delete the fuzzer's data after the body. If the body raises, its own error counts."""
    try:
        yield
    except BaseException:
        with suppress(ConnectError, CommandError):
            guest_fuzzer.prepare()
        raise
    guest_fuzzer.prepare()


def _measured(told: ProgressScanner, units: Mapping[str, Unit]) -> Coverage:
    """What these units cover, each of which was run once. Raises FuzzerError unless all of them were, to the end."""
    latest, done = told.progress, told.done
    if latest is None or done is None or done.runs < sum(unit.bytes > 0 for unit in units.values()):
        why = told.problems[-1] if told.problems else "not all units were run"
        raise FuzzerError(f"what the corpus covers cannot be measured: {why}", hint=_ANOTHER_TIME)
    return Coverage(latest.edges, latest.features)


class _Scan(Capture):
    """Scans the fuzzer's output for its progress, and keeps none of it."""

    def __init__(self, progress: ProgressScanner) -> None:
        super().__init__(0)
        self._progress = progress

    def write(self, data: bytes, /) -> int:
        for _ in self._progress.feed(data):
            pass
        return len(data)
