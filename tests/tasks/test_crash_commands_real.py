"""A planted crash with the real QEMU and the real Linux guest: tried, made smaller, given away, and tried elsewhere."""

import json
from pathlib import Path

import pytest

from pipeline.fuzz.crashes import bundle
from tests.campaign.planted_parser import THIRTY_NINE
from tests.conftest import Workspace, new_workspace, prepare_demo
from tests.tasks.test_faults_real import assert_nothing_is_left
from tests.tasks.test_triage_real import PARSER, overflow

pytestmark = pytest.mark.timeout(900)


def test_a_planted_crash_goes_its_way(demo: Workspace, demo_parts: Path, tmp_path: Path) -> None:
    bucket = overflow(demo, THIRTY_NINE)
    done = demo.topcoat("crash", "repro", bucket, "--tries", "3")
    assert (done.status, done.stdout.decode().splitlines()[:2]) == (
        0,
        [f"{bucket} of {PARSER}: same bucket", "  same bucket  3 of 3"],
    ), done.text
    done = demo.topcoat("crash", "minimise", bucket, "--tries", "3", "--json")
    assert done.status == 0, done.text
    facts = json.loads(done.stdout)
    assert (facts["original"]["size"], facts["result"]["size"], facts["confirmed"]) == (39, 21, 3)
    path = tmp_path / "overflow.bundle"
    done = demo.topcoat("crash", "bundle", bucket, "-o", str(path))
    assert done.status == 0, done.text
    made = bundle.read(path)
    assert (made.input, made.minimised) == (THIRTY_NINE, b"TCT0" + b"0" * 17)
    assert set(made.digests["images"]) == {"zbi", "blk", "kernel", "targets"}
    assert made.digests["qemu"].keys() == {"qemu"}
    assert not path.with_name(f"{path.name}.lock").exists()
    assert_nothing_is_left(demo)
    with new_workspace(tmp_path / "elsewhere") as elsewhere:
        prepare_demo(elsewhere, demo_parts)
        done = elsewhere.topcoat("crash", "replay", str(path), "--tries", "3", "--json")
        assert done.status == 0, done.text
        found = json.loads(done.stdout)
        assert (found["told"], found["same"], found["tries"]) == ("same bucket", 6, 6)
        assert [one["group"] for one in found["differences"]] == ["fuzzer"], "it was found with another build"
        assert not (elsewhere.store.root / "crashes").exists()
        assert_nothing_is_left(elsewhere)
