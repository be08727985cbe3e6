"""Commands about boots and the host, as they are typed: what they print, their exit codes, and what they change."""

import json
import os
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.host.locks import locked
from tests.conftest import Workspace, qemus_of
from tests.needs import openpty
from tests.waiting import SOON

MANUAL = Path(__file__).parents[2] / "docs/booting.md"


@pytest.fixture
def running(bundle: Workspace) -> Workspace:
    assert bundle.luigi("BootInstance").status == 0
    return bundle


class TestDryRun:
    """Everything is looked at and told, nothing is made."""

    def test_it_tells_the_plan_the_limit_and_the_command_line(self, bundle: Workspace) -> None:
        done = bundle.topcoat("boot", "i7", "--dry-run")
        assert done.status == 0, done.text
        lines = done.stdout.decode().splitlines()
        assert lines[:4] == [
            "SSHKeyPair: missing",
            "InitrdWithKey: missing",
            "ExtendedBlk: missing",
            "BootInstance(name=i7): not running",
        ]
        assert lines[4] == "ready by marker, within 60 s"
        assert lines[5].startswith(f"{bundle.directory}/bundle/qemu-for-fuchsia/bin/qemu-system-x86_64 -kernel ")
        assert b"nothing was made or started" in done.stderr
        assert bundle.files() == []
        assert not bundle.store.root.exists()

    def test_json(self, bundle: Workspace) -> None:
        answer = json.loads(bundle.topcoat("boot", "--dry-run", "--json").stdout)
        assert answer["schema"] == 1
        assert [task["task"] for task in answer["pending"]][-1] == "BootInstance"
        assert answer["timeouts"]["boot"] == 60.0
        assert (answer["ready"], answer["how"], answer["no_kvm"]) == ("marker", "boot", None)
        assert "-kernel" in answer["argv"]

    def test_what_a_boot_would_fail_of_is_told(self, bundle: Workspace) -> None:
        (bundle.directory / "bundle/target/x64/multiboot.bin").unlink()
        done = bundle.topcoat("boot", "--dry-run")
        assert (done.status, b"kernel" in done.stdout + done.stderr) == (20, True)
        assert bundle.topcoat("boot", "no/name", "--dry-run").status == 2
        assert bundle.topcoat("boot", "--json").status == 2

    def test_a_running_instance(self, running: Workspace) -> None:
        done = running.topcoat("boot", "--dry-run")
        assert done.stdout.startswith(b"i0 is running, and is what a boot would make\n")

    def test_the_limit_is_learned_from_past_boots(self, bundle: Workspace) -> None:
        bundle.configure("[boot]\nready = marker\n[qemu]\naccel = tcg\n[tools]\nproof = off\n")
        assert b"within 300 s\n" in bundle.topcoat("boot", "--dry-run").stdout
        for _ in range(5):
            assert bundle.luigi("BootInstance").status == 0
            assert bundle.topcoat("stop", "i0").status == 0
        told = bundle.topcoat("boot", "--dry-run").stdout.decode()
        assert re.search(r"ready by marker, within 75 s \(slow boots of this kind take \d+(\.\d)? s here\)", told), told


def test_boot_is_luigis_boot(bundle: Workspace) -> None:
    done = bundle.topcoat("boot", "i1")
    assert (done.status, "i1 is running" in done.text) == (0, True), done.text
    assert bundle.instance("i1").live_handle()
    failed = bundle.run("topcoat", "boot", "i2", environment={"QEMU_FAKE": "die"})
    assert failed.status == 30
    assert "i2: QEMU died while the guest booted" in failed.text


class TestAttempts:
    def test_what_passes_is_tried_three_times_and_each_attempt_is_in_the_timeline(self, bundle: Workspace) -> None:
        done = bundle.luigi("BootInstance", QEMU_FAKE="refuse")
        assert done.status == 30
        assert done.text.count("failed, trying again: i0: QEMU gets no port for SSH: ") == 2
        assert [event["event"] for event in timeline(bundle)] == ["attempt", "failed"] * 3
        assert [event["cause"] for event in timeline(bundle) if "cause" in event] == ["port refused"] * 3
        assert len({event["boot_id"] for event in timeline(bundle) if "boot_id" in event}) == 3

    def test_the_guests_fault_is_tried_again_only_if_that_is_wanted(self, bundle: Workspace) -> None:
        assert bundle.luigi("BootInstance", QEMU_FAKE="die").status == 30
        assert max(event["attempt"] for event in timeline(bundle)) == 1
        bundle.configure("[boot]\nready = marker\ntimeout = 5\nattempts = 2\n[qemu]\naccel = tcg\n[tools]\nproof=off\n")
        again = bundle.luigi("BootInstance", QEMU_FAKE="die")
        assert again.text.count("trying again") == 1
        assert max(event["attempt"] for event in timeline(bundle)) == 2


