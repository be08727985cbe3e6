"""The report of a campaign that is done: gathered from its result, from the store of crashes, and from verdicts.

::

    campaigns/NAME/report.json, report.sarif, report.junit.xml     see pipeline.campaign.report
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.campaign import minimising, proving, result
from pipeline.campaign.report import junit, matrix, sarif
from pipeline.campaign.report.matrix import Row
from pipeline.campaign.report.reported import BucketState, ReportedBucket, ReportedFuzzer
from pipeline.campaign.report.whole import (
    LEVELS,
    STANDINGS,
    THERE,
    MinimisedInput,
    Standing,
    Whole,
    WholeBucket,
    WholeFuzzer,
)
from pipeline.campaign.result import from_here
from pipeline.campaign.triage import inputs_of
from pipeline.errors import StoreError
from pipeline.fuzz.crashes import known, rules, verdicts
from pipeline.fuzz.crashes.bucket import Bucket
from pipeline.fuzz.crashes.crash import State
from pipeline.fuzz.crashes.known import KnownBucket
from pipeline.fuzz.crashes.severity import severity
from pipeline.fuzz.crashes.store import OTHERS, CrashStore
from pipeline.host.faults import host_faults
from pipeline.store import document
from pipeline.store.freshness import record_path
from pipeline.store.publish import as_json
from pipeline.text.printable import columns, one_line

FILES = ("report.json", "report.sarif", "report.junit.xml")
"""The names of the files of a report, in the directory of the campaign."""

FAILING: tuple[BucketState, ...] = ("new", "back")
"""The states of buckets that are failures in JUnit's document: as topcoat crash check has it."""

_MOST_TOLD = 20
_STATE_OF: Mapping[Standing, BucketState] = {"new": "new", "back": "back", "fixed": "gone"}


@dataclass(frozen=True)
class FoundCrash:
    """A bucket that a campaign has found with a present build, as its result tells."""

    fuzzer: str
    slug: str
    state: State
    present: int


@dataclass(frozen=True)
class CampaignResult:
    """What the report takes from campaign.json."""

    name: str
    updated: str
    build: str
    proved: bool | None
    builds: Mapping[str, str]
    """The digests of the present builds, by fuzzer."""
    fuzzers: tuple[ReportedFuzzer, ...]
    found: tuple[FoundCrash, ...]


def read(directory: Path) -> CampaignResult:
    """Read the result of the campaign in this directory. Raises StoreError if there is none that can be understood."""
    path = directory / result.RESULT
    with host_faults("reading the result of a campaign"):
        text = path.read_bytes()
    try:
        return _decoded(document.content(text, result.SCHEMA))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} cannot be understood: {one_line(str(error))}",
            hint="delete it and run the campaign again, which makes it anew",
        ) from error


def _decoded(told: Mapping[str, Any]) -> CampaignResult:
    status = told["status"]
    return CampaignResult(
        status["name"],
        status["updated"],
        told["build"],
        status["proved"],
        {name: one["build"] for name, one in told["fuzzers"].items()},
        tuple(
            ReportedFuzzer(one["fuzzer"], one["seconds"], one["executions"], failed=one["benched"])
            for one in status["fuzzers"]
        ),
        tuple(document.convert(one, FoundCrash) for one in told["crashes"] if one["present"]),
    )


def to_try(store: CrashStore, campaign: CampaignResult) -> list[Bucket]:
    """The buckets that any campaign has found with the present builds of this one, and of which something can be tried.

    Raises StoreError.
    """
    found = {(one.fuzzer, one.slug) for one in campaign.found}
    return [
        bucket
        for fuzzer, build in sorted(campaign.builds.items())
        for slug in store.slugs(fuzzer)
        if slug != OTHERS and (bucket := store.bucket(fuzzer, slug))
        if build in bucket.builds or (fuzzer, slug) in found
    ]


