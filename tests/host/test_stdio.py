"""Telling never ends doing: the programs where nobody listens, and where what they say cannot be printed."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping

import pytest

from tests.conftest import Workspace

UNHEARD = ("2>&1 | head -1", "2>/dev/full", "2>&-", ">&-", ">/dev/full", ">/dev/full 2>&1", "<&- >&- 2>&-", "| true")


def shell(
    workspace: Workspace, line: str, environment: Mapping[str, str] | None = None, limit: float = 100
) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash in the workspace, which ends with the status of the first command of a pipe."""
    return subprocess.run(
        ["bash", "-c", f"{line}\nexit ${{PIPESTATUS[0]}}"],
        cwd=workspace.directory,
        env={**workspace.environment, **(environment or {})},
        capture_output=True,
        timeout=limit,
        check=False,
    )


@pytest.fixture
def running(bundle: Workspace) -> Workspace:
    """A workspace with a scripted guest named i0."""
    assert bundle.luigi("BootInstance").status == 0
    return bundle


class TestWhoDoesSomething:
    @pytest.mark.parametrize("streams", UNHEARD)
    @pytest.mark.parametrize("command", ["luigi --module tasks BootInstance", "topcoat boot"])
    def test_a_boot_goes_on(self, bundle: Workspace, command: str, streams: str) -> None:
        done = shell(bundle, f"{command} {streams}")
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
        assert bundle.instance().live_handle()

    @pytest.mark.parametrize("streams", UNHEARD)
    def test_a_boot_that_fails_has_its_own_status(self, bundle: Workspace, streams: str) -> None:
        done = shell(bundle, f"luigi --module tasks BootInstance {streams}", {"FAKE_ZBI": "fail"})
        assert (done.returncode, b"Traceback" in done.stderr) == (30, False)

    @pytest.mark.parametrize("streams", [">/dev/full", "| true", ">&-"])
    def test_all_is_stopped(self, bundle: Workspace, streams: str) -> None:
        assert shell(bundle, "luigi --module tasks BootInstance").returncode == 0
        for words in ("stop --all", "stop --all --json", "force SSHKeyPair", "gc --yes", "clean --yes"):
            done = shell(bundle, f"topcoat {words} {streams}")
            assert (done.returncode, done.stderr) == (0, b"")
        assert not bundle.instance().live_handle()

    def test_all_directories_are_imported(self, workspace: Workspace) -> None:
        for name in ("one", "two"):
            (workspace.directory / name).mkdir()
            (workspace.directory / name / "unit").write_text(name)
        done = shell(workspace, "topcoat corpus import a/b one two | true")
        assert done.returncode == 0
        listed = json.loads(workspace.topcoat("corpus", "list", "--json").stdout)
        assert listed["corpora"][0]["units"] == 2

    def test_a_log_on_a_closed_descriptor_does_not_become_stderr(self, bundle: Workspace) -> None:
        """What is opened first takes the lowest number that is free."""
        assert shell(bundle, "luigi --module tasks BootInstance <&- >&- 2>&-", {"FAKE_ZBI": "fail"}).returncode == 30
        written = {path.read_bytes() for path in bundle.store.root.rglob("*") if path.is_file()}
        assert not any(b"error:" in content for content in written)


ASKED = ("--help", "instances", "instances --json", "argv i0", "doctor", "why", "logs i0", "campaign status --json")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("streams", ["2>&1 | head -1", ">/dev/full 2>&1", "<&- >&- 2>&-"])
def test_a_campaign_goes_on(demo: Workspace, streams: str) -> None:
    """With workers of luigi's, which print too, and the real guest."""
    demo.configure("[campaign]\ncanary = off\n")
    words = "FuzzCampaign --fuzzers '*/noop_fuzzer,*/crash_fuzzer' --budget 5s --workers 2"
    done = shell(demo, f"luigi --module tasks {words} {streams}", limit=350)
    assert (done.returncode, done.stderr) == (0, b"")
    status = json.loads((demo.store.campaigns / "campaign/status.json").read_bytes())
    assert status["state"] == "done"


