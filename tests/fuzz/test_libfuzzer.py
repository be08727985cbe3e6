"""Runs of the real libFuzzer, on this host."""

import sys

import pytest

from pipeline.errors import FuzzerError
from tests.fuzz.fakes import Guest

pytest.importorskip("atheris", reason="libFuzzer comes with the extra `fuzz`")

PROGRAM = f"""#!{sys.executable}
import atheris, sys, time
def one(data):
    if data[:2] == b"HI":
        raise RuntimeError("found")
    if data[:2] == b"HT":
        time.sleep(30)
    print("seen", data[:20], flush=True)
atheris.Setup(sys.argv, one)
atheris.Fuzz()
"""


@pytest.fixture
def real(linux: Guest) -> Guest:
    """A fuzzer that finds what begins with HI, and is slow at HT."""
    linux.install(PROGRAM)
    linux.fuzzer.prepare(linux.connector)
    for name, unit in {"hi": b"HI!!", "slow": b"HT", "good": b"x"}.items():
        (linux.directory / "tmp" / name).write_bytes(unit)
    (linux.directory / "tmp/corpus").mkdir()
    (linux.directory / "tmp/corpus/a").write_bytes(b"H")
    return linux


def test_a_crash_is_no_error(real: Guest) -> None:
    _, said = real.run("data/hi")
    assert "Running: data/hi\n" in said
    assert "== ERROR: libFuzzer: fuzz target exited\n" in said


def test_a_timeout_is_no_error(real: Guest) -> None:
    assert "== ERROR: libFuzzer: timeout" in real.run("-timeout=1", "data/slow")[1]


def test_fuzzing_tells_of_the_corpus(real: Guest) -> None:
    _, said = real.run("-runs=50", "-seed=1", "-print_final_stats=1", "data/corpus")
    assert "1 files found in data/corpus\n" in said
    assert "stat::number_of_executed_units:" in said


def test_minimising_leaves_the_unit_that_is_told(real: Guest) -> None:
    found, _ = real.run("-minimize_crash=1", "-runs=1000", "-seed=1", "-exact_artifact_path=data/final", "data/hi")
    assert found == [str(real.directory / "tmp/final")]
    assert (real.directory / "tmp/final").read_bytes().startswith(b"HI")


def test_merging_uses_the_control_file(real: Guest) -> None:
    (real.directory / "tmp/out").mkdir()
    _, said = real.run("-merge=1", "-merge_control_file=data/.mergefile", "data/out", "data/corpus")
    assert "MERGE-OUTER: successful in 1 attempt(s)\n" in said
    assert (real.directory / "tmp/.mergefile").exists()


def test_parallel_jobs_leave_nothing_that_runs(real: Guest) -> None:
    with pytest.raises(FuzzerError, match="did not end within 1 s"):
        real.run("-jobs=2", "-workers=2", "data/corpus", limit=1)
    real.fuzzer.prepare(real.connector)
    assert list((real.directory / "tmp").iterdir()) == []
