"""What is refused before a crash is tried: exit codes and words, without a guest."""

from pathlib import Path

import pytest

from pipeline.fuzz.crashes.store import CrashStore
from tests.cli.test_campaigns import fuzzers
from tests.conftest import Workspace
from tests.fuzz.crashes import made_up

FUZZER, SLUG = made_up.FUZZER, made_up.SLUG
BOTH = pytest.mark.parametrize("task", ["TriageCrash", "MinimiseCrash"])


@pytest.fixture
def crashed(workspace: Workspace) -> Workspace:
    """A store with one crash, and a build whose fuzzers are known; no image has been made."""
    (workspace.directory / "fuzzers.json").write_text(fuzzers("a"))
    (workspace.directory / "tests.json").write_text("[]")
    workspace.configure("[build]\nfuzzers.json = fuzzers.json\ntests.json = tests.json\n")
    CrashStore(workspace.store.root).add(made_up.CRASH)
    return workspace


def made(workspace: Workspace) -> list[Path]:
    """What has been made in the store beside the crash."""
    files = (path for path in workspace.store.root.rglob("*") if path.is_file())
    return [path for path in files if not {"cache", "crashes"} & set(path.parts) or path.name.endswith(".made.json")]


@BOTH
@pytest.mark.parametrize(
    ("fuzzer", "bucket", "said", "hint"),
    [
        ("example-fuzzers/b", SLUG, "no crash of a fuzzer example-fuzzers/b is known", f"there is {FUZZER}"),
        (FUZZER, "segv-f", f"{FUZZER} has no bucket segv-f", f"there is {SLUG}"),
        (FUZZER, "../a", f"{FUZZER} has no bucket ../a", f"there is {SLUG}"),
        ("../../etc", SLUG, "'../../etc' cannot be the name of a fuzzer", "a full name is PACKAGE/FUZZER"),
    ],
)
def test_a_wrong_name_is_refused_with_what_may_be_meant(
    crashed: Workspace, task: str, fuzzer: str, bucket: str, said: str, hint: str
) -> None:
    done = crashed.luigi(task, "--fuzzer", fuzzer, f"--bucket={bucket}")
    assert done.status == 2, done.text
    assert said in done.text
    assert f"hint: {hint}" in done.text
    assert "Traceback" not in done.text
    assert made(crashed) == []


def test_where_no_crash_is_known_it_is_said_who_finds_some(workspace: Workspace) -> None:
    done = workspace.luigi("TriageCrash", "--fuzzer", FUZZER, "--bucket", SLUG)
    assert done.status == 2, done.text
    assert "hint: campaigns put crashes there: luigi --module tasks FuzzCampaign" in done.text


@BOTH
@pytest.mark.parametrize("tries", ["0", "-3"])
def test_nothing_is_tried_less_than_once(crashed: Workspace, task: str, tries: str) -> None:
    done = crashed.luigi(task, "--fuzzer", FUZZER, "--bucket", SLUG, f"--tries={tries}")
    assert done.status == 2, done.text
    assert f"--tries {tries}: nothing would be tried" in done.text
    assert made(crashed) == []
