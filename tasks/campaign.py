"""The tasks of fuzz campaigns: many fuzzers, a budget for each, and a ledger from which every rerun goes on."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import luigi

from pipeline.errors import CampaignError, TopcoatError, UsageError
from pipeline.settings import CapsuleChoice
from pipeline.store.freshness import Reason
from pipeline.text.printable import one_line
from pipeline.vm.qemu.profile import guest_of
from tasks.boot import key_of_boot, template_of_pool
from tasks.crashes import TriageCrash
from tasks.engine.artifact import Check, Tasks, workers
from tasks.engine.context import context, say_once
from tasks.engine.defaults import refusing
from tasks.engine.parameters import Choice
from tasks.fuzzing import FuzzingTask, end_with_luigi

if TYPE_CHECKING:
    from pipeline.campaign.plan.definition import Definition
    from pipeline.campaign.runner import Runner
    from pipeline.campaign.schedule import Only
    from pipeline.campaign.state import State
    from pipeline.campaign.status import Status
    from pipeline.campaign.subjects import Subjects
    from pipeline.fuzz.targets import FuzzTargets

log = logging.getLogger("topcoat")


class CampaignTask(FuzzingTask):
    """The base of all tasks of a campaign: its parameters say what is fuzzed, and for how long."""

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
    capsule = Choice(
        choices=("off", "first"),
        default="",
        significant=False,
        description="whether the guest is kept as it was at the first crash of each bucket: first, or off",
    )

    @property
    def patterns(self) -> str:
        """The patterns of the fuzzers that take part, with commas between; a campaign file has its own instead."""
        return str(self.fuzzers)

    def definition(self) -> "Definition":
        """What the campaign does, for the present build.

        Raises SettingsError with all that is wrong, or NotSupported.
        """
        from pipeline.campaign import subjects

        here = context()
        found = self._drafted()
        subjects.require(found, here.build)
        return found

    def _drafted(self) -> "Definition":
        from pipeline.campaign.plan import draft
        from pipeline.fuzz.targets import FuzzTargets

        chosen, build = context().settings, context().build
        targets = FuzzTargets.of(build)
        if self.file:
            found = draft.read(Path(self.file), chosen.campaign).expand(targets.names, targets.missing)
            return self._with_own_flags(replace(found, name=self.name or found.name), targets)
        found = draft.from_parameters(
            chosen.campaign,
            self.name or "campaign",
            self.patterns,
            exclude=self.exclude,
            budget=self.budget,
            slice_=self.slice_length,
            seed=self.seed,
            allocation=self.allocation,
        ).expand(targets.names, targets.missing)
        return self._with_own_flags(found, targets)

    @staticmethod
    def _with_own_flags(found: "Definition", targets: "FuzzTargets") -> "Definition":
        from pipeline.campaign.own_flags import with_own_flags

        chosen, build = context().settings, context().build
        return with_own_flags(found, targets, chosen.qemu.memory or guest_of(build, "", "").memory)

    def subjects(self, definition: "Definition") -> "Subjects":
        """The subjects: the digests that say what each fuzzer is at present."""
        from pipeline.campaign import subjects

        here = context()
        canary = (here.settings.campaign.canary_crash, here.settings.campaign.canary_clean)
        return subjects.find(definition, here.build, here.settings.store.demo, here.digests.of, canary)

    def directory(self, definition: "Definition") -> Path:
        """The path of the campaign's directory in the store."""
        return context().settings.store.campaigns / definition.name

    def state(self, definition: "Definition") -> "State":
        """How far the campaign has come, as its ledger says."""
        from pipeline.campaign import ledger
        from pipeline.campaign.reading import LEDGER
        from pipeline.campaign.state import State

        return State.of(ledger.read(self.directory(definition) / LEDGER))

    def complete(self) -> bool:
        """Whether nothing must be done. Ends luigi, before a guest boots, if another process works at the campaign."""
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
        """The definition; None if what it needs is not there yet or is damaged, which is reported elsewhere."""
        try:
            return self.definition()
        except UsageError:
            if Check(context().digests).first_stale(self.lists()):  # the mistake may be in the stale list
                return None
            raise
        except TopcoatError:
            return None

    def work(self, only: "Only | None" = None) -> "Runner":
        """Work at the campaign, or at the piece `only`, in guests of the pool. Raises TopcoatError."""
        from pipeline.campaign import run

        end_with_luigi()
        here, definition = context(), self.definition()
        chosen = here.settings.campaign
        chosen = replace(chosen, capsule=cast(CapsuleChoice, self.capsule or chosen.capsule))
        return run.run(
            definition,
            self.subjects(definition),
            replace(here.settings, campaign=chosen),
            here.build,
            lambda: key_of_boot(here.digests),
            template_of_pool(),
            workers=workers(),
            only=only,
            tell=self.tell,
        )

    def require_same(self) -> None:
        """Raise CampaignError if what was worked at is not what it would be now, and there is more to do."""
        if reason := Check(context().digests).why(self):
            raise CampaignError(
                f"what was to be done is done, and meanwhile something has changed: {reason}",
                hint="run the same again: what has changed begins anew, and nothing else",
            )

    def follow(self) -> str:
        try:
            return f"topcoat campaign status {self.definition().name}"
        except TopcoatError:  # the mistake is reported when the command runs alone
            return "topcoat campaign status"

    def tell(self, status: "Status") -> None:
        """Give luigi the status as a message and a percentage, if it takes them."""
        from pipeline.campaign.display import headline

        message, percentage = self.set_status_message, self.set_progress_percentage
        if message and percentage:
            budget = sum(one.budget.get("seconds", 0) for one in status.fuzzers)
            message(headline(status))
            percentage(min(100, round(100 * status.seconds / budget)) if budget else 0)


