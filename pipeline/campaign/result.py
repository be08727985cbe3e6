"""What has come of a campaign: campaign.json, and the same for people.

campaign.json, schema 1, is written when every budget is used, or its fuzzer benched, and removed when a process begins
to work at the campaign again; docs/campaign.md tells what each name means.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.campaign.definition import Definition
from pipeline.campaign.state import State
from pipeline.campaign.status import FuzzerStatus, Status
from pipeline.campaign.subjects import Subjects
from pipeline.crashes.report import title
from pipeline.crashes.vault import Group
from pipeline.duration import readable_duration
from pipeline.ledger import Subject
from pipeline.text import columns

RESULT = "campaign.json"
"""The file's name, in the campaign's directory. It is there only while the ledger says nothing newer."""

SCHEMA = 1
"""Tests hold a frozen sample."""

_EARLIER = "earlier: with other builds, options, environments, dictionaries or seeds of these fuzzers"
_COLUMNS = ("fuzzer", "state", "time", "executions", "per s", "cov", "ft", "corpus", "crashes")


def encode(
    status: Status, definition: Definition, state: State, subjects: Subjects, groups: Sequence[Group]
) -> dict[str, Any]:
    """campaign.json."""
    present = state.crashes(subjects.of.values())
    return {
        "schema": SCHEMA,
        "definition": definition.encode(),
        "build": subjects.build,
        "status": status.encode(),
        "fuzzers": {name: _fuzzer(state, subjects, name) for name in sorted(subjects.of)},
        "crashes": [
            asdict(group) | {"directory": f"crashes/{group.slug}", "present": present[group.slug]} for group in groups
        ],
        "boots": _boots(state),
        "lost": lost(state),
    }


def _fuzzer(state: State, subjects: Subjects, name: str) -> dict[str, Any]:
    subject = subjects.of[name]
    standing = state.standing(subject)
    return {
        "build": subject.build,
        "plan": subject.plan,
        "results": dict(standing.results),
        "crashes": dict(standing.crashes),
        "curve": [list(point) for point in standing.curve],
    }


def _boots(state: State) -> dict[str, Any]:
    good = [boot for boot in state.boots if not boot.failure]
    return {
        "booted": len(good),
        "seconds": round(sum(boot.seconds for boot in good), 3),
        "why": dict(Counter(boot.why for boot in good)),
        "failed": dict(Counter(boot.failure for boot in state.boots if boot.failure)),
    }


def lost(state: State) -> dict[str, float]:
    """Seconds in which guests did something else than fuzzing, by cause."""
    seconds: dict[str, float] = defaultdict(float)
    for boot in state.boots:
        seconds[f"boot failed: {boot.failure}" if boot.failure else "boots"] += boot.seconds
    seconds["canary"] = sum(proved.seconds for proved in state.proofs.values())
    seconds["merges"] = state.merging
    seconds["before and after runs"] = state.besides
    return {cause: round(value, 3) for cause, value in sorted(seconds.items()) if value}


def table(status: Status) -> list[str]:
    """Fuzzers, for people: one line each, below a head."""
    return columns([_COLUMNS, *(_row(one) for one in status.fuzzers)], texts=2)


def _row(one: FuzzerStatus) -> tuple[str, ...]:
    numbers = (one.executions, round(one.rate), one.edges, one.features, one.units, one.crashes)
    return (one.fuzzer, one.state, readable_duration(one.seconds), *(f"{number:,}" for number in numbers))


def summary(
    status: Status, state: State, subjects: Iterable[Subject], groups: Sequence[Group], directory: str
) -> Iterator[str]:
    """All, for people."""
    yield from table(status)
    yield ""
    yield from crashes(groups, state.crashes(subjects), directory)
    yield ""
    parts = [f"{cause} {readable_duration(seconds)}" for cause, seconds in lost(state).items()]
    yield f"{status.boots} boot{'' if status.boots == 1 else 's'}" + (
        f"; time besides fuzzing: {', '.join(parts)}" if parts else ""
    )
    yield proof(status)
    yield from (f"benched: {one.fuzzer}: {one.benched}" for one in status.fuzzers if one.benched)


def from_here(path: Path) -> str:
    """The path as it can be used in the current directory."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def crashes(groups: Sequence[Group], present: Mapping[str, int], directory: str) -> list[str]:
    """Groups of crashes, for people: one line each, below a head that tells where their files are.

    `present` counts those of each group that are of the fuzzers as they are built and planned now.
    """
    if not groups:
        return ["no crashes"]
    ordered = sorted(groups, key=lambda group: (not present.get(group.slug), group.fuzzers, group.slug))
    rows = [("crash", "fuzzer", "directory", "times", "earlier"), *(_crash_row(one, present) for one in ordered)]
    if all(row[-1] == "0" for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    told = f"crashes, with their files in {directory}/crashes:"
    return [told, *columns(rows, texts=3), *([_EARLIER] if len(rows[0]) > 4 else [])]


def _crash_row(group: Group, present: Mapping[str, int]) -> tuple[str, ...]:
    more = f" and {len(group.fuzzers) - 1} more" if len(group.fuzzers) > 1 else ""
    what = title(group.kind, group.frames)
    now = present.get(group.slug, 0)
    times = (f"{now:,}", f"{max(0, group.count - now):,}")
    return (what, f"{group.fuzzers[0]}{more}" if group.fuzzers else "", group.slug, *times)


def proof(status: Status) -> str:
    """Whether the campaign proves anything."""
    if status.proved:
        return "proved: the canary was found, reproduced and named"
    if status.unproved:
        return f"UNPROVED: the canary was not found: {status.unproved}"
    return "UNPROVED: no canary was looked for"
