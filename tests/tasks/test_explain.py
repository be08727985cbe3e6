"""`topcoat why`, `plan` and `force`: what a run would do, and why."""

import json
import re
from typing import Any

import pytest

from pipeline.cli import artifacts
from pipeline.store.freshness import Reason
from tasks.engine.explain import Graph, Node
from tests.conftest import Workspace
from tests.tasks.edits import BLK, DISK, INITRD, KEY, ZBI, append, unlink


@pytest.fixture
def running(bundle: Workspace) -> Workspace:
    """A workspace with a scripted guest named i0."""
    assert bundle.luigi("BootInstance").status == 0
    return bundle


def lines(workspace: Workspace, *words: str) -> list[str]:
    """What a command prints, without what differs from run to run."""
    text = workspace.topcoat(*words).stdout.decode()
    return re.sub(r"b3s?:\w{8}…", "D", re.sub(r"took \d+\.\d s", "took T", text)).splitlines()


def rows(workspace: Workspace, *words: str) -> dict[str, Any]:
    """The rows of `--json`, by title."""
    listing = json.loads(workspace.topcoat(*words, "--json").stdout)
    assert listing["schema"] == 2
    return {row["title"]: row for row in listing.get("tasks", listing.get("pending"))}


def test_before_anything_is_made(bundle: Workspace) -> None:
    assert lines(bundle, "why") == [
        "BootInstance  stale: not running",
        "├─ key: SSHKeyPair  stale: missing; would redo InitrdWithKey, BootInstance",
        "├─ initrd: InitrdWithKey  stale: missing; would redo BootInstance",
        "│  └─ key: SSHKeyPair  (see above)",
        "└─ disk: ExtendedBlk  stale: missing; would redo BootInstance",
    ]
    assert lines(bundle, "plan") == [
        "SSHKeyPair: missing",
        "InitrdWithKey: missing",
        "ExtendedBlk: missing",
        "BootInstance: not running",
    ]
    assert not bundle.store.root.exists(), "nothing was made"


def test_when_all_is_fresh(running: Workspace) -> None:
    before = running.files()
    assert lines(running, "why") == [
        "BootInstance  fresh, took T",
        "├─ key: SSHKeyPair  fresh, took T",
        "├─ initrd: InitrdWithKey  fresh, took T",
        "│  └─ key: SSHKeyPair  (see above)",
        "└─ disk: ExtendedBlk  fresh, took T",
    ]
    assert running.topcoat("plan").stdout == b""
    assert running.topcoat("plan", "--check").status == 0
    assert rows(running, "plan") == {}
    assert running.files() == before


def test_after_an_edit(running: Workspace) -> None:
    append(ZBI)(running)
    assert lines(running, "why")[2] == (
        "├─ initrd: InitrdWithKey  stale: input zbi changed: D -> D, took T; would redo BootInstance"
    )
    assert lines(running, "plan", "InitrdWithKey") == ["InitrdWithKey: input zbi changed: D -> D (took T)"]
    assert running.topcoat("plan", "--check").status == 1
    running.topcoat("stop", "i0")
    assert lines(running, "plan") == [
        "InitrdWithKey: input zbi changed: D -> D (took T)",
        "BootInstance: not running (took T)",
    ]


def test_a_stale_instance_would_be_refused(running: Workspace) -> None:
    append(ZBI)(running)
    reason = "BootInstance: initrd is stale: input zbi changed: D -> D (took T; would be refused without --replace)"
    assert lines(running, "plan") == [reason]
    assert rows(running, "plan")["BootInstance"]["refused"] is True
    assert lines(running, "plan", "BootInstance", "--replace") == [
        "InitrdWithKey: input zbi changed: D -> D (took T)",
        "BootInstance: initrd is stale (took T; unless that comes out as it was)",
    ]


def test_what_hangs_on_something_stale_is_not_certain(running: Workspace) -> None:
    running.topcoat("stop", "i0")
    unlink(f"{KEY}.made.json")(running)
    assert lines(running, "plan", "InitrdWithKey") == [
        "SSHKeyPair: no record",
        "InitrdWithKey: key is stale (took T; unless that comes out as it was)",
    ]
    pending = rows(running, "plan", "InitrdWithKey")
    assert [row["certain"] for row in pending.values()] == [True, False]
    append(ZBI)(running)
    assert lines(running, "plan", "InitrdWithKey")[1] == "InitrdWithKey: input zbi changed: D -> D (took T)"
    unlink(INITRD)(running)
    unlink(ZBI)(running)
    assert lines(running, "plan", "InitrdWithKey") == [
        "BuildResource(key=zbi): missing",
        "InitrdWithKey: zbi is missing (took T)",
    ]


