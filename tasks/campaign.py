"""Batch fuzz campaigns: many fuzzers, a budget for each, and a ledger from which every rerun goes on."""

import logging
import multiprocessing
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import luigi

from pipeline import settings
from pipeline.errors import CampaignError, TopcoatError, UsageError
from pipeline.freshness import Reason
from pipeline.process import die_with_parent
from pipeline.text import one_line
from tasks.base import Check, FreshTask, Tasks, digests, say_once, workers
from tasks.boot import BootInstance
from tasks.build import BuildTask, current
from tasks.defaults import refusing
from tasks.demo import DemoCompiler, DemoFuzzers
from tasks.parameters import Choice
from tasks.prepare import ExtendedBlk, InitrdWithKey, SSHKeyPair

if TYPE_CHECKING:
    from pipeline.campaign.definition import Definition
    from pipeline.campaign.runner import Only, Runner
    from pipeline.campaign.state import State
    from pipeline.campaign.status import Status
    from pipeline.campaign.subjects import Subjects

log = logging.getLogger("topcoat")


class CampaignTask(BuildTask, FreshTask):
    """What all tasks of a campaign have in common: what is to be fuzzed, and how long."""

    needs: ClassVar[tuple[str, ...]] = BootInstance.needs

    name = luigi.Parameter(default="", description="of the campaign; default: that in its file, or campaign")
    file = luigi.Parameter(default="", description="a campaign file, see docs/campaign.md")
    fuzzers = luigi.Parameter(default="*/*", significant=False, description="patterns of fuzzers, with commas between")
    exclude = luigi.Parameter(default="", significant=False, description="patterns of those to leave out")
    budget = luigi.Parameter(default="", significant=False, description="how long each fuzzer runs in all, such as 10m")
    slice_length = luigi.Parameter(default="", significant=False, description="how long one slice is, such as 60s")
    seed = luigi.IntParameter(default=1, significant=False, description="of the campaign; all seeds are made from it")
    allocation = Choice(
        choices=("gain", "even"), default="", significant=False, description="who gets the next slice: gain or even"
    )

    def providers(self) -> Tasks:
        """Also what tells of the demo guest's fuzzers, which need not be in the guest that is booted."""
        names: Tasks = {"llvm-symbolizer": DemoCompiler()} if "llvm-symbolizer" in current()[1].demo_made else {}
        return {**super().providers(), **self.lists(), **names}

    def lists(self) -> Tasks:
        """What makes the lists of the demo guest's fuzzers."""
        made = current()[1].demo_made
        return {key: DemoFuzzers() for key in ("fuzzers.json", "tests.json") if key in made}

    @property
    def patterns(self) -> str:
        """Of the fuzzers that take part, unless a file tells them."""
        return str(self.fuzzers)

    def prerequisites(self) -> Tasks:
        return {"key": SSHKeyPair(), "initrd": InitrdWithKey(), "disk": ExtendedBlk()}

    def definition(self) -> "Definition":
        """What is to be done, for today's build. Raises SettingsError with all that is wrong, or NotSupported."""
        from pipeline.campaign import subjects

        chosen, build = current()
        found = self._drafted()
        subjects.require(found, build, chosen.store.demo, digests().of)
        return found

    def _drafted(self) -> "Definition":
        from pipeline.campaign import draft
        from pipeline.fuzz_targets import FuzzTargets

        chosen, build = current()
        targets = FuzzTargets.of(build)
        if self.file:
            found = draft.read(Path(self.file), chosen.campaign).expand(targets.names, targets.missing)
            return replace(found, name=self.name or found.name)
        return draft.from_parameters(
            chosen.campaign,
            self.name or "campaign",
            self.patterns,
            exclude=self.exclude,
            budget=self.budget,
            slice_=self.slice_length,
            seed=self.seed,
            allocation=self.allocation,
        ).expand(targets.names, targets.missing)

    def subjects(self, definition: "Definition") -> "Subjects":
        """What the fuzzers are today."""
        from pipeline.campaign import subjects

        chosen, build = current()
        canary = (chosen.campaign.canary_crash, chosen.campaign.canary_clean)
        return subjects.find(definition, build, chosen.store.demo, digests().of, canary)

    def directory(self, definition: "Definition") -> Path:
        """Of the campaign, in the store."""
        return settings.load().store.campaigns / definition.name

    def state(self, definition: "Definition") -> "State":
        """How far it has come."""
        from pipeline import ledger
        from pipeline.campaign.reading import LEDGER
        from pipeline.campaign.state import State

        return State.of(ledger.read(self.directory(definition) / LEDGER))

    def complete(self) -> bool:
        """Whether nothing must be done. Ends luigi if another process does it, before any guest is booted."""
        done = super().complete()
        if not done:
            with refusing():
                self.require_free()
        return done

    def require_free(self) -> None:
        """Raise CampaignBusy if another process works at the campaign."""
        from pipeline.campaign import reading

        if definition := self.known():
            reading.require_free(self.directory(definition))

    def known(self) -> "Definition | None":
        """The definition; None if what it needs is not there yet, or damaged, of which somebody else tells."""
        try:
            return self.definition()
        except UsageError:
            if Check(digests()).first_stale(self.lists()):  # what is wrong may be the list
                return None
            raise
        except TopcoatError:
            return None

    def unready(self, check: Check) -> Reason | None:
        """Why nothing can be said of the campaign itself yet: what it needs is missing or stale."""
        if missing := self.missing():
            return Reason(f"{next(iter(missing))} is missing")
        return check.first_stale({**self.providers(), **self.prerequisites()})

    def work(self, only: "Only | None" = None) -> "Runner":
        """Work at the campaign, or at one piece of it, in guests of the pool. Raises TopcoatError."""
        if (parent := multiprocessing.parent_process()) and parent.pid:  # luigi's worker, which somebody may kill
            die_with_parent(parent.pid, signal.SIGTERM)()
        from pipeline.campaign import display, reading
        from pipeline.campaign.guests import PooledGuests
        from pipeline.campaign.runner import Runner
        from pipeline.pool import Pool
        from pipeline.qemu.guests import QemuGuests

        chosen, build = current()
        definition = self.definition()
        boot = BootInstance(name="pool")
        guests = QemuGuests(chosen, build, "ssh", lambda: boot.key(digests()))
        with Pool(chosen, guests, work=f"campaign {definition.name}") as pool:
            pooled = PooledGuests(pool, guests, {plan.name: dict(plan.environment) for plan in definition.fuzzers})
            count = self.guests_at_once(pool.size)
            runner = Runner(definition, self.subjects(definition), pooled, chosen.store, chosen.campaign, count, only)
            try:
                with display.shown() as shown:
                    file = None if only else runner.directory / reading.STATUS
                    reporter = display.Reporter(shown, file, self.tell)
                    runner.run(lambda running: reporter.report(running.status()))
            finally:
                if only:
                    reading.renew(runner.directory)
                pooled.close()
        return runner

    @staticmethod
    def guests_at_once(size: int) -> int:
        """As many as luigi has workers, and the pool places, which are so many."""
        wanted = workers()
        if wanted > size:
            log.warning("--workers %d: the pool has %d guests at once, and no more are used: [pool] size", wanted, size)
        return min(wanted, size)

    def follow(self) -> str:
        try:
            return f"topcoat campaign status {self.definition().name}"
        except TopcoatError:  # what is wrong is told when it is no repetition
            return "topcoat campaign status"

    def tell(self, status: "Status") -> None:
        """Tell luigi, where it listens."""
        from pipeline.campaign.display import headline

        message, percentage = self.set_status_message, self.set_progress_percentage
        if message and percentage:
            budget = sum(one.budget.get("seconds", 0) for one in status.fuzzers)
            message(headline(status))
            percentage(min(100, round(100 * status.seconds / budget)) if budget else 0)


