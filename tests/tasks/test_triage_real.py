"""Crashes tried again and made smaller with the real QEMU, the real Linux guest and its planted bugs."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.builds.targets import sources
from pipeline.fuzz.crashes import report as reports
from pipeline.fuzz.crashes import rules
from pipeline.fuzz.crashes.crash import Crash
from pipeline.fuzz.crashes.report import CrashReport
from pipeline.fuzz.crashes.stack import Frame
from pipeline.fuzz.crashes.store import CrashStore
from tests.campaign.planted_parser import THIRTY_NINE
from tests.conftest import Workspace, qemus_of
from tests.tasks.test_faults_real import assert_nothing_is_left
from tests.waiting import eventually

PARSER, MINE = "example-fuzzers/parser_fuzzer", "mine/a_fuzzer"
OUTPUTS = Path(__file__).parents[1] / "fuzz/crashes/outputs"

pytestmark = pytest.mark.timeout(900)


def stored(workspace: Workspace, fuzzer: str, content: bytes, report: CrashReport | None, output: bytes = b"") -> str:
    """Put a crash into the store, as a campaign does. Returns its bucket."""
    crash = Crash(
        fuzzer=fuzzer,
        build="b3:of-the-campaign",
        campaign="nightly",
        slice=1,
        attempt=1,
        boot_id="boot",
        seed=7,
        options=("-max_total_time=60", "-rss_limit_mb=300", "-seed=7", "-timeout=25", "data/corpus"),
        environment={},
        artifact="crash-1",
        input=content,
        output=output,
        serial=b"",
        report=report,
    )
    assert report is not None
    bucket = CrashStore(workspace.store.root).add(crash).bucket
    assert bucket == rules.slug(report, fuzzer)
    return bucket


def overflow(workspace: Workspace, content: bytes) -> str:
    output = (OUTPUTS / "parser_fuzzer-copy_text.txt").read_bytes()
    return stored(workspace, PARSER, content, reports.parse(output), output)


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def run(workspace: Workspace, task: str, fuzzer: str, bucket: str, *more: str) -> str:
    done = workspace.luigi(task, "--fuzzer", fuzzer, "--bucket", bucket, *more)
    assert done.status == 0, done.text
    return done.text


def verdicts(workspace: Workspace, fuzzer: str, bucket: str) -> list[dict[str, Any]]:
    """In the order in which they were made."""
    places = (workspace.store.root / "crashes" / fuzzer / bucket / "verdicts").glob("*.json")
    found = [path for path in places if not path.name.endswith(".made.json")]
    return [read(path) for path in sorted(found, key=lambda path: path.stat().st_mtime)]


def test_the_overflow_of_thirty_nine_bytes_stays_an_overflow(demo: Workspace) -> None:
    """libFuzzer's own minimiser makes a division by zero of it."""
    bucket = overflow(demo, THIRTY_NINE)
    place = demo.store.root / "crashes" / PARSER / bucket
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    text = run(demo, "MinimiseCrash", PARSER, bucket)
    (verdict,) = verdicts(demo, PARSER, bucket)
    assert (verdict["word"], verdict["outcome"], verdict["others"]) == ("still there 10 of 10", "same bucket", {})
    assert f"{bucket}: still there 10 of 10 (same bucket: 10 of 10)" in text
    (evidence,) = (place / "verdicts").glob("*.txt")
    assert evidence.read_text().startswith(f"=== {bucket}: input ")
    assert " in copy_text " in evidence.read_text()
    facts = read(place / "minimised/minimised.json")
    assert (facts["why"], facts["confirmed"], facts["of"]) == ("minimal", 10, 10)
    assert (place / "minimised/input").read_bytes() == b"TCT0" + b"0" * 17
    assert (place / "minimised/original").read_bytes() == THIRTY_NINE
    said = reports.parse((place / "minimised/output.txt").read_bytes())
    assert said is not None
    assert rules.slug(said, PARSER) == bucket
    assert {path: path.read_bytes() for path in before} == before, "what was found stays as it is"
    assert not list((demo.store.root / "corpora").rglob("*")), "nobody is put into quarantine"
    again = run(demo, "MinimiseCrash", PARSER, bucket)
    assert "made" not in again
    assert_nothing_is_left(demo)


