"""The flags that targets bring with them, in NAME.options, as part of a campaign's plans: a campaign's own prevail."""

from dataclasses import replace

from pipeline.builds.targets.listing import ListedTarget
from pipeline.builds.targets.options import evaluated
from pipeline.campaign.plan.definition import Definition, FuzzerPlan
from pipeline.campaign.work import most_memory
from pipeline.fuzz.flags import of_target
from pipeline.fuzz.targets import FuzzTargets

_MEMORY, _TIME = "rss_limit_mb", "timeout"


def with_own_flags(definition: Definition, targets: FuzzTargets, memory: int) -> Definition:
    """The definition, whose plans have the flags of their targets too, as far as the campaign does not set others.

    `random(A, B)` is drawn once for a campaign, from its seed. A target may not take more memory than fits into a guest
    with `memory` MiB, nor as much time for a unit as it likes: then the usual limit holds. Raises UnknownFuzzer.
    """
    plans = tuple(_with(plan, targets.find(plan.name).listed, definition.seed, memory) for plan in definition.fuzzers)
    return replace(definition, fuzzers=plans)


def _with(plan: FuzzerPlan, listed: ListedTarget | None, seed: int, memory: int) -> FuzzerPlan:
    if listed is None or not listed.flags:
        return plan
    flags, _ = of_target(listed.flags)
    own = {name: evaluated(value, seed) for name, value in flags.items()}
    if int(own.get(_TIME, 1)) <= 0:
        del own[_TIME]
    if _MEMORY in own:
        wanted, most = int(own[_MEMORY]), most_memory(memory)
        own[_MEMORY] = str(min(wanted, most) if wanted > 0 else most)  # 0 would be no limit
    return replace(plan, options=tuple(sorted({**own, **dict(plan.options)}.items())))
