"""JUnit's XML: by the schema of Jenkins' plugin, and read back as it was meant, whatever a guest has called things."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.campaign.report import junit
from pipeline.campaign.report.reported import ReportedBucket, ReportedFuzzer
from pipeline.fuzz.crashes.report import CrashReport
from pipeline.fuzz.crashes.stack import Frame
from tests.campaign.report.samples import AVERAGE, COPY, GONE, HOSTILE, NO_PLACE, all_of_them, buckets, fuzzers, texts
from tests.campaign.report.xsd import XmlSchema

SCHEMA = XmlSchema(Path(__file__).parent / "schemas/junit-10.xsd")
RAN = ReportedFuzzer(COPY.fuzzer, 12.5, 4096)


def read(document: bytes) -> Element:
    """The document, which is valid, and whose sums are right."""
    root = ET.fromstring(document)
    assert list(SCHEMA.problems(root)) == []
    for suite in [*root, root]:
        assert suite.get("tests") == str(len(suite.findall(".//testcase")))
        assert suite.get("failures") == str(len(suite.findall(".//failure")))
        assert suite.get("errors") == str(len(suite.findall(".//error")))
    return root


def cases(root: Element) -> dict[str, str]:
    """What became of each testcase: the tag of what says so, or "passed"."""
    told = {"failure", "error", "skipped"}
    return {
        f"{case.get('classname')} {case.get('name')}": next((one.tag for one in case if one.tag in told), "passed")
        for case in root.iter("testcase")
    }


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("<testsuite name='a' tests='1' failures='0'/>", "no errors of <testsuite>"),
        ("<testsuites><testcase name='a'/></testsuites>", "<testcase> in <testsuites>"),
        ("<testsuites time='soon'/>", "time of <testsuites> is soon"),
        ("<testsuites skipped='1'/>", "skipped of <testsuites>"),
        ("<testsuites>text</testsuites>", "text in <testsuites>"),
        ("<suite/>", "<suite> is not declared"),
    ],
)
def test_the_schema_refuses_what_is_wrong(document: str, problem: str) -> None:
    assert list(SCHEMA.problems(ET.fromstring(document))) == [problem]


def test_a_bucket_that_is_there_is_a_failure_with_its_stack() -> None:
    root = read(junit.encode("nightly", [RAN], [COPY]))
    [suite] = root
    assert (root.get("name"), suite.get("name"), suite.get("time")) == ("nightly", COPY.fuzzer, "12.500")
    ran, bucket = suite
    assert (ran.get("name"), ran.findtext("system-out")) == ("ran", "4096 executions")
    assert (bucket.get("classname"), bucket.get("name")) == ("demo.parser_fuzzer-copy_text", COPY.slug)
    [failure] = bucket
    assert (failure.get("type"), failure.get("message")) == (COPY.kind, COPY.title)
    assert "It came again in 7 of 10 tries." in (failure.text or "").splitlines()
    assert "copy_text pipeline/demo/fuzzers/parser_fuzzer.c:27" in (failure.text or "")


def test_each_fuzzer_says_whether_it_ran() -> None:
    told = [
        RAN,
        ReportedFuzzer("demo/maze_fuzzer", not_run="the budget was used up"),
        ReportedFuzzer("demo/noisy_fuzzer", failed="it was benched: it hung three times"),
    ]
    root = read(junit.encode("nightly", told, []))
    assert cases(root) == {
        "demo.maze_fuzzer ran": "skipped",
        "demo.noisy_fuzzer ran": "error",
        "demo.parser_fuzzer-copy_text ran": "passed",
    }
    assert [one.get("message") for one in root.iter("skipped")] == ["the budget was used up"]
    assert [one.get("message") for one in root.iter("error")] == ["it was benched: it hung three times"]


def test_what_is_gone_has_passed() -> None:
    assert cases(read(junit.encode("nightly", [], [GONE]))) == {f"demo.parser_fuzzer-set_name {GONE.slug}": "passed"}


def test_only_what_may_fail_fails() -> None:
    root = read(junit.encode("nightly", [], [COPY, AVERAGE, NO_PLACE, GONE], failing=["new"]))
    assert sorted(cases(root).values()) == ["failure", "passed", "skipped", "skipped"]
    assert {one.get("message") for one in root.iter("skipped")} == {
        "It is there, but known, which is no failure here.",
        "It is there, but back, which is no failure here.",
    }


def test_a_bucket_that_is_compared_with_nothing_fails() -> None:
    root = read(junit.encode("", [], [ReportedBucket("slug", "demo/f", "SEGV", "SEGV")], failing=[]))
    assert [one.text for one in root.iter("failure")] == ["SEGV\nIt was found by demo/f.\n\nIts stack is not known."]


def test_the_order_does_not_matter() -> None:
    other = ReportedFuzzer("demo/a")
    assert junit.encode("", [RAN, other], [COPY, GONE]) == junit.encode("", [other, RAN], [GONE, COPY])


def test_all_outputs_are_told() -> None:
    reported = all_of_them()
    assert list(cases(read(junit.encode("all", [], reported))).values()) == ["failure"] * len(reported)


def test_nothing_at_all() -> None:
    assert len(read(junit.encode("", [], []))) == 0


@given(texts, st.lists(fuzzers, max_size=4, unique_by=lambda one: one.name), st.lists(buckets, max_size=4))
def test_no_content_does_harm(campaign: str, ran: Sequence[ReportedFuzzer], found: Sequence[ReportedBucket]) -> None:
    document = junit.encode(campaign, ran, found)
    root = read(document)
    assert len(root.findall(".//testcase")) == len(ran) + len(found)
    assert not {"\x1b", "\x00", "\r", "\x85", "\u202e", "\ufffe", "\uffff"} & {*document.decode()}


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_everywhere(text: str) -> None:
    report = CrashReport(text, text, (Frame(text, text, 7, text),))
    bucket = ReportedBucket(text, text, text, text, text, report, report.frames, "new", text, text)
    root = read(junit.encode(text, [ReportedFuzzer(text, failed=text or "it failed")], [bucket]))
    assert sorted(cases(root).values()) in (["error", "failure"], ["failure"])
