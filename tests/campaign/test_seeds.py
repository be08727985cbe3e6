"""The seeds of a campaign: each content comes into the corpus once, whatever is killed, merged or changed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.campaign import ledger, seeds
from pipeline.campaign.ledger import LedgerEntry, Merged, Seeded, Started
from pipeline.campaign.plan.definition import Budget, FuzzerPlan
from pipeline.campaign.schedule import Only
from pipeline.campaign.state import State
from pipeline.fuzz.corpus import Corpus, CorpusLimits
from tests.campaign.bench import Bench, Killed
from tests.campaign.scripted import Behaviour, unit

A, B = "fuzzers/a", "fuzzers/b"
SEEDS = tuple("abcdefgh")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "seeds"
    write(made, *SEEDS)
    return made


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def write(directory: Path, *texts: str) -> None:
    directory.mkdir(exist_ok=True)
    for text in texts:
        (directory / f"seed-{text}").write_text(text)


def plan(directory: Path, name: str = A) -> FuzzerPlan:
    return FuzzerPlan(name, Budget(20), 20, seeds=(directory,))


def names(*texts: str) -> set[str]:
    return {unit(text)[0] for text in texts}


class TestOnce:
    def test_what_a_merge_has_dropped_does_not_come_back_with_the_next_start(
        self, bench: Bench, directory: Path
    ) -> None:
        definition = bench.definition(plan(directory))
        bench.run(definition)
        merged = bench.units(A)
        assert [one.accepted for one in bench.of(Merged)] == [True]
        assert not names(*SEEDS) <= merged
        bench.run(definition)
        bench.run(definition)
        assert bench.units(A) == merged
        assert [(one.fuzzer, set(one.names), one.new) for one in bench.of(Seeded)] == [(A, names(*SEEDS), 8)]

    def test_nor_does_it_if_more_budget_prolongs_the_campaign(self, bench: Bench, directory: Path) -> None:
        bench.run(bench.definition(plan(directory)))
        dropped = names(*SEEDS) - bench.units(A)
        bench.run(bench.definition(replace(plan(directory), budget=Budget(40))))
        assert dropped
        assert not dropped & bench.units(A)

    def test_an_earlier_version_has_imported_what_its_fuzzer_ran_with(self, bench: Bench, directory: Path) -> None:
        definition = bench.definition(plan(directory))
        bench.run(definition)
        merged, path = bench.units(A), bench.store.campaigns / "nightly/ledger.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if json.loads(line)["kind"] != "seeded"))
        bench.run(definition)
        assert bench.units(A) == merged
        write(directory, "new")
        bench.world.merged_part = 1.0
        bench.run(definition)
        assert bench.units(A) & names(*SEEDS, "new") == merged & names(*SEEDS) | names("new")
        assert [(set(one.names), one.new) for one in bench.of(Seeded)] == [(names(*SEEDS), 0), (names("new"), 1)]

    def test_another_campaign_brings_them_again(self, bench: Bench, directory: Path) -> None:
        definition = bench.definition(plan(directory))
        bench.run(definition)
        bench.world.merged_part = 1.0
        bench.run(replace(definition, name="other"))
        assert names(*SEEDS) <= bench.units(A)

    def test_a_changed_and_a_new_one_come_and_no_other(self, bench: Bench, directory: Path) -> None:
        bench.run(bench.definition(plan(directory)))
        merged = bench.units(A)
        (directory / "seed-a").write_text("changed")
        write(directory, "new")
        bench.world.merged_part = 1.0
        bench.run(bench.definition(plan(directory)))
        dropped = names(*SEEDS) - merged
        assert bench.units(A) >= merged | names("changed", "new")
        assert not dropped & bench.units(A)
        assert set(bench.of(Seeded)[1].names) == names("changed", "new")

    def test_a_new_build_does_not_bring_them_again(self, bench: Bench, directory: Path) -> None:
        bench.run(bench.definition(plan(directory)))
        dropped = names(*SEEDS) - bench.units(A)
        bench.builds[A] = "another build"
        bench.run(bench.definition(plan(directory)))
        assert not dropped & bench.units(A)
        assert len(bench.of(Seeded)) == 1

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_process_that_is_killed_has_the_next_one_do_it_unless_the_ledger_says_so(
        self, bench: Bench, directory: Path, when: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        definition = bench.definition(plan(directory))
        append = ledger.Ledger.append

        def killed(book: ledger.Ledger, entry: LedgerEntry) -> None:
            if isinstance(entry, Seeded) and when == "before":
                raise Killed
            append(book, entry)
            if isinstance(entry, Seeded):
                raise Killed

        monkeypatch.setattr(ledger.Ledger, "append", killed)
        with pytest.raises(Killed):
            bench.run(definition)
        monkeypatch.undo()
        assert bench.units(A) == names(*SEEDS)
        bench.run(definition)
        merged = bench.units(A)
        bench.run(definition)
        assert bench.units(A) == merged
        assert [one.new for one in bench.of(Seeded)] == [0 if when == "before" else 8]


class TestGone:
    """A corpus that somebody has deleted, or a disk has lost."""

    @pytest.mark.parametrize("what", ["", "units"])
    @pytest.mark.parametrize("noted", [True, False], ids=["noted", "earlier version"])
    def test_it_gets_all_of_them_again(self, bench: Bench, directory: Path, what: str, noted: bool) -> None:
        bench.run(bench.definition(plan(directory)))
        shutil.rmtree(bench.store.root / "corpora" / A / what)
        if what:  # whoever looks next finds that they are gone
            assert not Corpus.of(bench.store.root, A).quarantine(unit("nothing")[0], "")
        if not noted:
            path = bench.store.campaigns / "nightly/ledger.jsonl"
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(line for line in lines if json.loads(line)["kind"] != "seeded"))
        bench.world.merged_part = 1.0
        again = plan(directory)
        if noted:  # the corpus is told of that first
            again = replace(again, options=(("use_value_profile", "1"),))
        bench.run(bench.definition(again))
        assert names(*SEEDS) <= bench.units(A)
        assert (set(bench.of(Seeded)[-1].names), bench.of(Seeded)[-1].new) == (names(*SEEDS), 8)

    def test_one_whose_units_are_all_in_quarantine_does_not(self, bench: Bench, directory: Path) -> None:
        one = plan(directory)
        corpus = Corpus.of(bench.store.root, A)
        noted: list[LedgerEntry] = []
        seeds.bring([one], lambda _: corpus, {}, lambda _: False, noted.append)
        for text in SEEDS:
            corpus.quarantine(text.encode(), "it crashes")
        seeds.bring([one], lambda _: corpus, State.of(noted).seeded, lambda _: True, noted.append)
        assert len(noted) == 1


class TestJudged:
    """What `check` says of a campaign that has run."""

    def judged(self, bench: Bench, directory: Path) -> set[str]:
        seeded = State.of(bench.entries).seeded
        return set(seeds.judge(plan(directory), Corpus.of(bench.store.root, A), seeded.get(A, ())).names)

    def test_what_a_merge_has_dropped_does_not_count(self, bench: Bench, directory: Path) -> None:
        bench.run(bench.definition(plan(directory)))
        write(directory, "new")
        there = bench.units(A)
        assert not names(*SEEDS) <= there
        assert self.judged(bench, directory) == names(*SEEDS) & there | names("new")

    def test_all_count_if_the_corpus_is_gone(self, bench: Bench, directory: Path) -> None:
        bench.run(bench.definition(plan(directory)))
        shutil.rmtree(bench.store.root / "corpora" / A)
        assert self.judged(bench, directory) == names(*SEEDS)


class TestAlone:
    def test_one_slice_brings_the_seeds_of_its_own_fuzzer(self, bench: Bench, directory: Path) -> None:
        definition = bench.definition(plan(directory), plan(directory, B))
        bench.runner(definition, only=Only(A, 1)).run()
        assert {one.fuzzer for one in bench.of(Seeded)} == {A}
        assert bench.units(B) == set()

    def test_a_merge_brings_none(self, bench: Bench, directory: Path) -> None:
        definition = bench.definition(plan(directory), plan(directory, B))
        bench.world.behaviours[A] = Behaviour(units=3)
        bench.runner(definition, only=Only(A, 1)).run()
        before = bench.units(A)
        bench.runner(definition, only=Only(A, None)).run()
        assert [one.accepted for one in bench.of(Merged)] == [True]
        assert bench.units(A) < before
        bench.runner(bench.definition(plan(directory, B)), only=Only(B, None)).run()
        assert bench.units(B) == set()
        assert not [one for one in bench.of(Started) if one.subject.fuzzer == B]


class TestLeftOut:
    @pytest.fixture
    def odd(self, bench: Bench, directory: Path, tmp_path: Path) -> Path:
        """Two that are too large, a link to nothing, and one that is not what its name says."""
        bench.chosen = replace(bench.chosen, unit_size=8)
        write(directory, "much too large", "also too large")
        (directory / "dangling").symlink_to("nowhere")
        (directory / unit("whole")[0]).write_text("who")
        (tmp_path / "linked").write_text("linked")
        (directory / "link").symlink_to(tmp_path / "linked")
        return directory

    def test_each_reason_is_told_once_for_all_fuzzers_with_an_example(
        self, bench: Bench, odd: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench.run(bench.definition(plan(odd), plan(odd, B)))
        told = [record.message for record in caplog.records if "seed" in record.message]
        torn = odd / unit("whole")[0]
        assert [text.partition(" (")[0] for text in told] == [
            f"seeds left out: 4 larger than [campaign] unit_size, such as {odd}/seed-also too large",
            f"seeds left out: 2 not what their names say, such as {torn}",
            f"seeds left out: 2 no files that can be read, such as {odd}/dangling",
        ]
        assert "(raise that, or make them smaller)" in told[0]
        assert {name for one in bench.of(Seeded) for name in one.names} == names(*SEEDS, "linked")

    def test_they_come_once_they_can(self, bench: Bench, odd: Path) -> None:
        bench.run(bench.definition(plan(odd)))
        bench.chosen = replace(bench.chosen, unit_size=100)
        bench.world.merged_part = 1.0
        bench.run(bench.definition(plan(odd)))
        assert names("much too large", "also too large") <= bench.units(A)
        assert [one.new for one in bench.of(Seeded)] == [9, 2]

    def test_also_if_none_of_them_could_come_at_first(self, bench: Bench, tmp_path: Path) -> None:
        bench.chosen = replace(bench.chosen, unit_size=8)
        write(tmp_path / "large", "much too large")
        bench.run(bench.definition(plan(tmp_path / "large")))
        bench.chosen = replace(bench.chosen, unit_size=100)
        bench.run(bench.definition(plan(tmp_path / "large")))
        assert names("much too large") <= bench.units(A)

    def test_of_sound_ones_nothing_is_told(
        self, bench: Bench, directory: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench.run(bench.definition(plan(directory)))
        assert not [record for record in caplog.records if "left out" in record.message]


contents = st.lists(st.binary(max_size=6), max_size=6)


@pytest.mark.slow
@given(contents, contents, st.integers(0, 3))
def test_what_is_judged_is_what_comes(
    tmp_path_factory: pytest.TempPathFactory, there: list[bytes], given_: list[bytes], capacity: int
) -> None:
    root = tmp_path_factory.mktemp("judged")
    corpus = Corpus.of(root, A, CorpusLimits(unit_size=4, units=capacity))
    corpus.add(there, "x")
    for number, content in enumerate(given_):
        (root / str(number)).write_bytes(content)
    (root / "odd").symlink_to("nowhere")
    one = FuzzerPlan(A, Budget(1), 1, seeds=(*(root / str(number) for number in range(len(given_))), root / "odd"))
    judged = seeds.judge(one, corpus)
    was = corpus.manifest()
    assert seeds.judge(one, corpus) == judged
    assert corpus.manifest() == was
    noted: list[LedgerEntry] = []
    seeds.bring([one], lambda _: corpus, {}, lambda _: False, noted.append)
    assert noted == [Seeded(A, tuple(sorted(judged.names)), judged.new)]
    assert set(corpus.units()) == set(was.units) | judged.names
    again = State.of(noted).seeded
    seeds.bring([one], lambda _: corpus, again, lambda _: True, noted.append)
    assert len(noted) == 1
