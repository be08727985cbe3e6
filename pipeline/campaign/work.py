"""What is to be done in one attempt, and the libFuzzer options for it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.campaign.guest_fuzzer import CORPUS, DICTIONARY
from pipeline.campaign.guests import Guest
from pipeline.campaign.ledger import Subject
from pipeline.campaign.plan.definition import FuzzerPlan
from pipeline.fuzz.repetition import next_seed

UNIT_TIMEOUT = 25
"""Seconds that one unit may take if the campaign does not say; the same as in ClusterFuzz."""

MOST_MEMORY = 2048
"""MiB that a fuzzer may take if the campaign does not say: libFuzzer's own default, or less in a small guest."""

_PART_OF_GUEST = 0.6

GRACE = 60.0
"""Seconds that a fuzzer may take to end, besides its time and that of one unit: an emulated guest is slow."""


@dataclass(frozen=True)
class Work:
    """What is to be done in one attempt at a slice."""

    subject: Subject
    plan: FuzzerPlan
    slice: int
    attempt: int
    seconds: float
    """The seconds for which the fuzzer may run."""
    runs: int | None
    """How often the fuzzer may run its target; None if that is not limited."""
    seed: int

    @property
    def source(self) -> str:
        """The source that the corpus notes for units of this attempt: FUZZER#SLICE.ATTEMPT."""
        return f"{self.subject.fuzzer}#{self.slice}.{self.attempt}"

    def after(self, seconds: float) -> "Work":
        """The work of the next attempt, which is the fuzzer's next run, after one that took so many seconds."""
        return replace(
            self, attempt=self.attempt + 1, seconds=max(0.0, self.seconds - seconds), seed=next_seed(self.seed)
        )

    def words(self, guest: Guest) -> tuple[str, ...]:
        """libFuzzer's arguments, without those for the dictionary and seeds that the fuzzer was built with."""
        options = options_in(guest, self.plan) | {
            "seed": str(self.seed),
            "max_total_time": str(max(1, math.ceil(self.seconds))),
            "print_final_stats": "1",
        }
        if self.runs is not None:
            options["runs"] = str(self.runs)
        if self.plan.dictionary is not None:
            options["dict"] = DICTIONARY
        return (*as_words(options), CORPUS)

    @property
    def limit(self) -> float:
        """Seconds after which the run counts as hanging."""
        return self.seconds + GRACE + float(dict(self.plan.options).get("timeout", UNIT_TIMEOUT))


def usual_limits(guest: Guest) -> dict[str, str]:
    """libFuzzer's options for the limits that hold in this guest unless a campaign sets others."""
    return {"timeout": str(UNIT_TIMEOUT), "rss_limit_mb": str(most_memory(guest.memory))}


def most_memory(memory: int) -> int:
    """The MiB that a fuzzer may take in a guest that has `memory` MiB, if the campaign does not say."""
    return min(MOST_MEMORY, int(memory * _PART_OF_GUEST))


def options_in(guest: Guest, plan: FuzzerPlan) -> dict[str, str]:
    """libFuzzer's options for any run of the fuzzer in this guest: the usual limits, and the campaign's options."""
    return usual_limits(guest) | dict(plan.options)


def as_words(options: Mapping[str, str]) -> list[str]:
    """The command-line arguments for these options, sorted by name."""
    return [f"-{name}={value}" for name, value in sorted(options.items())]
