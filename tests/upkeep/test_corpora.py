"""Units that merges took out of corpora."""

from pipeline.fuzz.corpus import Corpus, CorpusLimits
from pipeline.host.locks import locked
from pipeline.upkeep import gc
from pipeline.upkeep.gc import Outcome
from tests.fuzz.corpus.conftest import contents, kept, make_old, merge
from tests.upkeep.conftest import DAY, World


def merged(world: World) -> Corpus:
    """A corpus of one unit, which two merges have left of three: the first long ago."""
    corpus = Corpus.of(world.store.root, "net/dns")
    corpus.add([b"a", b"b", b"c"], "seed")
    assert merge(corpus, [b"a", b"b", b"c"], [b"a", b"b"])
    assert merge(corpus, [b"a", b"b"], [b"a"])
    make_old(corpus, 1, 31 * DAY)
    return corpus


def test_those_go_that_were_kept_for_their_time(world: World) -> None:
    corpus = merged(world)
    (item,) = gc.items(world.store)
    assert (item.kind, item.what) == ("units", str(corpus.directory / "replaced/1"))
    assert item.why == "a merge took them out of the corpus of net/dns, and they were kept for their time"
    assert item.bytes >= 4096
    assert kept(corpus) == {b"b", b"c"}, "looking changes nothing"
    assert gc.reclaim(item) == Outcome(item)
    assert (contents(corpus), kept(corpus)) == ({b"a"}, {b"b"})
    assert not (corpus.directory / "replaced/1").exists()
    assert gc.reclaim(item).spared == "it is gone already, or kept for longer"


def test_the_settings_say_for_how_long(world: World) -> None:
    merged(world)
    assert gc.items(world.store, limits=CorpusLimits(kept=32 * DAY)) == []
    assert len(gc.items(world.store, limits=CorpusLimits(kept=0.0))) == 2


def test_a_corpus_that_somebody_writes_is_not_touched(world: World) -> None:
    corpus = merged(world)
    (item,) = gc.items(world.store)
    with locked(corpus.file):
        assert gc.reclaim(item).spared == "another process works on it"
    assert kept(corpus) == {b"b", b"c"}


def test_one_that_is_brought_back_meanwhile_is_spared(world: World) -> None:
    corpus = merged(world)
    (item,) = gc.items(world.store)
    corpus.restore()
    assert gc.reclaim(item).spared == "it is gone already, or kept for longer"
    assert contents(corpus) == {b"a", b"b", b"c"}
