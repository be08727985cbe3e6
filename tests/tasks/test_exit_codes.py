"""Exit codes, and the words that go with them, from any directory, with and without luigi.cfg."""

import re
import subprocess
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.settings import RESOURCE_KEYS, known_keys
from tasks.engine.defaults import DEFAULTS
from tests.conftest import Workspace
from tests.waiting import SOON, eventually

SHIPPED = Path(__file__).parents[2] / "luigi.cfg"


@pytest.fixture(params=["with luigi.cfg", "without luigi.cfg", "from another directory"])
def anywhere(request: pytest.FixtureRequest, bundle: Workspace, tmp_path: Path) -> Workspace:
    """The bundle, called in three ways."""
    config = bundle.directory / "luigi.cfg"
    if request.param == "with luigi.cfg":
        config.write_text(config.read_text() + SHIPPED.read_text().split("luigi's own.")[1].split("\n", 1)[1])
    if request.param == "without luigi.cfg":
        config.unlink()
    if request.param == "from another directory":
        bundle.environment |= {
            "TOPCOAT_ROOT": str(bundle.store.root),
            "LUIGI_CONFIG_PATH": str(config.rename(tmp_path / "settings.cfg")),
        }
        bundle.command_directory = tmp_path / "elsewhere"
        bundle.command_directory.mkdir()
    return bundle


def test_done_and_already_done(anywhere: Workspace) -> None:
    assert anywhere.luigi("BootInstance", "--ready", "marker").status == 0
    assert anywhere.luigi("BootInstance", "--ready", "marker").status == 0


def test_missing_input(anywhere: Workspace) -> None:
    (anywhere.directory / "bundle/target/x64/fuchsia.zbi").unlink()
    outcome = anywhere.luigi("BootInstance")
    assert outcome.status == 20
    assert outcome.text.count("the build's zbi is missing") == 1
    assert "does not exist (yet?)" not in outcome.text


def test_task_failed(anywhere: Workspace) -> None:
    assert anywhere.luigi("InitrdWithKey", FAKE_ZBI="fail").status == 30


def test_already_running(anywhere: Workspace) -> None:
    environment = {**anywhere.environment, "FAKE_ZBI": "hang"}
    config = Path(environment.get("LUIGI_CONFIG_PATH", anywhere.directory / "luigi.cfg"))
    if config.exists():  # however slow the host is, the first one is still at it when the second one comes
        config.write_text(config.read_text().replace("timeout = 1\n", "timeout = 90\n"))
    command = anywhere.command("luigi", "--module", "tasks", "InitrdWithKey")
    images = anywhere.store.images("clusterfuzz")
    where = anywhere.command_directory or anywhere.directory
    with subprocess.Popen(command, cwd=where, env=environment, stderr=subprocess.PIPE) as first:
        eventually(lambda: any(images.glob(".ssh*.tmp")))
        second = anywhere.luigi("InitrdWithKey")
        first.terminate()
        first.communicate(timeout=SOON)
    assert (first.returncode, second.status) == (130, 10)
    assert f"error: process {first.pid} is already running the same command\n  hint: see how it stands: topcoat " in (
        second.text
    )
    assert "Pid(s)" not in second.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["BotInstance"], "error: No task BotInstance\n  hint: there are: BootInstance, "),
        (["BootInstance", "--name", "../x"], "error: '../x' cannot be the name of an instance\n  hint: "),
        (["BootInstance", "--ready", "soon"], "error: 'soon' is no choice\n  hint: use one of: ssh, marker"),
        (["SSHKeyPair", "--type", "dsa"], "error: 'dsa' is no choice\n  hint: use one of: ed25519, rsa"),
        (["ExtendedBlk", "--length", "3T"], "error: Bad size: 3T\n  hint: "),
        *(
            ([task, option, ""], f"error: {option} has an empty value\n  hint: ")
            for task, option in (
                ("StopInstance", "--name"),
                ("BootInstance", "--name"),
                ("BootInstance", "--ready"),
                ("BootInstance", "--ExtendedBlk-length"),
                ("FuzzCampaign", "--fuzzers"),
                ("FuzzCampaign", "--file"),
                ("RunFuzzer", "--fuzzer"),
                ("BootInstance", "--workers"),
                ("SSHKeyPair", "--type"),
            )
        ),
        (["StopInstance", "--name="], "error: --name has an empty value\n  hint: "),
        (["BootInstance", "--workers", "0"], "error: --workers 0: nobody would work\n  hint: let it be 1, or more"),
        (["SSHKeyPair", "--workers", "-1"], "error: --workers -1: nobody would work\n  hint: let it be 1, or more"),
        (["BootInstance", "--nmae", "x"], "unrecognized arguments: --nmae x"),
    ],
)
def test_usage(anywhere: Workspace, words: list[str], message: str) -> None:
    outcome = anywhere.luigi(*words)
    assert outcome.status == 2
    assert message in outcome.text
    assert "Traceback" not in outcome.text
    assert anywhere.files() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[SSHKeyPair]\ntype =\n", "[SSHKeyPair] type in luigi.cfg has an empty value\n  hint: "),
        ("[FuzzCampaign]\nfuzzers =\n", "[FuzzCampaign] fuzzers in luigi.cfg has an empty value\n  hint: "),
        ("[pool]\nsize =\n", "luigi.cfg: [pool] size =  cannot be used\n  hint: give it a value, or leave it out"),
        ("[store]\nroot = $EMPTY\n", "luigi.cfg: [store] root = $EMPTY cannot be used\n  hint: its variables are"),
    ],
)
def test_an_empty_setting_is_no_wish_for_the_default(workspace: Workspace, text: str, message: str) -> None:
    workspace.configure(text)
    workspace.environment["EMPTY"] = ""
    for command in (["luigi", "--module", "tasks", "SSHKeyPair"], ["topcoat", "plan"]):
        outcome = workspace.run(*command)
        assert (outcome.status, message in outcome.text, "Traceback" in outcome.text) == (2, True, False), outcome.text
    assert workspace.files() == []


