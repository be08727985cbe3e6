"""Merging by the real libFuzzer in the real Linux guest: whatever a campaign's options hide, nothing is lost."""

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.builds import build
from pipeline.campaign.guest_fuzzer import OverSsh
from pipeline.campaign.guests import GuestWorkspace
from pipeline.campaign.ledger import Merged, Subject
from pipeline.campaign.merging import merge
from pipeline.campaign.plan.definition import Budget, FuzzerPlan
from pipeline.fuzz.corpus import Corpus, CorpusLimits
from pipeline.fuzz.fuzzer import Fuzzer
from pipeline.settings import TCG_SCALE, CampaignSettings, Timeouts
from pipeline.ssh.connector import Connector
from pipeline.vm.capsule import CrashedProcess
from pipeline.vm.handle import Handle
from pipeline.vm.instance import Instance
from pipeline.vm.qemu.capturing import NotCapturedError
from pipeline.vm.qemu.stopping import stop
from tests.campaign.scripted import unit
from tests.conftest import Workspace

TOY, PARSER, MAZE = (f"example-fuzzers/{name}" for name in ("toy_example_arbitrary", "parser_fuzzer", "maze_fuzzer"))

LIMIT = 120.0

pytestmark = pytest.mark.timeout(600)


LIAR = r"""#!/bin/sh
exec >&2
for word; do
    test "$word" = -merge=1 && cp "$(ls tmp/corpus/* | head -n 1)" tmp/merged
done
echo '#99	INITED cov: 99 ft: 999 corp: 9/9b exec/s: 9 rss: 31Mb'
echo 'Done 99 runs in 0 second(s)'
"""
"""It keeps one unit, whatever that covers, and says each time that all is covered."""


class Guest:
    """See pipeline.campaign.guests.Guest: that of BootInstance, and not of the pool."""

    memory = 512

    def __init__(self, workspace: Workspace, handle: Handle) -> None:
        self.instance, self.boot_id = handle.name, handle.boot_id
        self.connector = Connector(handle.ssh, Timeouts().scaled(TCG_SCALE))
        self.retired = ""
        self._chosen = settings.load({"TOPCOAT_ROOT": str(workspace.store.root)}, workspace.directory)
        self._process = handle.process

    def fuzzer(self, name: str) -> Fuzzer:
        return Fuzzer.of(build.load(self._chosen, {}), name, {})

    def workspace(self, fuzzer: str) -> GuestWorkspace:
        return GuestWorkspace(OverSsh(self.fuzzer(fuzzer), self.connector, self._process))

    def capture(self, _crashed: CrashedProcess, _directory: Path, _most: int) -> None:
        raise NotCapturedError("no merge does that")

    def serial(self) -> bytes:
        return b""

    def ending(self) -> str:
        return ""

    def spoil(self, reason: str) -> None:
        raise AssertionError(reason)

    def retire(self, reason: str) -> None:
        self.retired = reason

    @contextmanager
    def lying(self, fuzzer: str, directory: Path) -> Iterator[None]:
        """In the body, the fuzzer in this guest is LIAR."""
        (liar := directory / fuzzer.rpartition("/")[2]).write_text(LIAR)
        program, played = self.fuzzer(fuzzer).absolute(f"pkg/{liar.name}"), f"/tmp/played/{liar.name}"
        self.connector.put(str(liar), "/tmp/played")
        self.connector.command("chmod", f"{stat.S_IRWXU:o}", played).run(LIMIT)
        self.connector.command("mount", "-o", "bind", played, program).run(LIMIT)
        try:
            yield
        finally:
            self.connector.command("umount", program).run(LIMIT)


@dataclass(frozen=True)
class Guests:
    """One in which something may have been done, and one that is booted to confirm that."""

    first: Guest
    other: Guest

    def lend(self, anew: str) -> AbstractContextManager[Guest]:
        return nullcontext(self.other if anew else self.first)


@pytest.fixture(scope="module")
def guests(demo_parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guests]:
    """Two guests for all of these tests: each merge leaves nothing in them."""
    environment = {name: value for name, value in os.environ.items() if name != "TOPCOAT_ROOT"}
    workspace = Workspace(tmp_path_factory.mktemp("merging"), environment)
    subprocess.run(["cp", "-a", "--sparse=always", demo_parts, workspace.store.root], check=True)
    made: list[Guest] = []
    for name in ("i0", "i1"):
        booted = workspace.luigi("BootInstance", "--name", name)
        assert booted.status == 0, booted.text
        handle = Instance.named(workspace.store, name).live_handle()
        assert handle
        made.append(Guest(workspace, handle))
    yield Guests(*made)
    for guest in made:
        guest.connector.close()
        stop(workspace.instance(guest.instance), 10)


class Bench:
    """A corpus of some units, and campaigns that merge it."""

    def __init__(self, root: Path, guests: Guests, fuzzer: str, *units: bytes) -> None:
        self.corpus = Corpus.of(root, fuzzer)
        self.corpus.add(units, "seed")
        self._guests = guests

    def merge(self, tolerance: float = 0.02, **options: object) -> Merged:
        """By a campaign with these options."""
        fuzzer = self.corpus.fuzzer
        chosen = tuple(sorted((name, str(value)) for name, value in options.items()))
        plan = FuzzerPlan(fuzzer, Budget(60), 60, options=chosen)
        return merge(
            Subject(fuzzer, "build", "plan"),
            plan,
            self._guests.lend,
            self.corpus,
            CampaignSettings(tolerance=tolerance),
        )

    @property
    def contents(self) -> set[bytes]:
        return {self.corpus.path(name).read_bytes() for name in self.corpus.units()}


