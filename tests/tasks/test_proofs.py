"""ProveFixes and CampaignReport as luigi runs them, with guests of a script: what is made when, and what of again."""

import json
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.campaign.report import matrix
from pipeline.fuzz.crashes import report as reports
from pipeline.fuzz.crashes import rules
from pipeline.fuzz.crashes.crash import Crash
from pipeline.fuzz.crashes.report import UNKNOWN
from pipeline.fuzz.crashes.store import CrashStore
from tests.campaign.bench import A, B
from tests.campaign.scripted_tries import crash_in
from tests.conftest import Outcome, Workspace
from tests.fuzz.crashes import made_up

MODULE = """
import os, signal
from pipeline.fuzz.crashes import rules
if "RULE" in os.environ:
    rules.RULES_VERSION = 2
import tasks
from contextlib import contextmanager
from pipeline.campaign import subjects, triage
from pipeline.store import freshness
from tasks import crashes
from tasks.campaign import CampaignTask
from tasks.engine.artifact import workers
from tasks.engine.context import context
from tasks.fuzzing import FuzzingTask
from dataclasses import replace
from pipeline.fuzz.crashes.store import CrashStore
from tests.campaign.bench import A, B, Bench, plan
from tests.tasks.test_proofs import crash
from tests.campaign.scripted import Behaviour
from tests.campaign.scripted_tries import TryWorld

bench_store = CrashStore(context().settings.store.root)
bench = Bench(context().settings.store.root)
bench.builds = {A: os.environ["BUILD_A"], B: os.environ["BUILD_B"]}
bench.world.behaviours = {A: Behaviour(crash=os.environ["FINDS_A"], after=1), B: Behaviour(crash="b_bug", after=1)}
bugs = {A: os.environ["BUGS_A"].split(), B: ["b_bug"]}

def target(fuzzer):
    def runs(content):
        with open("runs", "a") as log:
            print(fuzzer, file=log)
        if "MEANWHILE" in os.environ and fuzzer == A and len(worlds[A].runs) % 7 == 1:
            found = replace(crash("parse"), campaign="weekly", input=b"parse %d" % len(worlds[A].runs))
            bench_store.add(found)
        found = [bug for bug in bugs[fuzzer] if bug.encode() in content]
        return "fails" if os.environ["BUGS_A"] == "fails" and fuzzer == A else found[0] if found else ""
    return runs

worlds = {fuzzer: TryWorld(target(fuzzer), fuzzer) for fuzzer in bugs}

@contextmanager
def pooled(*words):
    yield worlds[words[4]].guests_with

def definition(self):
    fuzzers = [A, B] if self.fuzzers == "*/*" else [self.fuzzers]
    return bench.definition(*[plan(one, seconds=2, slice_=2) for one in fuzzers])

def found(self, definition):
    runner = bench.runner(definition)
    return runner.subjects

def work(self, only=None):
    with open("runs", "a") as log:
        print("campaign", file=log)
    runner = bench.runner(self.definition(), workers())
    runner.run()
    return runner

CampaignTask.definition, CampaignTask.subjects, CampaignTask.work = definition, found, work
triage.pooled = pooled
subjects.build_of = lambda fuzzer, *_: bench.builds[fuzzer]
crashes.template_of_pool = lambda: None
FuzzingTask.missing = FuzzingTask.providers = FuzzingTask.prerequisites = lambda self: {}

write = freshness.write
def killed(*words):
    if os.environ["KILL"] == "before":
        os.kill(os.getppid() if workers() > 1 else os.getpid(), signal.SIGKILL)
    write(*words)
    os.kill(os.getpid(), signal.SIGKILL)
if "KILL" in os.environ:
    freshness.write = killed
"""

PROJECT = Path(__file__).parents[2]


def bucket_of(function: str, fuzzer: str = A) -> str:
    return rules.slug(reports.parse(crash_in(function)) or UNKNOWN, fuzzer)


def crash(function: str, build: str = "b3:a1", fuzzer: str = A) -> Crash:
    output = crash_in(function)
    report = reports.parse(output)
    return replace(
        made_up.CRASH, fuzzer=fuzzer, build=build, input=function.encode(), output=output, report=report, options=()
    )