class TestWhoWasAskedForOutput:
    @pytest.mark.parametrize("words", ASKED)
    def test_topcoat(self, running: Workspace, words: str) -> None:
        piped = without_reader(running, "topcoat", *words.split())
        assert (piped.returncode, b"error" in piped.stderr) == (141, False)
        for streams, reason in ((">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")):
            done = shell(running, f"topcoat {words} {streams}")
            assert done.returncode == 30
            assert f"error: stdout cannot be written: {reason}\n  hint: " in done.stderr.decode()

    @pytest.mark.parametrize("words", ["version", "nonsense", ""])
    def test_undercoat(self, workspace: Workspace, words: str) -> None:
        """It has no exit codes but 0, 1 and 2, and says on stdout what went wrong."""
        done = without_reader(workspace, "undercoat", *words.split())
        assert (done.returncode, b"Traceback" in done.stderr) == (1, False)
        for streams in (">/dev/full", ">&-"):
            done = shell(workspace, f"undercoat {words} {streams}")
            assert (done.returncode, b"Traceback" in done.stderr) == (1, False)
            assert b"stdout cannot be written" in done.stderr

    def test_nobody_listens_at_all(self, running: Workspace) -> None:
        assert shell(running, "topcoat instances >&- 2>&- <&-").returncode == 30
        assert shell(running, "topcoat nonsense >&- 2>&- <&-").returncode == 2

    def test_a_pipe_that_does_not_block(self, running: Workspace) -> None:
        """ssh and node leave such ones behind: what does not fit is waited for."""
        running.instance().serial_log.write_bytes(b"line\n" * 100_000)
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        command = running.command("topcoat", "logs", "i0")
        with subprocess.Popen(command, cwd=running.directory, env=running.environment, stdout=writing) as process:
            os.close(writing)
            with open(reading, "rb") as stream:
                assert stream.read() == b"line\n" * 100_000
            assert process.wait(30) == 0


def without_reader(workspace: Workspace, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command whose stdout is a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return subprocess.run(
            workspace.command(*words),
            cwd=workspace.directory,
            env=workspace.environment,
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=100,
            check=False,
        )
    finally:
        os.close(writing)


class TestEncodings:
    """A stdout that lacks the characters of a tree, and paths that are not UTF-8."""

    @pytest.mark.parametrize("encoding", ["latin-1", "ascii", "C"])
    def test_a_tree_is_plain(self, bundle: Workspace, encoding: str) -> None:
        locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
        environment = locale if encoding == "C" else {"PYTHONIOENCODING": encoding}
        done = shell(bundle, "topcoat why", environment)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
        assert b"\n|- initrd: InitrdWithKey  stale: missing" in done.stdout
        assert b"\n|  `- key: SSHKeyPair  (see above)" in done.stdout

    @pytest.mark.parametrize(
        ("text", "shown"),
        [("⠴ i0: …", b"* i0: ..."), ("a → b", b"a -> b"), ("ü €", b"\xfc \\u20ac"), ("\udcf6", b"\xf6")],
    )
    def test_what_latin_1_lacks(self, workspace: Workspace, text: str, shown: bytes) -> None:
        program = f"from pipeline.host import stdio; stdio.set_up(needed=True); print({text!a})"
        line = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}"
        assert shell(workspace, line, {"PYTHONIOENCODING": "latin-1"}).stdout == shown + b"\n"

    def test_utf_8_stays_as_it_is(self, bundle: Workspace) -> None:
        assert "├─ initrd: InitrdWithKey" in shell(bundle, "topcoat why").stdout.decode()

    @pytest.mark.parametrize("command", ["luigi --module tasks BootInstance", "topcoat boot"])
    def test_a_store_whose_path_is_not_utf_8(self, bundle: Workspace, command: str) -> None:
        bundle.environment["TOPCOAT_ROOT"] = os.fsdecode(os.fsencode(bundle.directory) + b"/st\xf6re")
        done = shell(bundle, command)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
        assert bundle.instance().live_handle()
        for words in (
            "instances",
            "why",
            "plan",
            "argv i0",
            "doctor",
            "logs i0",
            "clean",
            "gc",
            "campaign status",
            "corpus list",
        ):
            done = shell(bundle, f"topcoat {words}")
            assert done.returncode == 0 or words == "doctor"  # which the scripted QEMU does not please
            assert b"Traceback" not in done.stderr
        assert b"st\xf6re" in shell(bundle, "topcoat argv i0").stdout
        listed = json.loads(shell(bundle, "topcoat instances --json").stdout)
        assert listed["instances"][0]["directory"] == str(bundle.instance().directory)
        assert shell(bundle, "topcoat stop i0").returncode == 0