def untried(store: CrashStore, campaign: CampaignResult, version: int, tries: int) -> list[Bucket]:
    """The buckets of `to_try` of which inputs that this campaign has found have not been run so often.

    What other campaigns find while they go on is for their reports. `version` is that of the task that tries. Raises
    StoreError.
    """
    found = []
    for bucket in to_try(store, campaign):
        verdict = proving.current(store, bucket.fuzzer, bucket.slug, campaign.builds[bucket.fuzzer], version)
        mine = [one for one in store.crashes(bucket) if one.facts.campaign == campaign.name]
        known = {one.sha256 for one in verdict.inputs} if verdict and verdict.wanted >= tries else None
        if known is None or not known.issuperset(one.sha256 for one in inputs_of(mine)):
            found.append(bucket)
    return found


def unminimised(store: CrashStore, campaign: CampaignResult, version: int) -> list[Bucket]:
    """The buckets of `to_try` that have come again, and whose best input was not made smaller with the present build.

    Raises StoreError.
    """
    found = []
    for bucket in to_try(store, campaign):
        build = campaign.builds[bucket.fuzzer]
        verdict = proving.current(store, bucket.fuzzer, bucket.slug, build, version)
        inputs = inputs_of(store.crashes(bucket))
        came = {one.sha256 for one in verdict.inputs if one.same} if verdict else set()
        if verdict and came & {one.sha256 for one in inputs}:
            facts = _facts(store.directory(bucket.fuzzer, bucket.slug), build)
            if facts is None or minimising.choose(inputs, verdict, facts).sha256 != facts.original.sha256:
                found.append(bucket)
    return found


def made_of(store: CrashStore, campaign: CampaignResult) -> Iterator[tuple[Bucket, list[Path]]]:
    """Yield the buckets that the report tells of, and the files of their verdicts, with records, and minimised inputs.

    Raises StoreError.
    """
    for fuzzer in sorted(campaign.builds):
        for slug in store.slugs(fuzzer):
            if bucket := store.bucket(fuzzer, slug):
                place = store.directory(fuzzer, slug)
                with host_faults("looking for verdicts"):
                    told = sorted((place / verdicts.DIRECTORY).glob("*.json"))  # with their records
                facts = place / minimising.DIRECTORY / minimising.FILES[-1]
                yield bucket, [*told, *([facts] if facts.is_file() else [])]


def look(store: CrashStore, campaign: CampaignResult) -> Whole:
    """Gather all that the report tells. Raises StoreError."""
    found = {(one.fuzzer, one.slug): one for one in campaign.found}
    buckets: list[WholeBucket] = []
    for fuzzer, build in campaign.builds.items():
        slugs = store.slugs(fuzzer)
        whole = matrix.of_fuzzer(store, fuzzer, filter(None, (store.bucket(fuzzer, slug) for slug in slugs)))
        places = [one.digest for one in whole.builds]
        at = places.index(build) if build in places else len(places)
        told = known.look_all(store, [row.bucket for row in whole.rows])
        buckets += (
            _bucket(store, one, row, places, at, found.get((fuzzer, row.bucket.slug)))
            for one, row in zip(told, whole.rows, strict=True)
        )
    buckets.sort(key=lambda one: (STANDINGS.index(one.standing), one.bucket.fuzzer, one.bucket.slug))
    fuzzers = tuple(WholeFuzzer(one, campaign.builds[one.name]) for one in campaign.fuzzers)
    return Whole(campaign.name, campaign.updated, campaign.build, campaign.proved, fuzzers, tuple(buckets))