def test_a_mistake_in_the_settings_is_usage_too(workspace: Workspace) -> None:
    workspace.configure("[boot]\nredy = ssh\n")
    for command in (["luigi", "--module", "tasks", "SSHKeyPair"], ["topcoat", "instances"]):
        outcome = workspace.run(*command)
        assert outcome.status == 2
        assert "luigi.cfg: [boot] has no setting named redy\n  hint: did you mean ready?" in outcome.text
        assert "Traceback" not in outcome.text


def test_a_bug_has_a_traceback(workspace: Workspace) -> None:
    """Played by a module that breaks a task."""
    workspace.module(
        "broken", "import tasks\ndef make(self, made): raise RuntimeError('a bug')\ntasks.SSHKeyPair.make = make\n"
    )
    outcome = workspace.run("luigi", "--module", "broken", "SSHKeyPair")
    assert outcome.status == 30
    assert "Traceback" in outcome.text
    assert "RuntimeError: a bug" in outcome.text


def test_luigi_cfg_still_wins_over_the_defaults(bundle: Workspace) -> None:
    config = bundle.directory / "luigi.cfg"
    config.write_text(config.read_text() + "[retcode]\ntask_failed = 77\n")
    assert bundle.luigi("InitrdWithKey", FAKE_ZBI="fail").status == 77


def test_the_shipped_settings_file_changes_nothing(workspace: Workspace) -> None:
    """Every setting in it is commented out with its default, or luigi's own and the same as ours."""
    shipped = SHIPPED.read_text()
    for section, values in DEFAULTS.items():
        body = shipped.split(f"[{section}]\n")[1].split("\n\n")[0]
        assert dict(line.split(" = ") for line in body.splitlines() if line) == values
    before = shipped.split("[core]")[0]
    assert [line for line in before.splitlines() if line and line[0] not in "#["] == []


def test_the_shipped_settings_file_lists_every_setting() -> None:
    shipped = SHIPPED.read_text()
    for section, keys in known_keys().items():
        body = shipped.split(f"[{section}]\n")[1].split("\n[")[0]
        for key in keys:
            assert f"#{key} =" in body or (key in RESOURCE_KEYS and key in body), f"[{section}] {key}"


def test_the_shipped_settings_file_has_the_defaults(tmp_path: Path) -> None:
    """Of what has no default, such as [boot] timeout, it has an example."""
    usual = settings.load({}, tmp_path)
    sections = {"qemu": usual.qemu, "boot": usual.boot, "pool": usual.pool, "campaign": usual.campaign}
    lines = []
    for section, values in sections.items():
        body = SHIPPED.read_text().split(f"[{section}]\n")[1].split("\n[")[0]
        defaults = [name for name, value in vars(values).items() if value is not None]
        lines += [f"[{section}]", *re.findall(rf"^#((?:{'|'.join(defaults)}) = .*)$", body, re.MULTILINE)]
    (tmp_path / "luigi.cfg").write_text("\n".join(lines))
    assert len(lines) > 25
    assert settings.load({}, tmp_path) == usual


def test_luigi_s_parser_is_built_once_for_each_task(bundle: Workspace) -> None:
    """It would be nine times, which is a fifth of a run that has nothing to do."""
    count = (
        "import luigi.cmdline_parser as parser, argparse, atexit\n"
        "made = []\nreal = argparse.ArgumentParser.__init__\n"
        "def init(self, *arguments, **options): made.append(1); real(self, *arguments, **options)\n"
        "argparse.ArgumentParser.__init__ = init\n"
        "import tasks\natexit.register(lambda: print('parsers:', len(made)))\n"
    )
    bundle.module("count", count)
    outcome = bundle.run("luigi", "--module", "count", "SSHKeyPair", "--type", "rsa")
    assert outcome.status == 0, outcome.text
    assert "parsers: 2" in outcome.text, "without a task and with it"
    assert (bundle.store.keys / "sshid").read_text().startswith("-----BEGIN RSA PRIVATE KEY-----")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--module", "taskss", "BootInstance"), "No module named 'taskss'"),
        (("--module=tasks.nosuch", "BootInstance"), "No module named 'tasks.nosuch'"),
        ((), "No task specified"),
        (("--module", "tasks"), "No task specified"),
        (("--module", "tasks", "SSHKeyPair", "--logging-conf-file", "nosuch"), "luigi's logging cannot be set up: "),
        (
            ("--module", "tasks", "SSHKeyPair", "--logging-conf-file", "empty.conf"),
            "luigi's logging cannot be set up: ",
        ),
    ],
)
def test_mistakes_that_luigi_finds_before_any_task(workspace: Workspace, words: tuple[str, ...], message: str) -> None:
    (workspace.directory / "empty.conf").touch()
    outcome = workspace.run("luigi", *words)
    assert outcome.status == 2, outcome.text
    assert f"error: {message}" in outcome.text
    assert "hint: " in outcome.text
    assert "Traceback" not in outcome.text
    assert not workspace.store.keys.exists()


def test_a_module_of_the_users_that_lacks_another_one_keeps_its_traceback(workspace: Workspace) -> None:
    workspace.module("broken", "import tasks, nosuch\n")
    outcome = workspace.run("luigi", "--module", "broken", "SSHKeyPair")
    assert outcome.status == 1
    assert "Traceback" in outcome.text