def timeline(workspace: Workspace) -> list[dict[str, str | int]]:
    lines = workspace.instance().timeline.read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


class TestStop:
    def test_the_task(self, running: Workspace) -> None:
        (qemu,) = qemus_of(running.directory)
        done = running.luigi("StopInstance")
        assert (done.status, "i0: stopped" in done.text) == (0, True), done.text
        assert not qemu.alive
        assert running.luigi("StopInstance").status == 0, "it has ended already"
        assert running.luigi("StopInstance", "--name", "never-seen").status == 0

    def test_the_task_takes_what_a_dead_guest_has_left(self, running: Workspace) -> None:
        (qemu,) = qemus_of(running.directory)
        qemu.send(signal.SIGKILL)
        assert qemu.wait(SOON)
        done = running.luigi("StopInstance")
        assert (done.status, "i0: was not running" in done.text) == (0, True), done.text
        assert not running.instance().overlay.exists()

    @pytest.mark.parametrize(
        ("part", "options", "says"),
        [
            ("ready", [], "i0: stopped\n"),
            ("ready", ["--gently"], "i0: stopped\n"),
            ("deaf; serial x; marker", [], "i0: stopped by SIGKILL; it took neither QEMU's quit command nor SIGTERM\n"),
            (
                "deaf; serial x; marker",
                ["--gently"],
                "i0: stopped by SIGKILL; it took neither QEMU's quit command nor SIGTERM\n",
            ),
            (
                "serial x; marker; freeze",
                [],
                "i0: stopped by SIGKILL; it took neither QEMU's quit command nor SIGTERM\n",
            ),
            ("serial x; marker; mute", [], "i0: stopped by SIGTERM; it did not take QEMU's quit command\n"),
        ],
    )
    @pytest.mark.parametrize("handle", ["whole", "damaged", "gone"])
    def test_it_takes_three_seconds_at_most_and_says_which_step_worked(
        self, bundle: Workspace, part: str, options: list[str], says: str, handle: str
    ) -> None:
        assert bundle.luigi("BootInstance", QEMU_FAKE=part).status == 0
        (qemu,) = qemus_of(bundle.directory)
        path = bundle.instance().handle_file
        if handle == "damaged":
            path.write_text(path.read_text()[:100])
        elif handle == "gone":
            time.sleep(0.5)  # the keeper looks for it once, when luigi has ended
            path.unlink()
        done = bundle.topcoat("stop", "i0", *options)
        assert done.stdout.decode() == says, done.text
        assert not qemu.alive

    def test_a_lock_that_becomes_free_late_leaves_time_enough_to_end_it(self, bundle: Workspace) -> None:
        assert bundle.luigi("BootInstance", QEMU_FAKE="deaf; marker").status == 0
        with locked(bundle.instance().directory):
            stopping = subprocess.Popen(
                bundle.command("topcoat", "stop", "i0"), cwd=bundle.directory, env=bundle.environment
            )
            time.sleep(0.9)
        assert stopping.wait(SOON) == 0
        assert qemus_of(bundle.directory) == []


class TestLogs:
    def test_both_parts_of_a_rotated_log(self, running: Workspace) -> None:
        log = running.instance().serial_log
        log.with_name("serial.log.1").write_text("older\n")
        log.write_text("newer\n")
        assert running.topcoat("logs", "i0").stdout == b"older\nnewer\n"

    def test_following_goes_on_after_a_rotation(self, running: Workspace) -> None:
        log = running.instance().serial_log
        log.write_text("a first part that is long\n")
        with subprocess.Popen(
            running.command("topcoat", "logs", "-f", "i0"),
            cwd=running.directory,
            env=running.environment,
            stdout=subprocess.PIPE,
        ) as follower:
            assert follower.stdout
            assert follower.stdout.readline() == b"a first part that is long\n"
            log.write_text("second\n")
            assert follower.stdout.readline() == b"second\n"
            assert running.topcoat("stop", "i0").status == 0
            assert follower.wait(SOON) == 0

    def test_the_logs_of_the_boot_before_are_kept_with_all_their_parts(self, running: Workspace) -> None:
        log = running.instance().serial_log
        log.with_name("serial.log.1").write_text("older\n")
        assert running.topcoat("stop", "i0").status == 0
        assert running.luigi("BootInstance").status == 0
        kept = {path.name for path in log.parent.glob("serial.log*")}
        assert kept == {"serial.log", "serial.log.previous", "serial.log.1.previous"}


