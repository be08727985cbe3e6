"""Everything that goes wrong while an instance is made: one clear error, nothing left over, and the next run works."""

import os
import signal
import subprocess

import pytest

from pipeline.host.process import Process
from tests.conftest import Outcome, Workspace, processes_with, qemus_of
from tests.fakes import sshd
from tests.needs import with_mounts
from tests.waiting import SOON, eventually

IMAGES = ["images/clusterfuzz/extended-fvm.blk", "images/clusterfuzz/ssh-fuchsia.zbi"]
KEYS = ["keys/sshid", "keys/sshid.pub"]
LOGS = ["instances/i0/qemu.log", "instances/i0/serial.log", "instances/i0/timeline.jsonl"]


def assert_clean_failure(outcome: Outcome, workspace: Workspace, status: int = 30) -> None:
    assert outcome.status == status, outcome.text
    assert "hint: " in outcome.text
    assert "Traceback" not in outcome.text
    assert qemus_of(workspace.directory) == []
    left = [name for name in workspace.files() if ".tmp" in name or "handle" in name or "overlay" in name]
    assert left == []
    assert not workspace.instance().has_remains


def assert_next_run_works(workspace: Workspace) -> None:
    outcome = workspace.luigi("BootInstance")
    assert outcome.status == 0, outcome.text
    assert workspace.instance().live_handle()


@pytest.mark.parametrize(
    ("part", "message", "evidence"),
    [
        ("refuse", "QEMU gets no port for SSH: ", "Could not set up host forwarding rule"),
        (
            "silent",
            "the guest wrote nothing at all to its serial port",
            "Fuchsia needs kernel.serial=legacy",
        ),
        ("no-marker", "the guest's kernel started, but within 6 s none of its programs did", "| welcome to Zircon"),
        ("die", "QEMU died while the guest booted (waiting for the marker)", "| welcome to Zircon"),
        ("hang", "QEMU was not up after", "topcoat argv i0"),
        ("mute", "QEMU's monitor does not tell the SSH port", "no answer within"),
        ("no-forward", "QEMU forwards no port to the guest's SSH server", "topcoat argv i0"),
    ],
)
def test_a_qemu_that_does_not_come_up(bundle: Workspace, part: str, message: str, evidence: str) -> None:
    bundle.configure("[boot]\nready = marker\ntimeout = 6\nscale = 0.3\n[qemu]\naccel = tcg\n[tools]\nproof = off\n")
    outcome = bundle.luigi("BootInstance", QEMU_FAKE=part)
    assert_clean_failure(outcome, bundle)
    assert f"i0: {message}" in outcome.text
    assert evidence in outcome.text
    assert "\x1b" not in outcome.text
    left = [name for name in bundle.files() if name.startswith("instances") and not name.endswith(".previous")]
    assert left == LOGS, "the logs stay"
    bundle.configure("[boot]\nready = marker\n[qemu]\naccel = tcg\n[tools]\nproof = off\n")
    assert_next_run_works(bundle)


def test_a_qemu_that_prints_the_marker_and_dies_is_not_ready(bundle: Workspace) -> None:
    """With the marker as the proof it may count as ready if it dies afterwards; with SSH it never does."""
    bundle.configure("[boot]\ntimeout = 60\n[qemu]\naccel = tcg\n[tools]\nproof = off\n")
    outcome = bundle.luigi("BootInstance", QEMU_FAKE="marker-die")
    assert_clean_failure(outcome, bundle)
    assert "QEMU died while the guest booted (waiting for the " in outcome.text


def test_a_qemu_without_a_sandbox_boots_with_a_warning(bundle: Workspace) -> None:
    outcome = bundle.luigi("BootInstance", QEMU_FAKE="no-sandbox")
    assert outcome.status == 0, outcome.text
    assert "warning: this QEMU knows no sandbox" in outcome.text


def test_a_qemu_that_obeys_nothing_is_still_stopped_in_time(bundle: Workspace) -> None:
    assert bundle.luigi("BootInstance", QEMU_FAKE="deaf").status == 0
    outcome = bundle.topcoat("stop", "i0")
    assert (outcome.status, qemus_of(bundle.directory)) == (0, [])
    assert b"stopped by SIGKILL" in outcome.stdout