class Proofs:
    """A workspace with a campaign of two fuzzers, of which one has several bugs."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.store = CrashStore(workspace.store.root)
        self.directory = workspace.store.campaigns / "nightly"
        workspace.module("scripted", MODULE)
        workspace.environment["PYTHONPATH"] += f":{PROJECT}"  # for what the module has of these tests
        self.facts = {"BUILD_A": "b3:a1", "BUILD_B": "b3:b1", "FINDS_A": "parse", "BUGS_A": "parse average"}

    def luigi(self, task: str = "CampaignReport", *words: str, **more: str) -> Outcome:
        (self.workspace.directory / "runs").write_text("")
        return self.workspace.run("luigi", "--module", "scripted", task, *words, environment={**self.facts, **more})

    def run(self, task: str = "CampaignReport", *words: str, **more: str) -> str:
        done = self.luigi(task, *words, **more)
        assert done.status == 0, done.text
        assert "Traceback" not in done.text
        return done.text

    @property
    def ran(self) -> list[str]:
        """What the last command ran: the campaign, and for each try its fuzzer."""
        return (self.workspace.directory / "runs").read_text().split()

    def files(self) -> dict[Path, bytes]:
        """All files of the store but its caches."""
        root = self.workspace.store.root
        paths = (path for path in root.rglob("*") if path.is_file() and path.relative_to(root).parts[0] != "cache")
        return {path: path.read_bytes() for path in paths}

    def cells(self, fuzzer: str = A) -> dict[str, list[str]]:
        """The words of the matrix, by bucket."""
        (found,) = matrix.read(self.store, [fuzzer])
        return {row.bucket.slug: [cell.text for cell in row.cells] for row in found.rows}

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "report.json").read_bytes())
        return found

    @property
    def standings(self) -> dict[str, str]:
        return {one["slug"]: one["standing"] for one in self.report["buckets"]}


@pytest.fixture
def proofs(workspace: Workspace) -> Proofs:
    return Proofs(workspace)


PARSE, AVERAGE, B_BUG = bucket_of("parse"), bucket_of("average"), bucket_of("b_bug", B)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_fix_is_proved_and_nothing_else_is_redone(proofs: Proofs, workers: str) -> None:
    proofs.store.add(crash("average"))
    words = ("--workers", workers)
    said = proofs.run("CampaignReport", *words)
    assert "nightly: 2 new, 0 known, 0 back; known and not found this time: 1 still there" in said
    assert proofs.ran[0] == "campaign", "nothing was known from another build"
    assert proofs.standings == {PARSE: "new", B_BUG: "new", AVERAGE: "still"}
    assert proofs.cells() == {PARSE: ["still 10/10"], AVERAGE: ["still 10/10"]}
    kept = proofs.files()
    proofs.run("CampaignReport", *words)
    assert (proofs.ran, proofs.files()) == ([], kept), "a second run does nothing"

    proofs.facts |= {"BUILD_A": "b3:a2", "BUGS_A": "average", "FINDS_A": ""}
    said = proofs.run("CampaignReport", *words)
    assert proofs.ran == [*[A] * 20, "campaign"], "the known ones of the new build first, and of no other"
    assert proofs.cells() == {PARSE: ["still 10/10", "fixed"], AVERAGE: ["still 10/10", "still 10/10"]}
    assert proofs.cells(B) == {B_BUG: ["still 10/10"]}
    assert proofs.standings == {B_BUG: "new", AVERAGE: "still", PARSE: "fixed"}
    assert "1 new, 0 known, 0 back; known and not found this time: 1 still there, 1 fixed" in said
    proofs.run("CampaignReport", *words)
    assert proofs.ran == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_a_campaign_finds_again_with_another_input_is_tried_again_by_the_same_process(
    proofs: Proofs, workers: str
) -> None:
    proofs.store.add(replace(crash("parse", build="b3:a0"), input=b"parse, earlier"))
    proofs.run("CampaignReport", "--workers", workers)
    at = proofs.ran.index("campaign")
    assert proofs.ran[:at] == [A] * 10
    assert proofs.standings[PARSE] == "known"
    assert proofs.cells()[PARSE] == ["seen", "still 20/20"]
    proofs.run("CampaignReport", "--workers", workers)
    assert proofs.ran == []


def test_fixes_are_proved_without_a_campaign(proofs: Proofs) -> None:
    proofs.store.add(crash("parse", build="b3:a0"))
    proofs.store.add(crash("average", build="b3:a0"))
    proofs.run("ProveFixes", "--fuzzers", B)
    assert proofs.ran == [], "it has no crashes"
    proofs.run("ProveFixes", "--fuzzers", A, BUGS_A="average")
    assert proofs.ran == [A] * 20
    assert proofs.cells() == {AVERAGE: ["seen", "still 10/10"], PARSE: ["seen", "0/10"]}
    proofs.run("ProveFixes", "--fuzzers", A, BUGS_A="average")
    assert proofs.ran == []


def test_where_nothing_has_ever_crashed_nothing_is_proved(proofs: Proofs) -> None:
    proofs.facts["FINDS_A"] = ""
    said = proofs.run("FuzzCampaign", "--fuzzers", A)
    assert proofs.ran == ["campaign"]
    assert "ProveFixes" not in said
    proofs.run("CampaignReport", "--fuzzers", A)
    assert proofs.report["buckets"] == []
    assert not proofs.store.root.exists()


def test_what_cannot_be_run_is_told_and_does_not_stop_the_others(proofs: Proofs) -> None:
    proofs.store.add(crash("parse", build="b3:a0"))
    proofs.store.add(replace(crash("average", build="b3:a0"), input=b""))  # the guest has lost it
    proofs.store.add(replace(crash("b_bug", build="b3:b0", fuzzer=B)))
    said = proofs.run("CampaignReport", BUGS_A="fails", FINDS_A="")
    assert re.search(rf"{AVERAGE}: not run: no input of it is kept", said)
    assert f"topcoat force TriageCrash --fuzzer {A} --bucket {PARSE}" in said
    assert proofs.cells() == {AVERAGE: ["seen", "not run"], PARSE: ["seen", "not run"]}
    assert proofs.cells(B) == {B_BUG: ["seen", "still 10/10"]}
    assert proofs.standings == {B_BUG: "known", AVERAGE: "not run", PARSE: "not run"}
    proofs.run("CampaignReport", BUGS_A="fails", FINDS_A="")
    assert proofs.ran == []


def test_killed_at_each_step_the_same_command_goes_on(proofs: Proofs) -> None:
    """Before and after each record."""
    proofs.store.add(crash("average", build="b3:a0"))
    ends = []
    for _ in range(20):
        ends += [proofs.luigi(KILL="before").status, proofs.luigi(KILL="after").status]
        if ends[-1] == 0:
            break
    proofs.run()
    assert ends == [-signal.SIGKILL] * (len(ends) - 2) + [0, 0]
    assert len(ends) == 2 * 7, "three verdicts, two smaller inputs, the report, and nothing more"
    assert proofs.ran == []
    assert proofs.standings == {PARSE: "new", B_BUG: "new", AVERAGE: "still"}
    assert proofs.cells()[AVERAGE] == ["seen", "still 10/10"]
    assert proofs.workspace.store.root.exists()


def test_another_rule_redoes_verdicts_and_the_report_but_not_the_campaign(proofs: Proofs) -> None:
    proofs.run()
    (before,) = (one["rule"] for one in proofs.report["buckets"] if one["slug"] == PARSE)
    said = proofs.run(RULE="2")
    assert "parameter rule default/1 -> default/2" in said
    assert set(proofs.ran) == {A, B}
    assert before == "default/1"


def test_damage_to_the_report_is_mended_without_a_guest(proofs: Proofs) -> None:
    proofs.run()
    whole = (proofs.directory / "report.sarif").read_bytes()
    (proofs.directory / "report.sarif").write_text("{")
    said = proofs.run()
    assert "output report.sarif changed" in said
    assert (proofs.directory / "report.sarif").read_bytes() == whole
    assert proofs.ran == []


def test_a_campaign_that_goes_on_finding_the_same_crash_does_not_keep_the_report_of_another_waiting(
    proofs: Proofs,
) -> None:
    """It finds other inputs whenever one is run; they are for its own report."""
    proofs.run(MEANWHILE="1")
    assert proofs.standings[PARSE] == "new"
    assert len(proofs.store.bucket(A, PARSE).kept) > 2  # type: ignore[union-attr]
    proofs.store.add(replace(crash("parse"), campaign="weekly", input=b"a parse of others"))
    said = proofs.run()
    assert f"CampaignReport: input {A}/{PARSE} changed" in said
    assert proofs.ran == []
    proofs.store.add(replace(crash("parse"), campaign="nightly", input=b"a parse of its own"))
    proofs.run()
    assert set(proofs.ran) == {A}


def test_a_verdict_that_is_to_be_made_again_is(proofs: Proofs) -> None:
    proofs.run()
    (record,) = (proofs.store.directory(B, B_BUG) / "verdicts").glob("*.made.json")
    record.unlink()  # as topcoat force does
    said = proofs.run()
    assert "TriageCrash(fuzzer=fuzzers/b" in said
    assert (proofs.ran, proofs.run() and proofs.ran) == ([B] * 10, [])


def test_a_report_is_planned_before_it_is_known_which_fuzzers_there_are(workspace: Workspace) -> None:
    done = workspace.topcoat("plan", "CampaignReport")
    assert done.status == 0, done.text
    lines = done.stdout.decode().splitlines()
    assert lines[-1] == "CampaignReport: campaign is stale (unless that comes out as it was)"
    assert not any(line.startswith("ProveFixes") for line in lines), "nothing has crashed"
