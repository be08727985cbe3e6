"""What fuzzers said last before their attempts failed."""

import os
from pathlib import Path

from pipeline.campaign.failures import KEPT, MOST, Failures

NOTHING = b"WARNING: failed to fetch syslog: missing pid\n"
"""That is Topcoat's own, and tells nothing."""


def test_of_many_failed_attempts_the_latest_are_kept(tmp_path: Path) -> None:
    failures = Failures(tmp_path)
    for number in range(3 * MOST):
        told = failures.keep("p/f", f"1.{number}", b"before\nsecond\n\nfirst\nlast\n" + NOTHING)
        assert told == f"it said last: second | first | last (failures/p/f/1.{number}.txt)"
        os.utime(tmp_path / f"failures/p/f/1.{number}.txt", ns=(number, number))
    kept = {path.name for path in (tmp_path / "failures/p/f").iterdir()}
    assert kept == {f"1.{number}.txt" for number in range(2 * MOST, 3 * MOST)}


def test_one_that_said_nothing_leaves_nothing(tmp_path: Path) -> None:
    assert Failures(tmp_path).keep("p/f", "1.1", b"\n\n" + NOTHING) == ""
    assert list(tmp_path.iterdir()) == []


def test_of_much_output_the_end_is_kept_and_told(tmp_path: Path) -> None:
    said = b"first\n" + b"x" * KEPT + b"\nlast\n"
    assert Failures(tmp_path).keep("p/f", "1.1", said).endswith("| last (failures/p/f/1.1.txt)")
    assert (tmp_path / "failures/p/f/1.1.txt").read_bytes() == said[-KEPT:]