@pytest.mark.parametrize("content", [b"#!/no/such/interpreter\n", b"not a program"])
def test_a_qemu_that_is_no_program(bundle: Workspace, content: bytes) -> None:
    qemu = bundle.directory / "bundle/qemu-for-fuchsia/bin/qemu-system-x86_64"
    qemu.write_bytes(content)
    outcome = bundle.luigi("BootInstance")
    assert_clean_failure(outcome, bundle)
    assert "i0: QEMU cannot be run: " in outcome.text


@pytest.mark.parametrize(
    ("tool", "part", "message"),
    [
        ("ZBI", "fail", "zbitool failed with exit code 1"),
        ("ZBI", "hang", "zbitool did not end within 5 s and was killed"),
        ("ZBI", "nothing", "zbitool ended well but left no ssh-fuchsia.zbi"),
        ("ZBI", "empty", "zbitool ended well but left no ssh-fuchsia.zbi (it is empty)"),
        ("FVM", "fail", "fvm failed with exit code 1"),
        ("FVM", "hang", "fvm did not end within 5 s and was killed"),
    ],
)
def test_a_tool_that_fails(bundle: Workspace, tool: str, part: str, message: str) -> None:
    if part == "hang":
        settings = bundle.directory / "luigi.cfg"
        settings.write_text(settings.read_text().replace("[tools]\ntimeout = 60", "[tools]\ntimeout = 5"))
    outcome = bundle.luigi("BootInstance", **{f"FAKE_{tool}": part})
    assert_clean_failure(outcome, bundle)
    assert message in outcome.text
    if part == "fail":
        assert "header size doesn't match" in outcome.text or "Magic mismatch" in outcome.text
    whole = [name for name in bundle.files() if name.startswith("images") and not name.endswith(".made.json")]
    assert whole == [IMAGES[0] if tool == "ZBI" else IMAGES[1]], "the other image is there, this one is not, no rest"
    assert_next_run_works(bundle)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: path.unlink(), "there is no such file"),
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: (path.unlink(), path.mkdir()), "it is not a file"),
    ],
    ids=["missing", "empty", "directory"],
)
@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("zbi", "target/x64/fuchsia.zbi"),
        ("blk", "target/x64/fvm.blk"),
        ("kernel", "target/x64/multiboot.bin"),
        ("zbitool", "build/out/default.zircon/tools/zbi"),
        ("fvm", "build/out/default.zircon/tools/fvm"),
        ("qemu", "qemu-for-fuchsia/bin/qemu-system-x86_64"),
    ],
)
def test_a_missing_resource_is_told_before_anything_is_made(
    bundle: Workspace, key: str, path: str, damage: object, problem: str
) -> None:
    assert callable(damage)
    damage(bundle.directory / "bundle" / path)
    outcome = bundle.luigi("BootInstance")
    assert_clean_failure(outcome, bundle, status=20)
    assert f"the build's {key} is missing: {bundle.directory}/bundle/{path}: {problem}" in outcome.text
    assert f"[build] {key} = PATH" in outcome.text
    assert bundle.files() == []


def test_a_checkout_that_was_never_configured(workspace: Workspace) -> None:
    outcome = workspace.luigi("BootInstance", FUCHSIA_DIR=str(workspace.directory))
    assert_clean_failure(outcome, workspace, status=20)
    assert "hint: run fx set there, or correct FUCHSIA_DIR" in outcome.text
    assert outcome.text.count("is no configured checkout") == 1


def test_one_file_of_the_build_can_be_replaced_by_a_setting(bundle: Workspace) -> None:
    (bundle.directory / "bundle/target/x64/fuchsia.zbi").rename(bundle.directory / "other.zbi")
    config = bundle.directory / "luigi.cfg"
    config.write_text(config.read_text() + "[build]\nzbi = other.zbi\n")
    assert_next_run_works(bundle)
    assert (bundle.store.images("clusterfuzz") / "ssh-other.zbi").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("part", ["hang", "no-marker"])
def test_an_interrupted_boot_leaves_no_qemu(bundle: Workspace, number: signal.Signals, part: str) -> None:
    bundle.configure("[boot]\nready = marker\ntimeout = 60\n[qemu]\naccel = tcg\n[tools]\nproof = off\n")
    status, text = interrupted(bundle, number, {"QEMU_FAKE": part}, lambda: bool(qemus_of(bundle.directory)))
    assert_clean_failure(Outcome(status, b"", text), bundle, 130)
    assert f"error: interrupted by {number.name}" in text.decode()
    assert_next_run_works(bundle)


