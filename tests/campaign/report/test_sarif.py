"""SARIF logs: valid by OASIS' schema, with a place where a stack tells one, and harmless."""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fastjsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.campaign.report import sarif
from pipeline.campaign.report.reported import ReportedBucket
from pipeline.fuzz.crashes.report import CrashReport
from pipeline.fuzz.crashes.stack import Frame
from pipeline.text.printable import is_plain
from tests.campaign.report.samples import AVERAGE, COPY, GONE, HOSTILE, NO_PLACE, all_of_them, buckets, texts

SCHEMA = Path(__file__).parent / "schemas/sarif-schema-2.1.0.json"
RELATIVE = re.compile(r"[A-Za-z0-9._~%-]+(?:/[A-Za-z0-9._~%-]+)*")
ABSOLUTE = re.compile(r"file:///[A-Za-z0-9._~%/-]*")


@cache
def validator() -> Any:
    return fastjsonschema.compile(json.loads(SCHEMA.read_bytes()), use_default=False)


def valid(*reported: ReportedBucket, **options: str) -> dict[str, Any]:
    """The run of the log, which is as valid before as after it was written."""
    log = sarif.encode(reported, **options)
    validator()(deepcopy(log))
    assert json.loads(json.dumps(log, allow_nan=False)) == log
    run: dict[str, Any] = log["runs"][0]
    return run


def result(bucket: ReportedBucket, **options: str) -> dict[str, Any]:
    one: dict[str, Any] = valid(bucket, **options)["results"][0]
    return one


def at(file: str, line: int = 3, **options: str) -> dict[str, Any]:
    """The place that is told of a crash in this file."""
    report = CrashReport("SEGV", frames=(Frame("parse", file, line),))
    location: dict[str, Any] = result(ReportedBucket("slug", "demo/f", "SEGV", "SEGV in parse", "", report), **options)
    place: dict[str, Any] = location["locations"][0]["physicalLocation"]
    return place


def test_the_schema_refuses_what_is_wrong() -> None:
    log = sarif.encode([COPY])
    log["runs"][0]["results"][0]["baselineState"] = "old"
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        validator()(log)


def test_the_whole_log() -> None:
    run = valid(COPY, AVERAGE, NO_PLACE, GONE, campaign="nightly", source_root="/src/demo")
    assert run["automationDetails"] == {"id": "topcoat/nightly/"}
    assert run["originalUriBaseIds"] == {"%SRCROOT%": {"uri": "file:///src/demo/"}}
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert rules == ["FPE", "deadly-signal", "double-free", "heap-buffer-overflow"]
    assert [rules[one["ruleIndex"]] for one in run["results"]] == [one["ruleId"] for one in run["results"]]


