"""The report of a campaign: what it tells of buckets, in all three files, and its frozen format."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from pipeline.campaign import reporting, run
from pipeline.campaign.minimising import Facts
from pipeline.campaign.report import whole
from pipeline.campaign.reporting import FILES
from pipeline.errors import StoreError
from pipeline.fuzz.crashes import severity, verdicts
from pipeline.fuzz.crashes.bucket import KeptInput
from pipeline.fuzz.crashes.crash import Crash
from pipeline.fuzz.crashes.report import CrashReport
from pipeline.fuzz.crashes.stack import Frame
from pipeline.fuzz.crashes.store import CrashStore
from pipeline.fuzz.crashes.verdicts import CrashVerdict, InputVerdict
from pipeline.store.publish import publish_json
from tests.campaign.bench import A, B, Bench, plan
from tests.campaign.report.test_junit import read as valid_junit
from tests.campaign.scripted import Behaviour
from tests.fuzz.crashes import made_up

SEEN = "2026-11-25T14:00:00Z"
FOUND, FIXED, MASKED, AGAIN = "boom", "fixed", "masked", "again"
KEYS = {
    *("fuzzer", "slug", "title", "kind", "frames", "rule", "state", "standing", "word", "verdict", "severity", "file"),
    *("line", "message", "stack", "count", "present", "first_seen", "last_seen", "first_bad", "first_good", "size"),
    *("minimised", "directory"),
}

SAMPLE = {
    "schema": 1,
    "campaign": "nightly",
    "build": "whole",
    "proved": None,
    "counts": {
        "new": 1,
        "back": 0,
        "known": 0,
        "still": 1,
        "fixed": 1,
        "masked": 1,
        "not run": 1,
        "not known": 0,
    },
}
"""Frozen: what was written must stay understood. Buckets are below."""

BUCKET_SAMPLE = {
    "fuzzer": A,
    "slug": "segv-again-4d0bab99ff0a",
    "title": "SEGV in again",
    "kind": "SEGV",
    "frames": ["again"],
    "rule": "default/1",
    "state": "known",
    "standing": "still",
    "word": "still there 3 of 10",
    "verdict": {"outcome": "same bucket", "same": 3, "tries": 10, "others": {}, "trouble": "", "made": SEEN},
    "severity": {
        "effect": "corruption of memory",
        "reason": "it writes 4 bytes at an address that is not near null",
        "facts": ["SEGV", "WRITE 4", "address 0x41414141"],
        "level": "error",
    },
    "file": "parse.c",
    "line": 7,
    "message": "",
    "stack": ["#0 again parse.c:7"],
    "count": 1,
    "present": 0,
    "first_seen": SEEN,
    "last_seen": SEEN,
    "first_bad": "b3:old",
    "first_good": None,
    "size": 5,
    "minimised": {"size": 1, "original": 5, "confirmed": 10, "of": 10, "why": "minimal"},
}


def crash(function: str, content: bytes = b"crash") -> Crash:
    frames = (Frame(function, "parse.c", 7),)
    report = CrashReport("SEGV", "WRITE 4", frames, address="0x41414141")
    return replace(made_up.CRASH, fuzzer=A, build="b3:old", input=content, report=report)


@pytest.fixture
def done(tmp_path: Path) -> Bench:
    """A campaign that has found one bucket anew, and of whose fuzzer others are known from an older build."""
    bench = Bench(tmp_path / "out")
    bench.world.behaviours[A] = Behaviour(crash=FOUND, after=1)
    store = CrashStore(bench.store.root, now=lambda: SEEN)
    told = {FIXED: InputVerdict("0", none=10), MASKED: InputVerdict("0", others={"segv-other-0123456789ab": 10})}
    told[AGAIN] = InputVerdict("0", same=3, none=7)
    for function in (FIXED, MASKED, AGAIN, "never"):
        slug = store.add(crash(function)).bucket
        store.count(A, slug, "b3:old", "nightly", 0 if function == AGAIN else 1)
        if function in told:
            store.note_build(A, "build")
            verdict = CrashVerdict(A, slug, "build", "default/1", 1, 10, (told[function],), made=SEEN)
            publish_json(verdicts.path_of(store.directory(A, slug), "build"), verdict.encode())
    write_minimised(store)
    runner = bench.runner(bench.definition(plan(A, seconds=2, slice_=2), plan(B, seconds=2, slice_=2)))
    runner.run()
    run.conclude(runner)
    return bench


def write_minimised(store: CrashStore) -> None:
    (again,) = store.buckets(["segv-again-*"])
    sizes = (KeptInput("0", 5), KeptInput("1", 1))
    facts = Facts(A, again.slug, "build", "default/1", *sizes, "minimal", 1, 20, 1, 10, 10, (), "")
    place = store.directory(A, again.slug) / "minimised"
    publish_json(place / "minimised.json", facts.encode())
    (place / "input.made.json").write_text("{}")


def look(bench: Bench) -> whole.Whole:
    return reporting.look(CrashStore(bench.store.root), reporting.read(bench.store.campaigns / "nightly"))


def test_the_format_is_frozen(done: Bench) -> None:
    told = json.loads(json.dumps(look(done).encode()))
    assert {name: told[name] for name in SAMPLE} == SAMPLE
    assert set(told) == {*SAMPLE, "updated", "fuzzers", "buckets"}
    assert [set(one) for one in told["fuzzers"]] == [{"fuzzer", "build", "seconds", "executions", "failed"}] * 2
    again = next(one for one in told["buckets"] if one["slug"].startswith("segv-again-"))
    assert {name: again[name] for name in BUCKET_SAMPLE} == BUCKET_SAMPLE
    assert again["directory"] == f"crashes/{A}/{again['slug']}"
    assert all(set(one) == KEYS for one in told["buckets"])


def test_each_bucket_stands_as_it_is_known_with_the_present_build(done: Bench) -> None:
    told = {one.bucket.frames[0]: one for one in look(done).buckets}
    assert {name: (one.standing, one.reported.state) for name, one in told.items()} == {
        FOUND: ("new", "new"),
        AGAIN: ("still", "known"),
        MASKED: ("masked", "known"),
        "never": ("not run", "known"),
        FIXED: ("fixed", "gone"),
    }
    assert (told[FIXED].first_bad, told[FIXED].first_good) == ("b3:old", "build")
    assert told[FOUND].present == told[FOUND].bucket.count == 2
    assert told[MASKED].cell.word == "masked by segv-other-0123456789ab"


def test_all_three_files_tell_the_same(done: Bench, tmp_path: Path) -> None:
    found = look(done)
    reporting.write([tmp_path / name for name in FILES], found)
    told = json.loads((tmp_path / "report.json").read_bytes())
    sarif: Any = json.loads((tmp_path / "report.sarif").read_bytes())
    results = {one["properties"]["bucket"]: one for one in sarif["runs"][0]["results"]}
    assert set(results) == {one["slug"] for one in told["buckets"]}
    baselines = {one["slug"]: results[one["slug"]]["baselineState"] for one in told["buckets"]}
    assert {one["standing"]: baselines[one["slug"]] for one in told["buckets"]} == {
        "new": "new",
        "still": "unchanged",
        "masked": "unchanged",
        "not run": "unchanged",
        "fixed": "absent",
    }
    root = valid_junit((tmp_path / "report.junit.xml").read_bytes())
    assert root.get("failures") == "1", "only what is new fails"
    assert len(root.findall(".//testcase")) == len(told["buckets"]) + 2
    assert ET.tostring(root)


def test_levels_of_all_effects() -> None:
    assert set(whole.LEVELS) == set(severity.EFFECTS)
    assert [whole.LEVELS[one] for one in severity.EFFECTS] == [
        "error",
        "error",
        "warning",
        "warning",
        "note",
        "warning",
    ]


def test_the_summary_tells_people_what_stands_how_and_where_the_files_are(done: Bench) -> None:
    said = "\n".join(reporting.summary(look(done), done.store.campaigns / "nightly"))
    line = "nightly: 1 new, 0 known, 0 back; known and not found this time: 1 still there, 1 fixed, 1 masked, 1 not run"
    assert line in said
    assert "SEGV in again" in said
    assert "SEGV in fixed" not in said
    assert f"report: {done.store.campaigns / 'nightly/report.json'}, " in said


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"schema": 3}', '{"schema": 3, "status": 7}', '{"schema": 2}'])
def test_a_result_that_cannot_be_understood_is_refused(done: Bench, damage: str) -> None:
    (done.store.campaigns / "nightly/campaign.json").write_text(damage)
    with pytest.raises(StoreError, match="cannot be understood") as refused:
        look(done)
    assert "delete it" in refused.value.hint


def test_what_another_campaign_has_seen_with_a_present_build_is_tried_too(done: Bench) -> None:
    store, result = CrashStore(done.store.root), reporting.read(done.store.campaigns / "nightly")
    assert {one.frames[0] for one in reporting.to_try(store, result)} == {FOUND}
    store.add(replace(crash("elsewhere"), build="build"))
    store.count(A, "others", "build", "nightly")
    assert {one.frames[0] for one in reporting.to_try(store, result)} == {FOUND, "elsewhere"}


def test_the_manual_names_every_field() -> None:
    manual = (Path(__file__).parents[2] / "docs/campaign.md").read_text().partition("## The report")[2]
    for name in {*SAMPLE, *KEYS, "updated", "fuzzers", "buckets", "executions", "seconds", "failed", *whole.STANDINGS}:
        assert f"`{name}`" in manual, name
