"""Merging a corpus, with a fuzzer of a script."""

import os
import threading
import tracemalloc
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from pipeline.campaign import merging
from pipeline.campaign.guest_fuzzer import CORPUS, MERGED
from pipeline.campaign.harvest import LONGEST_NAME
from pipeline.campaign.ledger import Merged
from pipeline.campaign.merging import halt
from pipeline.campaign.plan.definition import Budget, FuzzerPlan
from pipeline.errors import CommandError, ConnectError, FuzzerError, FuzzerTimeout, TopcoatError
from pipeline.fuzz.corpus import Corpus
from pipeline.fuzz.symbolizer import Writer
from pipeline.host.worker import Worker
from tests.campaign.bench import Bench as Campaigns
from tests.campaign.scripted import PANIC, Behaviour, ScriptedSite, unit
from tests.campaign.scripted_merge import AFTER, BEFORE, MEASURED, PLAN, SUBJECT, A, Bench
from tests.waiting import SOON


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


class TestResult:
    def test_one_that_covers_as_much_takes_the_place(self, bench: Bench) -> None:
        bench.guest_fuzzer.meanwhile = lambda: bench.world.clock.pass_(7.0)
        assert bench.merge() == Merged(SUBJECT, 4, 2, 100, 100, True, "", seconds=7.0)
        assert bench.units == set(bench.names[:2])

    def test_the_fuzzer_has_the_whole_corpus_and_options_that_hide_nothing(self, bench: Bench) -> None:
        seen: list[dict[str, bytes]] = []
        bench.guest_fuzzer.meanwhile = lambda: seen.append(dict(bench.guest_fuzzer.files[CORPUS]))
        bench.guest.place.known.update(bench.names)
        bench.merge()
        assert seen == [dict(map(unit, "abcd"))]
        options = "-max_len=4096 -rss_limit_mb=307 -timeout=25"
        assert bench.guest_fuzzer.calls == [
            "prepare",
            f"{options} -merge=1 {MERGED} {CORPUS}",
            f"{options} -runs=0 {CORPUS}",
            "prepare",
            f"{options} -runs=0 {CORPUS}",
            "prepare",
        ]

    def test_exactly_what_is_kept_is_measured(self, bench: Bench) -> None:
        bench.guest_fuzzer.result = dict(
            [unit("a"), unit("new"), (unit("b")[0], b"torn"), ("other name", b"c"), ("odd", b"x")]
        )
        merged = bench.merge()
        assert bench.guest_fuzzer.measured == [dict(map(unit, "abcd")), dict(map(unit, "abc"))]
        assert (merged.before, merged.after, bench.units) == (4, 3, set(bench.names[:3]))

    def test_a_name_that_no_file_can_have_costs_no_other_unit(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever asks a guest for one gets nothing at all."""
        fetch = ScriptedSite.fetch

        def all_or_nothing(guest_fuzzer: ScriptedSite, directory: str, names: Collection[str], into: Path) -> None:
            if all(len(os.fsencode(name)) <= LONGEST_NAME for name in names):
                fetch(guest_fuzzer, directory, names, into)

        monkeypatch.setattr(ScriptedSite, "fetch", all_or_nothing)
        odd = {"x" * (LONGEST_NAME + 1): b"a", "\N{EURO SIGN}" * 100: b"b", "y" * LONGEST_NAME: b"c"}
        bench.guest_fuzzer.result = odd | dict([unit("d")])
        assert bench.merge().accepted
        assert bench.units == set(bench.names[2:])

    def test_one_that_grows_as_it_comes_is_not_in_memory(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """A transfer ends at 512 MiB only, whatever the guest said of sizes."""

        def larger(_: ScriptedSite, directory: str, names: Collection[str], into: Path) -> None:
            for name in names:
                (into / name).touch()
                os.truncate(into / name, 64 << 20)

        monkeypatch.setattr(ScriptedSite, "fetch", larger)
        bench.guest_fuzzer.result = {"other name": b"c"} | dict(map(unit, "ab"))
        tracemalloc.start()
        try:
            assert bench.merge().accepted
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()

    def test_what_is_kept_whole_need_not_be_measured_again(self, bench: Bench) -> None:
        bench.guest_fuzzer.result = dict(map(unit, "abcd"))
        assert bench.merge() == Merged(SUBJECT, 4, 4, 100, 100, True, "", seconds=0.0)
        assert bench.guest_fuzzer.measured == [dict(map(unit, "abcd"))]

    def test_the_empty_unit_stays_as_nobody_judges_it(self, bench: Bench) -> None:
        bench.corpus.add([b""], "seed")
        bench.merge()
        assert bench.units == {*bench.names[:2], unit("")[0]}

    def test_afterwards_the_guest_has_nothing_and_is_known_to(self, bench: Bench) -> None:
        bench.guest.place.known.update(["old", *bench.names])
        bench.merge()
        assert (bench.guest_fuzzer.files, bench.guest.place.known) == ({}, set())

    def test_one_that_covers_less_is_refused(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        bench.guest_fuzzer.features[AFTER] = 97
        merged = bench.merge(tolerance=0.02)
        assert (merged.before, merged.after, merged.accepted) == (4, 4, False)
        assert merged.reason == "97 features instead of 100; the log says more"
        assert "a merge of the corpus of fuzzers/a is not taken: it covers less" in caplog.text
        assert bench.units == set(bench.names)

    def test_one_that_covers_less_within_the_tolerance_is_taken(self, bench: Bench) -> None:
        bench.guest_fuzzer.features[AFTER] = 98
        merged = bench.merge(tolerance=0.02)
        assert (merged.features_before, merged.features_after, merged.accepted) == (100, 98, True)
        assert bench.units == set(bench.names[:2])

    def test_nothing_came_of_it(self, bench: Bench) -> None:
        bench.guest_fuzzer.result = {}
        merged = bench.merge()
        assert (merged.accepted, merged.reason) == (False, "nothing came of it")
        assert bench.units == set(bench.names)

    @pytest.mark.parametrize("which", [BEFORE, AFTER])
    @pytest.mark.parametrize("how", ["says nothing", "does not end", "runs some only"])
    def test_of_what_was_not_measured_nothing_is_taken(self, bench: Bench, which: str, how: str) -> None:
        """A measurement of some units would be as good as one of all, to whoever looks at the last line alone."""
        if how == "says nothing":
            bench.guest_fuzzer.features[which] = 0
        elif how == "does not end":
            bench.guest_fuzzer.unfinished = which
        else:
            bench.guest_fuzzer.skipping = which
        merged = bench.merge(tolerance=0.9)
        assert merged.reason == "what the corpus covers cannot be measured: not all units were run"
        assert (merged.accepted, bench.units) == (False, set(bench.names))

    def test_the_reason_is_what_the_fuzzer_complained_of(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.guest_fuzzer.unfinished = BEFORE
        monkeypatch.setattr(
            "tests.campaign.scripted_merge.MEASURED", MEASURED + b"==1== ERROR: libFuzzer: timeout after 26 seconds\n"
        )
        assert bench.merge().reason == "what the corpus covers cannot be measured: timeout after 26 seconds"

    def test_an_empty_corpus_has_no_result(self, bench: Bench, tmp_path: Path) -> None:
        bench.corpus = Corpus.of(tmp_path / "other", A)
        bench.guest_fuzzer.result = {}
        assert (bench.merge().accepted, bench.units) == (False, set())


class TestMeanwhile:
    def test_what_somebody_else_has_added_stays(self, bench: Bench) -> None:
        bench.guest_fuzzer.meanwhile = lambda: bench.corpus.add([b"new"], "somebody else")
        merged = bench.merge()
        assert (merged.before, merged.after, merged.accepted) == (4, 3, True)
        assert bench.units == {*bench.names[:2], unit("new")[0]}

    def test_what_somebody_else_has_added_is_no_result_of_the_merge(self, bench: Bench) -> None:
        bench.guest_fuzzer.meanwhile = lambda: bench.corpus.add([b"new"], "somebody else")
        bench.guest_fuzzer.result = dict([unit("new")])
        bench.merge()
        assert unit("new")[0] in bench.units

    def test_what_somebody_else_has_quarantined_does_not_come_back(self, bench: Bench) -> None:
        bench.guest_fuzzer.meanwhile = lambda: bench.corpus.quarantine(bench.names[0], "it crashes")
        assert bench.merge().accepted
        assert bench.other.guest_fuzzer.measured == [dict(map(unit, "bcd")), dict([unit("b")])]
        assert bench.units == {bench.names[1]}

    def test_names_that_are_not_in_the_corpus_are_ignored(self, bench: Bench) -> None:
        names = [unit("forged")[0], "../../x", "-rf", "\033[31m", "latin\udcff", "", *bench.names[2:]]
        bench.guest_fuzzer.result = dict.fromkeys(names, b"other content")
        assert bench.merge().accepted
        assert bench.units == set(bench.names[2:])

    def test_if_there_are_no_others_nothing_came_of_it(self, bench: Bench) -> None:
        bench.guest_fuzzer.result = dict.fromkeys([unit("forged")[0], "../../x"], b"other content")
        assert bench.merge().reason == "nothing came of it"
        assert bench.units == set(bench.names)


class TestFaults:
    @pytest.mark.parametrize("when", ["-merge=1", BEFORE, AFTER])
    @pytest.mark.parametrize(
        "error",
        [
            FuzzerTimeout("it did not end in time", hint=""),
            FuzzerError("failed during wait: \033[31mred\n", hint=""),
            CommandError("unexpected return code: 66", hint=""),
            ConnectError("it does not answer", stage="connect", hint=""),
        ],
    )
    def test_one_that_fails_says_why_and_changes_nothing(self, bench: Bench, error: TopcoatError, when: str) -> None:
        bench.guest_fuzzer.faults[when] = error
        merged = bench.merge()
        assert (merged.before, merged.after, merged.accepted) == (4, 4, False)
        assert merged.reason == str(error).replace("\033[31m", "").replace("\n", "\\n")
        assert bench.units == set(bench.names)
        assert bench.guest_fuzzer.calls[-1] == "prepare", "nothing of it is left in the guest"
        assert bench.guest_fuzzer.files == {}

    @pytest.mark.parametrize("fault", ["lost", "cut off", "more"])
    @pytest.mark.parametrize("when", ["first", "last"])
    def test_a_guest_that_has_other_units_than_it_was_given_judges_nothing(
        self, bench: Bench, fault: str, when: str
    ) -> None:
        """Else what never came would count neither before nor afterwards, and go."""
        faults = {"lost": {bench.names[0]: b""}, "cut off": {unit("long")[0]: b"lon"}, "more": dict([unit("more")])}
        bench.corpus.add([b"long"], "seed")
        bench.guest_fuzzer.result |= dict([unit("long")])

        def spoil(files: dict[str, bytes]) -> None:
            if files and bool(bench.guest_fuzzer.measured) == (when == "last"):
                files.update(faults[fault])

        bench.guest_fuzzer.pushed = spoil
        merged = bench.merge(tolerance=0.9)
        assert merged.reason == "the guest's corpus differs from what it was given: units: 1"
        assert (merged.accepted, bench.units) == (False, {*bench.names, unit("long")[0]})

    def test_a_guest_that_dies_in_the_middle_is_told(self, bench: Bench) -> None:
        def die() -> None:
            bench.guest.lives = False
            raise CommandError("the connection broke", hint="")

        bench.guest_fuzzer.meanwhile = die
        merged = bench.merge()
        assert (merged.accepted, merged.reason) == (False, f"{PANIC}; the connection broke")
        assert bench.guest.spoilt == f"{PLAN.name}: {PANIC}; the connection broke"
        assert bench.units == set(bench.names)

    def test_one_that_is_dead_already_is_told(self, bench: Bench) -> None:
        bench.guest.lives = False
        assert bench.merge().reason == f"{PANIC}; the guest does not answer"
        assert bench.units == set(bench.names)

    def test_a_mistake_of_ours_is_raised_and_leaves_nothing_in_the_guest(self, bench: Bench) -> None:
        bench.guest_fuzzer.meanwhile = lambda: 1 // 0
        with pytest.raises(ZeroDivisionError):
            bench.merge()
        assert bench.guest_fuzzer.calls[-1] == "prepare"
        assert bench.units == set(bench.names)


class TestHalt:
    def test_another_thread_ends_the_run_of_the_fuzzer(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        begun, stopped = threading.Event(), threading.Event()

        def run() -> None:
            begun.set()
            assert stopped.wait(SOON)
            raise FuzzerError("failed during wait: it was killed", hint="")

        bench.guest_fuzzer.meanwhile = run
        monkeypatch.setattr(bench.guest_fuzzer, "stop", stopped.set)
        merged: list[Merged] = []
        worker = Worker("merge", lambda: merged.append(bench.merge()))
        assert begun.wait(SOON)
        halt(PLAN, bench.guest)
        assert worker.join(SOON)
        assert worker.failure is None
        assert [(one.accepted, one.reason) for one in merged] == [(False, "failed during wait: it was killed")]
        assert bench.units == set(bench.names)

    def test_a_campaign_that_is_stopped_while_the_guest_is_filled_does_not_begin_to_merge(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All that runs has two minutes to end then, and a merge has half an hour."""
        campaign = Campaigns(tmp_path)
        world = campaign.world
        runner = campaign.runner(campaign.definition(FuzzerPlan(A, Budget(20), 20)))
        world.slow, world.behaviours[A] = 1.0, Behaviour(units=4)
        pass_ = world.clock.pass_

        def stopped(seconds: float) -> None:
            pass_(seconds)
            if seconds == world.slow and world.runs:  # a copy into the guest, after the fuzzer has run
                runner.stop()

        monkeypatch.setattr(world.clock, "pass_", stopped)
        runner.run()
        assert [words for _, words in world.runs if "-merge=1" in words] == []

    def test_a_guest_that_does_not_answer_is_no_error(self, bench: Bench) -> None:
        bench.guest.lives = False
        halt(PLAN, bench.guest)
        assert bench.guest_fuzzer.calls == ["stop"]


def test_it_has_a_limit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    run = bench.guest_fuzzer.run

    def limited(words: Sequence[str], output: Writer, limit: float) -> None:
        limits.append(limit)
        run(words, output, limit)

    monkeypatch.setattr(bench.guest_fuzzer, "run", limited)
    bench.merge()
    assert limits == [merging.LIMIT] * 3
