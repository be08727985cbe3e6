"""How a campaign stands at this moment, whatever has become of its process."""

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pipeline.campaign import budget, ledger
from pipeline.campaign.ledger import Opened, Subject
from pipeline.campaign.plan.definition import Definition, FuzzerPlan
from pipeline.campaign.state import FuzzerState, State
from pipeline.campaign.status import Author, CampaignState, FuzzerStatus, LiveAttempt, Status, of_campaign, of_fuzzer
from pipeline.errors import CampaignBusy, InstanceBusy, StoreError
from pipeline.fuzz.stats import Stats
from pipeline.host.faults import host_faults
from pipeline.host.locks import is_locked, locked
from pipeline.store.publish import publish_json
from pipeline.text.printable import one_line

log = logging.getLogger("topcoat")

LEDGER = "ledger.jsonl"
STATUS = "status.json"

_MOMENT = 2.0  # seconds; a process that is to end may not have heard of it yet


@dataclass(frozen=True)
class Reading:
    """A campaign as it is found in its directory."""

    status: Status
    state: State
    works: bool
    """Whether a process works at the campaign, or at a piece of it, at this moment."""
    present: tuple[Subject, ...]
    """Its fuzzers as they were last built and planned."""


def read(directory: Path) -> Reading:
    """Read how a campaign stands from its ledger, which is never out of date.

    Newer numbers are in status.json, and count while the process that has written them lives. Raises StoreError if the
    directory has no ledger, or one that cannot be understood.
    """
    # The lock is looked at first: a process that ends in between has noted all
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
    """Bring status.json up to date, if there is one, after work at a piece of the campaign. Failure is only logged.

    If another process already works at the campaign, that one will do it.
    """
    try:
        with suppress(InstanceBusy), locked(directory / LEDGER, 0.0):
            if (directory / STATUS).exists():
                publish_json(directory / STATUS, _read(directory, works=False).status.encode())
    except StoreError as error:
        log.warning("%s", error.message)


def require_free(directory: Path) -> None:
    """Raise CampaignBusy if a process works at the campaign and is not about to end. May also raise StoreError."""
    if is_locked(directory / LEDGER):
        with suppress(InstanceBusy), locked(directory / LEDGER, _MOMENT):
            return
        if busy := _busy(directory):
            raise busy


def _busy(directory: Path) -> CampaignBusy | None:
    """The error for a campaign that is worked at; None if its process was stopped, and only takes in what it has."""
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
    """What status.json says, if the process of this entry has written it; else None."""
    with suppress(OSError, ValueError):
        found = Status.decode(file.read_bytes())
        if found.by == Author.of(opened):
            return found
    return None


def _reckoned(
    directory: Path, definition: Definition, state: State, present: tuple[Subject, ...], *, works: bool
) -> Status:
    """The status by the ledger alone. Attempts that have not ended count as far as they are known to have come."""
    fuzzer_states = [state.fuzzer_state(subject) for subject in present]
    fuzzers = tuple(map(_fuzzer, definition.fuzzers, fuzzer_states))
    merged = all(one.benched or not (one.unmerged and one.units > 1) for one in fuzzer_states)
    over = merged and all(one.state in ("done", "benched") for one in fuzzers)
    what: CampaignState = "running" if works else "done" if over else "stopped"
    opened = state.whole or state.opened
    proof = state.proof(opened.host, opened.proof) if opened else (None, "")
    status = of_campaign(definition, state, fuzzers, proof, opened.workers if opened else 1, what)
    with host_faults("reading the ledger"):
        written = datetime.fromtimestamp((directory / LEDGER).stat().st_mtime, UTC)
    return replace(status, updated=f"{written:%Y-%m-%dT%H:%M:%SZ}")


def _fuzzer(plan: FuzzerPlan, fuzzer_state: FuzzerState) -> FuzzerStatus:
    live = None
    for last in (one.checkpoint for one in fuzzer_state.slices.values() if one.open and one.checkpoint):
        progress = Stats(last.seconds, "", last.executions, last.edges, last.features)
        live = LiveAttempt(last.seconds, progress, last.added, works=False)
    return of_fuzzer(plan, fuzzer_state, budget.left(plan, fuzzer_state), live, merging=False)
