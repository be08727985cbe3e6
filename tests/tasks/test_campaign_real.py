"""Campaigns with the real QEMU, the real Linux guest and its planted bugs."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.campaign import ledger
from pipeline.campaign.ledger import Booted, Ended, Harvested, LedgerEntry, Merged, Proved, Started
from pipeline.campaign.state import State
from pipeline.fuzz.corpus import Corpus
from pipeline.fuzz.crashes.store import CrashStore
from pipeline.host.locks import is_locked
from tests.campaign.test_schemas import CAMPAIGN, validator
from tests.conftest import Outcome, Workspace, qemus_of
from tests.tasks.runs import in_a_namespace
from tests.waiting import SOON

MAZE, CRASH, NOOP = "example-fuzzers/maze_fuzzer", "example-fuzzers/crash_fuzzer", "example-fuzzers/noop_fuzzer"
LIMIT = 600
BUSY = 60

pytestmark = pytest.mark.timeout(LIMIT)


def words(*fuzzers: str, budget: int, length: int, workers: int = 2) -> list[str]:
    chosen = ["--fuzzers", ",".join(fuzzers), "--budget", f"{budget}s", "--slice-length", f"{length}s"]
    return ["FuzzCampaign", "--name", "nightly", *chosen, "--workers", str(workers)]


class Nightly:
    """A campaign in a workspace."""

    def __init__(self, workspace: Workspace, settings: str = "") -> None:
        self.workspace = workspace
        workspace.configure(f"[campaign]\nharvest = 2s\n{settings}")
        self.directory = workspace.store.campaigns / "nightly"
        self.ledger = self.directory / "ledger.jsonl"

    def run(self, *arguments: str) -> Outcome:
        with self.running(*arguments) as process:
            stdout, stderr = process.communicate(timeout=LIMIT)
        return Outcome(process.returncode, stdout, stderr)

    @contextmanager
    def running(self, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
        """In a process group of its own."""
        with subprocess.Popen(
            self.workspace.command("luigi", "--module", "tasks", *arguments),
            cwd=self.workspace.directory,
            env=self.workspace.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    @property
    def entries(self) -> list[LedgerEntry]:
        return list(ledger.read(self.ledger))

    def units(self, fuzzer: str) -> set[str]:
        return set(Corpus.of(self.workspace.store.root, fuzzer).units())

    def wait(self, process: "subprocess.Popen[bytes]", reached: Callable[[list[LedgerEntry]], bool]) -> None:
        """Wait until the ledger is as wanted."""
        end = time.monotonic() + LIMIT / 2  # with the boots of guests before
        while not reached(self.entries):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)

    def check_budgets(self, budget: int, length: int, **others: int) -> None:
        """Every budget was used, and no attempt was counted twice.

        `others` have budgets of their own. Within a slice, and what a fuzzer takes to start on a host that is busy:
        simulated time tells it exactly.
        """
        fuzzer_states = State.of(self.entries).fuzzer_states
        assert fuzzer_states
        for subject, fuzzer_state in fuzzer_states.items():
            whole = others.get(subject.fuzzer.rpartition("/")[2], budget)
            assert whole - 1 < fuzzer_state.seconds <= whole + length + BUSY
        attempts = [(one.subject, one.slice, one.attempt) for one in self.entries if isinstance(one, Ended)]
        assert len(attempts) == len(set(attempts))

    def check_status(self, state: str) -> None:
        """Whoever asks is told what the ledger has, also of attempts that nobody has ended."""
        told = self.workspace.topcoat("campaign", "status", "nightly", "--json")
        assert told.status == 0, told.text
        slices = [
            one
            for fuzzer_state in State.of(self.entries).fuzzer_states.values()
            for one in fuzzer_state.slices.values()
        ]
        known = sum(one.executions + (one.checkpoint.executions if one.checkpoint else 0) for one in slices)
        status = json.loads(told.stdout)
        assert (status["state"], status["executions"]) == (state, known)


def harvested(entries: list[LedgerEntry]) -> bool:
    """Whether units have come, and the fuzzer that never crashes is in the middle of its slice."""
    came = [one for one in entries if isinstance(one, Harvested)]
    runs = any(one.subject.fuzzer == NOOP and one.seconds > 2 for one in came)
    return runs and (any(one.added for one in came) or not any(mazes(one) for one in entries))


def mazes(entry: LedgerEntry) -> bool:
    return isinstance(entry, Started) and entry.subject.fuzzer == MAZE


def merged(entries: list[LedgerEntry]) -> bool:
    return any(isinstance(one, Merged) and one.accepted for one in entries)


@pytest.fixture
def proving(demo: Workspace) -> Iterator[Nightly]:
    """A campaign that looks for the canary first, which takes a guest some time."""
    yield Nightly(demo)
    assert qemus_of(demo.directory) == []


@pytest.fixture
def nightly(demo: Workspace) -> Iterator[Nightly]:
    yield Nightly(demo, "canary = off\n")
    assert qemus_of(demo.directory) == []


FILE = f"""
name = "nightly"
fuzzers = ["{MAZE}", "{CRASH}", "{NOOP}"]
budget = "20s"
slice = "20s"
[[fuzzer]]
name = "{MAZE}"
budget = "60s"
"""


def test_three_fuzzers_by_two_workers_find_what_was_planted(proving: Nightly) -> None:
    (proving.workspace.directory / "nightly.toml").write_text(FILE)
    arguments = ("FuzzCampaign", "--file", "nightly.toml", "--workers", "2")
    done = proving.run(*arguments)
    assert done.status == 0, done.text
    proving.check_budgets(20, 20, maze_fuzzer=60)
    result = json.loads((proving.directory / "campaign.json").read_bytes())
    validator(CAMPAIGN)(result)
    assert result["status"]["proved"] is True
    found = {frame for group in result["crashes"] for frame in group["frames"]}
    assert {"greet", "trap_door"} <= found
    assert len(found & {"trap_door", "ghost_room", "narrow_stairs", "sealed_gate"}) >= 2
    store, files = CrashStore(proving.workspace.store.root), proving.workspace.store.images("demo") / "targets/files"
    for group in result["crashes"]:
        kept = proving.workspace.store.root / group["directory"] / "1"
        assert kept.is_relative_to(store.directory(group["fuzzer"], group["slug"]))
        (build,) = store.builds(group["fuzzer"]).builds
        ((inside, digest),) = build.files.items()
        assert inside == f"/targets/files/{group['fuzzer']}"
        assert store.files.path(digest).samefile(files / group["fuzzer"]), "its program with its symbols, as a link"
        assert (group["state"], build.digest) == ("new", result["fuzzers"][group["fuzzer"]]["build"])
        assert group["campaigns"]["nightly"]["count"] == group["present"] == group["count"]
        assert (kept / "input").read_bytes()
        assert b"planted" not in (kept / "output.txt").read_bytes()
        assert group["frames"][0] in (kept / "output.txt").read_text()
        assert "{{{reset}}}" in (kept / "serial.txt").read_text()
    assert proving.units(MAZE)
    assert all(len(fuzzer["curve"]) > 1 for name, fuzzer in result["fuzzers"].items() if name != NOOP)
    said = done.stdout.decode()
    assert "proved: the canary was found" in said
    assert "deadly signal in greet " in said
    assert result["lost"]["before and after runs"] > 0
    shown = proving.workspace.topcoat("campaign", "status", "nightly")
    assert (shown.status, "it is done" in shown.text) == (0, True)
    told = proving.workspace.topcoat("crash", "show", "deadly-signal-greet").stdout.decode()
    assert re.search(r"^ \* #\d+ greet  \S*crash_fuzzer\.c:\d+$", told, re.MULTILINE), told
    assert f"topcoat crash repro {CRASH}/deadly-signal-greet-" in told
    again = proving.run(*arguments)
    assert (again.status, again.stdout, "nightly is done" in again.text) == (0, b"", True)
    assert again.text.count("booting") == 0


@pytest.mark.parametrize("whom", ["luigi", "all"])
def test_killed_in_the_middle_of_a_slice_it_goes_on(proving: Nightly, whom: str) -> None:
    with proving.running(*words(MAZE, NOOP, budget=600, length=14)) as process:  # never done before it is killed
        proving.wait(process, harvested)
        before = proving.units(MAZE)
        kill = os.kill if whom == "luigi" else os.killpg
        kill(process.pid, signal.SIGKILL)
        assert process.wait(SOON) == -signal.SIGKILL
    assert before, "it had harvested"
    if whom == "all":
        proving.check_status("stopped")
    done = proving.run(*words(MAZE, NOOP, budget=14, length=14))
    assert done.status == 0, done.text
    proving.check_budgets(14, 14)
    results = [one.result for one in proving.entries if isinstance(one, Ended)]
    assert results.count("interrupted" if whom == "all" else "stopped") >= 1
    assert not before - proving.units(MAZE) or merged(proving.entries), "only a merge may leave units out"
    assert sum(isinstance(one, Proved) for one in proving.entries) == 1, "the canary is not looked for again"


def test_interrupted_it_takes_in_what_runs(nightly: Nightly) -> None:
    with nightly.running(*words(MAZE, NOOP, budget=600, length=14)) as process:  # never done before that
        nightly.wait(process, harvested)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, said.decode()
    assert "error: interrupted by SIGINT" in said.decode()
    assert "Traceback" not in said.decode()
    assert not is_locked(nightly.ledger)
    assert State.of(nightly.entries).interrupted() == []
    nightly.check_status("stopped")
    assert json.loads((nightly.directory / "status.json").read_bytes())["state"] == "stopped"
    assert qemus_of(nightly.workspace.directory) == []
    assert {one.result for one in nightly.entries if isinstance(one, Ended)} & {"stopped"}
    done = nightly.run(*words(MAZE, NOOP, budget=14, length=14))
    assert done.status == 0, done.text
    nightly.check_budgets(14, 14)


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_guest_that_somebody_ends_costs_one_attempt(nightly: Nightly, how: str) -> None:
    nightly.workspace.configure("[pool]\nspares = 0\n[campaign]\nharvest = 2s\ncanary = off\n")
    arguments = words(NOOP, budget=12, length=12, workers=1)
    with nightly.running(*arguments) as process:
        nightly.wait(process, lambda entries: any(isinstance(one, Started) for one in entries))
        nightly.wait(process, harvested)
        (qemu,) = qemus_of(nightly.workspace.directory)
        if how == "killed":
            qemu.send(signal.SIGKILL)
        else:
            assert nightly.workspace.topcoat("stop", "pool-0").status == 0
        _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, said.decode()
    results = [one.result for one in nightly.entries if isinstance(one, Ended)]
    assert results[0] == "guest died"
    assert set(results[1:]) == {"done"}
    boots = {one.boot_id for one in nightly.entries if isinstance(one, Started)}
    assert len(boots) == 2
    nightly.check_budgets(12, 12)


def test_a_disk_that_is_full_ends_it_with_a_reason_and_it_goes_on_later(nightly: Nightly) -> None:
    arguments = words(MAZE, budget=10, length=10, workers=1)
    corpora = nightly.workspace.store.root / "corpora"
    corpora.mkdir()
    status, said = in_a_namespace(
        nightly.workspace,
        'mount -t tmpfs -o size=32k none "$ROOT/corpora"',
        f"luigi --module tasks {' '.join(arguments)}",
    )
    assert status == 30, said
    assert "No space left on device" in said
    assert "hint: free some space on that disk" in said
    assert "Traceback" not in said
    assert [one.result for one in nightly.entries if isinstance(one, Ended)][-1] == "host"
    done = nightly.run(*arguments)
    assert done.status == 0, done.text
    nightly.check_budgets(10, 10)


def test_one_slice_and_one_merge_by_themselves(nightly: Nightly) -> None:
    budget = ["--name", "nightly", "--fuzzer", MAZE, "--budget", "600s"]  # which one slice never uses up
    slice_ = ["RunFuzzer", *budget, "--slice-length", "3s"]
    done = nightly.run(*slice_, "--slice", "2")
    assert done.status == 0, done.text
    assert {one.slice for one in nightly.entries if isinstance(one, Started)} == {2}
    units = nightly.units(MAZE)
    assert units
    by_hand = nightly.run("MergeCorpus", *budget)
    assert by_hand.status == 0, by_hand.text
    assert merged(nightly.entries)
    assert nightly.units(MAZE) <= units
    assert nightly.run(*slice_, "--slice", "2").text.count("booting") == 0
    assert not (nightly.directory / "status.json").exists(), "that is of the whole campaign"
    nightly.check_status("stopped")


def test_a_merge_that_keeps_little_of_an_import_is_confirmed_by_another_boot(nightly: Nightly) -> None:
    """In a pool of one guest: nobody waits for himself."""
    nightly.workspace.configure("[pool]\nsize = 1\nspares = 0\n[campaign]\ncanary = off\n")
    corpus = Corpus.of(nightly.workspace.store.root, MAZE)
    corpus.add((b"z" * length for length in range(1, 101)), "import")
    done = nightly.run("FuzzCampaign", "--name", "nightly", "--fuzzers", MAZE, "--budget", "3s", "--slice-length", "3s")
    assert done.status == 0, done.text
    (made,) = (one for one in nightly.entries if isinstance(one, Merged))
    assert (made.before > 100, made.after < made.before / 2, made.accepted) == (True, True, True), made
    *_, merging, confirming = (one for one in nightly.entries if isinstance(one, Booted))
    assert made.confirmed_by == confirming.boot_id != merging.boot_id
    assert len(corpus.replaced()) >= made.before - made.after


def test_a_mistake_is_explained(nightly: Nightly) -> None:
    wrong = nightly.run("FuzzCampaign", "--name", "nightly", "--fuzzers", "example-fuzzers/maze_fuzer")
    assert wrong.status == 2, wrong.text
    assert "no fuzzer of the build is named example-fuzzers/maze_fuzer" in wrong.text
    assert "Traceback" not in wrong.text
    wrong = nightly.run("FuzzCampaign", "--name", "nightly", "--file", str(Path("nowhere.toml")))
    assert (wrong.status, "nowhere.toml" in wrong.text, "Traceback" in wrong.text) == (2, True, False)
