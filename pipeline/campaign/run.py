"""Running a campaign in guests of the pool, from its definition to its result."""

import logging
from collections.abc import Callable

from pipeline.builds.build import Build
from pipeline.campaign import capsules, display, own_files, reading, result
from pipeline.campaign.guests import PooledGuests
from pipeline.campaign.plan.definition import Definition
from pipeline.campaign.runner import Runner
from pipeline.campaign.schedule import Only
from pipeline.campaign.status import Status
from pipeline.campaign.subjects import Subjects
from pipeline.errors import CampaignError
from pipeline.settings import Settings
from pipeline.store.freshness import Key
from pipeline.store.publish import publish_json
from pipeline.vm.pool import Pool
from pipeline.vm.qemu.pooled import QemuGuests
from pipeline.vm.template import Templates

log = logging.getLogger("topcoat")


def run(
    definition: Definition,
    subjects: Subjects,
    settings: Settings,
    build: Build,
    key: Callable[[], Key],
    templates: Templates | None,
    *,
    workers: int,
    only: Only | None = None,
    tell: Callable[[Status], None] = lambda _: None,
) -> Runner:
    """Work at the campaign until its budgets are used, or at one piece of it (`only`), and return the runner.

    `key` tells all that the guests are booted with; they are clones if `templates` has a template. At most `workers`
    guests are used at once. `tell` is given the status of the campaign every now and then. Raises TopcoatError.
    """
    guests = QemuGuests(settings, build, "ssh", key, templates)
    with Pool(settings, guests, work=f"campaign {definition.name}", refill=only is None) as pool:
        pooled = PooledGuests(pool, guests, {plan.name: dict(plan.environment) for plan in definition.fuzzers})
        count = guests_at_once(workers, pool.size)
        keep = capsules.wanted(settings, build, [plan.name for plan in definition.fuzzers])
        what = (definition, subjects, pooled, settings.store, settings.campaign, count, only)
        runner = Runner(*what, capsules=keep, own_files=own_files.of(build, subjects))
        try:
            with display.shown() as shown:
                file = None if only else runner.directory / reading.STATUS
                reporter = display.Reporter(shown, file, tell)
                runner.run(lambda running: reporter.report(running.status()))
        finally:
            if only:
                reading.renew(runner.directory)
            pooled.disconnect()
    return runner


def guests_at_once(workers: int, size: int) -> int:
    """The number of guests to use at once: `workers`, but no more than `size`, those of the pool; fewer is logged."""
    if workers > size:
        log.warning("--workers %d: the pool has %d guests at once, and no more are used: [pool] size", workers, size)
    return min(workers, size)


def conclude(runner: Runner) -> None:
    """Write the result of a campaign that has ended, and print it. Raises CampaignError if fuzzers were benched."""
    status, buckets = runner.status(), runner.buckets()
    store = runner.directory.parents[1]
    whole = result.encode(status, runner.definition, runner.state, runner.subjects, buckets, store)
    publish_json(runner.directory / result.RESULT, whole)
    print("\n".join(result.summary(status, runner.state, buckets, store)), flush=True)
    if benched := [one for one in status.fuzzers if one.benched]:
        raise CampaignError(
            f"{len(benched)} of {len(status.fuzzers)} fuzzers were benched, the first one: "
            f"{benched[0].fuzzer}: {benched[0].benched}",
            hint="mend them and run the campaign again: it goes on with what is left",
        )
