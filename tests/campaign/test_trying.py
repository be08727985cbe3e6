"""Trying inputs in guests of a script: what is told of each run is what came of it."""

from collections import Counter

import pytest

from pipeline.campaign import trying
from pipeline.campaign.trying import Conditions, Tried, Tries, replay_options
from pipeline.errors import BootError, FuzzerError, SymbolizerFailed
from pipeline.fuzz.arguments import Arguments
from pipeline.fuzz.batch import Batch
from pipeline.fuzz.styles import Linux
from pipeline.fuzz.targets import FuzzTarget
from tests.campaign.scripted_tries import (
    DIES,
    DIES_LATE,
    ENDS,
    EXITS,
    FAILS,
    HANGS,
    A,
    TryWorld,
    bucket_of,
    crash_in,
)
from tests.fuzz.fakes import FakeCommand, FakeConnector

WORDS = {"timeout": "5", "rss_limit_mb": "300"}


def tries(world: TryWorld, inputs: list[bytes], **more: int) -> tuple[list[Tried], Tries]:
    with Tries(world.guests, Conditions(A, WORDS), clock=world.world.clock, **more) as made:
        return made.each(inputs), made


def told(world: TryWorld, inputs: list[bytes]) -> list[tuple[str, str]]:
    return [(one.outcome, one.slug) for one in tries(world, inputs)[0]]


def test_what_comes_is_told_and_nothing_else() -> None:
    """Only a target of which libFuzzer says that it ran to its end on the input has done nothing."""
    world = TryWorld(lambda content: content.decode())
    assert told(world, [b"parse", b"", b"other", EXITS.encode(), FAILS.encode(), HANGS.encode()]) == [
        ("bucket", bucket_of("parse")),
        ("none", ""),
        ("bucket", bucket_of("other")),
        ("failed", ""),
        ("failed", ""),
        ("timeout", ""),
    ]
    assert len(world.lent) == 1
    assert world.lent[0].spoilt == ""


def test_each_run_is_a_process_of_its_own_with_the_options_of_the_crash() -> None:
    world = TryWorld()
    tries(world, [b"one", b"two", b"one"])
    words = [words for _, words in world.runs]
    assert words == [("-rss_limit_mb=300", "-timeout=5", "-runs=1", f"data/input-{at}") for at in (0, 1, 0)]
    assert world.pushed == [2], "what is given several times is sent once"


def test_the_options_of_a_crash_are_those_that_matter_for_one_input() -> None:
    words = (
        "-timeout=5 -max_len=9 -seed=7 -max_total_time=60 -runs=3 -print_final_stats=1 -dict=data/dictionary "
        "-exit_on_item=ab -my_own=x -timeout=6 data/corpus pkg/corpus"
    )
    assert replay_options(words.split()) == {"timeout": "6", "max_len": "9", "my_own": "x"}


@pytest.mark.parametrize(("timeout", "limit"), [("5", 65), ("0", 85), ("", 85), ("soon", 85)])
def test_a_run_is_given_up_long_after_libfuzzer_itself_should_have(timeout: str, limit: float) -> None:
    assert Conditions(A, {"timeout": timeout} if timeout else {}).limit == limit


def test_a_word_of_another_input_proves_nothing() -> None:
    """What a target prints on its way is not libFuzzer's line for this input."""
    for said in (b"Executed tmp/input-1 in 3 ms\n", b"Executed tmp/input-0 in a moment\n", b"Executed\n"):
        run = trying.RunOutput(said, 0.1)
        assert trying._judged(run, "input-0", Conditions(A, {})).outcome == "failed"  # noqa: SLF001
    run = trying.RunOutput(b"no newline: Executed tmp/input-0 in 12 ms\r\n", 0.1)
    assert trying._judged(run, "input-0", Conditions(A, {})).outcome == "none"  # noqa: SLF001


def test_a_leak_after_the_end_of_the_run_is_a_crash() -> None:
    run = trying.RunOutput(b"Executed tmp/input-0 in 12 ms\n" + crash_in("leaky"), 0.1)
    assert trying._judged(run, "input-0", Conditions(A, {})).slug == bucket_of("leaky")  # noqa: SLF001


def test_a_lost_guest_is_told_and_the_rest_is_tried_in_another_one() -> None:
    world = TryWorld(lambda content: content.decode())
    came, made = tries(world, [b"parse", DIES.encode(), b"", b"parse"])
    assert [one.outcome for one in came] == ["bucket", "lost", "none", "bucket"]
    assert came[1].why.startswith("its kernel has halted: ")
    assert made.boots == ["boot0", "boot1"]
    assert world.lent[0].spoilt
    assert not world.lent[1].spoilt
    assert [boot for boot, _ in world.runs] == ["boot0", "boot0", "boot1", "boot1"]


def test_a_crash_that_takes_the_guest_with_it_is_still_that_crash() -> None:
    world = TryWorld(lambda content: content.decode())
    came, made = tries(world, [DIES_LATE.encode(), b""])
    assert [(one.outcome, one.slug) for one in came] == [("bucket", bucket_of("late")), ("none", "")]
    assert len(made.boots) == 2


def test_guests_are_not_lost_without_end() -> None:
    world = TryWorld(lambda _: DIES)
    came, made = tries(world, [b"x"] * 10, most_guests=3)
    assert [one.outcome for one in came] == ["lost"] * 3
    assert made.given_up.startswith("3 guests were lost, the last one: its kernel has halted")
    assert len(world.lent) == 3
    assert made.each([b"y"]) == []


