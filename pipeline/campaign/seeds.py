"""The seeds of a campaign: what its corpora start with."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping

from pipeline.campaign.ledger import LedgerEntry, Seeded
from pipeline.campaign.plan.definition import FuzzerPlan
from pipeline.fuzz.corpus import Added, Corpus
from pipeline.fuzz.corpus.files import followed

log = logging.getLogger("topcoat")

SOURCE = "seed"


def judge(plan: FuzzerPlan, corpus: Corpus, seeded: Collection[str] = ()) -> Added:
    """Tell what would become of all seeds of a fuzzer if the campaign were run now. Changes nothing.

    `seeded` are the names of the units that the campaign has imported; what a merge has dropped of them does not count.
    Raises StoreError.
    """
    return corpus.judge(map(followed, plan.seed_paths()), _passed_over(corpus, seeded))


def bring(
    plans: Iterable[FuzzerPlan],
    corpus_of: Callable[[str], Corpus],
    seeded: Mapping[str, Collection[str]],
    ran: Callable[[str], bool],
    note: Callable[[LedgerEntry], None],
) -> None:
    """Import the seeds of these fuzzers, each content once in a campaign: a merge may have dropped it since.

    `seeded` has, by fuzzer, the names of the units that were imported before. `note` adds to the ledger what is
    imported now, once it is in the corpus: if the process is killed in between, the next one imports it again. What is
    left out is tried again each time, and one warning for all fuzzers tells of it. Raises StoreError.

    Earlier versions noted nothing: the seeds of a fuzzer that `ran`, as it is planned now, were imported then.
    """
    whole = Added()
    for plan in plans:
        if not plan.seeds:
            continue
        corpus = corpus_of(plan.name)
        if plan.name not in seeded and ran(plan.name) and not corpus.is_new:
            note(Seeded(plan.name, tuple(sorted(judge(plan, corpus).names)), new=0))
            continue
        passed_over = _passed_over(corpus, seeded.get(plan.name, ()))
        added = corpus.add(map(followed, plan.seed_paths()), SOURCE, passed_over)
        if added.names or plan.name not in seeded:
            note(Seeded(plan.name, tuple(sorted(added.names)), added.new))
        whole += added
    for reason in whole.reasons:
        log.warning("seeds left out: %s (%s)", reason, reason.hint)


def _passed_over(corpus: Corpus, seeded: Collection[str]) -> Collection[str]:
    return () if corpus.is_new else seeded
