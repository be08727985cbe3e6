"""What no merge may ever lose, with a fuzzer whose units cover what their bytes say."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.campaign.guest_fuzzer import CORPUS, MERGED
from pipeline.campaign.guests import GuestWorkspace
from pipeline.campaign.ledger import Subject
from pipeline.campaign.merging import merge
from pipeline.campaign.plan.definition import Budget, FuzzerPlan
from pipeline.fuzz.corpus import Corpus
from pipeline.fuzz.symbolizer import Writer
from pipeline.settings import CampaignSettings
from tests.campaign.scripted import ScriptedGuest, ScriptedSite, World, unit

FUZZER = "fuzzers/a"


def covered(content: bytes) -> set[tuple[int, int]]:
    """Each byte at its place."""
    return set(enumerate(content))


@dataclass(frozen=True)
class Nature:
    """How a fuzzer differs from what a merge expects."""

    renames: frozenset[int] = frozenset()
    """Of the units that it chooses, by their numbers: they get names of their own."""
    forgets: frozenset[int] = frozenset()
    cuts: frozenset[int] = frozenset()
    """Their last byte is missing."""
    adds: Collection[bytes] = ()
    """What it writes besides."""
    poison: bytes = b"\xff"
    """What begins with it ends the fuzzer."""


class LibFuzzer(ScriptedSite):
    """Does with its options and files what libFuzzer does."""

    def __init__(self, world: World, guest: ScriptedGuest, nature: Nature) -> None:
        super().__init__(world, guest, FUZZER)
        self._nature = nature

    def run(self, words: Sequence[str], output: Writer, limit: float) -> None:
        options = dict(word[1:].partition("=")[::2] for word in words if word.startswith("-"))
        longest = int(options["max_len"])
        corpus = [content[:longest] for content in self.files[CORPUS].values() if content]
        if "merge" in options:
            self._merge(sorted(corpus, key=len))
            return
        covers, sound = set[tuple[int, int]](), [content for content in corpus if not self._ends(content)]
        for content in sound:
            covers |= covered(content)
        output.write(b"#2\tpulse cov: %d ft: %d exec/s: 0 rss: 31Mb\n" % (len(covers), len(covers)))
        if len(sound) < len(corpus):
            output.write(b"==1== ERROR: libFuzzer: deadly signal\n")
        else:
            output.write(b"Done %d runs in 0 second(s)\n" % (len(corpus) + 1))

    def _ends(self, content: bytes) -> bool:
        return content.startswith(self._nature.poison)

    def _merge(self, corpus: Sequence[bytes]) -> None:
        nature, result, covers = self._nature, self.files[MERGED], set[tuple[int, int]]()
        for number, content in enumerate(corpus):
            if self._ends(content) or covered(content) <= covers:
                continue
            covers |= covered(content)
            if number in nature.forgets:
                continue
            written = content[:-1] if number in nature.cuts else content
            name = f"input-{number}" if number in nature.renames else unit(written.decode("latin-1"))[0]
            result[name] = written
        result.update((unit(content.decode("latin-1"))[0], content) for content in nature.adds)


class Guest(ScriptedGuest):
    def __init__(self, world: World, nature: Nature) -> None:
        super().__init__(world, "pool-0", "boot")
        self._workspace = GuestWorkspace(LibFuzzer(world, self, nature))

    def workspace(self, fuzzer: str) -> GuestWorkspace:
        return self._workspace


ascii_ = st.text(st.sampled_from("abc"), max_size=6).map(str.encode)
numbers = st.frozensets(st.integers(0, 6), max_size=3)
natures = st.builds(Nature, numbers, numbers, numbers, st.lists(ascii_, max_size=2), st.sampled_from([b"\xff", b"a"]))
chosen = st.dictionaries(st.sampled_from(["max_len", "timeout", "use_counters", "verbosity"]), st.integers(0, 9))


@pytest.mark.slow
@settings(max_examples=150)
@given(st.lists(ascii_, min_size=1, max_size=8, unique=True), natures, chosen, st.sampled_from([0.0, 0.5, 0.99]))
@example([b"aaaabbbb", b"aaaa"], Nature(), {"max_len": 4}, 0.5)
@example([b"abc", b"abcabc"], Nature(renames=frozenset({0, 1})), {}, 0.99)
@example([b"abc", b"abcabc"], Nature(cuts=frozenset({1})), {}, 0.99)
@example([b"aa", b"bb", b""], Nature(poison=b"a"), {}, 0.5)
def test_nothing_that_was_covered_is_lost(
    units: list[bytes], nature: Nature, options: Mapping[str, int], believed: float
) -> None:
    with TemporaryDirectory() as directory:
        corpus, world = Corpus.of(Path(directory), FUZZER), World()
        corpus.add(units, "seed")
        plan = FuzzerPlan(FUZZER, Budget(60), 20, options=tuple((name, str(value)) for name, value in options.items()))
        subject = Subject(FUZZER, "build", "plan")

        def lend(_: str) -> AbstractContextManager[Guest]:
            return nullcontext(Guest(world, nature))

        merged = merge(subject, plan, lend, corpus, CampaignSettings(tolerance=0.0, believed=believed), world.clock)
        kept = {path.read_bytes() for path in corpus.replaced()}
        now = {corpus.path(name).read_bytes() for name in corpus.units()}
    assert now <= set(units), "it is no source of units"
    assert now | kept == set(units)
    before, after = (set[tuple[int, int]]().union(*map(covered, some)) for some in (units, now))
    assert after == before
    assert now == set(units) or merged.accepted
    assert (b"" in now) == (b"" in units)
    assert (merged.before, merged.after) == (len(units), len(now))
    if merged.accepted:
        assert (merged.features_before, merged.features_after) == (len(before), len(after))
    if not nature.forgets and not nature.cuts and not any(one.startswith(nature.poison) for one in units) and before:
        assert merged.accepted, "nothing stood in its way"
