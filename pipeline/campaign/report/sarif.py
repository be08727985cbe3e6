"""Crashes as a SARIF log, version 2.1.0 with errata 01, by OASIS: for code scanning, editors and other tools.

There is one rule for each kind of crash, and one result for each bucket. What is not in the standard but in a result's
property bag: `bucket`, `fuzzer`, `state`, `severity`, `reproduced`, `tries`. Section numbers below are the standard's.
"""

import posixpath
import re
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any
from urllib.parse import quote

import pipeline
from pipeline.campaign.report.explanations import explanation
from pipeline.campaign.report.reported import BucketState, ReportedBucket, sentences
from pipeline.fuzz.crashes import functions
from pipeline.fuzz.crashes.report import CrashReport
from pipeline.fuzz.crashes.stack import Frame
from pipeline.text.printable import one_line

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
VERSION = "2.1.0"

SOURCE_ROOT = "%SRCROOT%"
"""What relative locations are relative to: the name that GitHub's own tools give to the root of the source."""

UNKNOWN_PLACE = "Where in the source it happened is not known: its stack tells no file and line of the target's own."
"""What the message of a result without a place says."""

_BASELINES: dict[BucketState, str] = {"new": "new", "back": "new", "known": "unchanged", "gone": "absent"}
_TAGS = ["crash", "fuzzing"]
_LONGEST_TEXT = 500  # of a rule: GitHub takes texts of 1024 characters, and some are escaped here


def encode(
    buckets: Sequence[ReportedBucket], *, campaign: str = "", source_root: str = "", stand_in: str = ""
) -> dict[str, Any]:
    """Return the log as data for JSON. It is the same for the same buckets, in whatever order they come.

    `campaign` becomes the category of the run, by which tools tell it from others of the same source. `source_root` is
    the absolute path below which the target's source was when it was built: what lies below it gets a relative URI, and
    what lies elsewhere an absolute one. A relative path in a stack is one from a build directory in the source root, so
    leading `..` are left out. `stand_in` is the path, relative to the source root, of a file at whose first line
    results without a known place are shown: without it they only have a logical location, and GitHub refuses the whole
    log for that.
    """
    ordered = sorted(buckets, key=lambda bucket: (bucket.fuzzer, bucket.slug))
    rules = {_rule_id(bucket.kind): bucket.kind for bucket in reversed(ordered)}
    indices = {rule: index for index, rule in enumerate(sorted(rules))}
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": "Topcoat",
                "version": pipeline.__version__,
                "semanticVersion": pipeline.__version__,
                "rules": [_rule(rule, rules[rule]) for rule in indices],
            }
        },
        "originalUriBaseIds": {SOURCE_ROOT: _root(source_root)},
        "results": [_result(bucket, indices, source_root, stand_in) for bucket in ordered],
    }
    if campaign:
        run["automationDetails"] = {"id": f"topcoat/{one_line(campaign)}/"}
    return {"$schema": SCHEMA, "version": VERSION, "runs": [run]}