def test_another_bug_in_the_same_input_and_a_crash_that_is_none(demo: Workspace) -> None:
    """A double free comes first on the one, and nothing at all on the other: both are kept."""
    bucket = overflow(demo, b"TCN\0N\0N\0T\x11" + 17 * b"t")
    run(demo, "TriageCrash", PARSER, bucket, "--tries", "2")
    (verdict,) = verdicts(demo, PARSER, bucket)
    (other,) = verdict["others"]
    assert other.startswith("double-free-set_name-")
    assert (verdict["word"], verdict["same"], verdict["others"]) == (f"masked by {other}", 0, {other: 2})
    overflow(demo, b"TCharmless")
    text = run(demo, "TriageCrash", PARSER, bucket, "--tries", "2")
    assert "input crash " in text, "the reason for making it again is the new input"
    (verdict,) = verdicts(demo, PARSER, bucket)
    assert sorted((one["none"], one["others"]) for one in verdict["inputs"]) == [(0, {other: 2}), (2, {})]
    done = demo.luigi("MinimiseCrash", "--fuzzer", PARSER, "--bucket", bucket, "--tries", "2")
    assert done.status == 30, done.text
    assert f"cannot be minimised: it did not come again: other bucket ({other}): 0 of 4" in done.text
    assert len(list((demo.store.root / "crashes" / PARSER / bucket).glob("*/input"))) == 2
    assert_nothing_is_left(demo)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_it_leaves_nothing_and_the_same_command_does_it(demo: Workspace, sent: signal.Signals) -> None:
    bucket = overflow(demo, THIRTY_NINE)
    words = ("--module", "tasks", "TriageCrash", "--fuzzer", PARSER, "--bucket", bucket)
    with subprocess.Popen(
        demo.command("luigi", *words, "--tries", "5000"),
        cwd=demo.directory,
        env=demo.environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        eventually(lambda: process.poll() is not None or qemus_of(demo.directory))
        os.killpg(process.pid, sent)
        _, said = process.communicate(timeout=120)
    assert process.returncode == (130 if sent == signal.SIGINT else -sent), said.decode()
    assert b"Traceback" not in said
    assert verdicts(demo, PARSER, bucket) == []
    run(demo, "TriageCrash", PARSER, bucket, "--tries", "2")
    assert [one["word"] for one in verdicts(demo, PARSER, bucket)] == ["still there 2 of 2"]
    assert_nothing_is_left(demo)


A_FUZZER = """
#include <stddef.h>
#include <stdint.h>
static int *volatile nowhere;
__attribute__((noinline)) static void bug_a(void) { *nowhere = 1; }
__attribute__((noinline)) static void bug_b(void) { *nowhere = 2; }
void (*volatile bugs[])(void) = {bug_a, bug_b};
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size > 0 && data[0] == 'A') { %s }
    return 0;
}
"""
B_FUZZER = """
#include <stddef.h>
#include <stdint.h>
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) { return %d; }
"""


def test_a_fix_is_told_from_what_masks_the_crash_and_from_another_fuzzer_s_build(demo: Workspace) -> None:
    own = demo.directory / "mine"
    own.mkdir()
    (own / sources.NAME).write_text('package = "mine"\n[[target]]\nname = "a_fuzzer"\n[[target]]\nname = "b_fuzzer"\n')
    demo.environment["TOPCOAT_TARGETS"] = "mine"
    demo.configure("[boot]\nwarm = never\n")  # a template would be made for each build

    def build(a: str, b: int = 0) -> None:
        (own / "a_fuzzer.c").write_text(A_FUZZER % a)
        (own / "b_fuzzer.c").write_text(B_FUZZER % b)

    frames = (Frame("bug_a", "a_fuzzer.c", 5), Frame("LLVMFuzzerTestOneInput", "a_fuzzer.c", 9))
    bucket = stored(demo, MINE, b"AAAA", CrashReport("SEGV", "WRITE", frames))

    build("bugs[0]();")
    run(demo, "TriageCrash", MINE, bucket)
    assert [one["word"] for one in verdicts(demo, MINE, bucket)] == ["still there 10 of 10"]
    run(demo, "MinimiseCrash", MINE, bucket)
    smallest = demo.store.root / "crashes" / MINE / bucket / "minimised/input"
    assert smallest.read_bytes() == b"A", "with nothing at all it does not crash"

    build("bugs[0]();", b=-1)
    text = run(demo, "TriageCrash", MINE, bucket)
    assert "TargetsImage: made" in text
    assert "TriageCrash: made" not in text
    assert "TriageCrash(" not in text, text

    build("bugs[1]();", b=-1)
    text = run(demo, "TriageCrash", MINE, bucket)
    masked = verdicts(demo, MINE, bucket)[-1]
    assert masked["word"].startswith("masked by segv-bug_b-")
    build("", b=-1)
    run(demo, "TriageCrash", MINE, bucket)
    words = [one["word"] for one in verdicts(demo, MINE, bucket)]
    assert words == ["still there 10 of 10", masked["word"], "fixed"]
    assert_nothing_is_left(demo)
