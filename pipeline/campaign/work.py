"""What is to be done in one attempt, and the options of libFuzzer that this comes to."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.campaign.definition import FuzzerPlan
from pipeline.campaign.guests import Guest
from pipeline.campaign.site import CORPUS, DICTIONARY
from pipeline.ledger import Subject

UNIT_TIMEOUT = 25
"""Seconds that one unit may take where the campaign says nothing; as in ClusterFuzz."""

MOST_MEMORY = 2048
"""MiB that a fuzzer may take where the campaign says nothing, as for libFuzzer, unless that is most of the guest's."""

_PART_OF_GUEST = 0.6

GRACE = 60.0
"""Seconds that a fuzzer may take to end, above its time and the time of one unit: an emulated guest is slow."""


@dataclass(frozen=True)
class Work:
    """What is to be done."""

    subject: Subject
    plan: FuzzerPlan
    slice: int
    attempt: int
    seconds: float
    """For which it may run."""
    runs: int | None
    """How often it may run its target, if that is limited."""
    seed: int

    @property
    def source(self) -> str:
        """Where units are from that it brings."""
        return f"{self.subject.fuzzer}#{self.slice}.{self.attempt}"

    def words(self, guest: Guest) -> tuple[str, ...]:
        """libFuzzer's arguments, but for what the fuzzer was built with."""
        options = options_in(guest, self.plan) | {
            "seed": str(self.seed),
            "max_total_time": str(math.ceil(self.seconds)),
            "print_final_stats": "1",
        }
        if self.runs is not None:
            options["runs"] = str(self.runs)
        if self.plan.dictionary is not None:
            options["dict"] = DICTIONARY
        return (*as_words(options), CORPUS)

    @property
    def limit(self) -> float:
        """Seconds after which it hangs."""
        return self.seconds + GRACE + float(dict(self.plan.options).get("timeout", UNIT_TIMEOUT))


def usual_limits(guest: Guest) -> dict[str, str]:
    """libFuzzer's options for the limits that hold in this guest unless a campaign says otherwise."""
    memory = min(MOST_MEMORY, int(guest.memory * _PART_OF_GUEST))
    return {"timeout": str(UNIT_TIMEOUT), "rss_limit_mb": str(memory)}


def options_in(guest: Guest, plan: FuzzerPlan) -> dict[str, str]:
    """libFuzzer's options that hold for whatever the fuzzer does in this guest."""
    return usual_limits(guest) | dict(plan.options)


def as_words(options: Mapping[str, str]) -> list[str]:
    """The arguments for these options."""
    return [f"-{name}={value}" for name, value in sorted(options.items())]