AT_THE_START = """
import os, signal, subprocess, sys, tasks
real = subprocess.run
def run(command, *arguments, **options):
    detaches = command[:2] == ("setsid", "--fork")
    if detaches:
        os.kill(os.getpid(), signal.SIGTERM)
    done = real(command, *arguments, **options)
    if detaches:
        print("it was started", file=sys.stderr)
    return done
subprocess.run = run
"""


def test_what_interrupts_the_very_start_of_qemu_waits_until_it_can_be_found(bundle: Workspace) -> None:
    """Between two of the processes by which it goes to the background, neither can be told by its command line."""
    bundle.module("at_the_start", AT_THE_START)
    bundle.environment["QEMU_FAKE"] = "hang"
    done = bundle.run("luigi", "--module", "at_the_start", "BootInstance")
    assert_clean_failure(done, bundle, 130)
    assert done.text.index("it was started") < done.text.index("error: interrupted by SIGTERM")
    del bundle.environment["QEMU_FAKE"]
    assert_next_run_works(bundle)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_tool_is_killed_and_nothing_else_is_begun(bundle: Workspace, number: signal.Signals) -> None:
    bundle.configure("[boot]\nready = marker\n[qemu]\naccel = tcg\n[tools]\ntimeout = 50\nproof = off\n")
    images = bundle.store.images("clusterfuzz")
    parts = {"FAKE_FVM": "hang", "FAKE_ZBI": "hang"}
    status, text = interrupted(bundle, number, parts, lambda: any(images.glob(".*.tmp")))
    assert_clean_failure(Outcome(status, b"", text), bundle, 130)
    assert processes_with(bytes(images)) == []
    assert_next_run_works(bundle)


def interrupted(
    workspace: Workspace, number: signal.Signals, environment: dict[str, str], begun: object, module: str = "tasks"
) -> tuple[int, bytes]:
    """Start a boot, send it a signal as soon as `begun()`, and return its exit code and stderr."""
    assert callable(begun)
    with subprocess.Popen(
        workspace.command("luigi", "--module", module, "BootInstance"),
        cwd=workspace.directory,
        env={**workspace.environment, **environment},
        stderr=subprocess.PIPE,
    ) as process:
        eventually(begun)
        process.send_signal(number)
        _, text = process.communicate(timeout=SOON)
    return process.returncode, text


def killed_while_it_waits(bundle: Workspace, module: str = "tasks") -> Process:
    """SIGKILL a boot whose guest does not come up, once it has told of its port. Returns the QEMU that it leaves."""
    bundle.configure("[boot]\nready = marker\ntimeout = 60\n[qemu]\naccel = tcg\n[tools]\nproof = off\n")
    timeline, found = bundle.instance().timeline, list[Process]()

    def waiting() -> bool:
        if not timeline.exists() or '"port"' not in timeline.read_text():
            return False
        found[:] = qemus_of(bundle.directory)  # once its boot is killed, it may be gone before anybody looks
        return True

    status, _ = interrupted(bundle, signal.SIGKILL, {"QEMU_FAKE": "no-marker"}, waiting, module)
    assert status == -signal.SIGKILL
    (orphan,) = found
    return orphan


def test_a_boot_killed_with_sigkill_leaves_no_qemu_for_long(bundle: Workspace) -> None:
    orphan = killed_while_it_waits(bundle)
    assert orphan.wait(SOON), "its keeper ends it"
    assert_next_run_works(bundle)


def test_what_a_killed_boot_leaves_is_cleared_up_by_the_next_one(bundle: Workspace) -> None:
    """Even if there was no keeper."""
    bundle.module("alone", "import tasks\nfrom pipeline.vm.qemu import keeper\nkeeper.start = lambda *_: None\n")
    orphan = killed_while_it_waits(bundle, "alone")
    assert not orphan.wait(1.5)
    outcome = bundle.luigi("BootInstance")
    assert outcome.status == 0, outcome.text
    assert "i0: stopped a QEMU that an interrupted boot had left behind" in outcome.text
    assert not orphan.alive


def test_a_running_guest_whose_handle_is_not_understood_is_not_touched(bundle: Workspace) -> None:
    assert bundle.luigi("BootInstance").status == 0
    handle_file = bundle.instance().handle_file
    handle_file.write_text(handle_file.read_text().replace('"schema": 3', '"schema": 4'))
    (alive,) = qemus_of(bundle.directory)
    outcome = bundle.luigi("BootInstance")
    assert outcome.status == 30
    assert "the handle of i0 cannot be understood: its schema is 4, not 3\n  hint: " in outcome.text
    assert alive.alive
    assert bundle.topcoat("stop", "i0").status == 0
    assert not alive.alive


