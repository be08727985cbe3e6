"""Artifacts of a guest that does not have what their names say: nothing else passes for the input of a crash."""

import json
from collections.abc import Collection
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from pipeline.campaign.guest_fuzzer import CORPUS
from pipeline.campaign.ledger import Crashed, Ended
from pipeline.fuzz.corpus import Corpus
from pipeline.fuzz.crashes import artifacts
from pipeline.fuzz.crashes.report import CrashReport
from tests.campaign.bench import A, Bench, plan
from tests.campaign.scripted import Behaviour, ScriptedSite, unit

NAME, WHOLE = unit("the input")
TORN = WHOLE[:4]
PATHS = ("crash", "leak", "timeout", "oom")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.world.behaviours[A] = Behaviour(crash="boom", after=20, artifact=f"crash-{NAME}", keeps=TORN)
    return made


def stored(bench: Bench) -> bytes:
    """The input of the one crash, after a campaign of one slice."""
    runner = bench.runner(bench.definition(plan(seconds=20)))
    runner.run()
    (directory,) = (bench.store.crashes / A).glob("*/1")
    content = (directory / "input").read_bytes()
    facts = json.loads((directory / "crash.json").read_bytes())
    assert (facts["size"], facts["sha256"]) == (len(content), sha256(content).hexdigest())
    assert facts["artifact"] == bench.world.behaviours[A].artifact
    assert [entry.sha256 for entry in bench.of(Crashed)] == [facts["sha256"]]
    return content


def quarantined(bench: Bench) -> list[str]:
    return list(Corpus.of(bench.store.root, A).quarantined())


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("keeps", [b"", TORN, WHOLE + b"x"])
def test_what_is_not_the_input_gives_way_to_what_the_output_tells(
    bench: Bench, kind: str, keeps: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    behaviour = replace(bench.world.behaviours[A], artifact=f"{kind}-{NAME}", keeps=keeps, base64=WHOLE)
    bench.world.behaviours[A] = behaviour
    assert stored(bench) == WHOLE
    assert quarantined(bench) == [NAME]
    assert "is lost" not in caplog.text
    assert [entry.reason for entry in bench.of(Ended)] == [entry.group for entry in bench.of(Crashed)]


def test_it_gives_way_to_what_comes_at_the_second_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = ScriptedSite.fetch

    def again(guest_fuzzer: ScriptedSite, directory: str, names: Collection[str], into: Path) -> None:
        fetch(guest_fuzzer, directory, names, into)
        guest_fuzzer.files.get("tmp", {}).update({name: WHOLE for name in names if name == f"crash-{NAME}"})

    monkeypatch.setattr(ScriptedSite, "fetch", again)
    assert stored(bench) == WHOLE
    assert quarantined(bench) == [NAME]


@pytest.mark.parametrize("base64", [b"", b"of another one"])
def test_if_there_is_no_other_the_crash_is_kept_without_and_the_loss_told(
    bench: Bench, base64: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    bench.world.behaviours[A] = replace(bench.world.behaviours[A], base64=base64)
    assert stored(bench) == b""
    lost = f"the input of crash-{NAME} is lost: it did not come whole, and the output does not tell it"
    assert caplog.messages.count(f"{A}#1.1: {lost}") == 1
    ((ended, crashed),) = zip(bench.of(Ended), bench.of(Crashed), strict=True)
    assert (ended.result, ended.reason) == ("crash", f"{crashed.group}; {lost}")
    assert quarantined(bench) == [], "nobody has it"


def test_one_that_the_corpus_has_is_known_by_its_name(bench: Bench) -> None:
    """It would end each run at once."""
    Corpus.of(bench.store.root, A).add([WHOLE], "seed")
    assert stored(bench) == b""
    assert quarantined(bench) == [NAME]
    assert NAME not in bench.units(A)


def test_of_a_guest_that_dies_with_it_the_output_tells(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.world.behaviours[A] = replace(bench.world.behaviours[A], artifact=f"crash-{NAME}", base64=WHOLE, fate="dies")
    assert stored(bench) == WHOLE
    assert "is lost" not in caplog.text


def test_of_a_guest_that_dies_with_a_large_one_the_loss_is_told(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ScriptedSite.fetch

    def fetch(guest_fuzzer: ScriptedSite, directory: str, names: Collection[str], into: Path) -> None:
        real(guest_fuzzer, directory, [name for name in names if directory == CORPUS], into)

    monkeypatch.setattr(ScriptedSite, "fetch", fetch)
    assert stored(bench) == b""
    assert f"the input of crash-{NAME} is lost" in caplog.text


@pytest.mark.parametrize("name", ["crash-1", f"crash-{NAME}.txt", f"x-{NAME}", f"crash-{NAME.upper()}"])
def test_other_names_say_nothing_of_the_content(bench: Bench, name: str) -> None:
    bench.world.behaviours[A] = replace(bench.world.behaviours[A], artifact=name)
    assert stored(bench) == TORN


def test_the_empty_input_is_whole(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.world.behaviours[A] = replace(bench.world.behaviours[A], artifact=f"crash-{unit('')[0]}", keeps=b"")
    assert stored(bench) == b""
    assert "is lost" not in caplog.text


def test_what_is_told_counts_only_if_it_is_what_the_name_says() -> None:
    told = CrashReport("SEGV", base64=WHOLE)
    assert [artifacts.told(f"{kind}-{NAME}", told) for kind in PATHS] == [WHOLE] * 4
    assert artifacts.told("crash-1", told) == artifacts.told("", told) == WHOLE
    assert artifacts.told(f"crash-{unit('x')[0]}", told) is None
    assert artifacts.told(f"crash-{NAME}", CrashReport("SEGV")) is artifacts.told(f"crash-{NAME}", None) is None