def test_the_plan_is_what_runs(running: Workspace) -> None:
    running.topcoat("stop", "i0")
    append(BLK)(running)
    unlink(INITRD)(running)
    planned = [line.partition(" (took")[0] for line in lines(running, "plan")]
    said = re.sub(r"b3s?:\w{8}…", "D", running.luigi("BootInstance").text).splitlines()
    made = [line for line in said if line.partition(":")[0] in ("SSHKeyPair", "InitrdWithKey", "ExtendedBlk")]
    assert sorted(planned) == sorted(["BootInstance: not running", *(line for line in made if ": made " not in line)])


def test_json_says_all_that_readme_promises(running: Workspace) -> None:
    append(ZBI)(running)
    listing = json.loads(running.topcoat("why", "--json").stdout)
    assert set(listing) == {"schema", "root", "tasks"}
    assert listing["root"] == "BootInstance"
    found = rows(running, "why")
    assert list(found) == ["SSHKeyPair", "InitrdWithKey", "ExtendedBlk", "BootInstance"], "in an order that could run"
    fields = {"title", "task", "parameters", "reason", "certain", "refused", "seconds", "files", "needs", "redone"}
    assert all(set(row) == fields for row in found.values())
    initrd = found["InitrdWithKey"]
    assert initrd["needs"] == {"key": "SSHKeyPair"}
    assert initrd["files"] == [str(running.directory / INITRD)]
    assert initrd["redone"] == ["BootInstance"]
    assert initrd["reason"].startswith("input zbi changed: b3:")
    assert found["ExtendedBlk"]["parameters"] == {"length": "3G"}
    assert found["ExtendedBlk"]["reason"] is None
    assert found["ExtendedBlk"]["seconds"] > 0
    assert found["BootInstance"]["seconds"] > 0
    assert set(rows(running, "plan")["BootInstance"]) == fields - {"files", "needs", "redone"}


def test_parameters_are_taken_as_luigi_takes_them(running: Workspace) -> None:
    assert lines(running, "why", "ExtendedBlk", "--length", "4G") == [
        "ExtendedBlk(length=4G)  stale: parameter length 3G -> 4G, took T"
    ]
    assert lines(running, "plan", "BootInstance", "--name", "i1") == ["BootInstance(name=i1): not running"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["why", "Nope"], "error: No task Nope\n  hint: there are: BootInstance"),
        (["plan", "ExtendedBlk", "--length", "3T"], "error: Bad size: 3T"),
        (["plan", "ExtendedBlk", "--lenght", "3G"], "unrecognized arguments: --lenght 3G"),
        (["force", "BootInstance"], "error: BootInstance makes no file\n  hint: "),
        (["force"], "the following arguments are required: task"),
    ],
)
def test_mistakes(bundle: Workspace, words: list[str], message: str) -> None:
    outcome = bundle.topcoat(*words)
    assert outcome.status == 2
    assert message in outcome.text
    assert "Traceback" not in outcome.text


def test_force_makes_one_artifact_again_and_touches_no_instance(running: Workspace) -> None:
    handle = running.instance().live_handle()
    forced = running.topcoat("force", "InitrdWithKey")
    assert forced.stdout == b"InitrdWithKey: the next run makes ssh-fuchsia.zbi again\n"
    assert running.instance().live_handle() == handle
    text = running.luigi("InitrdWithKey").text
    assert "InitrdWithKey: no record" in text
    assert "ExtendedBlk" not in text
    assert running.topcoat("plan", "--check").status == 0, "it came out as it was, and i0 is fresh"


def test_force_of_what_is_not_there_says_so(bundle: Workspace) -> None:
    forced = bundle.topcoat("force", "ExtendedBlk", "--length", "4G")
    assert forced.stdout == b"ExtendedBlk(length=4G) has no record; the next run makes it anyhow\n"
    assert not bundle.store.root.exists()


def test_of_many_that_would_be_redone_some_are_named() -> None:
    stale, fresh = Reason("missing"), dict.fromkeys(["source"], "Source")
    nodes = {"Source": Node("Source", "Source", {}, stale, False, None, (), {})}
    nodes |= {
        f"N{i}": Node(f"N{i}", "N", {}, Reason("source is stale", stale), False, None, (), fresh) for i in range(9)
    }
    nodes["All"] = Node("All", "All", {}, stale, False, None, (), {f"n{i}": f"N{i}" for i in range(9)})
    line = next(line for line in artifacts.tree(Graph(nodes)) if "source: Source" in line)
    assert line.endswith("stale: missing; would redo N0, N1, N2, N3, N4, N5, N6, N7, 2 more")
    assert [node.title for node in Graph(nodes).pending()] == ["Source", *(f"N{i}" for i in range(9)), "All"]


def test_a_record_that_cannot_be_read_is_a_reason(running: Workspace) -> None:
    unlink(f"{DISK}.made.json")(running)
    (running.directory / f"{DISK}.made.json").mkdir()
    assert lines(running, "plan", "ExtendedBlk") == ["ExtendedBlk: record cannot be read: Is a directory"]
