"""Merging the corpus of a fuzzer: fewer units that cover as much, by libFuzzer's own merge in a guest."""

import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from pipeline.campaign.capture import Capture
from pipeline.campaign.definition import FuzzerPlan
from pipeline.campaign.guests import Guest, with_ending
from pipeline.campaign.harvest import LONGEST_NAME
from pipeline.campaign.judging import judging
from pipeline.campaign.site import CORPUS, MERGED, Site
from pipeline.campaign.work import as_words, usual_limits
from pipeline.corpus import Corpus, Coverage, Manifest, Unit
from pipeline.corpus.files import name_of
from pipeline.deadline import Clock
from pipeline.errors import CommandError, ConnectError, FuzzerError
from pipeline.faults import host_faults
from pipeline.fuzzer.progress import ProgressScanner
from pipeline.ledger import Merged, Subject
from pipeline.scratch import scratch
from pipeline.settings import Campaign
from pipeline.text import one_line

log = logging.getLogger("topcoat")

LIMIT = 1800.0
"""Seconds that a merge may take, and each of the two measurements of coverage."""

SOURCE = "merge"

_NOTHING = Coverage(0, 0)
_ANOTHER_TIME = "the corpus stays as it is; it is merged another time"


def merge(
    subject: Subject,
    plan: FuzzerPlan,
    guest: Guest,
    corpus: Corpus,
    chosen: Campaign,
    clock: Clock = time.monotonic,
    stopped: Callable[[], bool] = lambda: False,
) -> Merged:
    """Merge the corpus as it is now. The result takes its place if it covers no less, within the tolerance.

    The corpus belongs to all campaigns, so it is judged under options that hide nothing of it (see
    pipeline.campaign.judging). A merge that fails is no error: then the corpus stays, and the result says why. Once
    `stopped`, nothing of it begins any more; `halt` ends what runs. Raises StoreError.
    """
    began = clock()
    given = corpus.manifest()
    result = _Result()
    try:
        room = guest.room(plan.name)
        room.known.clear()
        result = _merged(_words(plan, guest, given), room.site, corpus, given.units, stopped)
        reason = "" if result.kept else "nothing came of it"
    except (FuzzerError, ConnectError, CommandError) as error:
        reason = with_ending(guest, error)
        if not isinstance(error, FuzzerError):
            guest.spoil(f"{plan.name}: {reason}")
    before, after = result.before, result.after
    accepted = bool(result.kept) and corpus.replace(
        given.units, result.kept, (), before=before, after=after, tolerance=chosen.tolerance, source=SOURCE
    )
    if result.kept and not accepted:
        reason = f"{after.features} features instead of {before.features}; the log says more"
    return Merged(
        *(subject, len(given.units), len(corpus.units()), before.features, after.features, accepted, reason),
        seconds=round(clock() - began, 3),
    )


def halt(plan: FuzzerPlan, guest: Guest) -> None:
    """End a merge that another thread makes in this guest."""
    try:
        guest.room(plan.name).site.stop()
    except (ConnectError, CommandError) as error:  # the merge's own end tells more
        log.debug("%s: %s", guest.instance, one_line(str(error)))


@dataclass(frozen=True)
class _Result:
    """What has come of a merge."""

    kept: Collection[str] = ()
    """Names of the units that remain."""
    before: Coverage = _NOTHING
    """Of all units that were given."""
    after: Coverage = _NOTHING
    """Of those that remain, and nothing else."""


def _words(plan: FuzzerPlan, guest: Guest, given: Manifest) -> list[str]:
    largest = max((unit.bytes for unit in given.units.values()), default=0)
    return as_words(judging(dict(plan.options), usual_limits(guest), largest, given.value_profile))


