"""How a campaign stands, as a value: the content of status.json, and of the tables for people.

status.json, schema 1, is rewritten every few seconds while a process works at the campaign, and when that ends in any
way but by SIGKILL; pipeline.campaign.reading tells what is true even then. docs/campaign.md tells what each name means.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipeline.campaign.ledger import Opened
from pipeline.campaign.plan.definition import Definition, FuzzerPlan
from pipeline.campaign.state import FuzzerState, State
from pipeline.fuzz.stats import Stats
from pipeline.host.deadline import utc_now
from pipeline.store import document

SCHEMA = 1
"""The version of status.json's format. Tests hold a frozen sample."""

STEADY = 5.0
"""Seconds that an attempt must have run for its own rate to count: libFuzzer reports less and less often."""

Activity = Literal["waiting", "running", "merging", "done", "benched"]
CampaignState = Literal["running", "stopped", "done"]


@dataclass(frozen=True)
class FuzzerStatus:
    """How one fuzzer stands, including what runs at this moment."""

    fuzzer: str
    state: Activity
    seconds: float
    """The seconds for which it ran."""
    budget: dict[str, int]
    """The budget, as `{"seconds": N}` or `{"runs": N}`."""
    left: float
    """What is left of the budget, in seconds or runs."""
    slice: int
    attempts: int
    executions: int
    rate: float
    """Executions a second: of what runs now, if it has been running for a while, else of all attempts."""
    edges: int
    features: int
    units: int
    crashes: int
    """The number of buckets of crashes."""
    peak_rss: int
    """The most memory that it took, in MiB."""
    benched: str
    """Why it gets no more slices; empty if it does."""


@dataclass(frozen=True)
class Author:
    """The process that works at a campaign, or did so last."""

    host: str = ""
    pid: int = 0
    started: str = ""
    """When it began to work at the campaign, in UTC."""
    start_ticks: int = 0
    """When the process itself started: see pipeline.host.process.Process."""
    host_boot_id: str = ""

    @classmethod
    def of(cls, opened: Opened) -> "Author":
        """The process that has written this entry."""
        process = opened.process
        ticks, boot = int(process.get("start_ticks", 0)), str(process.get("host_boot_id", ""))
        return cls(opened.host, opened.pid, opened.started, ticks, boot)


@dataclass(frozen=True)
class Status:
    """How a whole campaign stands."""

    name: str
    state: CampaignState
    proved: bool | None
    """Whether the canary was found; None if it was not looked for yet, or is not wanted."""
    unproved: str
    """Why the canary was not found; empty if it was, or was not looked for."""
    workers: int
    processes: int
    """The number of processes that have worked at the campaign."""
    boots: int
    failed_boots: int
    fuzzers: tuple[FuzzerStatus, ...]
    by: Author = Author()
    updated: str = field(default_factory=utc_now)
    """The time (UTC) up to which all that has happened is included."""

    @property
    def seconds(self) -> float:
        """The seconds for which all fuzzers ran together."""
        return sum(one.seconds for one in self.fuzzers)

    @property
    def executions(self) -> int:
        """The executions of all fuzzers."""
        return sum(one.executions for one in self.fuzzers)

    @property
    def left(self) -> float | None:
        """Estimated seconds until all is done; None if a fuzzer that is not done has a budget of runs."""
        open_ones = [one for one in self.fuzzers if one.state not in ("done", "benched")]
        if any("runs" in one.budget for one in open_ones):
            return None
        total = sum(one.left for one in open_ones)
        longest = max((one.left for one in open_ones), default=0.0)
        return max(longest, total / max(1, self.workers))

    @classmethod
    def decode(cls, text: bytes | str) -> "Status":
        """The status in the content of status.json. Raises ValueError if it is no status of this schema."""
        data = document.content(text, SCHEMA)
        return document.convert({**data, "by": data}, cls)

    def encode(self) -> dict[str, Any]:
        """The status as values for JSON, with the sums over all fuzzers."""
        facts = asdict(self)
        return {name: facts[name] for name in facts if name != "by"} | {
            **facts["by"],
            "fuzzers": [asdict(one) for one in self.fuzzers],
            "schema": SCHEMA,
            "seconds": round(self.seconds, 3),
            "executions": self.executions,
            "left": None if self.left is None else round(self.left, 3),
        }


@dataclass(frozen=True)
class LiveAttempt:
    """What an attempt that is not over adds to the numbers of its fuzzer."""

    seconds: float
    progress: Stats
    added: int = 0
    """The number of units that it has brought to the corpus."""
    works: bool = True
    """Whether a process works at it at this moment; false if its process is gone."""


def of_fuzzer(
    plan: FuzzerPlan, fuzzer_state: FuzzerState, left: float, live: LiveAttempt | None, *, merging: bool
) -> FuzzerStatus:
    """The status of one fuzzer. `left` is what attempts before `live` have left of its budget."""
    seconds, executions, now = fuzzer_state.seconds, fuzzer_state.executions, live.progress if live else None
    if now and live:
        seconds, executions = seconds + live.seconds, executions + now.executions
        left = max(0.0, left - (now.executions if plan.budget.runs is not None else live.seconds))
    return FuzzerStatus(
        fuzzer=plan.name,
        state=_state(fuzzer_state, left, live, merging=merging),
        seconds=round(seconds, 3),
        budget=plan.budget.encode(),
        left=round(left, 3),
        slice=fuzzer_state.current,
        attempts=fuzzer_state.attempts,
        executions=executions,
        rate=round(_rate(seconds, executions, live), 1),
        edges=max(fuzzer_state.edges, now.edges if now else 0),
        features=max(fuzzer_state.features, now.features if now else 0),
        units=fuzzer_state.units + (live.added if live else 0),
        crashes=len(fuzzer_state.crashes),
        peak_rss=max(fuzzer_state.peak_rss, now.rss if now else 0),
        benched=fuzzer_state.benched,
    )


def _state(fuzzer_state: FuzzerState, left: float, live: LiveAttempt | None, *, merging: bool) -> Activity:
    if merging or (live and live.works):
        return "merging" if merging else "running"
    if fuzzer_state.benched:
        return "benched"
    return "waiting" if left else "done"


def _rate(seconds: float, executions: int, live: LiveAttempt | None) -> float:
    if live and live.works and live.seconds >= STEADY:
        return live.progress.executions / live.seconds
    return executions / seconds if seconds else 0.0


def of_campaign(
    definition: Definition,
    state: State,
    fuzzers: tuple[FuzzerStatus, ...],
    proof: tuple[bool | None, str],
    workers: int,
    what: CampaignState,
) -> Status:
    """The status of a campaign with these `fuzzers`; `proof` is what State.proof returns."""
    failed = sum(1 for boot in state.boots if boot.failure)
    return Status(
        *(definition.name, what, *proof, workers, state.processes),
        boots=len(state.boots) - failed,
        failed_boots=failed,
        fuzzers=fuzzers,
        by=Author.of(state.opened) if state.opened else Author(),
    )
