"""What another rule would make of buckets: pure, told before anything is changed, the same in any order."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.builds.demo.planted import PLANTED
from pipeline.fuzz.crashes.regrouping import BucketedCrash, rebucket
from pipeline.fuzz.crashes.report import UNKNOWN, CrashReport, parse
from pipeline.fuzz.crashes.rules import DEFAULT, Rule, consistent, decide, parse_rule, slug
from pipeline.fuzz.crashes.stack import Frame
from pipeline.fuzz.crashes.store import CrashStore
from pipeline.store import document
from tests.fuzz.crashes.made_up import CRASH
from tests.fuzz.crashes.recorded import OUTPUTS, planted

TOKEN = Rule("dedup-token")


def kept(fuzzer: str, name: str, *functions: str, bucket: str = "", token: tuple[str, ...] = ()) -> BucketedCrash:
    """A crash, in the bucket of the default rule if none is given."""
    report = CrashReport("SEGV", frames=tuple(map(Frame, functions)), dedup_token=token)
    return BucketedCrash(fuzzer, bucket or slug(report, fuzzer), name, report)


CRASHES = [
    kept("p/a", "1", "f", "g", "h", "one"),
    kept("p/a", "2", "f", "g", "h", "other"),
    kept("p/a", "3", "f", "g", "h", "other"),
    kept("p/a", "1", "f", "g", "k"),
    kept("p/b", "1", "f", "g", "k"),
    kept("p/b", "1", "x"),
]
FGH, FGK, X, FG = (slug(CrashReport("SEGV", frames=tuple(map(Frame, names)))) for names in ("fgh", "fgk", "x", "fg"))
FGHO, FGHT = (
    slug(CrashReport("SEGV", frames=tuple(map(Frame, ["f", "g", "h", name]))), rule=parse_rule("frames:4"))
    for name in ("one", "other")
)


def test_by_the_rule_that_made_them_nothing_changes() -> None:
    found = rebucket(CRASHES, DEFAULT)
    assert (found.joins, found.splits, found.renames, found.notes) == ((), (), (), {})
    assert (found.crashes, found.before, found.after, found.same) == (6, 4, 4, 4)
    planned = [BucketedCrash("p/f", slug(planted(bug), "p/f"), bug.function, planted(bug)) for bug in PLANTED]
    assert rebucket(planned, DEFAULT).same == len(PLANTED)


def test_fewer_frames_join_buckets_of_one_fuzzer() -> None:
    found = rebucket(CRASHES, parse_rule("frames:2"))
    (join,) = found.joins
    assert (join.fuzzer, join.bucket, join.title) == ("p/a", FG, "SEGV in f")
    assert [(part.bucket, part.crashes) for part in join.parts] == sorted([(FGH, ("1", "2", "3")), (FGK, ("1",))])
    assert found.splits == ()
    assert [(one.fuzzer, one.bucket, one.new) for one in found.renames] == [("p/b", FGK, FG)]
    assert (found.before, found.after, found.same) == (4, 3, 1)


def test_more_frames_split_a_bucket() -> None:
    found = rebucket(CRASHES, parse_rule("frames:4"))
    (split,) = found.splits
    assert (split.fuzzer, split.bucket) == ("p/a", FGH)
    assert {part.bucket: part.crashes for part in split.parts} == {FGHO: ("1",), FGHT: ("2", "3")}
    assert (found.joins, found.renames, found.before, found.after, found.same) == ((), (), 4, 5, 3)


def test_a_bucket_can_be_split_and_joined_at_once() -> None:
    crashes = [
        kept("p/a", "1", "f", "g", "h", token=("f", "g")),
        kept("p/a", "2", "f", "g", "h", token=("f", "k")),
        kept("p/a", "1", "z", token=("f", "k")),
        kept("p/a", "1", "y"),
    ]
    found = rebucket(crashes, TOKEN)
    assert [join.bucket for join in found.joins] == [slug(CrashReport("SEGV", frames=(Frame("f"), Frame("k"))))]
    assert [split.bucket for split in found.splits] == [FGH]
    assert list(found.notes.values()) == [1], "one crash has no token"
    assert (found.before, found.after, found.same) == (3, 3, 1)


def test_lines_for_people() -> None:
    counts = [
        "by the rule frames:2/1",
        "crashes   6",
        "buckets   4 now, 3 then, 1 of them as they are",
        "changes   1 joined, 0 split, 1 renamed",
    ]
    assert rebucket(CRASHES, parse_rule("frames:2")).lines(whole=False) == counts
    assert rebucket(CRASHES, parse_rule("frames:2")).lines() == [
        *counts,
        f"p/a: joined in {FG}: SEGV in f",
        *(f"    {bucket}  crashes {number}" for bucket, number in sorted([(FGH, 3), (FGK, 1)])),
        f"p/b: renamed: {FGK} to {FG}",
    ]
    assert rebucket(CRASHES, parse_rule("frames:4")).lines()[4:] == [
        f"p/a: split: {FGH}",
        *(f"    {bucket}  crashes {number}  SEGV in f" for bucket, number in sorted([(FGHO, 1), (FGHT, 2)])),
    ]
    assert rebucket([], TOKEN).lines() == [
        "by the rule dedup-token/1",
        "crashes   0",
        "buckets   0 now, 0 then, 0 of them as they are",
        "changes   0 joined, 0 split, 0 renamed",
    ]


def test_the_frozen_sample_is_what_is_encoded() -> None:
    a, b, c, d = sorted([FGH, FGK]) + sorted([FGHO, FGHT])
    numbers = {FGH: ["1", "2", "3"], FGK: ["1"], FGHO: ["1"], FGHT: ["2", "3"]}
    joined = rebucket(CRASHES, parse_rule("frames:2")).encode()
    assert json.loads(json.dumps(joined)) == {
        "schema": 1, "rule": "frames:2/1", "crashes": 6, "before": 4, "after": 3, "same": 1,
        "joins": [
            {
                "fuzzer": "p/a", "bucket": FG, "title": "SEGV in f",
                "of": [{"bucket": a, "crashes": numbers[a]}, {"bucket": b, "crashes": numbers[b]}],
            }
        ],
        "splits": [], "renames": [{"fuzzer": "p/b", "bucket": FGK, "new": FG}], "notes": {},
    }  # fmt: skip
    split = rebucket(CRASHES, parse_rule("frames:4")).encode()
    assert split["splits"] == [
        {
            "fuzzer": "p/a", "bucket": FGH,
            "into": [
                {"bucket": c, "crashes": numbers[c], "title": "SEGV in f"},
                {"bucket": d, "crashes": numbers[d], "title": "SEGV in f"},
            ],
        }
    ]  # fmt: skip


@pytest.mark.parametrize("rule", [DEFAULT, TOKEN, parse_rule("frames:2")], ids=str)
def test_what_is_kept_of_crashes_is_enough_to_decide_on_them_anew(rule: Rule, tmp_path: Path) -> None:
    """The report in crash.json decides as the output does, and so does the output that is kept beside it."""
    store = CrashStore(tmp_path)
    for path in sorted(OUTPUTS.glob("*.txt")):
        report = parse(path.read_bytes()) or UNKNOWN
        stored = store.add(replace(CRASH, input=path.name.encode(), output=path.read_bytes(), report=report))
        assert stored.directory is not None
        kept = json.loads((stored.directory / "crash.json").read_bytes())["report"]
        decision = decide(report, CRASH.fuzzer, rule)
        assert decide(document.convert(kept, CrashReport), CRASH.fuzzer, rule) == decision
        assert consistent([(stored.directory / "output.txt").read_bytes()], decision.key, CRASH.fuzzer, rule)


crashes = st.lists(
    st.builds(
        lambda fuzzer, number, functions, bucket: kept(fuzzer, number, *functions, bucket=bucket),
        st.sampled_from(["p/a", "p/b"]),
        st.sampled_from("123456789"),
        st.lists(st.sampled_from("fgh"), max_size=5),
        st.sampled_from(["", "old", "older"]),
    ),
    max_size=12,
)
rules = st.sampled_from([DEFAULT, TOKEN, *(Rule("frames", number) for number in range(1, 6))])


@given(crashes, rules, st.randoms(use_true_random=False))
def test_nothing_is_lost_and_the_order_does_not_count(
    crashes: list[BucketedCrash], rule: Rule, order: random.Random
) -> None:
    found = rebucket(crashes, rule)
    shuffled = crashes.copy()
    order.shuffle(shuffled)
    assert rebucket(shuffled, rule) == found
    assert found.encode() == rebucket(shuffled, rule).encode()
    assert found.crashes == len(crashes)
    assert found.before == len({(one.fuzzer, one.bucket) for one in crashes})
    assert found.after == len({(one.fuzzer, slug(one.report, one.fuzzer, rule)) for one in crashes})
    assert 0 <= found.same <= min(found.before, found.after)
    for change in found.splits:
        moved = [crash for part in change.parts for crash in part.crashes]
        there = [one.crash for one in crashes if (one.fuzzer, one.bucket) == (change.fuzzer, change.bucket)]
        assert sorted(moved) == sorted(there)
