"""Verdicts: what counts of tries come to, what they say of a build, and their files."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fuzz.crashes import verdicts
from pipeline.fuzz.crashes.verdicts import CrashVerdict, InputVerdict, TriedOutcome, word, words

A, B = "heap-buffer-overflow-parse-0123456789ab", "fpe-average-ba9876543210"
OLD, NEW = "b3:old", "b3:new"


def verdict(*inputs: InputVerdict, build: str = NEW, trouble: str = "") -> CrashVerdict:
    return CrashVerdict("fuzzers/a", A, build, "default/1", 1, 10, inputs, ("boot0",), "2026-12-01T08:00:00Z", trouble)


def came(same: int = 0, none: int = 0, sha256: str = "aa", others: int = 0) -> InputVerdict:
    return InputVerdict(sha256, "b3:conditions", same, {B: others} if others else {}, none)


SAMPLE = replace(
    verdict(
        InputVerdict("aa", "b3:conditions", 3, {B: 2}, 4, 1, 0, 0),
        InputVerdict("bb", "b3:conditions", 0, {}, 0, 0, 1, 2),
        trouble="4 guests were lost",
    ),
    word="still there 3 of 13",
)
FROZEN = """\
{"boots": ["boot0"], "bucket": "heap-buffer-overflow-parse-0123456789ab", "build": "b3:new", "failed": 2,
 "fuzzer": "fuzzers/a", "inputs": [
  {"conditions": "b3:conditions", "failed": 0, "lost": 0, "none": 4, "others": {"fpe-average-ba9876543210": 2},
   "same": 3, "sha256": "aa", "timeout": 1},
  {"conditions": "b3:conditions", "failed": 2, "lost": 1, "none": 0, "others": {}, "same": 0, "sha256": "bb",
   "timeout": 0}],
 "lost": 1, "made": "2026-12-01T08:00:00Z", "none": 4, "others": {"fpe-average-ba9876543210": 2},
 "outcome": "same bucket", "rule": "default/1", "same": 3, "schema": 1, "timeout": 1, "tries": 13,
 "trouble": "4 guests were lost", "version": 1, "wanted": 10, "word": "still there 3 of 13"}