class FuzzCampaign(CampaignTask):
    """A campaign whose budgets are used. A rerun goes on; more budget prolongs it; a new fuzzer begins anew."""

    def why(self, check: Check) -> Reason | None:
        """What is left to do."""
        from pipeline.campaign import budget
        from pipeline.campaign.result import RESULT

        if reason := self.unready(check):
            return reason
        definition = self.definition()
        subjects, state = self.subjects(definition), self.state(definition)
        for plan in definition.fuzzers:
            standing = state.standing(subjects.of[plan.name])
            if standing.benched:
                return Reason(f"{plan.name} is benched: {standing.benched}")
            if left := budget.left(plan, standing):
                unit = "s" if plan.budget.runs is None else "runs"
                return Reason(f"{plan.name} has {left:.0f} {unit} left")
        if not (self.directory(definition) / RESULT).exists():
            return Reason("its result is missing")
        say_once(logging.INFO, f"{definition.name} is done: topcoat campaign status {definition.name}")
        return None

    def run(self) -> None:
        self.report(self.work())

    def report(self, runner: "Runner") -> None:
        """Write the result and print it. Raises CampaignError if fuzzers were benched."""
        from pipeline.campaign import result
        from pipeline.publish import publish_json

        status, groups = runner.status(), runner.groups()
        whole = result.encode(status, runner.definition, runner.state, runner.subjects, groups)
        publish_json(runner.directory / result.RESULT, whole)
        here, present = result.from_here(runner.directory), runner.subjects.of.values()
        print("\n".join(result.summary(status, runner.state, present, groups, here)), flush=True)
        if benched := [one for one in status.fuzzers if one.benched]:
            raise CampaignError(
                f"{len(benched)} of {len(status.fuzzers)} fuzzers were benched, the first one: "
                f"{benched[0].fuzzer}: {benched[0].benched}",
                hint="mend them and run the campaign again: it goes on with what is left",
            )


