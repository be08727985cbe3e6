"""How a campaign stands, for whoever asks: what is true at this moment, whatever its process has come to."""

import json
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pipeline import ledger
from pipeline.campaign import budget
from pipeline.campaign.definition import Definition, FuzzerPlan
from pipeline.campaign.state import Standing, State
from pipeline.campaign.status import Author, CampaignState, FuzzerStatus, Live, Status, of_campaign, of_fuzzer
from pipeline.errors import CampaignBusy, InstanceBusy, StoreError
from pipeline.faults import host_faults
from pipeline.fuzzer.progress import Progress
from pipeline.ledger import Opened, Subject
from pipeline.publish import is_locked, locked, publish_json
from pipeline.text import one_line

log = logging.getLogger("topcoat")

LEDGER = "ledger.jsonl"
STATUS = "status.json"

_MOMENT = 2.0  # a process that is to end may not have heard of it yet


@dataclass(frozen=True)
class Reading:
    """A campaign as it is found in its directory."""

    status: Status
    state: State
    works: bool
    """Whether a process works at it, or at a piece of it, at this moment."""
    present: tuple[Subject, ...]
    """Its fuzzers as they were built and planned last."""


def read(directory: Path) -> Reading:
    """Read a campaign's ledger, which is never too old.

    Numbers that are newer than that are in status.json, and count while the process that has written them lives.
    Raises StoreError if the directory has no ledger, or one that cannot be understood.
    """
    # First: what ends in between is stopped, and has told all
    return _read(directory, works=is_locked(directory / LEDGER))


def _read(directory: Path, *, works: bool) -> Reading:
    state = State.of(ledger.read(directory / LEDGER))
    opened = state.whole or state.opened
    if opened is None:
        run_it = f"run it: luigi --module tasks FuzzCampaign --name {directory.name}"
        raise StoreError(f"{directory / LEDGER} tells of no campaign", hint=run_it)
    try:
        definition = Definition.decode(opened.definition)
    except ValueError as error:
        raise StoreError(
            f"{directory / LEDGER}: {error}", hint="it may be of another version of Topcoat; run the campaign again"
        ) from error
    present = tuple(_subject(state, opened, plan.name) for plan in definition.fuzzers)
    told = _told(directory / STATUS, state.opened) if works and state.opened else None
    return Reading(told or _reckoned(directory, definition, state, present, works=works), state, works, present)


def renew(directory: Path) -> None:
    """Have status.json, if there is one, tell what was done at a piece of the campaign; if it cannot, warn of that.

    If another process works at the campaign already, that will tell.
    """
    try:
        with suppress(InstanceBusy), locked(directory / LEDGER, 0.0):
            if (directory / STATUS).exists():
                publish_json(directory / STATUS, _read(directory, works=False).status.encode())
    except StoreError as error:
        log.warning("%s", error.message)


def require_free(directory: Path) -> None:
    """Raise CampaignBusy if a process works at the campaign, and is not about to end. Raises StoreError."""
    if is_locked(directory / LEDGER):
        with suppress(InstanceBusy), locked(directory / LEDGER, _MOMENT):
            return
        if busy := _busy(directory):
            raise busy


def _busy(directory: Path) -> CampaignBusy | None:
    """None if the process was stopped, and takes in what it has found."""
    opened = State.of(ledger.read(directory / LEDGER)).opened
    if opened is None:
        return CampaignBusy(f"another process begins the campaign {directory.name}", hint=_hint(directory))
    told = _told(directory / STATUS, opened)
    if told and told.state != "running":
        return None
    since = f", since {one_line(opened.started)}" if opened.started else ""
    return CampaignBusy(
        f"process {opened.pid} on {one_line(opened.host)} works at the campaign {directory.name}{since}",
        hint=_hint(directory),
    )


def _hint(directory: Path) -> str:
    return f"see how it stands: topcoat campaign status {directory.name}"


def _subject(state: State, opened: Opened, fuzzer: str) -> Subject:
    plan = next(str(one.get("digest", "")) for one in opened.definition["fuzzers"] if one["name"] == fuzzer)
    return Subject(fuzzer, state.builds.get(fuzzer, ""), plan)


def _told(file: Path, opened: Opened) -> Status | None:
    """What status.json says, if it is by that process."""
    with suppress(OSError, ValueError, RecursionError):
        found = Status.decode(json.loads(file.read_bytes()))
        if found.by == Author.of(opened):
            return found
    return None


def _reckoned(
    directory: Path, definition: Definition, state: State, present: tuple[Subject, ...], *, works: bool
) -> Status:
    """What the ledger says, of attempts that nobody has ended until where it is certain."""
    standings = [state.standing(subject) for subject in present]
    fuzzers = tuple(map(_fuzzer, definition.fuzzers, standings))
    merged = all(one.benched or not (one.unmerged and one.units > 1) for one in standings)
    over = merged and all(one.state in ("done", "benched") for one in fuzzers)
    what: CampaignState = "running" if works else "done" if over else "stopped"
    opened = state.whole or state.opened
    proof = state.proof(opened.host, opened.proof) if opened else (None, "")
    status = of_campaign(definition, state, fuzzers, proof, opened.workers if opened else 1, what)
    with host_faults("reading the ledger"):
        written = datetime.fromtimestamp((directory / LEDGER).stat().st_mtime, UTC)
    return replace(status, updated=f"{written:%Y-%m-%dT%H:%M:%SZ}")


def _fuzzer(plan: FuzzerPlan, standing: Standing) -> FuzzerStatus:
    live = None
    for last in (one.checkpoint for one in standing.slices.values() if one.open and one.checkpoint):
        progress = Progress(last.seconds, "", last.executions, last.edges, last.features)
        live = Live(last.seconds, progress, last.added, works=False)
    return of_fuzzer(plan, standing, budget.left(plan, standing), live, merging=False)
