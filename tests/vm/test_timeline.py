import json
from pathlib import Path

from pipeline.vm.timeline import Timeline, ready_seconds

SAMPLE = """\
{"schema": 2, "started": "2026-11-24T20:00:00Z"}
{"attempt": 1, "boot_id": "6ed5", "event": "attempt", "how": "clone", "seconds": 0.0}
{"attempt": 1, "event": "spawn", "seconds": 0.03}
{"attempt": 1, "cause": "port refused", "event": "failed", "fault": "host", "seconds": 0.1, "stage": "spawn"}
{"attempt": 2, "boot_id": "77cd", "event": "attempt", "how": "boot", "seconds": 1.1}
{"attempt": 2, "event": "ready", "seconds": 3.4}
"""
"""Frozen: what earlier versions have written must be understood."""


class FakeClock:
    now = 5.0

    def __call__(self) -> float:
        return self.now


def test_the_frozen_sample_is_written_again(tmp_path: Path) -> None:
    clock = FakeClock()
    path = tmp_path / "timeline.jsonl"
    timeline = Timeline(path, clock)
    timeline.attempt("6ed5", "clone")
    for moment, event, facts in (
        (0.03, "spawn", {}),
        (0.1, "failed", {"cause": "port refused", "stage": "spawn", "fault": "host"}),
    ):
        clock.now = 5.0 + moment
        timeline.reached(event, **facts)
    clock.now = 6.1
    timeline.attempt("77cd", "boot")
    clock.now = 8.4
    timeline.reached("ready")
    assert path.read_text().splitlines()[1:] == SAMPLE.splitlines()[1:]
    assert json.loads(path.read_text().splitlines()[0])["schema"] == 2


def test_what_the_last_attempt_took(tmp_path: Path) -> None:
    path = tmp_path / "timeline.jsonl"
    assert ready_seconds(path) is None
    path.write_text(SAMPLE)
    assert ready_seconds(path) == 3.4 - 1.1
    path.write_text("".join(SAMPLE.splitlines(keepends=True)[:-1]))
    assert ready_seconds(path) is None, "it failed"
    for damaged in (SAMPLE[:-9], "", "{}", "[]", SAMPLE.replace('"schema": 2', '"schema": 3'), "\0", "7\n8\n"):
        path.write_text(damaged)
        assert ready_seconds(path) is None
