"""The fuzzers do in the real guest what they promise, and each planted bug is where it is said to be."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from pipeline.builds.demo.planted import PLANTED, Planted
from pipeline.host.locks import locked
from pipeline.vm.qemu.stopping import stop
from tests.builds.linux import fuzzing
from tests.builds.linux.fuzzing import NAMES, Run
from tests.conftest import BIN, Workspace

STATUS = {"libFuzzer: deadly signal": 77, "libFuzzer: timeout": 70}


@pytest.fixture(scope="session")
def runs(demo_parts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """What the fuzzers said, by label. One worker runs them for all."""
    saved = demo_parts.parent / "fuzzing.json"
    with locked(saved):
        if not saved.exists():
            fuzzing.save(_run(demo_parts, tmp_path_factory.mktemp("fuzzing")), saved)
    return fuzzing.load(saved)


def _run(demo_parts: Path, directory: Path) -> dict[str, Run]:
    workspace = Workspace(directory, {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"})
    workspace.environment.pop("TOPCOAT_ROOT", None)
    subprocess.run(["cp", "-a", "--sparse=always", demo_parts, workspace.store.root], check=True)
    try:
        outcome = workspace.luigi("BootInstance")
        assert outcome.status == 0, outcome.text
        return fuzzing.run_all(workspace)
    finally:
        stop(workspace.instance(), 10)


def own_frames(text: str) -> list[tuple[str, str]]:
    """Function and source of all frames that are a fuzzer's own."""
    return re.findall(r"^ *#\d+ 0x[0-9a-f]+ in (\w+) (\w+_(?:fuzzer|arbitrary)\.c):\d+:\d+$", text, re.MULTILINE)


@pytest.mark.parametrize("number", range(len(PLANTED)), ids=[f"{bug.fuzzer} {bug.function}" for bug in PLANTED])
def test_a_planted_bug_is_reached_by_its_input(runs: dict[str, Run], number: int) -> None:
    bug, run = PLANTED[number], runs[f"bug {number}"]
    assert f"ERROR: {bug.report}" in run.text
    assert own_frames(run.text)[0] == (bug.function, f"{bug.fuzzer}.c")
    assert run.status == STATUS.get(bug.report, 1)


def test_the_planted_bugs_are_distinct() -> None:
    assert len({(bug.fuzzer, bug.function) for bug in PLANTED}) == len(PLANTED)
    for name in ("maze_fuzzer", "parser_fuzzer"):
        mine: list[Planted] = [bug for bug in PLANTED if bug.fuzzer == name]
        assert len({bug.report for bug in mine}) == len(mine) == 5
    assert {bug.fuzzer for bug in PLANTED} == {*NAMES} - {"noop_fuzzer", "noisy_fuzzer", "out_of_memory_fuzzer"}


def test_the_crash_is_found(runs: dict[str, Run]) -> None:
    run = runs["crash"]
    assert run.status == 77
    assert "ERROR: libFuzzer: deadly signal" in run.text
    assert own_frames(run.text)[:2] == [("greet", "crash_fuzzer.c"), ("LLVMFuzzerTestOneInput", "crash_fuzzer.c")]
    assert "Test unit written to ./crash-" in run.text
    assert runs["artifact"].text.startswith("HI!")


def test_frames_are_numbered_without_gaps(runs: dict[str, Run]) -> None:
    for run in runs.values():
        for stack in re.findall(r"(?:^ *#\d+ .*\n)+", run.text, re.MULTILINE):
            numbers = [int(number) for number in re.findall(r"^ *#(\d+) ", stack, re.MULTILINE)]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_memory_runs_out_at_the_limit(runs: dict[str, Run]) -> None:
    run = runs["memory"]
    assert run.status == 71
    assert re.search(r"ERROR: libFuzzer: out-of-memory \(used: \d+Mb; limit: 64Mb\)", run.text)
    assert ("keep", "out_of_memory_fuzzer.c") in own_frames(run.text)
    assert "Test unit written to ./oom-" in run.text


def test_nothing_is_wrong_with_noop(runs: dict[str, Run]) -> None:
    assert runs["noop"].status == 0
    assert "Done 1000 runs" in runs["noop"].text
    assert "ERROR" not in runs["noop"].text


def test_noisy_is_noisy_on_both_streams(runs: dict[str, Run]) -> None:
    out, err = map(int, runs["noisy"].text.split())
    assert out == err >= 20 * 64


@pytest.mark.parametrize("name", ["maze_fuzzer", "parser_fuzzer"])
def test_seeds_and_dictionary_are_taken(runs: dict[str, Run], name: str) -> None:
    run = runs[f"seeds {name}"]
    assert run.status == 0
    assert re.search(r"Dictionary: [4-9] entries", run.text)
    assert re.search(rf"[12] files found in pkg/{name}_seed_corpus", run.text)