def test_a_store_that_cannot_be_written(bundle: Workspace) -> None:
    bundle.store.root.write_text("a file where the store should be")
    outcome = bundle.luigi("BootInstance")
    assert outcome.status == 20
    assert "hint: a file stands where a directory is wanted" in outcome.text
    assert outcome.text.count("hint:") == 1
    assert "Traceback" not in outcome.text


@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        ("size=300k", 30, "fvm.blk takes 65 MiB, and "),
        ("ro", 20, "hint: the file system is mounted read-only"),
    ],
    ids=["full", "read-only"],
)
def test_a_store_on_a_disk_that_is(bundle: Workspace, options: str, status: int, reason: str) -> None:
    bundle.store.root.mkdir()
    (bundle.directory / "bundle/target/x64/fvm.blk").write_bytes(os.urandom(1 << 20))
    mount = f'mount -t tmpfs -o {options} none "$TOPCOAT_ROOT" && exec "$@"'
    done = subprocess.run(
        with_mounts(mount, "sh", *bundle.command("luigi", "--module", "tasks", "BootInstance")),
        cwd=bundle.directory,
        env={**bundle.environment, "TOPCOAT_ROOT": str(bundle.store.root)},
        capture_output=True,
        timeout=SOON,
        check=False,
    )
    text = (done.stdout + done.stderr).decode()
    assert done.returncode == status, text
    assert "hint: " in text
    assert reason in text, text
    assert "Traceback" not in text


HASTY = "[boot]\ntimeout = 8\n[qemu]\naccel = tcg\n[tools]\nproof = off\n"
"""For guests that never come up: long enough that all that does come up has, on a busy machine."""


class TestSSH:
    """The guest's SSH server, played by a real one."""

    @pytest.fixture
    def with_key(self, bundle: Workspace) -> str:
        """A key pair in the store; returns the public half. Ready means SSH."""
        bundle.configure("[boot]\ntimeout = 60\n[qemu]\naccel = tcg\n[tools]\nproof = off\n")
        assert bundle.luigi("SSHKeyPair").status == 0
        return (bundle.store.keys / "sshid.pub").read_text().strip()

    def test_a_server_that_answers_makes_the_guest_ready(self, bundle: Workspace, with_key: str) -> None:
        with sshd.running(with_key) as server:
            outcome = bundle.luigi("BootInstance", QEMU_FAKE_PORT=str(server.port))
        assert outcome.status == 0, outcome.text
        handle = bundle.instance().live_handle()
        assert handle
        assert handle.ssh.host_key == server.host_key_line, "pinned at first contact"
        assert server.users == ["clusterfuchsia"]

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            ("no banner", "no SSH server answers in the guest"),
            ("close", "no SSH server answers in the guest"),
            ("refuse key", "the guest refuses the key"),
            ("no exec", "did not run to its end"),
        ],
    )
    def test_a_server_that(self, bundle: Workspace, with_key: str, fault: sshd.Fault, message: str) -> None:
        bundle.configure(HASTY)
        with sshd.running(with_key) as server:
            server.fault = fault
            outcome = bundle.luigi("BootInstance", QEMU_FAKE_PORT=str(server.port))
        assert_clean_failure(outcome, bundle)
        assert message in outcome.text

    def test_no_server_at_all(self, bundle: Workspace, with_key: str) -> None:
        bundle.configure(HASTY)
        with sshd.running(with_key) as server:
            port = server.port
        outcome = bundle.luigi("BootInstance", QEMU_FAKE_PORT=str(port))
        assert_clean_failure(outcome, bundle)
        assert f"nothing answers on 127.0.0.1:{port}" in outcome.text

    def test_another_server_behind_the_port_is_not_talked_to(self, bundle: Workspace, with_key: str) -> None:
        with sshd.running(with_key) as server:
            assert bundle.luigi("BootInstance", QEMU_FAKE_PORT=str(server.port)).status == 0
            server.host_key = server.host_key.generate()
            outcome = bundle.topcoat("ssh", "i0", "--", "true")
        assert outcome.status == 255
        assert "is not the guest that was booted: its host key is another one" in outcome.text
        assert server.users == ["clusterfuchsia"], "no second login was tried"
