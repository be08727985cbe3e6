"""The result of a campaign: campaign.json, and a summary for people.

campaign.json is written when every budget is used or its fuzzer benched, and removed when a process begins
to work at the campaign again. docs/campaign.md tells what each name means.
"""

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.campaign.found import FoundBucket
from pipeline.campaign.plan.definition import Definition
from pipeline.campaign.state import State
from pipeline.campaign.status import FuzzerStatus, Status
from pipeline.campaign.subjects import Subjects
from pipeline.text.printable import columns
from pipeline.text.quantity import readable_duration

RESULT = "campaign.json"
"""The name of the file in the campaign's directory. It is there only while the ledger says nothing newer."""

SCHEMA = 3
"""The version of campaign.json's format. Tests hold a frozen sample."""

_EARLIER = "earlier: with other builds, options, environments, dictionaries or seeds of these fuzzers"
_COLUMNS = ("fuzzer", "state", "time", "executions", "per s", "cov", "ft", "corpus", "crashes")
_CRASH_COLUMNS = ("crash", "fuzzer", "state", "directory", "times", "earlier")
_TOLD = ("fuzzer", "slug", "kind", "frames", "rule", "first_seen", "last_seen", "count", "builds", "campaigns")


def encode(
    status: Status,
    definition: Definition,
    state: State,
    subjects: Subjects,
    buckets: Sequence[FoundBucket],
    store: Path,
) -> dict[str, Any]:
    """The content of campaign.json. Directories in it are relative to that of the store."""
    return {
        "schema": SCHEMA,
        "definition": definition.encode(),
        "build": subjects.build,
        "status": status.encode(),
        "fuzzers": {name: _fuzzer(state, subjects, name) for name in sorted(subjects.of)},
        "crashes": [_crash(one, store) for one in buckets],
        "boots": _boots(state),
        "lost": lost(state),
    }


def _crash(found: FoundBucket, store: Path) -> dict[str, Any]:
    whole = asdict(found.bucket)
    return {name: whole[name] for name in _TOLD} | {
        "state": found.state,
        "present": found.present,
        "earlier": found.earlier,
        "directory": str(found.directory.relative_to(store)),
        "capsule": str(found.capsule.relative_to(store)) if found.capsule else None,
    }


def _fuzzer(state: State, subjects: Subjects, name: str) -> dict[str, Any]:
    subject = subjects.of[name]
    fuzzer_state = state.fuzzer_state(subject)
    return {
        "build": subject.build,
        "plan": subject.plan,
        "results": dict(fuzzer_state.results),
        "crashes": dict(fuzzer_state.crashes),
        "curve": [list(point) for point in fuzzer_state.curve],
    }


def _boots(state: State) -> dict[str, Any]:
    good = [boot for boot in state.boots if not boot.failure]
    return {
        "booted": len(good),
        "cloned": sum(boot.cloned for boot in good),
        "seconds": round(sum(boot.seconds for boot in good), 3),
        "why": dict(Counter(boot.why for boot in good)),
        "failed": dict(Counter(boot.failure for boot in state.boots if boot.failure)),
    }


def lost(state: State) -> dict[str, float]:
    """Seconds in which guests did something other than fuzzing, by cause; a cause that took none is left out."""
    seconds: dict[str, float] = defaultdict(float)
    for boot in state.boots:
        seconds[f"boot failed: {boot.failure}" if boot.failure else "boots"] += boot.seconds
    seconds["canary"] = sum(proved.seconds for proved in state.proofs.values())
    seconds["merges"] = state.merging
    seconds["before and after runs"] = state.besides
    return {cause: round(value, 3) for cause, value in sorted(seconds.items()) if value}


def table(status: Status) -> list[str]:
    """A table of the fuzzers for people: a head, and one line for each."""
    return columns([_COLUMNS, *(_row(one) for one in status.fuzzers)], texts=2)


def _row(one: FuzzerStatus) -> tuple[str, ...]:
    numbers = (one.executions, round(one.rate), one.edges, one.features, one.units, one.crashes)
    return (one.fuzzer, one.state, readable_duration(one.seconds), *(f"{number:,}" for number in numbers))


def summary(status: Status, state: State, buckets: Sequence[FoundBucket], store: Path) -> Iterator[str]:
    """The lines that tell people all: fuzzers, crashes, boots, lost time, the canary, and what was benched."""
    yield from table(status)
    yield ""
    yield from crashes(buckets, store)
    yield ""
    parts = [f"{cause} {readable_duration(seconds)}" for cause, seconds in lost(state).items()]
    cloned = sum(boot.cloned for boot in state.boots)
    yield (
        f"{status.boots} boot{'' if status.boots == 1 else 's'}"
        + (f", {cloned} by cloning" if cloned else "")
        + (f"; time besides fuzzing: {', '.join(parts)}" if parts else "")
    )
    yield proof(status)
    yield from (f"benched: {one.fuzzer}: {one.benched}" for one in status.fuzzers if one.benched)


def from_here(path: Path) -> str:
    """The path, relative to the current directory if it is below that."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def crashes(buckets: Sequence[FoundBucket], store: Path) -> list[str]:
    """A table of the buckets for people: a line that tells where their files are, a head, and one line for each."""
    if not buckets:
        return ["no crashes"]
    ordered = sorted(buckets, key=lambda one: (not one.present, one.bucket.fuzzer, one.bucket.slug))
    rows = [_CRASH_COLUMNS, *map(_crash_row, ordered)]
    if not any(one.earlier for one in buckets):
        rows = [row[:-1] for row in rows]
    shared = store / "crashes"
    apart = sorted({str(one.directory.parent) for one in ordered if not one.directory.is_relative_to(shared)})
    kept = [one.directory for one in ordered if one.capsule]
    return [
        f"crashes, with their files in {from_here(shared)}/FUZZER/DIRECTORY; in full: topcoat crash show DIRECTORY",
        *columns(rows, texts=4),
        *([_EARLIER] if len(rows[0]) == len(_CRASH_COLUMNS) else []),
        *(f"found by an older version of Topcoat, with their files in {from_here(Path(place))}" for place in apart),
        *(["", "capsules, each a guest as it was at a crash:"] if kept else []),
        *(f"topcoat open {shlex.quote(from_here(directory))}" for directory in kept),
    ]


def _crash_row(found: FoundBucket) -> tuple[str, ...]:
    bucket, times = found.bucket, (f"{found.present:,}", f"{found.earlier:,}")
    return (bucket.title, bucket.fuzzer, found.state, bucket.slug, *times)


def proof(status: Status) -> str:
    """One line that tells whether the campaign proves anything, by its canary."""
    if status.proved:
        return "proved: the canary was found, reproduced and named"
    if status.unproved:
        return f"UNPROVED: the canary was not found: {status.unproved}"
    return "UNPROVED: no canary was looked for"
