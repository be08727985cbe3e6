"""Merges that leave little of a corpus: a guest of another boot confirms them."""

from pathlib import Path

import pytest

from pipeline.campaign.guest_fuzzer import CORPUS
from pipeline.campaign.ledger import Merged
from pipeline.campaign.merging import merge
from pipeline.errors import CommandError, FuzzerError, TopcoatError
from pipeline.fuzz.corpus import Coverage
from pipeline.settings import CampaignSettings
from tests.campaign.scripted import unit
from tests.campaign.scripted_merge import AFTER, BEFORE, PLAN, SUBJECT, A, Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


class TestConfirmed:
    """A merge that leaves fewer than half of the units."""

    @pytest.fixture(autouse=True)
    def great(self, bench: Bench) -> None:
        bench.guest_fuzzer.result = dict([unit("a")])

    def test_another_boot_measures_what_is_given_and_what_is_kept_and_does_not_merge(self, bench: Bench) -> None:
        bench.other.guest_fuzzer.features = {BEFORE: 101, AFTER: 102}
        took = iter([7.0, 2.0, 2.0, 30.0, 30.0])
        bench.other.guest_fuzzer.pushed = lambda _: bench.world.clock.pass_(next(took))
        merged = bench.merge()
        assert merged == Merged(SUBJECT, 4, 1, 101, 102, True, "", seconds=9.0, confirmed_by="other boot")
        assert (bench.units, len(bench.corpus.replaced())) == ({bench.names[0]}, 3)
        assert bench.lent == ["", f"{A}: it is to confirm the merge of another boot"]
        assert bench.guest.retired == f"{A}: another boot is to confirm its merge"
        assert (bench.other.retired, bench.other.spoilt) == ("", "")
        assert bench.other.guest_fuzzer.measured == [dict(map(unit, "abcd")), dict([unit("a")])]
        options = "-max_len=4096 -rss_limit_mb=307 -timeout=25"
        run = f"{options} -runs=0 {CORPUS}"
        assert bench.other.guest_fuzzer.calls == ["prepare", run, "prepare", run, "prepare"]
        last = bench.corpus.manifest().last_merge
        assert last
        assert (last.before, last.after) == (Coverage(50, 101), Coverage(51, 102))

    @pytest.mark.parametrize("features", [97, 1])
    def test_if_it_finds_less_the_corpus_stays_and_both_are_told(
        self, bench: Bench, features: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench.other.guest_fuzzer.features[AFTER] = features
        merged = bench.merge(tolerance=0.02)
        reason = (
            "1 of 4 units cover as much, says boot; but other boot, booted to confirm it: "
            f"{features} features instead of 100; the log says more"
        )
        assert merged == Merged(SUBJECT, 4, 4, 100, features, False, reason, seconds=0.0)
        assert bench.units == set(bench.names)
        assert reason in caplog.text
        assert bench.guest.retired, "whoever lies gets nothing more to do"

    def test_less_within_the_tolerance_is_enough(self, bench: Bench) -> None:
        bench.other.guest_fuzzer.features[AFTER] = 98
        assert bench.merge(tolerance=0.02).accepted

    @pytest.mark.parametrize("when", [BEFORE, AFTER])
    @pytest.mark.parametrize("error", [FuzzerError("it was killed", hint=""), CommandError("it is gone", hint="")])
    def test_if_it_does_not_answer_the_corpus_stays(self, bench: Bench, when: str, error: TopcoatError) -> None:
        bench.other.guest_fuzzer.faults[when] = error
        merged = bench.merge()
        assert (merged.accepted, merged.confirmed_by, bench.units) == (False, "", set(bench.names))
        assert merged.reason.endswith(f"but other boot, booted to confirm it: {error}")
        assert bool(bench.other.spoilt) == isinstance(error, CommandError)

    @pytest.mark.parametrize("fault", ["says nothing", "does not end", "runs some only"])
    def test_what_it_has_not_measured_it_has_not_confirmed(self, bench: Bench, fault: str) -> None:
        guest_fuzzer = bench.other.guest_fuzzer
        guest_fuzzer.features[AFTER] = 0 if fault == "says nothing" else 100
        guest_fuzzer.unfinished = AFTER if fault == "does not end" else ""
        guest_fuzzer.skipping = AFTER if fault == "runs some only" else ""
        assert not bench.merge(tolerance=0.9).accepted
        assert bench.units == set(bench.names)

    def test_what_is_refused_by_the_first_needs_no_second(self, bench: Bench) -> None:
        bench.guest_fuzzer.features[AFTER] = 97
        assert not bench.merge(tolerance=0.02).accepted
        assert (bench.lent, bench.guest.retired) == ([""], "")

    def test_half_of_them_need_no_second(self, bench: Bench) -> None:
        bench.guest_fuzzer.result = dict(map(unit, "ab"))
        assert bench.merge().confirmed_by == ""
        assert (bench.lent, bench.guest.retired, len(bench.units)) == ([""], "", 2)

    @pytest.mark.parametrize(("part", "guests"), [(0.0, 1), (0.25, 1), (0.26, 2)])
    def test_the_part_is_a_setting(self, bench: Bench, part: float, guests: int) -> None:
        chosen = CampaignSettings(believed=part)
        assert merge(SUBJECT, PLAN, bench.lend, bench.corpus, chosen, bench.world.clock).accepted
        assert len(bench.lent) == guests

    def test_what_has_gone_meanwhile_counts_for_nobody(self, bench: Bench) -> None:
        bench.other.guest_fuzzer.pushed = lambda _: bench.corpus.quarantine(bench.names[1], "it crashes")
        assert bench.merge().accepted
        assert bench.units == {bench.names[0]}

    def test_if_all_that_is_kept_has_gone_meanwhile_nothing_comes_of_it(self, bench: Bench) -> None:
        retire = bench.guest.retire

        def gone(reason: str) -> None:
            retire(reason)
            bench.corpus.quarantine(bench.names[0], "it crashes")

        bench.guest.retire = gone  # type: ignore[method-assign]
        merged = bench.merge()
        assert (merged.accepted, bench.units) == (False, set(bench.names[1:]))
        assert merged.reason.endswith("nothing came of it")

    def test_nothing_is_booted_for_one_that_is_ended_early(self, bench: Bench) -> None:
        def stop(reason: str) -> None:
            bench.stopped = True

        bench.guest.retire = stop  # type: ignore[method-assign]
        merged = bench.merge()
        assert (merged.accepted, merged.reason) == (False, "it was ended early")
        assert (bench.lent, bench.units) == ([""], set(bench.names))
