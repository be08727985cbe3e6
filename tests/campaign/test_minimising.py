"""Minimising inputs in guests of a script, which have the demo's parser and its bugs."""

import json
import random
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from pipeline.campaign.minimising import FILES, Facts, Smaller, choose, smaller
from pipeline.campaign.triage import CrashInput, Question, triage
from pipeline.errors import CampaignError
from pipeline.fuzz.crashes.bucket import Bucket, KeptInput
from pipeline.fuzz.crashes.minimise import Limits
from pipeline.fuzz.crashes.verdicts import CrashVerdict, InputVerdict
from tests.campaign.planted_parser import THIRTY_NINE, crashes_in, overflows
from tests.campaign.scripted_tries import DIES, A, TryWorld, bucket_of

BUCKET = Bucket(A, bucket_of("copy_text"), "heap-buffer-overflow", ("copy_text",), "default/1", "", "", 1)
QUESTION = Question(BUCKET, "b3:build", 1, 10)


def kept(content: bytes) -> KeptInput:
    return KeptInput(sha256(content).hexdigest(), len(content))


def parser() -> TryWorld:
    return TryWorld(lambda content: crashes_in(content))


def made(world: TryWorld, content: bytes, limits: Limits | None = None) -> Smaller:
    """As the tasks do it: tried first, and then minimised."""
    one = CrashInput(content, {"timeout": "5"})
    verdict = triage(QUESTION, [one], world.guests_with, clock=world.world.clock).verdict
    chosen = choose([one], verdict)
    return smaller(QUESTION, chosen, verdict, world.guests_with, limits=limits, clock=world.world.clock)


@pytest.mark.parametrize("content", [THIRTY_NINE, *map(overflows, range(20))])
def test_the_overflow_stays_an_overflow(content: bytes, tmp_path: Path) -> None:
    """OSS-Fuzz 452 and 1732, ClusterFuzzLite 72: the minimised input is another bug.

    What is left is one text that is too long: behind it and in it is every other bug of the parser.
    """
    found = made(parser(), content)
    assert crashes_in(found.content) == "copy_text"
    assert found.content == b"TCT0" + b"0" * 17, "the length is a digit: 48, cut to what there is"
    assert (found.facts.why, found.facts.confirmed, found.facts.of) == ("minimal", 10, 10)
    files = [tmp_path / name for name in FILES]
    found.write(files)
    assert files[0].read_bytes() == found.content
    assert files[1].read_bytes() == content
    assert "in copy_text fuzzers/planted.c" in files[2].read_text()
    assert Facts.decode(files[3].read_bytes()) == found.facts
    assert (found.facts.original, found.facts.result) == (kept(content), kept(found.content))


def test_the_thirty_nine_bytes_are_those_of_the_measurement() -> None:
    assert len(THIRTY_NINE) == 39
    assert crashes_in(THIRTY_NINE) == "copy_text"
    assert crashes_in(b"TC" + THIRTY_NINE[22:]) == "average", "what its second half would do"


def test_candidates_come_to_the_guest_in_batches() -> None:
    """A command in the guest has its price: what is given to it at once is little, but not a single input."""
    world = parser()
    found = made(world, THIRTY_NINE)
    assert len(world.lent) == 2, "one for the verdict, one for this"
    assert sum(1 for boot, _ in world.runs if boot == "boot1") == found.facts.tried < 400
    assert len(world.pushed) < found.facts.tried / 3
    assert found.facts.boots == ("boot1",)


def test_a_flaky_crash_is_made_smaller_too() -> None:
    dice = random.Random(7)
    world = TryWorld(lambda content: crashes_in(content) if dice.random() < 0.5 else "")
    found = made(world, THIRTY_NINE)
    assert crashes_in(found.content) == "copy_text"
    assert len(found.content) < 39
    assert found.facts.tries > 1
    assert 0 < found.facts.confirmed < found.facts.of == 10


