"""Units that merges took out of corpora, and that are not kept any longer. See pipeline.fuzz.corpus.replaced."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline.fuzz.corpus import Corpus, CorpusLimits
from pipeline.settings import Store
from pipeline.upkeep.leftover import Leftover, Spared, alone, used


def items(store: Store, limits: CorpusLimits) -> Iterator[Leftover]:
    """One leftover for each merge whose units are not to be kept any longer."""
    for corpus in Corpus.all(store.root, limits):
        for merge, why in corpus.outdated().items():
            about = f"a merge took them out of the corpus of {corpus.fuzzer}, and {why}"
            yield Leftover("units", str(merge), used(merge), about, partial(_remove, corpus, merge))


def _remove(corpus: Corpus, merge: Path) -> None:
    with alone(corpus.file):
        if merge not in corpus.outdated():
            raise Spared("it is gone already, or kept for longer")
        corpus.forget(merge)
