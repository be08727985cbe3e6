"""The harvest of a fuzzer that runs again and again: each run has its own artifacts, and none waits for nothing."""

import threading
from pathlib import Path

import pytest

from pipeline.campaign import harvest as harvests
from pipeline.campaign.guest_fuzzer import CORPUS
from pipeline.campaign.harvest import Harvest
from tests.campaign.scripted import unit
from tests.campaign.scripted_harvest import DEAD, REFUSED, Bench, Running
from tests.waiting import SOON


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_what_is_posted_is_done_in_its_turn(bench: Bench) -> None:
    """Each run has its own artifacts, also where two have one name, and one that must be asked for again."""
    name = f"crash-{unit('whole')[0]}"
    bench.guest_fuzzer.write("tmp", (name, b"who"), ("crash-1", b"boom"))
    seen: list[tuple[dict[str, bytes], set[str]]] = []
    harvest = bench.harvest()

    def turn() -> None:
        seen.append((dict(harvest.artifacts), set(harvest.torn)))
        harvest.begin()

    harvest.found(f"tmp/{name}")
    harvest.post(turn)
    harvest.found("tmp/crash-1")
    harvest.post(turn)
    harvest.take()
    assert seen == [({}, {name}), ({"crash-1": b"boom"}, set())]
    assert (harvest.artifacts, harvest.left()) == ({}, [])


def test_artifacts_of_earlier_runs_are_removed_when_units_are_fetched(bench: Bench) -> None:
    """One that crashes four times a second would fill the guest's disk."""
    bench.guest_fuzzer.write("tmp", *((f"crash-{number}", b"boom") for number in range(3)))
    removed: list[tuple[str, set[str]]] = []
    bench.guest_fuzzer.remove = lambda directory, names: removed.append((directory, set(names)))  # type: ignore[method-assign]
    harvest = bench.harvest()
    for number in range(3):
        harvest.found(f"tmp/crash-{number}")
        if number < 2:
            harvest.post(harvest.begin)
    harvest.take(units=False)
    assert removed == []
    harvest.take()
    harvest.take()
    assert removed == [("tmp", {"crash-0", "crash-1"})], "the last one is still being taken in"


def test_artifacts_that_cannot_be_removed_do_not_keep_the_units_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise REFUSED

    monkeypatch.setattr(bench.guest_fuzzer, "remove", refuse)
    bench.guest_fuzzer.write("tmp", ("crash-1", b"boom"))
    bench.guest_fuzzer.write(CORPUS, unit("a"))
    harvest = bench.harvest()
    harvest.found("tmp/crash-1")
    harvest.post(harvest.begin)
    assert (harvest.take(), bench.contents) == (1, {b"a"})
    assert caplog.messages == ["artifacts of fuzzers/a#1.1 stay in the guest: there is no such file"]
    harvest.take()
    assert len(caplog.messages) == 1, "it is not asked for again and again"


def test_an_artifact_that_the_present_run_has_written_anew_stays(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal inputs have one name."""
    removed: list[set[str]] = []
    monkeypatch.setattr(bench.guest_fuzzer, "remove", lambda _, names: removed.append(set(names)))
    bench.guest_fuzzer.write("tmp", ("crash-1", b"boom"), ("crash-2", b"bang"))
    harvest = bench.harvest()
    harvest.found("tmp/crash-1")
    harvest.found("tmp/crash-2")
    harvest.post(harvest.begin)
    harvest.found("tmp/crash-1")
    harvest.take()
    assert removed == [{"crash-2"}]


def test_a_run_waits_once_too_much_waits_to_be_taken_in(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest can have its fuzzer say 16 MiB and crash, again and again."""
    monkeypatch.setattr(harvests, "MOST_WAITING", 100)
    go_on, called = threading.Event(), list[int]()
    running = Running(bench.harvest())
    running.harvest.post(lambda: go_on.wait(SOON), 60)
    running.harvest.post(lambda: called.append(1), 60)
    poster = threading.Thread(target=lambda: running.harvest.post(lambda: called.append(2), 60))
    poster.start()
    poster.join(0.2)
    assert (poster.is_alive(), called) == (True, [])
    go_on.set()
    poster.join(SOON)
    running.end()
    assert called == [1, 2]


def test_nobody_waits_for_a_thread_that_is_gone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harvests, "MOST_WAITING", 0)
    running = Running(bench.harvest())
    running.end()
    running.harvest.post(print, 1)
    assert running.harvest.left() == [print]


def test_what_is_posted_and_cannot_be_done_is_left(bench: Bench) -> None:
    bench.guest_fuzzer.faults["crash-1"] = DEAD
    harvest = bench.harvest()
    harvest.found("tmp/crash-1")
    harvest.post(print)
    running = Running(harvest)
    running.end()
    assert (harvest.left(), harvest.left()) == ([print], [])


def test_what_is_not_wanted_is_not_fetched(bench: Bench) -> None:
    bench.guest_fuzzer.write("tmp", ("crash-1", b"boom"), ("crash-2", b"bang"))
    what = (bench.workspace, bench.corpus, "fuzzers/a#1.1", 3600.0, 100)
    harvest = Harvest(*what, wanted=lambda path: path != "tmp/crash-1")
    harvest.found("tmp/crash-1")
    harvest.found("tmp/crash-2")
    harvest.take()
    assert (bench.guest_fuzzer.asked, harvest.artifacts) == (["crash-2"], {"crash-2": b"bang"})
