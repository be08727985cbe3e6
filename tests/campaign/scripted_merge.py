"""A corpus, and a fuzzer of a script that says what libFuzzer says when it merges that."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.campaign.guest_fuzzer import CORPUS, MERGED
from pipeline.campaign.guests import GuestWorkspace
from pipeline.campaign.ledger import Merged, Subject
from pipeline.campaign.merging import merge
from pipeline.campaign.plan.definition import Budget, FuzzerPlan
from pipeline.errors import TopcoatError
from pipeline.fuzz.corpus import Corpus
from pipeline.fuzz.symbolizer import Writer
from pipeline.settings import CampaignSettings
from tests.campaign.scripted import ScriptedGuest, ScriptedSite, World, unit

A = "fuzzers/a"
SUBJECT = Subject(A, "build", "plan")
PLAN = FuzzerPlan(A, Budget(60), 20, options=(("max_len", "9"), ("timeout", "3")))
MEASURED = b"#%d\tINITED cov: %d ft: %d corp: %d/9b exec/s: 0 rss: 31Mb\n"
DONE = b"Done %d runs in 0 second(s)\n"
BEFORE, AFTER = "before", "after"


class Fuzzer(ScriptedSite):
    """A fuzzer with a merge: it keeps what it is told to keep, and its units cover what they are told to."""

    def __init__(self, world: World, guest: ScriptedGuest) -> None:
        super().__init__(world, guest, A)
        self.result: dict[str, bytes] = {}
        """What the merge writes."""
        self.features = {BEFORE: 100, AFTER: 100}
        """What is covered before and after the merge; nothing is said of 0."""
        self.unfinished = ""
        """The measurement of which the end is not told."""
        self.skipping = ""
        """The measurement in which one unit is not run."""
        self.measured: list[dict[str, bytes]] = []
        """The units that were there when their coverage was measured."""
        self.calls: list[str] = []
        """prepare, stop, and the words of each run."""
        self.meanwhile: Callable[[], object] = lambda: None
        """Called in the middle of a merge."""
        self.pushed: Callable[[dict[str, bytes]], object] = lambda _: None
        """Given what is in a directory each time that files have come there."""
        self.faults: dict[str, TopcoatError] = {}
        """What a run raises: -merge=1, or the measurement before or after it."""

    def prepare(self) -> None:
        self.calls.append("prepare")
        super().prepare()

    def stop(self) -> None:
        self.calls.append("stop")
        super().stop()

    def push(self, files: Mapping[str, Path], directory: str) -> None:
        super().push(files, directory)
        self.pushed(self.files[directory])

    def run(self, words: Sequence[str], output: Writer, limit: float) -> None:
        self.calls.append(" ".join(words))
        self._answer()
        if "-merge=1" in words:
            self.meanwhile()
            self._raise("-merge=1")
            self.files[MERGED].update(self.result)
            output.write(b"MERGE-OUTER: 3 files, 0 in the initial corpus, 0 processed earlier\n")
            return
        self._measure(AFTER if self.measured else BEFORE, output)

    def _measure(self, which: str, output: Writer) -> None:
        self.measured.append(dict(self.files[CORPUS]))
        self._raise(which)
        if features := self.features[which]:
            units = len(self.files[CORPUS])
            output.write(MEASURED % (units, features // 2, features, units))
            if which != self.unfinished:
                output.write(DONE % (units - 1 if which == self.skipping else units + 1))

    def _raise(self, name: str) -> None:
        if error := self.faults.get(name):
            raise error


class Guest(ScriptedGuest):
    """A guest in which that fuzzer is."""

    def __init__(self, world: World, boot_id: str = "boot") -> None:
        super().__init__(world, "pool-0", boot_id)
        self.guest_fuzzer = Fuzzer(world, self)
        self.place = GuestWorkspace(self.guest_fuzzer)

    def workspace(self, fuzzer: str) -> GuestWorkspace:
        assert fuzzer == A
        return self.place


class Bench:
    """A corpus of four units, a guest, and another one that is booted when it is wanted."""

    def __init__(self, root: Path) -> None:
        self.world = World()
        self.guest = Guest(self.world)
        self.guest_fuzzer = self.guest.guest_fuzzer
        self.other = Guest(self.world, "other boot")
        self.lent: list[str] = []
        """Why each guest was to be newly booted."""
        self.stopped = self.held = False
        self.corpus = Corpus.of(root, A)
        self.names = [unit(text)[0] for text in "abcd"]
        self.corpus.add([unit(text)[1] for text in "abcd"], "seed")
        self.guest_fuzzer.result = dict(map(unit, "ab"))

    def merge(self, tolerance: float = 0.0) -> Merged:
        chosen = CampaignSettings(tolerance=tolerance)
        return merge(SUBJECT, PLAN, self.lend, self.corpus, chosen, self.world.clock, lambda: self.stopped)

    @contextmanager
    def lend(self, anew: str) -> Iterator[Guest]:
        """One at a time: whoever holds a guest while he waits for another one would wait for ever in a small pool."""
        assert not self.held
        self.held = True
        self.lent.append(anew)
        yield self.other if anew else self.guest
        self.held = False

    @property
    def units(self) -> set[str]:
        return set(self.corpus.units())