"""


def test_the_format_is_frozen() -> None:
    """When this fails: raise SCHEMA, and read what earlier versions have written."""
    assert json.loads(json.dumps(SAMPLE.encode())) == json.loads(FROZEN)
    assert CrashVerdict.decode(FROZEN.encode()) == SAMPLE


class TestOutcomes:
    def test_one_try_in_the_bucket_is_enough(self) -> None:
        assert verdict(came(1, 9)).outcome == "same bucket"
        assert word(verdict(came(3, 7))) == "still there 3 of 10"

    def test_another_crash_is_never_the_same(self) -> None:
        """An input with two bugs."""
        found = verdict(came(others=10))
        assert (found.outcome, found.same, found.others) == ("other bucket", 0, {B: 10})
        assert found.told == f"other bucket ({B}): 0 of 10"
        assert word(found) == f"masked by {B}"

    def test_an_input_on_which_another_crash_always_comes_first_tells_nothing_of_ours(self) -> None:
        """However often another input ran to its end."""
        found = verdict(came(none=10), came(sha256="bb", others=10))
        assert word(found, [verdict(came(10), came(10, sha256="bb"), build=OLD)], {OLD: 9}) == f"masked by {B}"

    def test_the_most_frequent_one_masks(self) -> None:
        found = verdict(InputVerdict("aa", others={"rare": 1, "frequent": 5}), InputVerdict("bb", others={"rare": 2}))
        assert word(found) == "masked by frequent"

    @pytest.mark.parametrize(
        ("one", "outcome", "said"),
        [
            (InputVerdict("aa", timeout=10), "timeout", "not run: the runs hung"),
            (InputVerdict("aa", lost=3), "guest lost", "not run: the guest was lost each time"),
            (InputVerdict("aa", failed=10), "not run", "not run: nothing could be run"),
            (InputVerdict("aa"), "not run", "not run: nothing could be run"),
        ],
    )
    def test_what_says_nothing(self, one: InputVerdict, outcome: str, said: str) -> None:
        """Nothing is fixed that never ran to its end, whatever else ran."""
        before = [verdict(came(10), build=OLD)]
        assert (verdict(one).outcome, word(verdict(one), before)) == (outcome, said)
        assert word(verdict(one, trouble="4 guests were lost"), before) == "not run: 4 guests were lost"
        assert not word(verdict(came(none=10, sha256="bb"), one), before).startswith("fixed")

    def test_no_input_at_all(self) -> None:
        assert verdict().outcome == "not run"

    @given(
        st.lists(st.tuples(st.sampled_from(["bucket", "none", "timeout", "lost", "failed"]), st.sampled_from([A, B])))
    )
    def test_each_try_counts_once(self, outcomes: list[tuple[TriedOutcome, str]]) -> None:
        found = InputVerdict("aa").counted(A, outcomes)
        assert found.tries == len(outcomes)
        assert found.same == outcomes.count(("bucket", A))
        assert found.others.get(B, 0) == outcomes.count(("bucket", B))
        again = found.counted(A, outcomes)
        assert (again.tries, again.same, again.none) == (2 * found.tries, 2 * found.same, 2 * found.none)
        if outcomes:
            assert CrashVerdict.decode(json.dumps(verdict(found).encode()).encode()) == verdict(found)


class TestFixed:
    def test_with_proof_that_it_came_before(self) -> None:
        assert word(verdict(came(none=10)), [verdict(came(10), build=OLD)]) == "fixed"

    def test_a_crash_that_never_came_again_is_not_fixed_by_anything(self) -> None:
        once = {OLD: 1}
        assert word(verdict(came(none=10), build=OLD), seen=once) == "0 of 10", "it was seen with this very build"
        assert word(verdict(came(none=10)), [verdict(came(none=10), build=OLD)], once) == "0 of 10"
        assert word(verdict(came(none=10)), seen=once) == "0 of 10"
        assert word(verdict(came(none=10)), [verdict(came(none=10), build=OLD)], {OLD: 50}) == "0 of 10"

    def test_a_crash_that_campaigns_saw_again_and_again_has_come_again(self) -> None:
        assert word(verdict(came(none=10)), seen={OLD: 2}) == "fixed"
        assert word(verdict(came(none=10)), seen={OLD: 2, NEW: 1}) == "0 of 10"

    @pytest.mark.parametrize(("same", "said"), [(10, "fixed"), (5, "fixed"), (3, "fixed"), (2, "0 of 10")])
    def test_a_seldom_one_may_be_gone_by_chance(self, same: int, said: str) -> None:
        """0.7 ** 10 is 2.8 %, and 0.8 ** 10 is 10.7 %."""
        assert word(verdict(came(none=10)), [verdict(came(same, 10 - same), build=OLD)]) == said

    def test_each_input_has_a_chance_of_its_own(self) -> None:
        before = verdict(came(10), came(1, 9, sha256="bb"), build=OLD)
        assert word(verdict(came(none=10), came(none=10, sha256="bb")), [before]) == "fixed"
        assert word(verdict(came(none=10, sha256="bb")), [before]) == "0 of 10"
        assert word(verdict(came(none=10, sha256="new")), [before]) == "fixed", "as often as all of them"

    def test_all_builds_in_a_row(self) -> None:
        """A is fixed by the third build; B came first with the second."""
        history = [
            verdict(came(10), build="b3:1"),
            verdict(came(others=10), build="b3:2"),
            verdict(came(none=10), build="b3:3"),
        ]
        assert words(history, {"b3:1": 7}) == {
            "b3:1": "still there 10 of 10",
            "b3:2": f"masked by {B}",
            "b3:3": "fixed",
        }


class TestFiles:
    def write(self, bucket: Path, found: CrashVerdict) -> Path:
        path = verdicts.path_of(bucket, found.build)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found.encode()))
        path.with_name(f"{path.name}.made.json").write_text("{}")
        return path

    def test_they_are_read_in_the_order_of_builds(self, tmp_path: Path) -> None:
        for build in ("b3:1", "b3:2", "b3:3"):
            self.write(tmp_path, verdict(came(1), build=build))
        unknown = replace(verdict(came(1), build="b3:0"), made="2025-01-01T00:00:00Z")
        self.write(tmp_path, unknown)
        found = verdicts.read_all(tmp_path, ["b3:3", "b3:1", "b3:9", "b3:2"])
        assert [one.build for one in found] == ["b3:3", "b3:1", "b3:2", "b3:0"]

    def test_what_cannot_be_understood_is_told_and_left_out(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.write(tmp_path, verdict(came(1)))
        for build, text in (("b3:1", "{"), ("b3:2", '{"schema": 9}'), ("b3:3", '{"schema": 1, "build": []}')):
            self.write(tmp_path, verdict(build=build)).write_text(text)
        with caplog.at_level(logging.WARNING):
            assert [one.build for one in verdicts.read_all(tmp_path)] == [NEW]
        assert len(caplog.messages) == 3
        assert verdicts.read(tmp_path / "none.json") is None

    def test_none_at_all(self, tmp_path: Path) -> None:
        assert verdicts.read_all(tmp_path / "none") == []

    def test_the_name_of_a_build_is_a_name(self) -> None:
        assert verdicts.name_of("b3:../..") == "7857c0b775ff"
