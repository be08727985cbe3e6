"""A store with campaigns whose guests are scripted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.campaign import ledger
from pipeline.campaign.ledger import LedgerEntry, Subject
from pipeline.campaign.plan.definition import Budget, Definition, FuzzerPlan
from pipeline.campaign.runner import Runner
from pipeline.campaign.schedule import Only
from pipeline.campaign.state import State
from pipeline.campaign.subjects import Subjects
from pipeline.fuzz.corpus import Corpus
from pipeline.settings import CampaignSettings, Store
from tests.campaign.scripted import ScriptedGuests, World

A, B, C = "fuzzers/a", "fuzzers/b", "fuzzers/c"
CHOSEN = CampaignSettings(canary="off", harvest=3600.0)


class Killed(BaseException):
    """The process is gone."""


class Bench:
    """A store, and campaigns on it."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.world = World()
        self.chosen = CHOSEN
        self.builds: dict[str, str] = {}

    def definition(self, *plans: FuzzerPlan, seed: int = 1, name: str = "nightly") -> Definition:
        return Definition(name, seed, "gain", tuple(sorted(plans, key=lambda plan: plan.name)))

    def runner(
        self, definition: Definition, workers: int = 1, only: Only | None = None, whole: str = "whole"
    ) -> Runner:
        subjects = {
            plan.name: Subject(plan.name, self.builds.get(plan.name, "build"), plan.digest())
            for plan in definition.fuzzers
        }
        found = Subjects(subjects, whole)
        guests = ScriptedGuests(self.world)
        what = (definition, found, guests, self.store, self.chosen, workers, only, self.world.clock)
        return Runner(*what, capsules=self.chosen.capsule == "first")

    def run(self, definition: Definition, workers: int = 1) -> State:
        return self.runner(definition, workers).run()

    @property
    def entries(self) -> list[LedgerEntry]:
        return list(ledger.read(self.store.campaigns / "nightly/ledger.jsonl"))

    def of(self, kind: type[Any]) -> list[Any]:
        return [entry for entry in self.entries if isinstance(entry, kind)]

    def fuzzer_state(self, name: str, plan: FuzzerPlan, build: str = "build") -> Any:
        return State.of(self.entries).fuzzer_state(Subject(name, build, plan.digest()))

    def units(self, name: str) -> set[str]:
        return set(Corpus.of(self.store.root, name).units())


def plan(name: str = A, seconds: int | None = 60, slice_: int = 20, runs: int | None = None) -> FuzzerPlan:
    return FuzzerPlan(name, Budget(None if runs else seconds, runs), slice_)


def interrupted(runner: Runner) -> None:
    """A tick during which somebody presses Ctrl-C, once something runs."""
    if runner.active:
        raise KeyboardInterrupt


def kill(runner: Runner, at: int, before: bool = False) -> None:
    """Have its process end with the entry of this number: just before it is written, or just after."""
    real: Callable[[LedgerEntry], None] = runner.note
    written = 0

    def note(entry: LedgerEntry) -> None:
        nonlocal written
        written += 1
        if written > at or (before and written == at):
            raise Killed
        real(entry)
        if written == at:
            raise Killed

    runner.note = note  # type: ignore[method-assign]
