"""What GitHub's code scanning would not take of a SARIF log, or would not show.

By "SARIF support for code scanning" and "SARIF results exceed limits" in GitHub's documentation.
"""

import gzip
import json
from collections.abc import Iterator, Mapping
from typing import Any

MOST_BYTES = 10_000_000
"""The most bytes of a log that is compressed by gzip."""

MOST_RESULTS, MOST_SHOWN = 25_000, 5_000
MOST_RULES = 25_000
MOST_RUNS = 20
MOST_STEPS = 10_000
"""The most locations in the code flows of one result."""


def problems(log: Mapping[str, Any]) -> list[str]:
    """Return what is in the way of uploading a log, one sentence each; [] if nothing is."""
    found = [*_too_many("runs", len(log["runs"]), MOST_RUNS)]
    for run in log["runs"]:
        found += _of_run(run)
    size = len(gzip.compress(json.dumps(log).encode()))
    return [*found, *_too_many("bytes after gzip", size, MOST_BYTES)]


def _too_many(what: str, number: int, most: int) -> Iterator[str]:
    if number > most:
        yield f"It has {number:,} {what}, and GitHub refuses a log with more than {most:,}."


def _of_run(run: Mapping[str, Any]) -> Iterator[str]:
    results = run["results"]
    yield from _too_many("results", len(results), MOST_RESULTS)
    yield from _too_many("rules", len(run["tool"]["driver"]["rules"]), MOST_RULES)
    yield from _too_many("locations in the code flows of one result", max(map(_steps, results), default=0), MOST_STEPS)
    if MOST_SHOWN < len(results) <= MOST_RESULTS:
        yield f"It has {len(results):,} results, and GitHub shows {MOST_SHOWN:,} of them."
    if unplaced := sum(not _is_placed(result) for result in results):
        yield f"{unplaced:,} of its results have no place in a file, and GitHub refuses the whole log for that."
    if absent := sum(result.get("baselineState") == "absent" for result in results):
        yield f"{absent:,} of its results are gone, and GitHub shows them as if they were there."


def _steps(result: Mapping[str, Any]) -> int:
    return sum(len(thread["locations"]) for flow in result.get("codeFlows", ()) for thread in flow["threadFlows"])


def _is_placed(result: Mapping[str, Any]) -> bool:
    return any("physicalLocation" in location for location in result["locations"][:1])