class TestDoctor:
    def test_one_line_for_each_thing(self, running: Workspace) -> None:
        done = running.topcoat("doctor")
        lines = done.stdout.decode().splitlines()
        assert all(re.match(r"(ok|warning|error) +[\w -]+: .+", line) for line in lines), lines
        assert any(line.startswith("ok       instances: 1 known, 1 running") for line in lines), lines

    def test_what_is_wrong_is_an_error_and_the_exit_code(self, running: Workspace) -> None:
        running.instance().handle_file.write_text("{")
        (running.directory / "bundle/target/x64/fvm.blk").unlink()
        done = running.topcoat("doctor", "--json")
        assert done.status == 30
        wrong = {row["name"]: row for row in json.loads(done.stdout)["findings"] if row["level"] == "error"}
        assert "topcoat stop i0" in wrong["instances"]["hint"]
        assert any("[build] blk = PATH" in row["hint"] for row in wrong.values())


class TestGc:
    def test_dry_by_default(self, running: Workspace) -> None:
        assert ours(running) == []
        (qemu,) = qemus_of(running.directory)
        qemu.send(signal.SIGKILL)
        assert qemu.wait(SOON)
        shown = running.topcoat("gc")
        assert f"reclaim   disk {running.instance().directory}" in shown.text
        assert "nothing was reclaimed; to do it: topcoat gc --yes" in shown.text
        assert running.instance().overlay.exists()
        done = running.topcoat("gc", "--yes")
        assert (done.status, f"reclaimed disk {running.instance().directory}" in done.text) == (0, True), done.text
        assert not running.instance().overlay.exists()
        assert running.instance().serial_log.exists()
        assert ours(running) == []
        assert running.topcoat("gc", "--yes", "--keep", "0").status == 0
        assert not running.instance().directory.exists()

    def test_doctor_and_the_manual_say_the_same(self, running: Workspace) -> None:
        """Of logs that are older than the manual says, and of younger ones."""
        days = int(re.findall(r"go after `--keep` days, by\s+default (\d+)", MANUAL.read_text())[0])
        assert running.topcoat("stop", "i0").status == 0
        directory = running.instance().directory
        for age, told in ((days - 0.5, False), (days + 0.5, True)):
            at = time.time() - age * 86400
            for path in (*directory.iterdir(), directory):
                os.utime(path, (at, at), follow_symlinks=False)
            assert (str(directory) in ours(running)) is told
            assert ("things are nobody's" in running.topcoat("doctor").text) is told

    def test_days_that_make_no_sense(self, running: Workspace) -> None:
        for days in ("-1", "nan"):
            refused = running.topcoat("gc", f"--keep={days}")
            assert (refused.status, b"hint: " in refused.stderr) == (2, True)

    def test_a_run_that_ends_leaves_no_lock(self, running: Workspace) -> None:
        assert list((running.store.cache / "running").iterdir()) == []


def ours(workspace: Workspace) -> list[str]:
    """What gc would reclaim of this store."""
    rows = json.loads(workspace.topcoat("gc", "--json").stdout)["items"]
    return [row["what"] for row in rows]


class TestConsole:
    def test_piped(self, running: Workspace) -> None:
        done = running.topcoat("console", "i0", stdin=b"echo hello\n")
        assert done.status == 0, done.text
        assert b"i0: detached" in done.stderr

    def test_a_guest_that_does_not_run(self, running: Workspace) -> None:
        assert running.topcoat("stop", "i0").status == 0
        refused = running.topcoat("console", "i0")
        assert (refused.status, b"i0 is not running" in refused.stderr) == (2, True)

    def test_on_a_terminal_until_the_key(self, running: Workspace) -> None:
        ours, theirs = openpty()
        with subprocess.Popen(
            running.command("topcoat", "console", "i0", "--safe"),
            cwd=running.directory,
            env=running.environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        ) as console:
            os.close(theirs)
            said = b""
            while b"detaches" not in said:
                assert select.select([ours], [], [], SOON)[0]
                said += os.read(ours, 4096)
            os.write(ours, b"\x1d")
            assert console.wait(SOON) == 0
        os.close(ours)
