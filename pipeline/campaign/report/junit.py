"""A campaign as JUnit's XML, in the form that Jenkins' xUnit plugin checks: for whatever shows the results of tests.

Each fuzzer is a testsuite, each of its buckets a testcase, whose name is the bucket's slug, so that its history goes on
from campaign to campaign. One more testcase of each fuzzer, `ran`, tells whether the fuzzer was run at all.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element, SubElement

from pipeline.campaign.report.reported import BucketState, ReportedBucket, ReportedFuzzer, sentences, stack_lines
from pipeline.text.printable import printable

PRESENT: tuple[BucketState, ...] = ("new", "known", "back")
"""The states of buckets that are there."""

_FORBIDDEN = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # by XML 1.0, production 2, and \r


def encode(
    campaign: str,
    fuzzers: Iterable[ReportedFuzzer],
    buckets: Iterable[ReportedBucket],
    *,
    failing: Collection[BucketState] = PRESENT,
) -> bytes:
    """Return the document, in UTF-8. It is the same for the same values, in whatever order they come.

    A bucket is a failure if it is there and its state is in `failing`, or is not known; one that is there and may not
    fail counts as skipped, and says why; one that is gone has passed. A fuzzer that was not run counts as skipped with
    the reason, and one that could not be run to its end as an error. Fuzzers that only buckets name have no `ran`.
    """
    known, found = {one.name: one for one in fuzzers}, list(buckets)
    root = Element("testsuites", {"name": _clean(campaign)})
    for name in sorted({*known, *(bucket.fuzzer for bucket in found)}):
        of_fuzzer = sorted((one for one in found if one.fuzzer == name), key=lambda one: one.slug)
        _suite(root, name, known.get(name), of_fuzzer, failing)
    for count in ("tests", "failures", "errors"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    ET.indent(root)
    text: bytes = ET.tostring(root, "utf-8", xml_declaration=True)
    return text + b"\n"


def _suite(
    root: Element,
    name: str,
    fuzzer: ReportedFuzzer | None,
    buckets: Sequence[ReportedBucket],
    failing: Collection[BucketState],
) -> None:
    suite = SubElement(root, "testsuite", {"name": _clean(name)})
    if fuzzer:
        _ran(suite, fuzzer)
    for bucket in buckets:
        _bucket(suite, bucket, failing)
    suite.set("tests", str(len(suite)))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase/{tag}"))))
    if fuzzer:
        suite.set("time", _seconds(fuzzer))


def _case(suite: Element, fuzzer: str, name: str) -> Element:
    # Jenkins takes what stands before the last dot for the package
    return SubElement(suite, "testcase", {"classname": _clean(fuzzer.replace("/", ".")), "name": _clean(name)})


def _ran(suite: Element, fuzzer: ReportedFuzzer) -> None:
    case = _case(suite, fuzzer.name, "ran")
    case.set("time", _seconds(fuzzer))
    if fuzzer.not_run:
        SubElement(case, "skipped", {"message": _clean(fuzzer.not_run)})
    elif fuzzer.failed:
        SubElement(case, "error", {"type": "failed", "message": _clean(fuzzer.failed)})
    else:
        SubElement(case, "system-out").text = f"{fuzzer.executions} executions"


def _seconds(fuzzer: ReportedFuzzer) -> str:
    return f"{max(0.0, fuzzer.seconds):.3f}"


def _bucket(suite: Element, bucket: ReportedBucket, failing: Collection[BucketState]) -> None:
    case = _case(suite, bucket.fuzzer, bucket.slug)
    stack = stack_lines(bucket.report) if bucket.report else []
    body = _clean("\n".join((bucket.title, *sentences(bucket), "", *(stack or ["Its stack is not known."]))))
    if bucket.state is None or (bucket.present and bucket.state in failing):
        failure = SubElement(case, "failure", {"type": _clean(bucket.kind), "message": _clean(bucket.title)})
        failure.text = body
        return
    if bucket.present:
        SubElement(case, "skipped", {"message": f"It is there, but {bucket.state}, which is no failure here."})
    SubElement(case, "system-out").text = body


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("", printable(text))
