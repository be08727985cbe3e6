"""How a campaign stands, as a value: what status.json holds, and what tables are drawn from.

status.json, schema 1, is written anew each few seconds while a process works at the campaign, and when it ends in any
way but by SIGKILL; pipeline.campaign.reading tells what is true in spite of that. docs/campaign.md tells what each
name means.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from pipeline.campaign.definition import Definition, FuzzerPlan
from pipeline.campaign.state import Standing, State
from pipeline.deadline import utc_now
from pipeline.fuzzer.progress import Progress
from pipeline.ledger import Opened

SCHEMA = 1
"""Tests hold a frozen sample."""

STEADY = 5.0
"""Seconds from which on what an attempt did tells how fast it is: libFuzzer tells less and less often."""

FuzzerState = Literal["waiting", "running", "merging", "done", "benched"]
CampaignState = Literal["running", "stopped", "done"]


@dataclass(frozen=True)
class FuzzerStatus:
    """How one fuzzer stands, with what runs at this moment."""

    fuzzer: str
    state: FuzzerState
    seconds: float
    """For which it ran."""
    budget: dict[str, int]
    """Seconds or runs, see pipeline.campaign.definition.Budget."""
    left: float
    """Of the budget: seconds or runs."""
    slice: int
    attempts: int
    executions: int
    rate: float
    """Executions a second: at this moment if it has been running for a while, else over all."""
    edges: int
    features: int
    units: int
    crashes: int
    """Groups."""
    peak_rss: int
    """MiB"""
    benched: str
    """Why, if it is."""


@dataclass(frozen=True)
class Author:
    """The process that works at a campaign, or did so last."""

    host: str = ""
    pid: int = 0
    started: str = ""
    """When it began to, UTC."""
    start_ticks: int = 0
    """See pipeline.process.Process."""
    host_boot_id: str = ""

    @classmethod
    def of(cls, opened: Opened) -> "Author":
        """Who has written that."""
        process = opened.process
        ticks, boot = int(process.get("start_ticks", 0)), str(process.get("host_boot_id", ""))
        return cls(opened.host, opened.pid, opened.started, ticks, boot)


@dataclass(frozen=True)
class Status:
    """How all stand."""

    name: str
    state: CampaignState
    proved: bool | None
    """Whether the canary was found; None if it was not looked for yet, or is not wanted."""
    unproved: str
    """Why not."""
    workers: int
    processes: int
    """That have worked at it."""
    boots: int
    failed_boots: int
    fuzzers: tuple[FuzzerStatus, ...]
    by: Author = Author()
    updated: str = field(default_factory=utc_now)
    """Until when all that has happened is in it, UTC."""

    @property
    def seconds(self) -> float:
        """For which all fuzzers ran."""
        return sum(one.seconds for one in self.fuzzers)

    @property
    def executions(self) -> int:
        """Of all."""
        return sum(one.executions for one in self.fuzzers)

    @property
    def left(self) -> float | None:
        """Seconds until all is done, if every fuzzer has a budget of seconds."""
        open_ones = [one for one in self.fuzzers if one.state not in ("done", "benched")]
        if any("runs" in one.budget for one in open_ones):
            return None
        total = sum(one.left for one in open_ones)
        longest = max((one.left for one in open_ones), default=0.0)
        return max(longest, total / max(1, self.workers))

    @classmethod
    def decode(cls, data: Any) -> "Status":
        """What `encode` has written. Raises ValueError."""
        try:
            if data["schema"] != SCHEMA:
                raise ValueError(f"its schema is {data['schema']!r}, not {SCHEMA}")
            own = {one.name: data[one.name] for one in fields(cls) if one.name != "by"}
            by = Author(**{one.name: data[one.name] for one in fields(Author)})
            return cls(**own | {"fuzzers": tuple(FuzzerStatus(**one) for one in data["fuzzers"]), "by": by})
        except (KeyError, TypeError) as error:
            raise ValueError(f"a field is missing or wrong: {error}") from error

    def encode(self) -> dict[str, Any]:
        """For JSON."""
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
class Live:
    """What an attempt adds that is not over."""

    seconds: float
    progress: Progress
    added: int = 0
    """Units that it has brought to the corpus."""
    works: bool = True
    """Whether somebody works at it at this moment: not if its process is gone."""


def of_fuzzer(plan: FuzzerPlan, standing: Standing, left: float, live: Live | None, *, merging: bool) -> FuzzerStatus:
    """The status of one fuzzer."""
    seconds, executions, now = standing.seconds, standing.executions, live.progress if live else None
    if now and live:
        seconds, executions = seconds + live.seconds, executions + now.executions
        left = max(0.0, left - (now.executions if plan.budget.runs is not None else live.seconds))
    return FuzzerStatus(
        fuzzer=plan.name,
        state=_state(standing, left, live, merging=merging),
        seconds=round(seconds, 3),
        budget=plan.budget.encode(),
        left=round(left, 3),
        slice=standing.current,
        attempts=standing.attempts,
        executions=executions,
        rate=round(_rate(seconds, executions, live), 1),
        edges=max(standing.edges, now.edges if now else 0),
        features=max(standing.features, now.features if now else 0),
        units=standing.units + (live.added if live else 0),
        crashes=len(standing.crashes),
        peak_rss=max(standing.peak_rss, now.rss if now else 0),
        benched=standing.benched,
    )


def _state(standing: Standing, left: float, live: Live | None, *, merging: bool) -> FuzzerState:
    if merging or (live and live.works):
        return "merging" if merging else "running"
    if standing.benched:
        return "benched"
    return "waiting" if left else "done"


def _rate(seconds: float, executions: int, live: Live | None) -> float:
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
    """The status of all."""
    failed = sum(1 for boot in state.boots if boot.failure)
    return Status(
        *(definition.name, what, *proof, workers, state.processes),
        boots=len(state.boots) - failed,
        failed_boots=failed,
        fuzzers=fuzzers,
        by=Author.of(state.opened) if state.opened else Author(),
    )
