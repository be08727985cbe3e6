"""Verdicts on buckets, in guests of a script: what others have complained of when crashes were run again."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.campaign.triage import CrashInput, Question, Triaged, inputs_of, triage
from pipeline.fuzz.crashes.bucket import Bucket, Seen
from pipeline.fuzz.crashes.store import CrashStore
from tests.campaign.scripted_tries import (
    DIES,
    EXITS,
    FAILS,
    HANGS,
    A,
    TryWorld,
    bucket_of,
)
from tests.fuzz.crashes import made_up

OLD, NEW = "b3:old", "b3:new"
ONCE = Seen("2026-12-01T08:00:00Z", "2026-12-01T08:00:00Z", 1)
BUCKET = Bucket(A, bucket_of("parse"), "deadly signal", ("parse",), "default/1", "", "", 1, {OLD: ONCE})
BOTH = CrashInput(b"parse and average", {"timeout": "5"})


def asked(build: str = OLD, tries: int = 10, version: int = 1) -> Question:
    return Question(BUCKET, build, version, tries)


def answer(
    world: TryWorld,
    inputs: Sequence[CrashInput] = (BOTH,),
    question: Question | None = None,
    before: Triaged | None = None,
    others: Sequence[Triaged] = (),
    limit: float = 1800.0,
) -> Triaged:
    return triage(
        *(question or asked(), inputs, world.guests_with),
        before=before,
        others=[one.verdict for one in others],
        limit=limit,
        clock=world.world.clock,
    )


def always(function: str) -> TryWorld:
    return TryWorld(lambda _: function)


class TestComplaints:
    def test_an_input_with_two_bugs_is_not_reproduced_by_the_other_one(self) -> None:
        """syzkaller 5426: of 86 reproductions 4 hit the same crash."""
        found = answer(always("average")).verdict
        assert (found.outcome, found.same, found.others) == ("other bucket", 0, {bucket_of("average"): 10})
        assert found.word == f"masked by {bucket_of('average')}"
        assert "reproduced" not in found.told

    @pytest.mark.parametrize("seed", range(5))
    def test_a_flaky_crash_has_a_rate(self, seed: int) -> None:
        """Syzkaller 6120 and 2335: it crashes at p = 0.3."""
        dice = random.Random(seed)
        rolled: list[bool] = []

        def target(_: bytes) -> str:
            rolled.append(dice.random() < 0.3)
            return "parse" if rolled[-1] else ""

        found = answer(TryWorld(target), question=asked(tries=40)).verdict
        assert (found.same, found.none, found.tries) == (sum(rolled), 40 - sum(rolled), 40)
        assert found.word == f"still there {sum(rolled)} of 40"
        assert 3 < sum(rolled) < 22

    def test_a_build_that_fixes_it_while_another_crash_comes_first(self) -> None:
        """OSS-Fuzz 928, ClusterFuzz 242, OSS-Fuzz 11239: "fixed", and it was masked."""
        before = answer(always("parse"))
        masked = answer(always("average"), question=asked(NEW), others=[before])
        assert masked.verdict.word == f"masked by {bucket_of('average')}"
        fixed = answer(always(""), question=asked("b3:newest"), others=[before, masked])
        assert fixed.verdict.word == "fixed"

    @pytest.mark.parametrize("does", [HANGS, DIES])
    def test_nothing_is_fixed_that_never_ran_to_its_end(self, does: str) -> None:
        before = answer(always("parse"))
        found = answer(always(does), question=asked(NEW, tries=3), others=[before]).verdict
        assert found.word.startswith("not run: ")
        assert found.none == 0

    def test_a_crash_that_never_comes_again_is_kept_with_what_its_runs_said(self, tmp_path: Path) -> None:
        """AFL++ 2200."""
        store = CrashStore(tmp_path)
        store.add(made_up.CRASH)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        (bucket,) = store.buckets()
        inputs = inputs_of(store.crashes(bucket))
        world = always("")
        found = triage(Question(replace(bucket, fuzzer=A), bucket.rule, 1, 10), inputs, world.guests_with)
        assert (found.verdict.rate, found.verdict.word, found.verdict.outcome) == ("0 of 10", "0 of 10", "none")
        assert found.evidence.startswith(f"=== none: input {inputs[0].sha256[:12]}, after ")
        assert "Executed tmp/input-0 in 3 ms\n" in found.evidence
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    def test_a_second_time_only_what_is_new_is_run(self) -> None:
        """CASR 235 and 271."""
        world = always("parse")
        first = answer(world)
        again = answer(world, before=first)
        assert len(world.runs) == 10
        assert again.verdict.inputs == first.verdict.inputs
        assert again.evidence == first.evidence
        assert again.verdict.boots == first.verdict.boots
        other = CrashInput(b"another")
        more = answer(world, [BOTH, other], before=again)
        assert len(world.runs) == 20
        assert [one.tries for one in more.verdict.inputs] == [10, 10]
        assert more.verdict.boots == ("boot0", "boot1")
        answer(world, [BOTH, other], question=asked(tries=12), before=more)
        assert len(world.runs) == 24, "two more of each"


@pytest.mark.parametrize(
    "other",
    [asked(NEW), asked(version=2), replace(asked(), rule="default/2")],
    ids=["build", "version", "rule"],
)
def test_what_was_counted_otherwise_does_not_count(other: Question) -> None:
    world = always("parse")
    answer(world, question=other, before=answer(world))
    assert len(world.runs) == 20


def test_each_input_is_run_as_it_was_when_it_crashed() -> None:
    inputs = [
        CrashInput(b"one", {"timeout": "5"}, {"MODE": "strict"}),
        CrashInput(b"two", {"timeout": "5"}, {"MODE": "strict"}),
        CrashInput(b"three", {"timeout": "9"}),
    ]
    world = always("parse")
    found = answer(world, inputs, question=asked(tries=2)).verdict
    assert sorted(map(dict, world.environments), key=len) == [{}, {"MODE": "strict"}]
    assert sorted(words[0] for _, words in world.runs) == 4 * ["-timeout=5"] + 2 * ["-timeout=9"]
    assert [one.sha256 for one in found.inputs] == sorted(one.sha256 for one in inputs)
    assert found.boots == ("boot0", "boot1")
    changed = [replace(one, options={"timeout": "6"}) for one in inputs]
    answer(world, changed, question=asked(tries=2), before=Triaged(found, ""))
    assert len(world.runs) == 12, "under other conditions it counts anew"


def test_inputs_take_turns_so_that_each_is_tried_before_time_is_over() -> None:
    world = always("parse")
    world.takes = 25.0
    inputs = [CrashInput(bytes([at])) for at in range(4)]
    found = answer(world, inputs, limit=130.0).verdict
    assert [one.tries for one in found.inputs] == [2, 2, 2, 2]
    assert found.trouble == "it took longer than 130 s"
    assert found.word == "still there 8 of 8"


def test_quick_ones_are_run_many_at_a_time() -> None:
    world = always("parse")
    answer(world)
    assert world.pushed == [1, 1], "one, then nine"


def test_an_input_that_takes_guests_down_is_told_and_leaves_some_to_the_others() -> None:
    world = TryWorld(lambda content: DIES if content == b"deadly" else "parse")
    found = answer(world, [BOTH, CrashInput(b"deadly", {"timeout": "5"})]).verdict
    assert sorted((one.tries, one.same, one.lost) for one in found.inputs) == [(2, 0, 2), (10, 10, 0)]
    assert found.word == "still there 10 of 12"
    assert found.trouble.startswith("its kernel has halted")
    assert found.boots == ("boot0", "boot1", "boot2")


def test_guests_are_not_lost_without_end() -> None:
    inputs = [CrashInput(bytes([at])) for at in range(9)]
    found = answer(TryWorld(lambda _: DIES), inputs).verdict
    assert sum(one.lost for one in found.inputs) == len(found.boots) == 4
    assert found.outcome == "guest lost"


@pytest.mark.parametrize(
    ("does", "why"),
    [
        (FAILS, "failed during wait: unexpected return code: 127"),
        (EXITS, "the process ended before its input was done"),
    ],
)
def test_a_fuzzer_that_cannot_be_run_is_told(does: str, why: str) -> None:
    found = answer(always(does)).verdict
    assert (found.outcome, found.word) == ("not run", f"not run: {why}")
    assert (found.tries, found.same, found.none) == (10, 0, 0)


def test_no_input_is_kept() -> None:
    world = always("parse")
    found = answer(world, []).verdict
    assert (found.outcome, found.word) == ("not run", "not run: no input of it is kept")
    assert world.lent == []


def test_what_was_said_is_kept_once_for_each_way() -> None:
    came = iter(["parse", "", "average", "parse", "", "\x1b[31mevil", EXITS, HANGS, "parse", ""])
    found = answer(TryWorld(lambda _: next(came)))
    heads = [line.split(":")[0] for line in found.evidence.splitlines() if line.startswith("=== ")]
    evil = next(slug for slug in found.verdict.others if slug not in (bucket_of("average"), BUCKET.slug))
    ways = [BUCKET.slug, "none", bucket_of("average"), evil, "failed", "timeout"]
    assert heads == [f"=== {way}" for way in ways]
    assert "\x1b" not in found.evidence
    assert found.verdict.trouble == "the process ended before its input was done"


@pytest.mark.parametrize(
    ("content", "artifact", "there"),
    [
        (b"x", "crash-1", True),
        (b"", "crash-da39a3ee5e6b4b0d3255bfef95601890afd80709", True),
        (b"", "crash-11f6ad8ec52a2984abaafd7c3b516503785c2072", False),
        (b"", "", False),
    ],
)
def test_an_input_that_the_guest_has_lost_is_none(tmp_path: Path, content: bytes, artifact: str, there: bool) -> None:
    store = CrashStore(tmp_path)
    store.add(replace(made_up.CRASH, input=content, artifact=artifact))
    (bucket,) = store.buckets()
    found = inputs_of(store.crashes(bucket))
    assert [one.content for one in found] == [content] * there
    if there:
        assert found[0].options == {"max_len": "16"}
        assert found[0].environment == {"ASAN_OPTIONS": "symbolize=0"}
