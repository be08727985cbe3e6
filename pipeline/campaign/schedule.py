"""What is left to do of a campaign, and who comes next. It runs nothing, and takes no locks: its user has one."""

from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256

from pipeline.campaign import allocation, budget
from pipeline.campaign.allocation import Candidate
from pipeline.campaign.plan.definition import Definition, FuzzerPlan
from pipeline.campaign.state import FuzzerState, State
from pipeline.campaign.subjects import Subjects


@dataclass(frozen=True)
class Only:
    """One piece of a campaign that is to be done by itself: a slice, or a merge."""

    fuzzer: str
    slice: int | None
    """The number of the slice; None for a merge of the fuzzer's corpus."""


class Schedule:
    """The work that the definition asks for and the state does not have yet."""

    def __init__(self, definition: Definition, subjects: Subjects, only: Only | None = None) -> None:
        """With `only`, nothing but that piece is to be done."""
        self.state = State()
        """All that was done so far; it may be replaced."""
        self._definition = definition
        self._subjects = subjects
        self._only = only
        self._turn = 0

    def fuzzer_state(self, fuzzer: str) -> FuzzerState:
        """How a fuzzer stands, as it is built and planned today."""
        return self.state.fuzzer_state(self._subjects.of[fuzzer])

    @property
    def open(self) -> int:
        """The number of fuzzers for which something is left to do."""
        return sum(1 for plan in self._definition.fuzzers if self.runs(plan) or self.merges(plan))

    def choose(self, busy: Collection[str]) -> str | None:
        """The fuzzer to work at next; None if there is none besides those that are `busy`. Merges go first."""
        idle = [plan for plan in self._definition.fuzzers if plan.name not in busy]
        if merged := next((plan.name for plan in idle if self.merges(plan)), None):
            return merged
        candidates = [self._candidate(plan) for plan in idle if self.runs(plan)]
        if not candidates:
            return None
        slices = sum(len(self.fuzzer_state(plan.name).slices) for plan in self._definition.fuzzers)
        self._turn = max(self._turn, slices) + 1  # other processes have had their turns too
        return allocation.choose(candidates, self._turn, self._definition.allocation).name

    def _candidate(self, plan: FuzzerPlan) -> Candidate:
        fuzzer_state = self.fuzzer_state(plan.name)
        return Candidate(
            plan.name, budget.used_part(plan, fuzzer_state), fuzzer_state.recent_gain, len(fuzzer_state.slices)
        )

    def runs(self, plan: FuzzerPlan) -> bool:
        """Whether the fuzzer is to run: some of its budget is left, and it is not benched."""
        fuzzer_state, only = self.fuzzer_state(plan.name), self._only
        if fuzzer_state.benched:
            return False
        if only is None:
            return budget.left(plan, fuzzer_state) > 0
        if only.fuzzer != plan.name or only.slice is None:
            return False
        one = fuzzer_state.slices.get(only.slice)
        return not (one and one.closed)

    def merges(self, plan: FuzzerPlan) -> bool:
        """Whether the fuzzer's corpus is to be merged now: it has grown, and its budget is used."""
        fuzzer_state = self.fuzzer_state(plan.name)
        if self._only:
            return self._only == Only(plan.name, None) and fuzzer_state.unmerged > 0
        return not self.runs(plan) and not fuzzer_state.benched and fuzzer_state.unmerged > 0 and fuzzer_state.units > 1

    def slice_of(self, plan: FuzzerPlan) -> int:
        """The number of the slice at which the fuzzer runs next."""
        return (self._only and self._only.slice) or self.fuzzer_state(plan.name).current

    def seed(self, fuzzer: str, number: int, attempt: int) -> int:
        """The seed for libFuzzer: never 0, which it would replace, and the same whenever the campaign is run anew."""
        text = f"{self._definition.seed}/{fuzzer}/{number}/{attempt}"
        return int.from_bytes(sha256(text.encode()).digest()[:4], "big") % 0x7FFFFFFF + 1