class OneFuzzerTask(CampaignTask):
    """What the tasks have in common that are about one fuzzer of a campaign."""

    fuzzer = luigi.Parameter(description="its full name, PACKAGE/NAME")

    @property
    def patterns(self) -> str:
        return str(self.fuzzer)

    def _drafted(self) -> "Definition":
        from pipeline.campaign.problems import nearest

        found = super()._drafted()
        names = [plan.name for plan in found.fuzzers]
        if self.fuzzer not in names:
            near = nearest(self.fuzzer, names, 3) or names[:3]
            raise UsageError(
                f"--fuzzer {one_line(self.fuzzer)} is no full name of a fuzzer of {found.name}",
                hint=f"give one, PACKAGE/NAME: {', '.join(near)}{' ...' if len(names) > len(near) else ''}",
            )
        return found


class RunFuzzer(OneFuzzerTask):
    """One slice of one fuzzer, by itself: a lease, a bounded time, a seed that the campaign's ledger tells."""

    slice = luigi.IntParameter(default=1, description="the number of the slice, from 1 on")

    def why(self, check: Check) -> Reason | None:
        """That the slice is not over."""
        if reason := self.unready(check):
            return reason
        definition = self.definition()
        self.require_slice(definition)
        subject = self.subjects(definition).of[self.fuzzer]
        one = self.state(definition).standing(subject).slices.get(self.slice)
        return None if one and one.closed else Reason(f"slice {self.slice} of {self.fuzzer} is not over")

    def run(self) -> None:
        from pipeline.campaign.runner import Only

        self.require_slice(self.definition())
        runner = self.work(Only(self.fuzzer, self.slice))
        if benched := runner.standing(self.fuzzer).benched:
            raise CampaignError(f"{self.fuzzer} was benched: {benched}", hint="mend it and run the slice again")

    def require_free(self) -> None:
        if definition := self.known():
            self.require_slice(definition)
        super().require_free()

    def require_slice(self, definition: "Definition") -> None:
        """Raise UsageError if the fuzzer's budget has no such slice."""
        (plan,) = (plan for plan in definition.fuzzers if plan.name == self.fuzzer)
        if self.slice < 1 or (plan.slices is not None and self.slice > plan.slices):
            raise UsageError(
                f"--slice {self.slice}: slices are counted from 1, and the budget of {self.fuzzer}"
                + (" is one of runs" if plan.slices is None else f" comes to {plan.slices}"),
                hint="name one of them, or raise --budget; how long a slice is: --slice-length",
            )


class MergeCorpus(OneFuzzerTask):
    """The corpus of one fuzzer, merged: it covers as much with fewer units."""

    def why(self, check: Check) -> Reason | None:
        """That units have come since the last merge."""
        if reason := self.unready(check):
            return reason
        definition = self.definition()
        unmerged = self.state(definition).standing(self.subjects(definition).of[self.fuzzer]).unmerged
        return Reason(f"{unmerged} units have come since the last merge") if unmerged else None

    def run(self) -> None:
        from pipeline.campaign.runner import Only

        self.work(Only(self.fuzzer, None))