def test_a_guest_that_is_lost_before_an_input_was_run_is_no_try() -> None:
    world = TryWorld()
    world.unfillable = 1
    came, made = tries(world, [b"x", b"y"])
    assert [one.outcome for one in came] == ["none", "none"]
    assert len(made.boots) == 2
    world.unfillable = 99
    came, made = tries(world, [b"x"], most_guests=2)
    assert came == []
    assert made.given_up.startswith("2 guests were lost")


def test_a_guest_that_does_not_boot_is_an_error() -> None:
    world = TryWorld()
    world.world.unbootable = 1
    with pytest.raises(BootError, match="it panicked"):
        tries(world, [b"x"])


def test_what_is_the_host_s_fault_is_an_error() -> None:
    def target(_: bytes) -> str:
        raise SymbolizerFailed("it is not there", hint="")

    with pytest.raises(FuzzerError, match="it is not there"):
        tries(TryWorld(target), [b"x"])


def test_many_inputs_come_in_batches() -> None:
    world = TryWorld(lambda content: "parse" if content.startswith(b"1") else "")
    inputs = [b"%d" % number for number in range(70)]
    assert Counter(one.outcome for one in tries(world, inputs)[0]) == {"bucket": 11, "none": 59}
    assert world.pushed == [32, 32, 6]
    world = TryWorld()
    tries(world, [bytes([at]) * (9 << 20) for at in range(3)])
    assert world.pushed == [1, 1, 1], "at most 16 MiB at once"
    assert tries(world, [])[0] == []


def test_one_command_runs_many_inputs() -> None:
    world = TryWorld(lambda content: content.decode())
    assert told(world, [b"parse"] * 10) == [("bucket", bucket_of("parse"))] * 10
    assert world.commands == [10]
    assert [boot for boot, _ in world.runs] == ["boot0"] * 10
    assert told(world, [FAILS.encode(), b"", FAILS.encode()]) == [("failed", ""), ("none", ""), ("failed", "")]
    assert world.commands == [10, 3], "a run that ends oddly ends no other"


def test_as_many_as_are_given_at_once_are_few_enough_for_one_command_line() -> None:
    """Of which dropbear takes 9,000 bytes."""
    package, name = "a-package-with-a-long-name" * 2, "a_fuzzer_with_a_long_name" * 2
    lines: list[str] = []

    class Connector(FakeConnector):
        def command(self, *words: str, shell: bool = False) -> FakeCommand:
            lines.extend(words)
            return super().command(*words, shell=shell)

    batch = Batch([f"tmp/input-{number}" for number in range(trying.BATCH)], 85)
    arguments = Arguments.parse([*Conditions(A, WORDS).words, "-artifact_prefix=tmp/"])
    Linux(FuzzTarget(package, name), variables={"SOME_VARIABLE": "x" * 200}).batched(Connector(), arguments, batch)
    assert len(lines) == 1
    assert len(lines[0]) < 9000 / 2


def test_what_stands_behind_a_run_that_hangs_is_run_by_another_command() -> None:
    world = TryWorld(lambda content: content.decode())
    came, _ = tries(world, [b"", HANGS.encode(), b"parse", HANGS.encode(), b""])
    assert [one.outcome for one in came] == ["none", "timeout", "bucket", "timeout", "none"]
    assert world.commands == [5, 3, 1]
    assert [one.seconds for one in came] == [0.25, 65.25, 0.25, 65.25, 0.25]
    assert len(world.lent) == 1


def test_a_guest_that_dies_between_two_runs_is_lost_to_the_next_one() -> None:
    """What has come counts, and nothing is run twice."""
    world = TryWorld()
    world.between = lambda runs: DIES if runs == 2 and len(world.lent) == 1 else ""
    came, made = tries(world, [b"a", b"b", b"c", b"d"])
    assert [one.outcome for one in came] == ["none", "none", "lost", "none"]
    assert [one.output for one in came if one.fault] == [b""]
    assert len(made.boots) == 2
    assert world.commands == [4, 1]


def test_a_guest_that_dies_behind_the_last_run_has_done_all() -> None:
    world = TryWorld()
    world.between = lambda runs: DIES if runs == 2 and len(world.lent) == 1 else ""
    with Tries(world.guests, Conditions(A, WORDS), clock=world.world.clock) as made:
        assert [one.outcome for one in made.each([b"a", b"b"])] == ["none", "none"]
        assert len(made.boots) == 1
        assert [one.outcome for one in made.each([b"c"])] == ["none"]
        assert len(made.boots) == 2


def test_a_loop_that_ends_early_is_begun_again_where_it_was() -> None:
    world = TryWorld(lambda content: content.decode())
    left = [2, 3]
    world.between = lambda runs: ENDS if left and runs == left[0] and left.pop(0) else ""
    came, made = tries(world, [b"parse", b"", b"parse", b"", b""])
    assert [one.outcome for one in came] == ["bucket", "none", "bucket", "none", "none"]
    assert world.commands == [5, 3, 2]
    assert len(made.boots) == 1


@pytest.mark.parametrize("happens", [ENDS, HANGS])
def test_an_input_that_the_guest_never_begins_says_nothing(happens: str) -> None:
    """It is no timeout: it did not run."""
    world = TryWorld()
    world.between = lambda _: happens
    came, _ = tries(world, [b"a", b"b"])
    assert [(one.outcome, one.fault) for one in came] == [("failed", "failed")] * 2
    assert all(one.why for one in came)
    assert world.commands == [2, 1]


def test_of_a_flood_both_ends_are_kept() -> None:
    world = TryWorld(lambda _: "x" * (2 * trying.OUTPUT_LIMIT))
    (one,) = tries(world, [b"a"])[0]
    assert one.outcome == "bucket"
    assert len(one.output) < trying.OUTPUT_LIMIT + 100