class ProveFixes(CampaignTask):
    """The verdicts, with the present builds of a campaign's fuzzers, on all crashes that are known from other builds.

    Each one is made by a task of its own, TriageCrash. A verdict that is there stays, whatever a campaign finds later.
    """

    tries = luigi.IntParameter(default=10, significant=False, description="how often each input is run")

    def why(self, check: Check) -> Reason | None:
        """The first known crash that has no verdict with the present build; None if all have one."""
        if reason := self.unready(check):
            return reason
        lacking = self.lacking()
        more = f", and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        return Reason(f"{'/'.join(lacking[0])} was not tried with the present build{more}") if lacking else None

    def run(self) -> Iterator[list[TriageCrash]]:
        """Ask luigi for the verdicts that are lacking."""
        if lacking := self.lacking():
            yield [TriageCrash(fuzzer=fuzzer, bucket=slug, tries=self.tries) for fuzzer, slug in lacking]

    def lacking(self) -> list[tuple[str, str]]:
        """The known crashes without a verdict with the present build, by fuzzer and bucket. Raises TopcoatError."""
        from pipeline.campaign import proving
        from pipeline.fuzz.crashes.store import CrashStore

        store, definition = CrashStore(context().settings.store.root), self.definition()
        if not any(store.slugs(plan.name) for plan in definition.fuzzers):
            return []
        builds = {name: subject.build for name, subject in self.subjects(definition).of.items()}
        return proving.lacking(store, builds, TriageCrash.version)

    def require_free(self) -> None:
        """Do nothing: verdicts are made whether or not a process works at the campaign."""


class FuzzCampaign(CampaignTask):
    """A campaign whose budgets are used up.

    A rerun goes on with what is left, also after budgets were raised. A fuzzer that has changed begins anew, when its
    known crashes have been tried with the new build.
    """

    def requires(self) -> Tasks:
        """What is missing; if nothing is, all that guests need, and what is to be known of known crashes."""
        known = context().settings.store.crashes.is_dir()
        return self.missing() or {**super().requires(), **({"proofs": self.clone(ProveFixes)} if known else {})}

    def why(self, check: Check) -> Reason | None:
        """The first thing that is left to do; None if the campaign is done."""
        from pipeline.campaign import budget
        from pipeline.campaign.result import RESULT

        if reason := self.unready(check):
            return reason
        definition = self.definition()
        subjects, state = self.subjects(definition), self.state(definition)
        for plan in definition.fuzzers:
            fuzzer_state = state.fuzzer_state(subjects.of[plan.name])
            if fuzzer_state.benched:
                return Reason(f"{plan.name} is benched: {fuzzer_state.benched}")
            if left := budget.left(plan, fuzzer_state):
                unit = "s" if plan.budget.runs is None else "runs"
                return Reason(f"{plan.name} has {left:.0f} {unit} left")
        if not (self.directory(definition) / RESULT).exists():
            return Reason("its result is missing")
        say_once(logging.INFO, f"{definition.name} is done: topcoat campaign status {definition.name}")
        return None

    def run(self) -> None:
        from pipeline.campaign.run import conclude

        conclude(self.work())
        self.require_same()


class _OneFuzzerTask(CampaignTask):
    """The base of the tasks that are about one fuzzer of a campaign."""

    fuzzer = luigi.Parameter(description="its full name, PACKAGE/NAME")

    @property
    def patterns(self) -> str:
        return str(self.fuzzer)

    def _drafted(self) -> "Definition":
        from pipeline.text.spelling import nearest

        found = super()._drafted()
        names = [plan.name for plan in found.fuzzers]
        if self.fuzzer not in names:
            near = nearest(self.fuzzer, names, 3) or names[:3]
            raise UsageError(
                f"--fuzzer {one_line(self.fuzzer)} is no full name of a fuzzer of {found.name}",
                hint=f"give one, PACKAGE/NAME: {', '.join(near)}{' ...' if len(names) > len(near) else ''}",
            )
        return found


class RunFuzzer(_OneFuzzerTask):
    """One slice of one fuzzer of a campaign, run by itself in a leased guest, for a limited time."""

    slice = luigi.IntParameter(default=1, description="the number of the slice, from 1 on")

    def why(self, check: Check) -> Reason | None:
        """Why the slice must run: it is not over, or what it needs is missing or stale."""
        if reason := self.unready(check):
            return reason
        definition = self.definition()
        self.require_slice(definition)
        subject = self.subjects(definition).of[self.fuzzer]
        one = self.state(definition).fuzzer_state(subject).slices.get(self.slice)
        return None if one and one.closed else Reason(f"slice {self.slice} of {self.fuzzer} is not over")

    def run(self) -> None:
        from pipeline.campaign.schedule import Only

        self.require_slice(self.definition())
        runner = self.work(Only(self.fuzzer, self.slice))
        if benched := runner.fuzzer_state(self.fuzzer).benched:
            raise CampaignError(f"{self.fuzzer} was benched: {benched}", hint="mend it and run the slice again")
        self.require_same()

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


class MergeCorpus(_OneFuzzerTask):
    """The merged corpus of one fuzzer, which covers as much with fewer units."""

    def why(self, check: Check) -> Reason | None:
        """Why the corpus must be merged: units have come since the last merge, or what it needs is missing or stale."""
        if reason := self.unready(check):
            return reason
        definition = self.definition()
        unmerged = self.state(definition).fuzzer_state(self.subjects(definition).of[self.fuzzer]).unmerged
        return Reason(f"{unmerged} units have come since the last merge") if unmerged else None

    def run(self) -> None:
        from pipeline.campaign.schedule import Only

        self.work(Only(self.fuzzer, None))
        self.require_same()
