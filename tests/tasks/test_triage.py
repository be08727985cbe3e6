"""TriageCrash and MinimiseCrash as luigi runs them, with guests of a script: when they are made, and what of again."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.fuzz.crashes import report as reports
from pipeline.fuzz.crashes import verdicts
from pipeline.fuzz.crashes.crash import Crash
from pipeline.fuzz.crashes.store import CrashStore
from tests.campaign.scripted_tries import A, bucket_of, crash_in
from tests.conftest import Outcome, Workspace
from tests.fuzz.crashes import made_up

MODULE = """
import atexit, os, tasks
from contextlib import contextmanager
from pipeline.campaign import subjects, triage
from pipeline.fuzz.crashes.store import CrashStore
from tasks import crashes
from tasks.engine.context import context
from tasks.fuzzing import FuzzingTask
from tests.campaign.scripted_tries import TryWorld
from tests.tasks.test_triage import crash

def target(content):
    if "MEANWHILE" in os.environ:
        CrashStore(context().settings.store.root).add(crash(b"found meanwhile"))
    return os.environ["CRASHES_IN"] if b"!" in content else ""

world = TryWorld(target)

@contextmanager
def pooled(*_):
    yield world.guests_with

triage.pooled = pooled
subjects.build_of = lambda *_: os.environ["BUILD"]
crashes.template_of_pool = lambda: None
FuzzingTask.missing = FuzzingTask.providers = lambda self: {}
crashes._CrashTask.prerequisites = lambda self: {}
atexit.register(lambda: print(f"runs: {len(world.runs)}"))
"""

TOPCOAT = "import scripted, sys\nfrom pipeline.cli.main import main\nsys.exit(main())\n"
PROJECT = Path(__file__).parents[2]
SLUG = bucket_of("parse")


def crash(content: bytes) -> Crash:
    output = crash_in("parse")
    return replace(
        made_up.CRASH, fuzzer=A, build="b3:first", input=content, output=output, report=reports.parse(output)
    )


class Triage:
    """A workspace with a bucket, whose fuzzer a module runs."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.store = CrashStore(workspace.store.root)
        self.place = self.store.directory(A, SLUG)
        workspace.module("scripted_topcoat", TOPCOAT)
        workspace.module("scripted", MODULE)
        workspace.environment["PYTHONPATH"] += f":{PROJECT}"  # for what the module has of these tests

    def run(self, task: str = "TriageCrash", build: str = "b3:first", crashes_in: str = "parse", **more: str) -> int:
        """Returns how often the fuzzer was run."""
        done = self.luigi(task, build, crashes_in, **more)
        assert done.status == 0, done.text
        return int(done.stdout.decode().rpartition("runs: ")[2])

    def topcoat(self, *words: str, build: str = "b3:first", crashes_in: str = "parse", **more: str) -> Outcome:
        """Run `topcoat` with the fuzzer of the module; the last line on stdout tells how often that was run."""
        environment = {"BUILD": build, "CRASHES_IN": crashes_in, **more}
        return self.workspace.run("python", "-m", "scripted_topcoat", *words, environment=environment)

    def luigi(self, task: str, build: str = "b3:first", crashes_in: str = "parse", **more: str) -> Outcome:
        words = ("--module", "scripted", task, "--fuzzer", A, "--bucket", SLUG)
        environment = {"BUILD": build, "CRASHES_IN": crashes_in, **more}
        return self.workspace.run("luigi", *words, environment=environment)

    @property
    def words(self) -> dict[str, str]:
        """The words by build."""
        return {one.build: one.word for one in verdicts.read_all(self.place)}


@pytest.fixture
def triage(workspace: Workspace) -> Triage:
    made = Triage(workspace)
    assert made.store.add(crash(b"crash!")).bucket == SLUG
    return made


def test_a_verdict_is_made_once_and_again_only_for_another_build_or_input(triage: Triage) -> None:
    assert triage.run() == 10
    assert triage.run() == 0, "nothing has changed"
    assert triage.words == {"b3:first": "still there 10 of 10"}
    triage.store.add(crash(b"another crash!"))
    assert triage.run() == 10, "only what is new"
    assert triage.words == {"b3:first": "still there 20 of 20"}
    assert triage.run(build="b3:second", crashes_in="average") == 20
    assert triage.run(build="b3:third", crashes_in="") == 20
    assert triage.run(build="b3:first") == 0, "an old one stays"
    assert triage.words == {
        "b3:first": "still there 20 of 20",
        "b3:second": f"masked by {bucket_of('average')}",
        "b3:third": "fixed",
    }
    assert [one.digest for one in triage.store.builds(A).builds] == ["b3:first", "b3:second", "b3:third"]
    record = next((triage.place / "verdicts").glob("*.made.json")).read_text()
    assert str(triage.workspace.directory) not in record


def test_a_crash_that_comes_back_after_a_verdict_is_told(triage: Triage) -> None:
    triage.run()
    triage.run(build="b3:second", crashes_in="")
    back = triage.store.add(replace(crash(b"back!"), build="b3:third"))
    assert back.state == "back"


def test_what_a_campaign_finds_meanwhile_is_for_the_next_time(triage: Triage) -> None:
    """It goes on while a verdict is made, which takes minutes."""
    assert triage.run(MEANWHILE="1") == 10
    assert triage.words == {"b3:first": "still there 10 of 10"}
    assert triage.run() == 10
    assert triage.words == {"b3:first": "still there 10 of 20"}


@pytest.mark.parametrize("damaged", ["*.txt", "*.json", "*.made.json"])
def test_what_somebody_has_changed_is_made_wholly_anew(triage: Triage, damaged: str) -> None:
    triage.run()
    min((triage.place / "verdicts").glob(damaged), key=lambda path: len(path.name)).write_text("{")
    assert triage.run() == 10
    assert triage.words == {"b3:first": "still there 10 of 10"}
    assert triage.run() == 0


def test_minimising_is_done_once_and_again_only_for_another_build_or_a_smaller_input(triage: Triage) -> None:
    triage.run()
    runs = triage.run("MinimiseCrash")
    assert runs > 10
    assert (triage.place / "minimised/input").read_bytes() == b"!"
    assert (triage.place / "minimised/original").read_bytes() == b"crash!"
    assert triage.run("MinimiseCrash") == 0
    triage.store.add(crash(b"more!"))
    triage.run()
    assert triage.run("MinimiseCrash") == 0, "it is smaller than the other, but not than what was made of it"
    assert triage.run("TriageCrash", build="b3:second") == 20
    assert 0 < triage.run("MinimiseCrash", build="b3:second") < runs
    assert (triage.place / "minimised/original").read_bytes() == b"more!"


def test_what_does_not_come_again_is_kept_and_not_minimised(triage: Triage) -> None:
    assert triage.run(crashes_in="") == 10
    assert triage.words == {"b3:first": "0 of 10"}
    done = triage.luigi("MinimiseCrash", crashes_in="")
    assert done.status == 30, done.text
    assert f"{SLUG} cannot be minimised: it did not come again: none: 0 of 10" in done.text
    assert "Traceback" not in done.text
    assert (triage.place / "1/input").read_bytes() == b"crash!"
    assert not list((triage.workspace.store.root).glob("corpora/*"))
