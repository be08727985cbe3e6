"""The flags that targets bring with them, in a campaign."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.builds.targets.listing import ListedTarget
from pipeline.campaign.own_flags import with_own_flags
from pipeline.campaign.plan.definition import Budget, Definition, FuzzerPlan
from pipeline.campaign.work import MOST_MEMORY, most_memory
from pipeline.errors import UnknownFuzzer
from pipeline.fuzz.flags import REFUSED
from pipeline.fuzz.targets import FuzzTarget, FuzzTargets

MEMORY = 2048  # MiB of the guest
RANDOM = "random(1, 1000000000)"


def definition(*plans: FuzzerPlan, seed: int = 1) -> Definition:
    return Definition("nightly", seed, "gain", plans)


def plan(name: str = "p/a", **options: str) -> FuzzerPlan:
    return FuzzerPlan(name, Budget(seconds=60), 10, tuple(sorted(options.items())), Path("/d"), (), (("TZ", "UTC"),))


def targets(**flags: Mapping[str, str]) -> FuzzTargets:
    """The targets of the package p, with these flags of their own."""
    listed = {name: ListedTarget("p", name, "b3:00", f"/{name}", flags=own) for name, own in flags.items()}
    return FuzzTargets(tuple(FuzzTarget("p", name, listed=one) for name, one in sorted(listed.items())))


def options(own: Mapping[str, str], *, seed: int = 1, memory: int = MEMORY, **campaign: str) -> dict[str, str]:
    """The options of a target in a campaign."""
    (found,) = with_own_flags(definition(plan(**campaign), seed=seed), targets(a=own), memory).fuzzers
    assert list(found.options) == sorted(found.options)
    return dict(found.options)


def test_they_are_the_targets_unless_the_campaign_says_otherwise() -> None:
    own = {"max_len": "9", "timeout": "5", "my_flag": "x"}
    assert options(own) == own
    assert options(own, max_len="8", only_ascii="1") == {
        "max_len": "8", "timeout": "5", "my_flag": "x", "only_ascii": "1",
    }  # fmt: skip


def test_each_target_has_its_own_and_nothing_else_changes() -> None:
    before = definition(plan("p/a"), plan("p/b", runs="1"), plan("p/c"))
    after = with_own_flags(before, targets(a={"max_len": "1"}, b={"max_len": "2"}, c={}), MEMORY)
    assert after == definition(plan("p/a", max_len="1"), plan("p/b", max_len="2", runs="1"), plan("p/c"))


def test_a_fuzzer_without_a_listed_target_stays_as_it_is() -> None:
    found = FuzzTargets((FuzzTarget("p", "a"),))
    assert with_own_flags(definition(plan(max_len="1")), found, MEMORY) == definition(plan(max_len="1"))


def test_a_fuzzer_that_is_not_there() -> None:
    with pytest.raises(UnknownFuzzer, match="no such fuzzer: p/x"):
        with_own_flags(definition(plan("p/x")), targets(a={}), MEMORY)


def test_the_canarys_targets_have_theirs() -> None:
    canary = FuzzTarget(
        "example-fuzzers", "noop", listed=ListedTarget("example-fuzzers", "noop", "", "/n", flags={"x": "1"})
    )
    found = with_own_flags(definition(plan("example-fuzzers/noop")), FuzzTargets((), canary=(canary,)), MEMORY)
    assert found.fuzzers[0].options == (("x", "1"),)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_only_topcoat_sets_is_dropped(name: str) -> None:
    assert options({name: "1", "max_len": "9"}) == {"max_len": "9"}


@pytest.mark.parametrize("value", ["much", "4294967296", "random(1, 4294967296)", ""])
def test_what_is_no_number_is_dropped(value: str) -> None:
    assert options({"max_len": value, "rss_limit_mb": value}) == {}


class TestMemory:
    """A target may lower its limit, and not raise it beyond what the guest has."""

    def test_what_is_most(self) -> None:
        assert most_memory(MEMORY) < MEMORY
        assert most_memory(1 << 20) == MOST_MEMORY

    @pytest.mark.parametrize(
        ("wanted", "gets"),
        [
            ("100", 100),
            (str(most_memory(MEMORY)), most_memory(MEMORY)),
            (str(most_memory(MEMORY) + 1), most_memory(MEMORY)),
            ("2560", most_memory(MEMORY)),
            ("0", most_memory(MEMORY)),  # which would be no limit
            ("-1", most_memory(MEMORY)),
        ],
    )
    def test_its_own_limit(self, wanted: str, gets: int) -> None:
        assert options({"rss_limit_mb": wanted}) == {"rss_limit_mb": str(gets)}

    def test_a_larger_guest_has_more(self) -> None:
        assert options({"rss_limit_mb": "100000"}, memory=512) == {"rss_limit_mb": str(most_memory(512))}

    def test_a_drawn_one(self) -> None:
        assert options({"rss_limit_mb": "random(100000, 200000)"}) == {"rss_limit_mb": str(most_memory(MEMORY))}
        assert 1 <= int(options({"rss_limit_mb": "random(1, 9)"})["rss_limit_mb"]) <= 9

    def test_the_campaigns_own_word_counts(self) -> None:
        assert options({"rss_limit_mb": "100"}, rss_limit_mb="0") == {"rss_limit_mb": "0"}


@pytest.mark.parametrize("value", ["0", "-1", "random(0, 0)"])
def test_a_target_cannot_do_without_a_limit_of_time(value: str) -> None:
    """Only a campaign can: a unit that hangs would take all of its slice."""
    assert options({"timeout": value}) == {}
    assert options({"timeout": value}, timeout="0") == {"timeout": "0"}
    assert options({"timeout": "1"}) == {"timeout": "1"}


class TestRandom:
    """It is drawn once for a campaign: the plan, and so its digest, is the same whenever it is made."""

    def test_it_is_a_number_and_stays(self) -> None:
        first = options({"max_len": RANDOM})
        assert 1 <= int(first["max_len"]) <= 1_000_000_000
        assert options({"max_len": RANDOM}) == first

    def test_another_campaign_draws_another(self) -> None:
        assert len({options({"max_len": RANDOM}, seed=seed)["max_len"] for seed in range(1, 20)}) == 19

    def test_the_digest_of_the_plan_is_steady(self) -> None:
        def digest(seed: int) -> str:
            bare = FuzzerPlan("p/a", Budget(seconds=60), 10)
            found = with_own_flags(definition(bare, seed=seed), targets(a={"max_len": RANDOM}), MEMORY)
            return found.fuzzers[0].digest()

        assert digest(1) == digest(1) != digest(2)