def _rule_id(kind: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", one_line(kind, 80)).strip("-") or "unknown"


def _rule(rule: str, kind: str) -> dict[str, Any]:
    what, how = explanation(kind)
    return {
        "id": rule,
        "shortDescription": _message(kind or rule, _LONGEST_TEXT),
        "fullDescription": _message(what, _LONGEST_TEXT),
        "help": _message(f"{what} {how}"),
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": _TAGS, "precision": "very-high"},
    }


def _root(source_root: str) -> dict[str, Any]:
    if not source_root:
        return {"description": _message("The root of the target's source.")}
    uri = _file_uri(source_root)
    return {"uri": uri if uri.endswith("/") else f"{uri}/"}


def _result(bucket: ReportedBucket, indices: dict[str, int], root: str, stand_in: str) -> dict[str, Any]:
    report, rule = bucket.report, _rule_id(bucket.kind)
    frame = next((frame for frame in _telling(bucket) if frame.line and _relative(frame.file)), None)
    unplaced = () if frame else (UNKNOWN_PLACE,)
    result: dict[str, Any] = {
        "ruleId": rule,
        "ruleIndex": indices[rule],
        "level": bucket.level,
        "message": _message(" ".join((f"{one_line(bucket.title).rstrip('.')}.", *sentences(bucket), *unplaced))),
        "locations": [_location(frame, root) if frame else _without_place(bucket, stand_in)],
        "occurrenceCount": max(1, bucket.count),
        "partialFingerprints": _fingerprints(bucket),
        "properties": dict(_properties(bucket)),
    }
    if bucket.state:
        result["baselineState"] = _BASELINES[bucket.state]
    if report and report.frames:
        result["stacks"] = [{"frames": [_stack_frame(frame, root) for frame in report.frames]}]
        result.update(_code_flows(report, root))
    return result


def _properties(bucket: ReportedBucket) -> Iterator[tuple[str, Any]]:
    yield "bucket", one_line(bucket.slug)
    yield "fuzzer", one_line(bucket.fuzzer)
    if bucket.state:
        yield "state", bucket.state
    if bucket.severity:
        yield "severity", one_line(bucket.severity)
    if bucket.reproduced:
        yield from zip(("reproduced", "tries"), bucket.reproduced, strict=True)


def _fingerprints(bucket: ReportedBucket) -> dict[str, str]:
    """Return what a bucket is known by from run to run.

    GitHub uses primaryLocationLineHash alone. If it is missing, its action fills in a hash of the line, by which two
    buckets of one line would be one alert, and an edited line would be another alert.
    """
    name, _, version = bucket.rule.rpartition("/")
    name, version = (name, version) if version.isdecimal() and version.isascii() else (bucket.rule, "0")
    identity = sha256("\0".join((bucket.rule, bucket.fuzzer, bucket.slug)).encode(errors="replace")).hexdigest()
    return {
        f"topcoatBucket/{one_line(name)}/v{version[:9]}": one_line(bucket.slug),  # 3.27.17, by the form of 3.5.4.2
        "primaryLocationLineHash": f"{identity[:16]}:1",
    }


def _telling(bucket: ReportedBucket) -> tuple[Frame, ...]:
    """Return the frames that can stand for the place of the crash, the best first."""
    return (*bucket.deciding, *(functions.own(bucket.report.frames) if bucket.report else ()))


def _location(frame: Frame, root: str) -> dict[str, Any]:
    location: dict[str, Any] = {}
    if _relative(frame.file):
        location["physicalLocation"] = {"artifactLocation": _artifact(frame.file, root)}
        if frame.line:
            location["physicalLocation"]["region"] = {"startLine": frame.line}
    if frame.function:
        location["logicalLocations"] = [_logical(frame.function, "function")]
    return location


def _without_place(bucket: ReportedBucket, stand_in: str) -> dict[str, Any]:
    first = next(iter(_telling(bucket)), None)
    function = first and (first.function or first.place)
    logical = _logical(function, "function") if function else _logical(bucket.fuzzer or bucket.slug, "module")
    location: dict[str, Any] = {"logicalLocations": [logical]}
    if _relative(stand_in):
        artifact = {"uri": quote(_relative(stand_in), errors="replace"), "uriBaseId": SOURCE_ROOT}
        location["physicalLocation"] = {"artifactLocation": artifact, "region": {"startLine": 1}}
    return location


def _logical(name: str, kind: str) -> dict[str, Any]:
    return {"fullyQualifiedName": one_line(name) or "?", "kind": kind}


def _artifact(file: str, root: str) -> dict[str, Any]:
    path, base = posixpath.normpath(one_line(file)), posixpath.normpath(root) if root else ""
    if posixpath.isabs(path):
        below = base and path.startswith(base.rstrip("/") + "/")
        if not below:
            return {"uri": _file_uri(path)}
        path = path[len(base.rstrip("/")) :]
    return {"uri": quote(_relative(path), errors="replace"), "uriBaseId": SOURCE_ROOT}


def _relative(path: str) -> str:
    """Return the path without what would lead out of the source root; empty if nothing is left of it."""
    path = posixpath.normpath(one_line(path)).lstrip("/")
    while path.startswith("../"):
        path = path[3:]
    return "" if path in (".", "..") else path


def _file_uri(path: str) -> str:
    return f"file:///{quote(posixpath.normpath(path).lstrip('/'), errors='replace')}"


def _stack_frame(frame: Frame, root: str) -> dict[str, Any]:
    location, module = _location(frame, root), one_line(frame.place.rpartition("+")[0])
    if frame.place:
        location["message"] = _message(frame.place)
    return {key: value for key, value in (("location", location), ("module", module)) if value}


def _code_flows(report: CrashReport, root: str) -> dict[str, Any]:
    """Return the target's own calls in the order in which they were made, which is what GitHub shows of a stack."""
    calls = [frame for frame in functions.own(report.frames) if frame.line and _relative(frame.file)]
    if len(calls) < 2:
        return {}
    steps = [{"location": _location(frame, root) | {"message": _message(_step(frame))}} for frame in reversed(calls)]
    return {"codeFlows": [{"threadFlows": [{"locations": steps}]}]}


def _step(frame: Frame) -> str:
    return frame.function or f"{frame.file}:{frame.line}"


def _message(text: str, width: int = 2000) -> dict[str, Any]:
    """Return a message in which nothing is taken for a placeholder (3.11.5) or for a link (3.11.6)."""
    text = re.sub(r"([\\\[\]])", r"\\\1", one_line(text, width)).replace("{", "{{").replace("}", "}}")
    return {"text": text or "?"}