def _merged(
    options: Sequence[str], site: Site, corpus: Corpus, given: Mapping[str, Unit], stopped: Callable[[], bool]
) -> _Result:
    """Have libFuzzer choose from the units that are `given`, and measure what they cover before and afterwards.

    The fuzzer's data in the guest are deleted before, so that it has nothing but the corpus, and afterwards too.
    """
    run = partial(_run, site, stopped)
    site.prepare()
    with _emptied(site):
        _fill(site, corpus, given)
        site.push({}, MERGED)
        run([*options, "-merge=1", MERGED, CORPUS])
        kept = _kept(site, corpus, given)
        if not kept:
            return _Result()
        before = _measured(run([*options, "-runs=0", CORPUS]), given)
        if kept == given:
            return _Result(kept, before, before)
        site.prepare()
        _fill(site, corpus, kept)
        return _Result(kept, before, _measured(run([*options, "-runs=0", CORPUS]), kept))


def _fill(site: Site, corpus: Corpus, units: Mapping[str, Unit]) -> None:
    """Give the fuzzer these units of the corpus, and see that they are all that it has.

    Empty files do not count: libFuzzer passes them over.
    """
    site.push({name: corpus.path(name) for name in units}, CORPUS)
    there = {name: size for name, size in site.sizes(CORPUS).items() if size}
    wanted = {name: unit.bytes for name, unit in units.items() if unit.bytes}
    if there != wanted:
        wrong = sum(there.get(name) != wanted.get(name) for name in there.keys() | wanted.keys())
        raise FuzzerError(f"the guest's corpus differs from what it was given: units: {wrong}", hint=_ANOTHER_TIME)


def _kept(site: Site, corpus: Corpus, given: Mapping[str, Unit]) -> dict[str, Unit]:
    """Those of the units `given` that the merge has chosen, and that are still in the corpus.

    Each goes by its content, whatever the name under which it was written; what has other content is none of them. An
    empty unit stays: libFuzzer passes it over, so it was not judged.
    """
    came, there = site.sizes(MERGED), corpus.units()
    chosen = {name for name in came if name in given}
    chosen |= {name for name, unit in given.items() if not unit.bytes}
    sizes = {unit.bytes for name, unit in given.items() if name not in chosen}
    foreign = [name for name, size in came.items() if name not in given and size in sizes and _is_short(name)]
    chosen |= _own_names(site, foreign[: len(given)]) & given.keys()
    return {name: unit for name, unit in given.items() if name in chosen and name in there}


def _is_short(name: str) -> bool:
    return len(os.fsencode(name)) <= LONGEST_NAME


def _own_names(site: Site, names: Sequence[str]) -> set[str]:
    """The names that the results of the merge with these names have by their contents."""
    if not names:
        return set()
    with scratch("merge") as landing, host_faults("reading the result of a merge"):
        site.fetch(MERGED, names, landing)
        return {name_of(path.read_bytes()) for path in landing.iterdir()}


@contextmanager
def _emptied(site: Site) -> Iterator[None]:
    """Delete the fuzzer's data after the body, whose own error counts."""
    try:
        yield
    except BaseException:
        with suppress(ConnectError, CommandError):
            site.prepare()
        raise
    site.prepare()


def _measured(told: ProgressScanner, units: Mapping[str, Unit]) -> Coverage:
    """What these units cover, which were all run once. Raises FuzzerError if not all of them were, to the end."""
    latest, done = told.progress, told.done
    if latest is None or done is None or done.runs < sum(unit.bytes > 0 for unit in units.values()):
        why = told.problems[-1] if told.problems else "not all units were run"
        raise FuzzerError(f"what the corpus covers cannot be measured: {why}", hint=_ANOTHER_TIME)
    return Coverage(latest.edges, latest.features)


def _run(site: Site, stopped: Callable[[], bool], words: Sequence[str]) -> ProgressScanner:
    if stopped():
        raise FuzzerError("it was ended early", hint=_ANOTHER_TIME)
    progress = ProgressScanner()
    site.run(words, _Scan(progress), LIMIT, _none)
    return progress


class _Scan(Capture):
    """Has the output looked at, and keeps none of it."""

    def __init__(self, progress: ProgressScanner) -> None:
        super().__init__(0)
        self._progress = progress

    def write(self, data: bytes, /) -> int:
        for _ in self._progress.feed(data):
            pass
        return len(data)


def _none(_: str) -> None:
    """An artifact of a merge is none: a unit that crashes is left out of the result."""
