"""Merging the corpus of a fuzzer: fewer units that cover as much, by libFuzzer's own merge in a guest."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from pipeline.campaign.attempt import as_words, options_in
from pipeline.campaign.capture import Capture
from pipeline.campaign.definition import FuzzerPlan
from pipeline.campaign.guests import Guest
from pipeline.campaign.site import CORPUS, MERGED, Site
from pipeline.corpus import Corpus, Coverage
from pipeline.deadline import Clock
from pipeline.errors import CommandError, ConnectError, FuzzerError
from pipeline.fuzzer.progress import ProgressScanner
from pipeline.ledger import Merged, Subject
from pipeline.settings import Campaign
from pipeline.text import one_line

log = logging.getLogger("topcoat")

LIMIT = 1800.0
"""Seconds that a merge may take, and each of the two measurements of coverage."""

SOURCE = "merge"


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

    A merge that fails is no error: then the corpus stays, and the result says why. Once `stopped`, nothing of it
    begins any more; `halt` ends what runs. Raises StoreError.
    """
    began = clock()
    given = dict(corpus.units())
    try:
        room = guest.room(plan.name)
        room.known.clear()
        kept, before, after = _merged(as_words(options_in(guest, plan)), room.site, corpus, stopped)
        reason = "" if kept else "nothing came of it"
    except (FuzzerError, ConnectError, CommandError) as error:
        kept, before, after, reason = [], Coverage(0, 0), Coverage(0, 0), one_line(str(error))
        if not isinstance(error, FuzzerError):
            guest.spoil(f"{plan.name}: {reason}")
    accepted = bool(kept) and corpus.replace(
        given, kept, (), before=before, after=after, tolerance=chosen.tolerance, source=SOURCE
    )
    if kept and not accepted:
        reason = f"{after.features} features instead of {before.features}; the log says more"
    return Merged(
        *(subject, len(given), len(corpus.units()), before.features, after.features, accepted, reason),
        seconds=round(clock() - began, 3),
    )


def halt(plan: FuzzerPlan, guest: Guest) -> None:
    """End a merge that another thread makes in this guest."""
    try:
        guest.room(plan.name).site.stop()
    except (ConnectError, CommandError) as error:  # the merge's own end tells more
        log.debug("%s: %s", guest.instance, one_line(str(error)))


def _merged(
    options: Sequence[str], site: Site, corpus: Corpus, stopped: Callable[[], bool]
) -> tuple[list[str], Coverage, Coverage]:
    """The names of the units that remain, and what is covered by all of them and by those.

    The fuzzer's data in the guest are deleted before, so that it has nothing but the corpus, and afterwards too.
    """
    site.prepare()
    with _emptied(site):
        site.push({path.name: path for path in corpus.lacking(())}, CORPUS)
        site.push({}, MERGED)
        run = partial(_run, site, stopped)
        run([*options, "-merge=1", MERGED, CORPUS])
        units = corpus.units()
        kept = [name for name in site.sizes(MERGED) if name in units]
        before, after = (_coverage(run([*options, "-runs=0", directory])) for directory in (CORPUS, MERGED))
        return kept, before, after


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


def _coverage(scanner: ProgressScanner) -> Coverage:
    """What units cover that were run once, and nothing else was."""
    latest = scanner.progress
    return Coverage(latest.edges, latest.features) if latest else Coverage(0, 0)


def _run(site: Site, stopped: Callable[[], bool], words: Sequence[str]) -> ProgressScanner:
    if stopped():
        raise FuzzerError("it was ended early", hint="it is made another time")
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
