"""How a campaign stands, for machines and for people."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.campaign.display import FILE_EVERY, Lines, Reporter, headline
from pipeline.campaign.found import FoundBucket
from pipeline.campaign.ledger import Booted, Crashed, Ended, Proved, Started, Subject
from pipeline.campaign.plan.definition import Budget, Definition, FuzzerPlan
from pipeline.campaign.result import encode, summary, table
from pipeline.campaign.state import FuzzerState, State
from pipeline.campaign.status import Author, FuzzerStatus, LiveAttempt, Status, of_fuzzer
from pipeline.campaign.subjects import Subjects
from pipeline.fuzz.crashes.bucket import Bucket, Seen
from pipeline.fuzz.stats import Stats

MANUAL = (Path(__file__).parents[2] / "docs/campaign.md").read_text()
FUZZER = FuzzerStatus(
    fuzzer="p/a",
    state="running",
    seconds=75.5,
    budget={"seconds": 600},
    left=524.5,
    slice=2,
    attempts=3,
    executions=1_234_567,
    rate=16352.0,
    edges=25,
    features=28,
    units=15,
    crashes=1,
    peak_rss=40,
    benched="",
)
AUTHOR = Author("bot-7", 4711, "2026-11-25T13:58:00Z", 815, "85b7")
STATUS = Status("nightly", "running", True, "", 2, 1, 2, 0, (FUZZER,), AUTHOR, "2026-11-25T14:00:00Z")
SEEN = ("2026-11-25T14:00:00Z", "2026-11-25T14:01:00Z")
OFTEN = Seen(*SEEN, 11)
BUCKET = Bucket(
    *("p/a", "segv-trap_door-cc9d", "SEGV", ("trap_door",), "default/1", *SEEN, 11),
    builds={"b3:build": OFTEN},
    campaigns={"nightly": OFTEN},
)
PLACE = Path("/out/crashes/p/a") / BUCKET.slug
FOUND = FoundBucket(BUCKET, "new", 11, 0, PLACE, None)
FROZEN: dict[str, Any] = {
    "boots": 2,
    "executions": 1234567,
    "failed_boots": 0,
    "fuzzers": [
        {
            "attempts": 3,
            "benched": "",
            "budget": {"seconds": 600},
            "crashes": 1,
            "edges": 25,
            "executions": 1234567,
            "features": 28,
            "fuzzer": "p/a",
            "left": 524.5,
            "peak_rss": 40,
            "rate": 16352.0,
            "seconds": 75.5,
            "slice": 2,
            "state": "running",
            "units": 15,
        }
    ],
    "host": "bot-7",
    "host_boot_id": "85b7",
    "left": 524.5,
    "name": "nightly",
    "pid": 4711,
    "processes": 1,
    "proved": True,
    "schema": 1,
    "seconds": 75.5,
    "start_ticks": 815,
    "started": "2026-11-25T13:58:00Z",
    "state": "running",
    "unproved": "",
    "updated": "2026-11-25T14:00:00Z",
    "workers": 2,
}


def test_a_frozen_status() -> None:
    encoded = STATUS.encode()
    assert encoded == FROZEN
    assert Status.decode(json.dumps(encoded)) == STATUS


@pytest.mark.parametrize("data", [[], {}, {"schema": 2}, {**FROZEN, "fuzzers": [{}]}, {**FROZEN, "fuzzers": 1}, None])
def test_what_is_no_status_is_told(data: object) -> None:
    with pytest.raises(ValueError, match=r"missing or wrong|its schema is|no JSON object with a schema"):
        Status.decode(json.dumps(data))


def test_the_manual_has_every_name() -> None:
    names = {*STATUS.encode(), *FROZEN["fuzzers"][0], *result()}
    assert [name for name in names if f"`{name}`" not in MANUAL] == []


def result() -> dict[str, Any]:
    plan = FuzzerPlan("p/a", Budget(600), 60)
    subject = Subject("p/a", "b3:build", "b3:plan")
    state = State.of(
        [
            Booted("pool-0", "boot", 2.5, "there was none"),
            Booted("pool-1", "", 4.0, "there was none", "panic"),
            Proved("host", "b3:whole", True, "", 3.0),
            Started(subject, 1, 1, "pool-0", "boot", 1, ()),
            Crashed(subject, 1, 1, BUCKET.slug, True, "00"),
            Ended(subject, 1, 1, "crash", BUCKET.slug, 7.5, 100, 2, 3, 4, 1, 40, ((1.0, 50, 2, 3, 4),)),
        ]
    )
    subjects = Subjects({"p/a": subject}, "b3:whole")
    definition = Definition("nightly", 1, "gain", (plan,))
    found = replace(FOUND, present=1, capsule=PLACE / "1/capsule")
    return encode(STATUS, definition, state, subjects, [found], Path("/out"))


def test_a_frozen_result() -> None:
    whole = result()
    assert whole["schema"] == 3
    assert whole["fuzzers"] == {
        "p/a": {
            "build": "b3:build",
            "plan": "b3:plan",
            "results": {"crash": 1},
            "crashes": {BUCKET.slug: 1},
            "curve": [[1.0, 50, 2, 3, 4]],
        }
    }
    assert whole["boots"] == {
        "booted": 1,
        "cloned": 0,
        "seconds": 2.5,
        "why": {"there was none": 1},
        "failed": {"panic": 1},
    }
    assert whole["lost"] == {"boot failed: panic": 4.0, "boots": 2.5, "canary": 3.0}
    often = {"first_seen": SEEN[0], "last_seen": SEEN[1], "count": 11}
    assert json.loads(json.dumps(whole["crashes"])) == [
        {
            **often,
            "fuzzer": "p/a",
            "slug": "segv-trap_door-cc9d",
            "kind": "SEGV",
            "frames": ["trap_door"],
            "rule": "default/1",
            "builds": {"b3:build": often},
            "campaigns": {"nightly": often},
            "state": "new",
            "present": 1,
            "earlier": 0,
            "directory": "crashes/p/a/segv-trap_door-cc9d",
            "capsule": "crashes/p/a/segv-trap_door-cc9d/1/capsule",
        }
    ]


def test_for_people() -> None:
    assert table(STATUS) == [
        "fuzzer  state     time  executions   per s  cov  ft  corpus  crashes",
        "p/a     running  1m16s   1,234,567  16,352   25  28      15        1",
    ]
    other = replace(BUCKET, slug="segv-cc9e", fuzzer="p/b", frames=())
    old = FoundBucket(other, "known", 0, 11, Path("/out/campaigns/nightly/crashes/segv-cc9e"), None)
    lines = list(summary(STATUS, State(), [old, FOUND], Path("/out")))
    assert lines[3:9] == [
        "crashes, with their files in /out/crashes/FUZZER/DIRECTORY; in full: topcoat crash show DIRECTORY",
        "crash              fuzzer  state  directory            times  earlier",
        "SEGV in trap_door  p/a     new    segv-trap_door-cc9d     11        0",
        "SEGV               p/b     known  segv-cc9e                0       11",
        "earlier: with other builds, options, environments, dictionaries or seeds of these fuzzers",
        "found by an older version of Topcoat, with their files in /out/campaigns/nightly/crashes",
    ]
    assert list(summary(STATUS, State(), [FOUND], Path("/out")))[4:7] == [
        "crash              fuzzer  state  directory            times",
        "SEGV in trap_door  p/a     new    segv-trap_door-cc9d     11",
        "",
    ]
    odd = Path("/my out/crashes/p/a/segv")
    kept = list(summary(STATUS, State(), [replace(FOUND, directory=odd, capsule=odd / "1/capsule")], Path("/my out")))
    assert kept[6:10] == [
        "",
        "capsules, each a guest as it was at a crash:",
        "topcoat open '/my out/crashes/p/a/segv'",
        "",
    ]
    assert lines[-2] == "2 boots"
    assert list(summary(replace(STATUS, boots=1), State(), [], Path("/out")))[-2] == "1 boot"
    assert lines[-1].endswith("proved: the canary was found, reproduced and named")
    assert headline(STATUS) == (
        "nightly: 1 of 1 fuzzers running, 16,352 executions/s, 1m16s fuzzed, 8m44s left, 1 crash bucket"
    )


def test_what_does_not_run_is_told_shortly() -> None:
    done = replace(STATUS, state="done", fuzzers=(replace(FUZZER, state="done", left=0.0),))
    assert headline(done) == "nightly: done, 1 fuzzer, 1m16s fuzzed, 1 crash bucket"
    assert headline(replace(STATUS, state="stopped")) == (
        "nightly: stopped, 1 fuzzer, 1m16s fuzzed, 8m44s left, 1 crash bucket"
    )


def test_what_runs_at_this_moment_is_added() -> None:
    plan = FuzzerPlan("p/a", Budget(60), 20)
    live = LiveAttempt(5.0, Stats(seconds=5.0, event="NEW", executions=1000, edges=7, features=9, units=3, rss=50), 2)
    now = of_fuzzer(plan, FuzzerState(edges=3, features=4, units=9), 60.0, live, merging=False)
    assert (now.state, now.seconds, now.left, now.executions, now.rate) == ("running", 5.0, 55.0, 1000, 200.0)
    assert (now.edges, now.features, now.units, now.peak_rss) == (7, 9, 11, 50)
    assert of_fuzzer(plan, FuzzerState(), 0.0, None, merging=False).state == "done"
    assert of_fuzzer(plan, FuzzerState(), 60.0, None, merging=True).state == "merging"
    assert of_fuzzer(plan, FuzzerState(benched="why"), 60.0, None, merging=False).state == "benched"


def test_who_waits_for_a_file_gets_it_every_few_seconds_and_at_the_end(tmp_path: Path) -> None:
    now, told = 0.0, list[Status]()
    reporter = Reporter(Lines(lambda: now), tmp_path / "status.json", told.append, lambda: now)
    for now in (0.0, 1.0, FILE_EVERY - 0.1, FILE_EVERY, FILE_EVERY + 1):  # noqa: B007  the clock reads it
        reporter.report(STATUS)
    assert len(told) == 2
    assert json.loads((tmp_path / "status.json").read_bytes())["name"] == "nightly"
    reporter.report(Status("nightly", "done", True, "", 2, 1, 2, 0, (FUZZER,)))
    assert json.loads((tmp_path / "status.json").read_bytes())["state"] == "done"


def test_without_a_terminal_there_is_a_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "topcoat")
    now = 0.0
    lines = Lines(lambda: now)
    for now in (0.0, 59.0, 60.0, 61.0, 119.0, 120.0):  # noqa: B007  the clock reads it
        lines.show(STATUS)
    assert len(caplog.messages) == 2
