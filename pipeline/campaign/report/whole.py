"""All that a campaign tells of the crashes of its fuzzers: report.json. The other documents are made of it, too.

docs/campaign.md tells what each name means.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.campaign.report.matrix import Cell
from pipeline.campaign.report.reported import ReportedBucket, ReportedFuzzer, ReportedLevel, stack_lines
from pipeline.fuzz.crashes import severity as severities
from pipeline.fuzz.crashes.bucket import Bucket
from pipeline.fuzz.crashes.severity import Severity
from pipeline.text.printable import one_line

SCHEMA = 1
"""The version of report.json's format. A test holds a frozen sample of it."""

LEVELS: Mapping[str, ReportedLevel] = {
    severities.EXECUTION: "error",
    severities.CORRUPTION: "error",
    severities.DISCLOSURE: "warning",
    severities.DEPENDS: "warning",
    severities.AVAILABILITY: "note",
    severities.UNKNOWN: "warning",
}
"""The level in SARIF of each effect that a crash can have."""

Standing = Literal["new", "back", "known", "still", "fixed", "masked", "not run", "not known"]
"""How a bucket stands with the present build of its fuzzer.

new, back, known: this campaign has found it with that build, and told this of it. still: another campaign has, or its
inputs crash there again. fixed: a verdict says so. masked: another crash comes first. not run: its inputs were not
tried, or could not be. not known: they were tried, and that proves nothing.
"""

STANDINGS: tuple[Standing, ...] = ("new", "back", "known", "still", "masked", "not run", "not known", "fixed")
"""All of them, in the order in which buckets are told."""

THERE: tuple[Standing, ...] = ("new", "back", "known", "still")
"""Those of buckets that are there for certain."""


@dataclass(frozen=True)
class MinimisedInput:
    """What has become of an input of the bucket that was made smaller, with the present build."""

    size: int
    original: int
    """Its size in bytes before; both are."""
    confirmed: int
    """In how many of the `of` last runs the result was in the bucket."""
    of: int
    why: str
    """Why it ended: see pipeline.fuzz.crashes.minimise."""


@dataclass(frozen=True)
class WholeBucket:
    """All that a campaign tells of a bucket."""

    bucket: Bucket
    reported: ReportedBucket
    """What SARIF and JUnit tell of it."""
    standing: Standing
    present: int
    """How many crashes of it this campaign has found with the present build."""
    cell: Cell
    """What is known of it with the present build."""
    first_bad: str | None
    """The digest of the first bad build; None if none is known."""
    first_good: str | None
    """The digest of the first good build after the last bad one; None if there is none."""
    severity: Severity | None
    """How bad it can be; None if no crash of it is kept."""
    file: str
    line: int
    """The place of the first frame that decided; empty and 0 if it is not known."""
    size: int | None
    """The bytes of its smallest input that is kept; None if none is."""
    minimised: MinimisedInput | None
    directory: str
    """The directory of the bucket, relative to that of the store."""

    def encode(self) -> dict[str, Any]:
        """The bucket as values for JSON."""
        bucket, reported, verdict = self.bucket, self.reported, self.cell.verdict
        return {
            "fuzzer": bucket.fuzzer,
            "slug": bucket.slug,
            "title": bucket.title,
            "kind": bucket.kind,
            "frames": list(bucket.frames),
            "rule": bucket.rule,
            "state": reported.state,
            "standing": self.standing,
            "word": self.cell.word or None,
            "verdict": {
                "outcome": verdict.outcome,
                "same": verdict.same,
                "tries": verdict.tries,
                "others": dict(verdict.others),
                "trouble": verdict.trouble,
                "made": verdict.made,
            }
            if verdict
            else None,
            "severity": asdict(self.severity) | {"level": reported.level} if self.severity else None,
            "file": self.file or None,
            "line": self.line or None,
            "message": one_line(reported.message),
            "stack": stack_lines(reported.report) if reported.report else [],
            "count": bucket.count,
            "present": self.present,
            "first_seen": bucket.first_seen,
            "last_seen": bucket.last_seen,
            "first_bad": self.first_bad,
            "first_good": self.first_good,
            "size": self.size,
            "minimised": asdict(self.minimised) if self.minimised else None,
            "directory": self.directory,
        }


@dataclass(frozen=True)
class WholeFuzzer:
    """What a campaign tells of a fuzzer."""

    reported: ReportedFuzzer
    build: str
    """The digest of its present build."""

    def encode(self) -> dict[str, Any]:
        """The fuzzer as values for JSON."""
        facts = self.reported
        return {
            "fuzzer": facts.name,
            "build": self.build,
            "seconds": facts.seconds,
            "executions": facts.executions,
            "failed": facts.failed or None,
        }


@dataclass(frozen=True)
class Whole:
    """All that a campaign tells of the crashes of its fuzzers."""

    campaign: str
    updated: str
    """When the campaign was done: in UTC."""
    build: str
    """The digest of all that the build gives to the guests."""
    proved: bool | None
    """Whether the canary was found; None if it was not looked for."""
    fuzzers: tuple[WholeFuzzer, ...]
    buckets: tuple[WholeBucket, ...]
    """In the order of STANDINGS, then by fuzzer and slug."""

    @property
    def counts(self) -> dict[Standing, int]:
        """How many buckets stand how."""
        found = Counter(one.standing for one in self.buckets)
        return {standing: found[standing] for standing in STANDINGS}

    def encode(self) -> dict[str, Any]:
        """The content of report.json."""
        return {
            "schema": SCHEMA,
            "campaign": self.campaign,
            "updated": self.updated,
            "build": self.build,
            "proved": self.proved,
            "counts": self.counts,
            "fuzzers": [one.encode() for one in self.fuzzers],
            "buckets": [one.encode() for one in self.buckets],
        }