def test_a_crash_with_a_stack() -> None:
    one = result(COPY)
    assert one["message"]["text"] == (
        "heap-buffer-overflow in copy_text. The bad access is WRITE 17. It was found by demo/parser_fuzzer-copy_text. "
        "It is new. Severity: corruption of memory. It came again in 7 of 10 tries."
    )
    place = one["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "pipeline/demo/fuzzers/parser_fuzzer.c", "uriBaseId": "%SRCROOT%"}
    assert place["region"] == {"startLine": 27}
    assert one["locations"][0]["logicalLocations"] == [{"fullyQualifiedName": "copy_text", "kind": "function"}]
    assert one["partialFingerprints"]["topcoatBucket/default/v1"] == COPY.slug
    assert one["properties"] == {
        "bucket": COPY.slug, "fuzzer": COPY.fuzzer, "state": "new", "severity": COPY.severity, "reproduced": 7,
        "tries": 10,
    }  # fmt: skip
    assert COPY.report is not None
    assert len(one["stacks"][0]["frames"]) == len(COPY.report.frames)
    steps = [step["location"] for step in one["codeFlows"][0]["threadFlows"][0]["locations"]]
    assert [step["message"]["text"] for step in steps] == ["LLVMFuzzerTestOneInput", "record", "copy_text"]
    assert all("physicalLocation" in step for step in steps)


def test_each_crash_whose_stack_tells_a_place_has_it() -> None:
    reported = all_of_them()
    unplaced = [
        one["properties"]["fuzzer"]
        for one in valid(*reported)["results"]
        if "region" not in one["locations"][0].get("physicalLocation", {})
    ]
    assert len(reported) > 30
    assert unplaced == ["demo/fork"]


def test_without_a_place_it_says_so() -> None:
    one = result(NO_PLACE)
    assert sarif.UNKNOWN_PLACE in one["message"]["text"]
    assert one["locations"] == [{"logicalLocations": [{"fullyQualifiedName": NO_PLACE.fuzzer, "kind": "module"}]}]
    shown = result(NO_PLACE, stand_in="fuzz/BUILD.gn")
    assert sarif.UNKNOWN_PLACE in shown["message"]["text"]
    assert shown["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "fuzz/BUILD.gn"


def test_without_symbols_the_module_is_the_place() -> None:
    report = CrashReport("SEGV", frames=(Frame("", place="parser+0x12"),))
    one = result(ReportedBucket("slug", "demo/f", "SEGV", "SEGV", "", report))
    assert one["locations"] == [{"logicalLocations": [{"fullyQualifiedName": "parser+0x12", "kind": "function"}]}]
    assert one["stacks"][0]["frames"] == [{"location": {"message": {"text": "parser+0x12"}}, "module": "parser"}]


def test_with_nothing_but_its_names() -> None:
    one = result(ReportedBucket("slug", "demo/f", "unheard of", "unheard of"))
    assert (one["ruleId"], "stacks" in one, "baselineState" in one) == ("unheard-of", False, False)


@pytest.mark.parametrize(
    ("bucket", "state"), [(COPY, "new"), (NO_PLACE, "new"), (AVERAGE, "unchanged"), (GONE, "absent")]
)
def test_the_state_is_that_of_the_baseline(bucket: ReportedBucket, state: str) -> None:
    assert result(bucket)["baselineState"] == state


@pytest.mark.parametrize(
    ("file", "root", "uri"),
    [
        ("/src/demo/a b/ü#?.c", "/src/demo", "a%20b/%C3%BC%23%3F.c"),
        ("/src/demo/a.c", "/src/demo/", "a.c"),
        ("/src/demo/x/../a.c", "/src/demo", "a.c"),
        ("/src/a.c", "/", "src/a.c"),
        ("/src/a.c", "//", "src/a.c"),
        ("../../src/lib/a.cc", "", "src/lib/a.cc"),
        ("./a.c", "/src", "a.c"),
        ("../../../../../../etc/passwd", "/src", "etc/passwd"),
        ("javascript:alert(1)", "/src", "javascript%3Aalert%281%29"),
    ],
)
def test_relative_places(file: str, root: str, uri: str) -> None:
    assert at(file, source_root=root)["artifactLocation"] == {"uri": uri, "uriBaseId": "%SRCROOT%"}


@pytest.mark.parametrize(
    ("file", "root", "uri"),
    [
        ("/src/demonstration/a.c", "/src/demo", "file:///src/demonstration/a.c"),
        ("/src/demo/../../etc/passwd", "/src/demo", "file:///etc/passwd"),
        ("//host/share/a.c", "/src", "file:///host/share/a.c"),
        ("/usr/include/a.h", "", "file:///usr/include/a.h"),
    ],
)
def test_places_elsewhere(file: str, root: str, uri: str) -> None:
    assert at(file, source_root=root)["artifactLocation"] == {"uri": uri}


@pytest.mark.parametrize("file", ["..", ".", "/", "../.."])
def test_a_path_that_names_no_file_is_no_place(file: str) -> None:
    report = CrashReport("SEGV", frames=(Frame("parse", file, 3),))
    one = result(ReportedBucket("slug", "demo/f", "SEGV", "SEGV in parse", "", report))
    assert "physicalLocation" not in one["locations"][0]


def test_what_looks_like_a_link_or_a_placeholder_is_text() -> None:
    one = result(ReportedBucket("slug", "demo/f", "SEGV", "SEGV in [click](9) {0} \\"))
    assert one["message"]["text"].startswith(r"SEGV in \[click\](9) {{0}} \\. ")


def test_buckets_are_told_apart_by_fuzzer_rule_and_slug_alone() -> None:
    def fingerprint(slug: str, fuzzer: str, rule: str, title: str = "") -> str:
        bucket = ReportedBucket(slug, fuzzer, "SEGV", title, rule=rule)
        return str(result(bucket)["partialFingerprints"]["primaryLocationLineHash"])

    assert fingerprint("a", "f", "default/1") == fingerprint("a", "f", "default/1", "another title")
    different = {
        fingerprint(*facts)
        for facts in [
            ("a", "f", "default/1"),
            ("b", "f", "default/1"),
            ("a", "g", "default/1"),
            ("a", "f", "default/2"),
        ]
    }
    assert len(different) == 4


def test_the_rule_s_version_is_in_the_fingerprint_s_name() -> None:
    names = [
        next(iter(result(ReportedBucket("slug", "f", "SEGV", "", rule=rule))["partialFingerprints"]))
        for rule in ("default/1", "frames:5/12", "dedup-token")
    ]
    assert names == ["topcoatBucket/default/v1", "topcoatBucket/frames:5/v12", "topcoatBucket/dedup-token/v0"]


@pytest.mark.parametrize(
    ("root", "uri"),
    [("/", "file:///"), ("/a b/", "file:///a%20b/"), ("//x/../y", "file:///y/"), ("/é", "file:///%C3%A9/")],
)
def test_the_root_is_a_directory(root: str, uri: str) -> None:
    assert valid(COPY, source_root=root)["originalUriBaseIds"]["%SRCROOT%"] == {"uri": uri}


def test_texts_of_rules_are_short() -> None:
    kind = "[{\\]" * 1000
    [rule] = valid(ReportedBucket("slug", "demo/f", kind, kind))["tool"]["driver"]["rules"]
    assert len(rule["id"]) <= 80
    assert all(len(rule[text]["text"]) <= 1024 for text in ("shortDescription", "fullDescription"))


def test_the_order_does_not_matter() -> None:
    assert sarif.encode([COPY, GONE, AVERAGE]) == sarif.encode([AVERAGE, COPY, GONE])


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for pair in value.items() for one in pair for text in strings(one))
    elif isinstance(value, list):
        yield from (text for one in value for text in strings(one))


def uris(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (value[key] for key in value if key == "uri")
        yield from (uri for one in value.values() for uri in uris(one))
    elif isinstance(value, list):
        yield from (uri for one in value for uri in uris(one))


@given(st.lists(buckets, max_size=4), texts, texts, texts)
def test_no_content_does_harm(reported: list[ReportedBucket], campaign: str, root: str, stand_in: str) -> None:
    run = valid(*reported, campaign=campaign, source_root=root, stand_in=stand_in)
    assert len(run["results"]) == len(reported)
    assert [text for text in strings(run) if not is_plain(text)] == []
    found = list(uris(run["results"]))
    assert [uri for uri in found if not RELATIVE.fullmatch(uri) and not ABSOLUTE.fullmatch(uri)] == []
    assert [uri for uri in found if ".." in unquote(uri).split("/")] == []


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_everywhere(text: str) -> None:
    frames = (Frame(text, text, 7, text), Frame("LLVMFuzzerTestOneInput", text, 8, text))
    bucket = ReportedBucket(text, text, text, text, text, CrashReport(text, text, frames), frames, "new", text, text)
    run = valid(bucket, campaign=text, source_root=text, stand_in=text)
    assert [found for found in strings(run) if not is_plain(found)] == []


def test_the_frames_that_decided_say_where_it_happened() -> None:
    frames = (Frame("top", "a.c", 1), Frame("loop", "b.c", 2), Frame("LLVMFuzzerTestOneInput", "c.c", 3))
    bucket = ReportedBucket("slug", "demo/f", "timeout", "timeout in loop", "", CrashReport("timeout", frames=frames))
    assert result(bucket)["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "a.c"
    decided = result(replace(bucket, deciding=frames[1:2]))
    assert decided["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "b.c"
    unplaced = result(replace(bucket, deciding=(Frame("inlined"),)))
    assert unplaced["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "a.c"
