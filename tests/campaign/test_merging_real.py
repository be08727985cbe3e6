"""Merging by the real libFuzzer in the real demo guest: whatever a campaign's options hide, nothing is lost."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import build, settings
from pipeline.campaign.definition import Budget, FuzzerPlan
from pipeline.campaign.guests import Room
from pipeline.campaign.merging import merge
from pipeline.campaign.site import OverSsh
from pipeline.corpus import Corpus, Limits
from pipeline.fuzzer import Fuzzer
from pipeline.instance import Handle, Instance
from pipeline.ledger import Merged, Subject
from pipeline.settings import TCG_SCALE, Campaign, Timeouts
from pipeline.ssh import Connector
from tests.campaign.scripted import unit
from tests.conftest import Workspace

TOY, PARSER, MAZE = (f"example-fuzzers/{name}" for name in ("toy_example_arbitrary", "parser_fuzzer", "maze_fuzzer"))

pytestmark = pytest.mark.timeout(600)


class Guest:
    """See pipeline.campaign.guests.Guest: that of BootInstance, and not of the pool."""

    instance = "i0"
    memory = 512

    def __init__(self, workspace: Workspace, handle: Handle) -> None:
        self.boot_id = handle.boot_id
        self.connector = Connector(handle.ssh, Timeouts().scaled(TCG_SCALE))
        self._chosen = settings.load({"TOPCOAT_ROOT": str(workspace.store.root)}, workspace.directory)
        self._process = handle.process

    def room(self, fuzzer: str) -> Room:
        made = Fuzzer.of(build.load(self._chosen, {}), fuzzer, {})
        return Room(OverSsh(made, self.connector, self._process))

    def serial(self) -> bytes:
        return b""

    def ending(self) -> str:
        return ""

    def spoil(self, reason: str) -> None:
        raise AssertionError(reason)


@pytest.fixture(scope="module")
def guest(demo_parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """One guest for all of these tests: each merge leaves nothing in it."""
    environment = {name: value for name, value in os.environ.items() if name != "TOPCOAT_ROOT"}
    workspace = Workspace(tmp_path_factory.mktemp("merging"), environment)
    subprocess.run(["cp", "-a", "--sparse=always", demo_parts, workspace.store.root], check=True)
    booted = workspace.luigi("BootInstance")
    assert booted.status == 0, booted.text
    handle = Instance.named(workspace.store, "i0").live_handle()
    assert handle
    made = Guest(workspace, handle)
    yield made
    made.connector.close()
    workspace.instance().stop(10)


class Bench:
    """A corpus of some units, and campaigns that merge it."""

    def __init__(self, root: Path, guest: Guest, fuzzer: str, *units: bytes) -> None:
        self.corpus = Corpus.of(root, fuzzer)
        self.corpus.add(units, "seed")
        self._guest = guest

    def merge(self, tolerance: float = 0.02, **options: object) -> Merged:
        """By a campaign with these options."""
        fuzzer = self.corpus.fuzzer
        chosen = tuple(sorted((name, str(value)) for name, value in options.items()))
        plan = FuzzerPlan(fuzzer, Budget(60), 60, options=chosen)
        return merge(Subject(fuzzer, "build", "plan"), plan, self._guest, self.corpus, Campaign(tolerance=tolerance))

    @property
    def contents(self) -> set[bytes]:
        return {self.corpus.path(name).read_bytes() for name in self.corpus.units()}


RECTANGLES = (bytes([1, 0, 1, 0, 1, 0, 1, 0]), b"short")
"""What is shorter than eight bytes does not even reach the code for rectangles."""


@pytest.mark.parametrize("max_len", [4, 7])
def test_what_a_campaign_would_cut_off_counts_all_the_same(guest: Guest, tmp_path: Path, max_len: int) -> None:
    bench = Bench(tmp_path, guest, TOY, *RECTANGLES)
    merged = bench.merge(max_len=max_len)
    assert (merged.before, merged.after, merged.accepted, merged.reason) == (2, 2, True, "")
    assert merged.features_before == merged.features_after == 3
    assert bench.contents == set(RECTANGLES)


def test_no_other_option_hides_anything(guest: Guest, tmp_path: Path) -> None:
    """With these of its own nothing would be printed, or run to its end, or allowed at all."""
    bench = Bench(tmp_path, guest, TOY, *RECTANGLES)
    limits = {"rss_limit_mb": 1, "malloc_limit_mb": 1, "timeout": 1}
    seeds = "pkg/toy_example_arbitrary"
    merged = bench.merge(verbosity=0, only_ascii=1, seed_inputs=seeds, exit_on_item=unit("short")[0], **limits)
    assert (merged.accepted, merged.reason) == (True, "")
    assert bench.contents == set(RECTANGLES)


def test_what_covers_nothing_more_goes_and_the_empty_unit_which_is_never_judged_stays(
    guest: Guest, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, guest, PARSER, b"TCS\x01\x02", b"TCS\x01\x03AA", b"TCS\x01\x04AAA", b"x", b"")
    merged = bench.merge(max_len=1)
    assert merged.accepted, merged
    assert (merged.before, merged.features_after) == (5, merged.features_before)
    assert b"" in bench.contents
    assert merged.after == len(bench.contents) < 5
    again = bench.merge()
    assert (again.before, again.after, again.features_after) == (merged.after, merged.after, merged.features_after)


def test_what_covers_more_by_a_value_profile_stays_in_the_merges_of_others(guest: Guest, tmp_path: Path) -> None:
    """By a value profile each of these is another distance from the letters that are doors."""
    ways = (b"A", b"B", b"D", b"\0", b"z")
    bench, other = Bench(tmp_path / "one", guest, MAZE, *ways), Bench(tmp_path / "other", guest, MAZE, *ways)
    bench.corpus.count_value_profile(1)
    counted, plain = bench.merge(), other.merge(use_value_profile=0)
    assert counted.accepted
    assert plain.accepted
    assert counted.features_before == counted.features_after > plain.features_before
    assert len(bench.contents) > len(other.contents) == 1


def test_a_unit_that_ends_the_measurement_keeps_the_corpus_as_it_is(guest: Guest, tmp_path: Path) -> None:
    units = (b"N", b"NE", b"WWWW", b"SSS-")
    bench = Bench(tmp_path, guest, MAZE, *units)
    merged = bench.merge(tolerance=0.9)
    assert not merged.accepted
    assert merged.reason.startswith("what the corpus covers cannot be measured: ")
    assert bench.contents == set(units)


def test_a_unit_that_is_larger_than_libfuzzer_reads_by_itself_is_whole(guest: Guest, tmp_path: Path) -> None:
    large = b"TC" + bytes([0x58, 255, *bytes(255)]) * 4200 + b"S\x01\x02"
    bench = Bench(tmp_path, guest, PARSER)
    bench.corpus = Corpus.of(tmp_path, PARSER, Limits(unit_size=2 << 20))
    assert len(large) > 1 << 20
    assert bench.corpus.add([large, b"TC"], "seed").new == 2
    merged = bench.merge()
    assert (merged.accepted, bench.contents) == (True, {large, b"TC"}), merged
