"""What a campaign says of the buckets that it has found: with scripted guests, and a store that campaigns share."""

import json
from dataclasses import replace
from pathlib import Path

from pipeline.campaign import found, ledger, reading
from pipeline.campaign.found import FoundBucket
from pipeline.campaign.ledger import Crashed, Subject
from pipeline.campaign.reading import LEDGER
from pipeline.campaign.state import State
from pipeline.fuzz.crashes import earlier
from pipeline.fuzz.crashes.bucket import Seen
from pipeline.fuzz.crashes.crash import KeptCrash
from pipeline.fuzz.crashes.store import CrashStore
from pipeline.fuzz.crashes.verdicts import InputVerdict
from tests.campaign.bench import A, B, Bench, plan
from tests.campaign.scripted import Behaviour
from tests.fuzz.crashes.made_up import judge

SEEN = "2026-11-25T14:00:00Z"
GROUP_SAMPLE = {
    "schema": 1,
    "kind": "SEGV",
    "frames": ["f"],
    "first_seen": SEEN,
    "last_seen": SEEN,
    "count": 3,
    "fuzzers": [A],
    "last": 1,
}
"""Frozen: what earlier versions have written must be understood."""

SLUG = "segv-f-e68419017049"


def found_by(bench: Bench, name: str, fuzzer: str = A, seconds: int = 2) -> list[FoundBucket]:
    runner = bench.runner(bench.definition(plan(fuzzer, seconds=seconds, slice_=seconds), name=name))
    runner.run()
    return runner.buckets()


def test_two_campaigns_with_the_same_crash_share_a_bucket(bench: Bench) -> None:
    bench.world.behaviours[A] = Behaviour(crash="boom", after=1)
    (first,) = found_by(bench, "nightly")
    (second,) = found_by(bench, "weekly", seconds=3)
    assert (first.directory, first.state, second.state) == (second.directory, "new", "known")
    assert {name: seen.count for name, seen in second.bucket.campaigns.items()} == {"nightly": 2, "weekly": 3}
    assert (second.bucket.count, second.present, second.earlier) == (5, 3, 0)
    (kept,) = CrashStore(bench.store.root).crashes(second.bucket)
    assert (kept.facts.campaign, kept.facts.build, kept.facts.fuzzer) == ("nightly", "build", A)
    (again,) = found_by(bench, "nightly", seconds=3)
    assert (again.state, again.present) == ("new", 3), "it is still news of this campaign"


def test_what_it_has_not_found_is_none_of_its_business(bench: Bench) -> None:
    bench.world.behaviours |= {A: Behaviour(crash="boom", after=1), B: Behaviour(crash="bang", after=1)}
    found_by(bench, "nightly")
    assert [one.bucket.fuzzer for one in found_by(bench, "weekly", B)] == [B]


def test_what_was_fixed_and_is_found_again_is_back(bench: Bench) -> None:
    bench.world.behaviours[A] = Behaviour(crash="boom", after=1)
    (first,) = found_by(bench, "nightly")
    judge(CrashStore(bench.store.root), first.bucket.slug, "b3:fixed", InputVerdict("0", none=10), A)
    bench.builds[A] = "b3:broken"
    (second,) = found_by(bench, "nightly")
    assert (second.state, second.present, second.earlier) == ("back", 2, 2)
    assert set(second.bucket.builds) == {"build", "b3:broken"}
    known = [one.digest for one in CrashStore(bench.store.root).builds(A).builds]
    assert known == ["build", "b3:fixed", "b3:broken"]
    entries = [one for one in bench.entries if isinstance(one, Crashed)]
    assert [(one.new, one.back) for one in entries] == [(True, False), (False, False), (False, True), (False, True)]


def test_a_build_that_finds_nothing_is_remembered_too(bench: Bench) -> None:
    bench.world.behaviours[A] = Behaviour(crash="boom", after=1)
    found_by(bench, "nightly")
    bench.world.behaviours[A] = Behaviour()
    bench.builds[A] = "b3:quiet"
    assert [one.present for one in found_by(bench, "nightly")] == [0]
    assert [one.digest for one in CrashStore(bench.store.root).builds(A).builds] == ["build", "b3:quiet"]
    assert CrashStore(bench.store.root).builds(B).builds == ()


def test_the_crash_tells_the_environment_that_the_campaign_gave(bench: Bench) -> None:
    bench.world.behaviours[A] = Behaviour(crash="boom", after=1)
    one = replace(plan(A, seconds=1, slice_=1), environment=(("VERBOSE", "1"),))
    bench.run(bench.definition(one))
    (directory,) = (bench.store.crashes / A).glob("*/1")
    assert KeptCrash.at(directory).facts.environment == {"VERBOSE": "1"}


def test_what_was_told_of_a_bucket_first_counts() -> None:
    subject = Subject(A, "build", "plan")
    entries = [Crashed(subject, 1, 1, "x", True, "00"), Crashed(subject, 1, 2, "x", False, "00")]
    lines = [ledger.encode(entry, SEEN) for entry in entries]
    state = State.of(map(ledger.decode, lines))
    assert state.fuzzer_state(subject).crashes == {"x": 2}
    assert state.fuzzer_state(subject).told == {"x": "new"}


def old_campaign(bench: Bench, group: object = GROUP_SAMPLE) -> Path:
    """The directory of a campaign of before crashes had a store of their own, and its ledger."""
    directory = bench.store.campaigns / "nightly"
    place = directory / "crashes" / SLUG
    (place / "1").mkdir(parents=True)
    (place / "group.json").write_text(json.dumps(group))
    bench.run(bench.definition(plan(A, seconds=1)))
    (subject,) = State.of(bench.entries).fuzzer_states
    with ledger.opened(directory / LEDGER) as book:
        for new in (True, False, False):
            book.append(Crashed(subject, 1, 1, SLUG, new, "00"))
    return directory


def test_an_older_campaign_is_told_as_ever(bench: Bench) -> None:
    directory = old_campaign(bench)
    stands = reading.read(directory)
    (old,) = found.find(CrashStore(bench.store.root), directory, stands.state, stands.present)
    assert (old.state, old.present, old.earlier, old.capsule) == ("new", 3, 0, None)
    assert old.directory == directory / "crashes" / SLUG
    bucket = old.bucket
    assert (bucket.fuzzer, bucket.slug, bucket.kind, bucket.frames, bucket.rule) == (A, SLUG, "SEGV", ("f",), "")
    assert (bucket.count, bucket.campaigns) == (3, {"nightly": Seen(SEEN, SEEN, 3)})
    assert not bench.store.crashes.exists(), "nothing is moved"


def test_what_cannot_be_understood_or_is_gone_is_left_out(bench: Bench) -> None:
    directory = old_campaign(bench, {"schema": 2})
    stands = reading.read(directory)
    assert found.find(CrashStore(bench.store.root), directory, stands.state, stands.present) == []
    assert earlier.read(directory, A, "gone") is None
