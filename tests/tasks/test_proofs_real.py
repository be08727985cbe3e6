"""Fixes proved and reported with the real QEMU, the real Linux guest, and targets of one's own."""

import json
import shutil

import pytest

from pipeline.builds.targets import sources
from pipeline.campaign.report import matrix
from pipeline.fuzz.crashes.store import CrashStore
from tests.conftest import Workspace
from tests.tasks.test_faults_real import assert_nothing_is_left

pytestmark = pytest.mark.timeout(600)

A_FUZZER = """
#include <stddef.h>
#include <stdint.h>
static int *volatile nowhere;
__attribute__((noinline)) static void bug_a(void) { *nowhere = 1; }
__attribute__((noinline)) static void bug_b(void) { *nowhere = 2; }
__attribute__((noinline)) static void bug_c(void) { *nowhere = 3; }
void (*volatile bugs[])(void) = {bug_a, bug_b, bug_c};
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 2 && %(c)d) bugs[2]();
    if (size == 1 && data[0] %% 2 == 1 && %(a)d) bugs[0]();
    if (size == 1 && data[0] %% 2 == 0) bugs[1]();
    return 0;
}
"""
B_FUZZER = """
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size > 1) abort();
    return 0;
}
"""
FILE = """
name = "nightly"
fuzzers = ["mine/*"]
budget = "6s"
slice = "6s"
[[fuzzer]]
name = "mine/a_fuzzer"
seeds = ["seeds"]
"""


def words(workspace: Workspace, fuzzer: str) -> dict[str, list[str]]:
    """What the matrix says, by the functions of the buckets; after the first build."""
    (found,) = matrix.read(CrashStore(workspace.store.root), [fuzzer])
    return {row.bucket.slug.split("-")[-2]: [cell.text for cell in row.cells] for row in found.rows}


def counts(workspace: Workspace) -> dict[str, int]:
    told = json.loads((workspace.store.campaigns / "nightly/report.json").read_bytes())
    return {standing: count for standing, count in told["counts"].items() if count}


def test_a_fix_is_proved_and_a_new_bug_is_refused(demo: Workspace) -> None:
    own = demo.directory / "mine"
    (own / "seeds").mkdir(parents=True)
    for name in ("1", "2"):  # each crashes at once, and so is found however slow the host is
        (own / "seeds" / name).write_text(name)
    shutil.move(own / "seeds", demo.directory / "seeds")
    (own / sources.NAME).write_text('package = "mine"\n[[target]]\nname = "a_fuzzer"\n[[target]]\nname = "b_fuzzer"\n')
    (own / "b_fuzzer.c").write_text(B_FUZZER)
    (demo.directory / "nightly.toml").write_text(FILE)
    demo.environment["TOPCOAT_TARGETS"] = "mine"
    demo.configure("[boot]\nwarm = never\n[campaign]\ncanary = off\n")  # a template would be made for each build

    def run(task: str = "CampaignReport", *, a: int = 1, c: int = 0) -> str:
        (own / "a_fuzzer.c").write_text(A_FUZZER % {"a": a, "c": c})
        done = demo.luigi(task, "--file", "nightly.toml", "--workers", "2")
        assert done.status == 0, done.text
        return done.text

    run()
    assert words(demo, "mine/a_fuzzer")["bug_a"][0].startswith("still ")
    first = words(demo, "mine/b_fuzzer")
    assert counts(demo) == {"new": 3}
    verdicts = {path: path.read_bytes() for path in demo.store.crashes.glob("mine/b_fuzzer/*/verdicts/*")}
    assert verdicts
    assert "TriageCrash" not in run()

    text = run(a=0)
    assert "mine/b_fuzzer" not in text.replace("mine/b_fuzzer  ", ""), "its campaign and its crashes are as they were"
    found = words(demo, "mine/a_fuzzer")
    assert found["bug_a"][1:] == ["fixed"]
    assert found["bug_b"][1].startswith("still ")
    assert words(demo, "mine/b_fuzzer") == first
    assert {path: path.read_bytes() for path in verdicts} == verdicts
    checked = demo.topcoat("crash", "check")
    assert checked.status == 0, checked.text
    assert "0 new, 0 back, 1 still, 1 fixed" in checked.text
    shown = demo.topcoat("crash", "matrix").stdout.decode()
    assert max(map(len, shown.splitlines())) <= 80

    (demo.directory / "seeds/3").write_text("33")
    run("FuzzCampaign", a=0, c=1)
    checked = demo.topcoat("crash", "check")
    assert checked.status == 1, checked.text
    assert "1 new, 0 back, 1 still, 0 fixed" in checked.text
    assert "bug_c" in checked.text
    assert demo.topcoat("crash", "check", "--against", "B1", "mine/a_fuzzer").status == 1
    assert_nothing_is_left(demo)
