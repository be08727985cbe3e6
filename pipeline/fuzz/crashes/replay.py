"""What came of running the inputs of a bucket or of a bundle again: for people, for machines, and as an exit code."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pipeline.errors import TopcoatError
from pipeline.fuzz.crashes.bundle import Bundle, DigestDifference
from pipeline.store.digests import shortened
from pipeline.text.printable import columns, one_line

SCHEMA = 1
"""The version of the answer for machines."""

_UNDECIDED = ("timeout", "guest lost", "not run")
_NOWHERE = "none here"


class ReplayVerdict(Protocol):
    """What the tries came to, as a verdict of a bucket has it."""

    @property
    def outcome(self) -> str:
        """`same bucket`, `other bucket`, `none`, `timeout`, `guest lost` or `not run`."""

    @property
    def tries(self) -> int:
        """How often an input was run."""

    @property
    def same(self) -> int:
        """How many tries ended in the bucket."""

    @property
    def others(self) -> Mapping[str, int]:
        """How many tries ended in which other buckets, the most frequent first."""

    @property
    def none(self) -> int:
        """How many tries ran to their end."""

    @property
    def timeout(self) -> int:
        """How many tries were killed, as they did not end."""

    @property
    def lost(self) -> int:
        """In how many tries the guest was lost."""

    @property
    def failed(self) -> int:
        """How many tries ended otherwise, which says nothing."""

    @property
    def trouble(self) -> str:
        """What went wrong, so that tries are missing or say nothing; empty if nothing did."""


def exit_code(verdict: ReplayVerdict) -> int:
    """Return 0 if the crash came again, 1 if something else came or nothing, and 30 if nobody can tell."""
    if verdict.outcome == "same bucket":
        return 0
    return TopcoatError.exit_code if verdict.outcome in _UNDECIDED else 1


def told(verdict: ReplayVerdict) -> str:
    """Return the outcome in a few words: `same bucket`, `other bucket NAME`, `none`, or why nobody can tell."""
    if verdict.outcome == "other bucket":
        return f"other bucket {one_line(next(iter(verdict.others), '?'))}"
    if verdict.outcome == "not run" and verdict.trouble:
        return f"not run: {one_line(verdict.trouble)}"
    return verdict.outcome


def counted(fuzzer: str, bucket: str, verdict: ReplayVerdict) -> list[str]:
    """Return the lines for people that tell the outcome, and how many of the tries ended in which way."""
    faults = {"timeout": verdict.timeout, "guest lost": verdict.lost, "failed": verdict.failed}
    counts = [("same bucket", verdict.same), *verdict.others.items(), ("none", verdict.none), *faults.items()]
    rows = [("  " + one_line(way), f"{count} of {verdict.tries}") for way, count in counts if count]
    lines = [f"{one_line(bucket)} of {one_line(fuzzer)}: {told(verdict)}", *(columns(rows, 1) if rows else [])]
    if verdict.trouble and verdict.outcome != "not run":
        lines.append(f"trouble: {one_line(verdict.trouble)}")
    return lines


def lines(bundle: Bundle, verdict: ReplayVerdict, differences: Sequence[DigestDifference]) -> list[str]:
    """Return the lines for people: the outcome, each way in which tries ended, and the digests that differ."""
    head = counted(bundle.fuzzer, bundle.bucket, verdict)
    if not differences:
        return [*head, "it ran with what the bundle tells of"]
    table = [
        (one.group, one.name, shortened(one.then) or "none", shortened(one.now) or _NOWHERE) for one in differences
    ]
    return [
        *head,
        "these digests differ from those in the bundle:",
        *columns([("  of", "name", "then", "here"), *(("  " + row[0], *row[1:]) for row in _cleaned(table))], 4),
    ]


def _cleaned(table: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [tuple(map(one_line, row)) for row in table]


def encode_verdict(fuzzer: str, bucket: str, verdict: ReplayVerdict) -> dict[str, Any]:
    """Return the outcome and the counts as data for JSON."""
    return {
        "schema": SCHEMA,
        "fuzzer": fuzzer,
        "bucket": bucket,
        "outcome": verdict.outcome,
        "told": told(verdict),
        "tries": verdict.tries,
        "same": verdict.same,
        "none": verdict.none,
        "others": dict(verdict.others),
        "timeout": verdict.timeout,
        "lost": verdict.lost,
        "failed": verdict.failed,
        "trouble": verdict.trouble or None,
    }


def encode(bundle: Bundle, verdict: ReplayVerdict, differences: Sequence[DigestDifference]) -> dict[str, Any]:
    """Return the same with the digests that differ; one that is missing on one side is null."""
    return encode_verdict(bundle.fuzzer, bundle.bucket, verdict) | {
        "differences": [
            {"group": one.group, "name": one.name, "then": one.then or None, "now": one.now or None}
            for one in differences
        ],
    }
