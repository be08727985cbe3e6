from typing import Any

import pytest

from pipeline.campaign.report import code_scanning, sarif
from pipeline.campaign.report.reported import ReportedBucket
from pipeline.fuzz.crashes.report import CrashReport
from pipeline.fuzz.crashes.stack import Frame
from tests.campaign.report.samples import AVERAGE, COPY, GONE, NO_PLACE


def test_a_log_that_github_takes() -> None:
    assert code_scanning.problems(sarif.encode([COPY, AVERAGE])) == []
    assert code_scanning.problems(sarif.encode([NO_PLACE], stand_in="a.c")) == []


def test_results_that_github_refuses_or_misunderstands() -> None:
    assert code_scanning.problems(sarif.encode([COPY, NO_PLACE, GONE])) == [
        "1 of its results have no place in a file, and GitHub refuses the whole log for that.",
        "1 of its results are gone, and GitHub shows them as if they were there.",
    ]


@pytest.mark.parametrize("number", [5_001, 25_001])
def test_too_many_results(number: int) -> None:
    log = sarif.encode([COPY])
    log["runs"][0]["results"] *= number
    [problem] = code_scanning.problems(log)
    assert f"{number:,} results" in problem


def test_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_scanning, "MOST_BYTES", 100)
    [problem] = code_scanning.problems(sarif.encode([COPY]))
    assert "bytes after gzip" in problem


def test_too_many_runs() -> None:
    log: dict[str, Any] = sarif.encode([COPY])
    log["runs"] *= 21
    assert code_scanning.problems(log) == ["It has 21 runs, and GitHub refuses a log with more than 20."]


def test_the_longest_stack_is_within_all_limits() -> None:
    frames = tuple(Frame(f"f{number}", "a.c", number) for number in range(1, 129))
    bucket = ReportedBucket("slug", "demo/f", "SEGV", "SEGV", "", CrashReport("SEGV", frames=frames))
    assert code_scanning.problems(sarif.encode([bucket])) == []