def test_a_crash_that_does_not_come_again_is_not_minimised() -> None:
    with pytest.raises(CampaignError, match="cannot be minimised: it did not come again: none: 0 of 10"):
        made(TryWorld(), THIRTY_NINE)
    with pytest.raises(CampaignError, match=f"did not come again: other bucket .{bucket_of('average')}.: 0 of 10"):
        made(TryWorld(lambda _: "average"), THIRTY_NINE)


def test_a_crash_that_comes_only_at_first_is_kept_as_it_was() -> None:
    left = 12
    world = TryWorld()

    def target(_: bytes) -> str:
        nonlocal left
        left -= 1
        return "copy_text" if left >= 0 else ""

    world.target = target
    found = made(world, THIRTY_NINE)
    assert (found.content, found.facts.why, found.facts.of) == (THIRTY_NINE, "not confirmed", 10)
    assert found.facts.result == found.facts.original
    assert found.facts.steps == 0


def test_when_no_guest_is_left_the_original_stays() -> None:
    world = TryWorld(lambda content: "copy_text" if content == THIRTY_NINE else DIES)
    found = made(world, THIRTY_NINE)
    assert (found.content, found.facts.why) == (THIRTY_NINE, "gave up")
    assert found.facts.trouble.startswith("4 guests were lost")
    assert len(found.facts.boots) == 4


def test_limits_hold() -> None:
    found = made(parser(), overflows(3), Limits(runs=40))
    assert found.facts.why == "runs"
    assert found.facts.tried <= 50
    assert crashes_in(found.content) == "copy_text"


class TestChoice:
    LARGE, SMALL, GONE = CrashInput(b"large one"), CrashInput(b"small"), CrashInput(b"x")
    ALL = (LARGE, SMALL, GONE)
    VERDICT = CrashVerdict(
        *(A, BUCKET.slug, "b3:build", "default/1", 1, 10),
        (InputVerdict(LARGE.sha256, same=9), InputVerdict(SMALL.sha256, same=1), InputVerdict(GONE.sha256, none=10)),
    )

    def facts(self, original: CrashInput, size: int) -> Facts:
        return replace(FACTS, original=kept(original.content), result=KeptInput("", size))

    def test_the_smallest_that_comes_again(self) -> None:
        assert choose(self.ALL, self.VERDICT) == self.SMALL

    def test_what_was_begun_is_not_begun_anew_for_each_input_that_comes(self) -> None:
        assert choose(self.ALL, self.VERDICT, self.facts(self.LARGE, 5)) == self.LARGE
        assert choose(self.ALL, self.VERDICT, self.facts(self.LARGE, 6)) == self.SMALL
        assert choose(self.ALL, self.VERDICT, self.facts(self.GONE, 1)) == self.SMALL


FACTS = Facts(
    fuzzer=A,
    bucket="heap-buffer-overflow-copy_text-0123456789ab",
    build="b3:build",
    rule="default/1",
    original=KeptInput("aa", 39),
    result=KeptInput("bb", 21),
    why="minimal",
    steps=14,
    tried=230,
    tries=1,
    confirmed=10,
    of=10,
    boots=("boot0",),
    trouble="",
)
FROZEN = """\
{"boots": ["boot0"], "bucket": "heap-buffer-overflow-copy_text-0123456789ab", "build": "b3:build", "confirmed": 10,
 "fuzzer": "fuzzers/a", "of": 10, "original": {"sha256": "aa", "size": 39}, "result": {"sha256": "bb", "size": 21},
 "rule": "default/1", "schema": 1, "steps": 14, "tried": 230, "tries": 1, "trouble": "", "why": "minimal"}
"""


def test_the_format_is_frozen() -> None:
    """When this fails: raise SCHEMA, and read what earlier versions have written."""
    assert json.loads(json.dumps(FACTS.encode())) == json.loads(FROZEN)
    assert Facts.decode(FROZEN.encode()) == FACTS