def _bucket(
    store: CrashStore, told: KnownBucket, row: Row, builds: Sequence[str], at: int, found: FoundCrash | None
) -> WholeBucket:
    bucket, shown, decision = told.bucket, told.shown, told.decision
    report = shown.facts.report if shown else None
    judged = severity(report) if report else None
    cell = row.cells[at] if at < len(row.cells) else matrix.Cell("")
    standing = _standing(row, cell, at, found)
    verdict = cell.verdict
    (file, line), (bad, good) = told.place, (row.first_bad, row.first_good)
    reported = ReportedBucket(
        slug=bucket.slug,
        fuzzer=bucket.fuzzer,
        kind=bucket.kind,
        title=bucket.title,
        message=report.message if report else "",
        report=report,
        deciding=tuple(decision.telling) if decision and report else (),
        state=_STATE_OF.get(standing, "known"),
        rule=bucket.rule,
        severity=judged.sentence if judged else "",
        level=LEVELS[judged.effect] if judged else "warning",
        reproduced=(verdict.same, verdict.tries) if verdict and verdict.tries else None,
        count=bucket.count,
    )
    return WholeBucket(
        bucket,
        reported,
        standing,
        found.present if found else 0,
        cell,
        None if bad is None else builds[bad],
        None if good is None else builds[good],
        judged,
        file,
        line,
        shown.facts.size if shown else None,
        _minimised(told.directory, cell.build),
        str(told.directory.relative_to(store.root.parent)),
    )


def _standing(row: Row, cell: matrix.Cell, at: int, found: FoundCrash | None) -> Standing:
    if found:
        return found.state
    if cell.bad:
        return "still"
    last = row.known_at(at)
    if last and last.good:
        return "fixed"
    if cell.masked_by:
        return "masked"
    return "not known" if cell.verdict and cell.verdict.outcome == "none" else "not run"


def _minimised(bucket: Path, build: str) -> MinimisedInput | None:
    """What has become of a minimised input with this build; None if there is none that can be understood."""
    if facts := _facts(bucket, build):
        return MinimisedInput(facts.result.size, facts.original.size, facts.confirmed, facts.of, facts.why)
    return None


def _facts(bucket: Path, build: str) -> minimising.Facts | None:
    try:
        with host_faults("reading what was minimised"):
            made = record_path(bucket / minimising.DIRECTORY / minimising.FILES[0]).exists()
            facts = minimising.read(bucket) if made else None
    except ValueError:  # then it is made anew
        return None
    return facts if facts and (facts.build, facts.rule) == (build, rules.DEFAULT.versioned) else None


def write(files: Sequence[Path], whole: Whole) -> None:
    """Write FILES to these paths, in that order. Raises OSError."""
    buckets = [one.reported for one in whole.buckets]
    contents = (
        as_json(whole.encode()),
        as_json(sarif.encode(buckets, campaign=whole.campaign)),
        junit.encode(whole.campaign, [one.reported for one in whole.fuzzers], buckets, failing=FAILING),
    )
    for path, content in zip(files, contents, strict=True):
        path.write_bytes(content)


def summary(whole: Whole, directory: Path) -> Iterator[str]:
    """The lines that tell people what the report has, and where its files are."""
    yield ""
    there = [one for one in whole.buckets if one.standing in THERE]
    if there:
        yield from columns(
            [("crash", "fuzzer", "state", "again", "severity", "bytes"), *map(_row, there[:_MOST_TOLD])], 5
        )
    if len(there) > _MOST_TOLD:
        yield f"and {len(there) - _MOST_TOLD} more"
    counts = whole.counts
    yield (
        f"{whole.campaign}: {counts['new']} new, {counts['known']} known, {counts['back']} back; "
        f"known and not found this time: {counts['still']} still there, {counts['fixed']} fixed"
        + "".join(f", {counts[one]} {one}" for one in ("masked", "not run", "not known") if counts[one])
    )
    if whole.buckets:
        yield "by build: topcoat crash matrix; what is new: topcoat crash check"
    yield f"report: {', '.join(from_here(directory / name) for name in FILES)}"


def _row(one: WholeBucket) -> tuple[str, ...]:
    verdict, size = one.cell.verdict, one.minimised.size if one.minimised else one.size
    return (
        one_line(one.bucket.title, 60),
        one.bucket.fuzzer,
        one.standing,
        f"{verdict.same}/{verdict.tries}" if verdict else "-",
        one.severity.effect if one.severity else "-",
        "-" if size is None else f"{size:,}",
    )
