"""Campaigns with the real QEMU and the real Linux guest: how a fuzzer ends decides what counts, and is told."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.builds.linux.compiler import Compiler, unpack
from pipeline.campaign import ledger
from pipeline.campaign.ledger import Ended
from tests.conftest import Workspace, qemus_of
from tests.fuzz.test_targets import v2
from tests.tasks.test_campaign_hostile import LIMIT, SLICE, Hostile

pytestmark = pytest.mark.timeout(10 * LIMIT)

OVERFLOWING = r"""
#include <stddef.h>
#include <stdint.h>

static int add(int first, int second) { return first + second; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  volatile int sum = add(0x7fffffff, size ? data[0] | 1 : 0);
  return sum == 1;
}
"""
"""A fuzzer that nothing but UndefinedBehaviorSanitizer sees fail."""


@pytest.fixture
def hostile(demo: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hostile]:
    monkeypatch.setattr("tests.tasks.test_campaign_hostile.LIMIT", 5 * LIMIT)
    made = Hostile(demo, tmp_path)
    demo.module("hurried", "import tasks\n")  # these end by themselves, however slow the host is
    yield made
    assert qemus_of(demo.directory) == []


def compiled(workspace: Workspace, source: str, directory: Path) -> str:
    """A target with AddressSanitizer and UndefinedBehaviorSanitizer."""
    root = unpack(workspace.store.demo / "sysroot.tar", directory / "root")
    (directory / "target.c").write_text(source)
    words = ("-O1", "-fsanitize=fuzzer,address,undefined", "target.c", "-lstdc++", "-lm")
    clang = Compiler(workspace.store.demo / "tools")
    clang.link(*words, directory=directory, output=directory / "target", root=root, timeout=LIMIT)
    return os.fsdecode((directory / "target").read_bytes())


def test_what_only_undefined_behaviour_sanitizer_finds_is_a_crash(hostile: Hostile, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with hostile.lent(compiled(hostile.workspace, OVERFLOWING, tmp_path / "made")):
        done = hostile.run(*SLICE)
    assert done.status == 0, done.text
    assert {one.result for one in hostile.of(Ended)} <= {"crash", "done"}
    (bucket,) = (file.parent for file in hostile.workspace.store.crashes.glob("*/*/*/bucket.json"))
    assert bucket.name.startswith("integer-overflow-")
    assert all(path.read_bytes() for path in bucket.glob("*/input")), "its first input is empty, and does no harm"


def test_a_target_that_ends_itself_has_not_succeeded_and_what_it_said_is_told(hostile: Hostile) -> None:
    said = "echo '#9	pulse  cov: 9 ft: 9 corp: 9/9b lim: 9 exec/s: 9 rss: 31Mb' >&2; echo FUZZ_MODE must be set >&2"
    with hostile.lent(f"#!/bin/sh\n{said}\nexit 0\n"):
        done = hostile.run(*SLICE)
    assert done.status == 30, done.text
    assert [one.result for one in hostile.of(Ended)] == ["failed"]
    assert "FUZZ_MODE must be set (failures/example-fuzzers/noop_fuzzer/1.1.txt)" in done.text
    kept = hostile.workspace.store.campaigns / "nightly/failures/example-fuzzers/noop_fuzzer/1.1.txt"
    assert "\nFUZZ_MODE must be set\n" in kept.read_text()


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("echo c >/proc/sysrq-trigger", "its kernel has halted: "),
        ("poweroff -f", "its QEMU has ended"),
    ],
)
def test_of_a_target_that_ends_its_guest_it_is_told_how(hostile: Hostile, does: str, told: str) -> None:
    with hostile.lent(f"#!/bin/sh\n{does}\nsleep 1000\n"):
        done = hostile.run(*SLICE)
    assert done.status == 30, done.text
    (ended,) = hostile.of(Ended)
    assert (ended.result, ended.reason[: len(told)]) == ("guest died", told)
    assert f"the last one: {told}" in done.text


def test_an_image_of_the_users_is_fuzzed_and_a_list_that_tells_of_no_fuzzer_is_refused(demo: Workspace) -> None:
    """In a store where nothing but these is made."""
    (demo.directory / "mine.cpio").write_bytes((demo.store.demo / "initramfs.cpio").read_bytes())
    demo.configure("[build]\nzbi = mine.cpio\n[campaign]\ncanary = off\n")
    done = demo.luigi(*SLICE)
    assert done.status == 0, done.text
    (ended,) = (one for one in ledger.read(demo.store.campaigns / "nightly/ledger.jsonl") if isinstance(one, Ended))
    assert ended.result == "done"

    (demo.directory / "tests.json").write_text(json.dumps([v2("example-fuzzers", "gone_fuzzer")]))
    (demo.directory / "nightly.toml").write_text('name = "nightly"\nfuzzers = ["*/*"]\n')
    demo.configure("[build]\ntests.json = tests.json\n")
    for outcome in (demo.topcoat("campaign", "check", "nightly.toml"), demo.luigi("FuzzCampaign", "--name", "nightly")):
        assert outcome.status == 2, outcome.text
        assert "the Linux guest has no example-fuzzers/gone_fuzzer, which " in outcome.text
        assert "Traceback" not in outcome.text