RECTANGLES = (bytes([1, 0, 1, 0, 1, 0, 1, 0]), b"short")
"""What is shorter than eight bytes does not even reach the code for rectangles."""


@pytest.mark.parametrize("max_len", [4, 7])
def test_what_a_campaign_would_cut_off_counts_all_the_same(guests: Guests, tmp_path: Path, max_len: int) -> None:
    bench = Bench(tmp_path, guests, TOY, *RECTANGLES)
    merged = bench.merge(max_len=max_len)
    assert (merged.before, merged.after, merged.accepted, merged.reason) == (2, 2, True, "")
    assert merged.features_before == merged.features_after == 3
    assert bench.contents == set(RECTANGLES)


def test_no_other_option_hides_anything(guests: Guests, tmp_path: Path) -> None:
    """With these of its own nothing would be printed, or run to its end, or allowed at all."""
    bench = Bench(tmp_path, guests, TOY, *RECTANGLES)
    limits = {"rss_limit_mb": 1, "malloc_limit_mb": 1, "timeout": 1}
    seeds = "pkg/toy_example_arbitrary"
    merged = bench.merge(verbosity=0, only_ascii=1, seed_inputs=seeds, exit_on_item=unit("short")[0], **limits)
    assert (merged.accepted, merged.reason) == (True, "")
    assert bench.contents == set(RECTANGLES)


def test_what_covers_nothing_more_goes_and_the_empty_unit_which_is_never_judged_stays(
    guests: Guests, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, guests, PARSER, b"TCS\x01\x02", b"TCS\x01\x03AA", b"TCS\x01\x04AAA", b"x", b"")
    merged = bench.merge(max_len=1)
    assert merged.accepted, merged
    assert (merged.before, merged.features_after) == (5, merged.features_before)
    assert b"" in bench.contents
    assert merged.after == len(bench.contents) < 5
    again = bench.merge()
    assert (again.before, again.after, again.features_after) == (merged.after, merged.after, merged.features_after)


def test_what_covers_more_by_a_value_profile_stays_in_the_merges_of_others(guests: Guests, tmp_path: Path) -> None:
    """By a value profile each of these is another distance from the letters that are doors."""
    ways = (b"A", b"B", b"D", b"\0", b"z")
    bench, other = Bench(tmp_path / "one", guests, MAZE, *ways), Bench(tmp_path / "other", guests, MAZE, *ways)
    bench.corpus.count_value_profile(1)
    counted, plain = bench.merge(), other.merge(use_value_profile=0)
    assert counted.accepted
    assert plain.accepted
    assert counted.features_before == counted.features_after > plain.features_before
    assert len(bench.contents) > len(other.contents) == 1


def test_a_unit_that_ends_the_measurement_keeps_the_corpus_as_it_is(guests: Guests, tmp_path: Path) -> None:
    units = (b"N", b"NE", b"WWWW", b"SSS-")
    bench = Bench(tmp_path, guests, MAZE, *units)
    merged = bench.merge(tolerance=0.9)
    assert not merged.accepted
    assert merged.reason.startswith("what the corpus covers cannot be measured: ")
    assert bench.contents == set(units)


def test_a_unit_that_is_larger_than_libfuzzer_reads_by_itself_is_whole(guests: Guests, tmp_path: Path) -> None:
    large = b"TC" + bytes([0x58, 255, *bytes(255)]) * 4200 + b"S\x01\x02"
    bench = Bench(tmp_path, guests, PARSER)
    bench.corpus = Corpus.of(tmp_path, PARSER, CorpusLimits(unit_size=2 << 20))
    assert len(large) > 1 << 20
    assert bench.corpus.add([large, b"TC"], "seed").new == 2
    merged = bench.merge()
    assert (merged.accepted, bench.contents) == (True, {large, b"TC"}), merged


def test_a_guest_that_lies_costs_nothing_as_another_one_does_not(guests: Guests, tmp_path: Path) -> None:
    ways = (b"A", b"B", b"D", b"\0", b"z")
    bench = Bench(tmp_path, guests, MAZE, *ways)
    bench.corpus.count_value_profile(1)
    with guests.first.lying(MAZE, tmp_path):
        merged = bench.merge()
        assert (merged.before, merged.after, merged.accepted, merged.confirmed_by) == (5, 5, False, "")
        assert merged.features_after < merged.features_before < 999, "so the other one says"
        said = f"1 of 5 units cover as much, says {guests.first.boot_id}; but {guests.other.boot_id}, booted to confirm"
        assert merged.reason.startswith(said)
        assert bench.contents == set(ways)
        assert guests.first.retired


def test_what_two_guests_say_is_taken_and_can_be_brought_back(guests: Guests, tmp_path: Path) -> None:
    ways = (b"A", b"B", b"D", b"\0", b"z")
    bench = Bench(tmp_path, guests, MAZE, *ways)
    merged = bench.merge()
    assert (merged.after, merged.accepted, merged.confirmed_by) == (1, True, guests.other.boot_id)
    assert bench.corpus.restore().new == 4
    assert bench.contents == set(ways)
