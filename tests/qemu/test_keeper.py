"""The keeper with real files and real processes; sleepers play QEMU and the process that boots it."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import HostFault, StoreError
from pipeline.process import Process
from pipeline.qemu import keeper

CAP = 1 << 20
BOOT_ID = "7a11cf0b63964ac7a0f4d41b3fbb7b5e"
LINE = 16
LOSS = 1 << 20
"""Bytes that may be missing at a seam here: the writer needs some 100 ms for them, if this machine is very busy."""

WRITER = """
import itertools, os, sys
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
for number in itertools.count():
    os.write(log, b"%015d\\n" % number)
"""
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
POLITE = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print(flush=True); signal.pause()"


def eventually(condition: Callable[[], object], seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


@contextmanager
def child(*words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that ends when its stdin does; killed at the end."""
    with subprocess.Popen(words or ("cat",), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as popen:
        try:
            yield popen
        finally:
            popen.kill()


def found(popen: "subprocess.Popen[bytes]") -> Process:
    process = Process.find(popen.pid)
    assert process is not None
    return process


def numbers(data: bytes) -> tuple[int, int]:
    """The first number of the lines and the one after the last. None is missing between them."""
    lines = [int(line) for line in data.splitlines()]
    assert lines == list(range(lines[0], lines[-1] + 1))
    return lines[0], lines[-1] + 1


class Scene:
    """The files of an instance, a process that plays its QEMU, and the keepers that were started for it."""

    def __init__(self, directory: Path, qemu: "subprocess.Popen[bytes]") -> None:
        self.handle_file = directory / "handle.json"
        self.log = directory / "serial.log"
        self.old = directory / "serial.log.1"
        self.qemu_log = directory / "qemu.log"
        self.popen, self.qemu = qemu, found(qemu)

    def start(self, owner: Process, cap: int = CAP) -> Process:
        """Start a keeper, and return when it watches both processes."""
        logs = (self.log, self.qemu_log)
        keeper.start(self.qemu, owner, BOOT_ID, self.handle_file, logs, cap, self.qemu_log)
        eventually(self.keepers)
        (made,) = self.keepers()
        eventually(lambda: len(pidfds(made)) == 2)
        return made

    def keepers(self) -> list[Process]:
        made = []
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            # Before the fork, setsid has the same words
            if b"setsid" not in words and keeper.__file__.encode() in words and bytes(self.handle_file) in words:
                process = Process.find(int(entry.name))
                made += [process] if process else []
        return made

    def said(self) -> str:
        return self.qemu_log.read_text()

    def lives(self) -> bool:
        """Whether QEMU still lives a while after the keeper has noticed that the owner has ended."""
        (ours,) = self.keepers()
        eventually(lambda: len(pidfds(ours)) == 1)
        return not self.qemu.wait(0.5)


def pidfds(process: Process) -> list[str]:
    links = []
    for entry in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.append(str(entry.readlink()))
    return [link for link in links if "pidfd" in link]


@contextmanager
def playing(directory: Path, *qemu: str) -> Iterator[Scene]:
    with child(*qemu) as popen:
        scene = Scene(directory, popen)
        try:
            yield scene
        finally:
            popen.kill()
            for process in scene.keepers():
                if not process.wait(10):
                    process.send(signal.SIGKILL)
                    pytest.fail("a keeper outlives its QEMU")


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with playing(tmp_path) as made:
        yield made


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "serial.log"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return tmp_path / "serial.log.1"


class TestRotate:
    def test_a_long_log_is_moved_and_the_file_stays(self, log: Path, old: Path) -> None:
        old.write_bytes(b"older")
        log.write_bytes(b"x" * 101)
        inode = log.stat().st_ino
        assert keeper.rotate(log, 100)
        assert (old.read_bytes(), log.read_bytes()) == (b"x" * 101, b"")
        assert log.stat().st_ino == inode
        assert old.stat().st_mode & 0o777 == 0o600
        assert sorted(log.parent.iterdir()) == [log, old]

    def test_a_log_that_is_not_longer_than_the_cap_stays(self, log: Path) -> None:
        log.write_bytes(b"x" * 100)
        assert not keeper.rotate(log, 100)
        assert list(log.parent.iterdir()) == [log]

    def test_a_log_that_is_not_there(self, log: Path) -> None:
        assert not keeper.rotate(log, 100)
        assert not keeper.rotate(log / "below", 100)
        log.touch()
        assert not keeper.rotate(log / "below", 100)

    def test_only_one_process_rotates_a_log(self, log: Path) -> None:
        log.write_bytes(b"x" * 101)
        with log.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_SH)
            assert not keeper.rotate(log, 100)
        assert keeper.rotate(log, 100)

    def test_remains_of_a_killed_predecessor_are_in_nobodys_way(self, log: Path, old: Path) -> None:
        log.with_name("serial.log.1.tmp").write_bytes(b"y" * 200)
        log.write_bytes(b"x" * 101)
        assert keeper.rotate(log, 100)
        assert old.read_bytes() == b"x" * 101
        assert sorted(log.parent.iterdir()) == [log, old]

    def test_next_to_nothing_is_lost_while_the_writer_writes_on(self, log: Path, old: Path) -> None:
        """No line is missing within a part, and between two parts at most what LOSS says."""
        follows = rotations = 0
        with child(sys.executable, "-c", WRITER, str(log)):
            while rotations < 20:
                eventually(lambda: keeper.rotate(log, CAP // 4))
                first, after = numbers(old.read_bytes())
                assert follows <= first <= follows + LOSS // LINE
                follows, rotations = after, rotations + 1

    def test_what_comes_at_the_last_moment_is_copied_too(
        self, log: Path, old: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log.write_bytes(b"x" * 101)
        rename = os.replace

        def late(source: str, target: str) -> None:
            rename(source, target)
            with log.open("ab") as stream:
                stream.write(b"late")

        monkeypatch.setattr(os, "replace", late)
        assert keeper.rotate(log, 100)
        assert (old.read_bytes(), log.read_bytes()) == (b"x" * 101 + b"late", b"")

    def test_a_writer_that_is_as_fast_as_the_copying_is_given_up(
        self, log: Path, old: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        log.write_bytes(b"x" * 101)
        sendfile = os.sendfile

        def slow(target: int, source: int, offset: int, count: int) -> int:
            with log.open("ab") as stream:
                stream.write(b"y" * count)
            return sendfile(target, source, offset, count)

        monkeypatch.setattr(os, "sendfile", slow)
        assert keeper.rotate(log, 100)
        assert (old.read_bytes(), log.read_bytes()) == (b"x" * 101 + b"y" * 101, b"")
        assert f"{old}: a part is missing after it" in capfd.readouterr().err

    def test_a_log_that_cannot_be_kept_is_truncated_all_the_same(
        self, log: Path, old: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        old.mkdir()
        log.write_bytes(b"x" * 101)
        assert keeper.rotate(log, 100)
        assert log.read_bytes() == b""
        assert f"topcoat: {log}: 101 bytes were cut off, and not all of them could be kept: " in capfd.readouterr().err
        assert sorted(log.parent.iterdir()) == [log, old]

    @pytest.mark.parametrize(
        ("lengths", "after", "told"),
        [
            (
                {"log": 400_000},
                {"log": 0},
                "log: 400000 bytes were cut off, and not all of them could be kept: No space",
            ),
            ({"log": 300_000, "log.1": 250_000}, {"log": 0, "log.1": 300_000}, ""),
        ],
        ids=["too full", "just enough"],
    )
    def test_on_a_full_disk(self, tmp_path: Path, lengths: dict[str, int], after: dict[str, int], told: str) -> None:
        code = (
            "import json, os, sys\nfrom pathlib import Path\nfrom pipeline.qemu import keeper\n"
            "for name, length in json.loads(sys.argv[1]).items(): Path(name).write_bytes(bytes(length))\n"
            "assert keeper.rotate(Path('log'), 1000)\n"
            "print(json.dumps({path.name: path.stat().st_size for path in Path().iterdir()}))"
        )
        done = on_a_disk_of("600k", tmp_path, sys.executable, "-c", code, json.dumps(lengths))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == after
        assert told in done.stderr
        assert bool(told) == bool(done.stderr)


def on_a_disk_of(size: str, directory: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in `directory` with a tmpfs on it, in a mount namespace of its own."""
    unshare = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    mount = f'mount -t tmpfs -o size={size} none "$0" && cd "$0" && exec "$@"'
    command = [*unshare, "sh", "-c", mount, str(directory), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_parts_of_a_log(log: Path, old: Path) -> None:
    assert keeper.parts(log) == []
    log.touch()
    assert keeper.parts(log) == [log]
    old.touch()
    assert keeper.parts(log) == [old, log]


class TestLogs:
    def test_a_flood_stays_bounded(self, scene: Scene) -> None:
        peak, seconds = 0, 6.0
        with child() as owner, child(sys.executable, "-c", WRITER, str(scene.log)) as writer:
            ours, began = scene.start(found(owner)), time.monotonic()
            while time.monotonic() < began + seconds:
                peak = max(peak, sum(size(path) for path in scene.log.parent.glob("serial.log*")))
                time.sleep(0.02)
            writer.kill()
            writer.wait()
            scene.popen.kill()
            assert ours.wait(10)
        assert scene.said() == ""
        first, after = numbers(scene.old.read_bytes())
        assert first > 0, "it was rotated more than once"
        rest = scene.log.read_bytes()
        assert len(rest) <= CAP, "once more at the end"
        if rest:
            first, after = numbers(rest)
        written = after * LINE
        assert peak <= 2 * CAP + 4 * written / seconds, (
            "what came in one period is there twice, and may be more at times"
        )
        assert peak < 0.8 * written

    def test_the_seam_between_the_parts(self, scene: Scene) -> None:
        with child() as owner, child(sys.executable, "-c", WRITER, str(scene.log)) as writer:
            ours = scene.start(found(owner))
            eventually(scene.old.exists)
            eventually(lambda: 0 < size(scene.log) < CAP // 2)
            writer.kill()
            writer.wait()
            scene.popen.kill()
            assert ours.wait(10)
        _, follows = numbers(scene.old.read_bytes())
        first, _ = numbers(scene.log.read_bytes())
        assert follows <= first <= follows + LOSS // LINE

    def test_its_own_words_are_kept_short_too(self, scene: Scene) -> None:
        scene.qemu_log.write_bytes(b"x" * 101)
        with child() as owner:
            scene.start(found(owner), cap=100)
            eventually(lambda: size(scene.qemu_log) == 0)
        assert scene.qemu_log.with_name("qemu.log.1").read_bytes() == b"x" * 101

    def test_a_log_that_cannot_be_rotated_is_told_and_hinders_no_other(self, scene: Scene) -> None:
        scene.log.mkdir()
        scene.qemu_log.write_bytes(b"x" * 101)
        with child() as owner:
            scene.start(found(owner), cap=100)
            second = scene.qemu_log.with_name("qemu.log.1")
            eventually(second.exists)
            assert f"{scene.log.name} cannot be kept short: Is a directory" in second.read_text() + scene.said()
            eventually(lambda: len(scene.keepers()) == 1)

    def test_it_ends_with_qemu_and_looks_at_the_logs_once_more(self, scene: Scene) -> None:
        with child() as owner:
            ours = scene.start(found(owner))
            scene.log.write_bytes(b"x" * (CAP + 1))
            scene.popen.kill()
            assert ours.wait(10)
        assert scene.old.stat().st_size == CAP + 1
        assert scene.said() == "", "a QEMU that ends is no orphan"

    def test_a_qemu_that_has_ended_before(self, scene: Scene) -> None:
        scene.log.write_bytes(b"x" * (CAP + 1))
        scene.popen.kill()
        scene.popen.wait()
        with child() as owner:
            keeper.start(scene.qemu, found(owner), BOOT_ID, scene.handle_file, [scene.log], CAP, scene.qemu_log)
            eventually(lambda: not size(scene.log))
        eventually(lambda: not scene.keepers())


def size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class TestOrphan:
    @pytest.mark.parametrize("handle", [None, '{"boot_id": "of another boot"}'])
    def test_is_ended_if_the_owner_is_killed_before_the_handle_is_there(self, scene: Scene, handle: str | None) -> None:
        with child() as owner:
            ours = scene.start(found(owner))
            if handle:
                scene.handle_file.write_text(handle)
            owner.kill()
            assert scene.popen.wait(10) == -signal.SIGTERM
            assert ours.wait(10)
        assert "has ended before the guest was ready, so QEMU is ended too\n" in scene.said()

    def test_is_ended_if_the_owner_had_ended_before_the_keeper_was_there(self, scene: Scene) -> None:
        with child() as owner:
            ended = found(owner)
        keeper.start(scene.qemu, ended, BOOT_ID, scene.handle_file, [scene.log], CAP, scene.qemu_log)
        assert scene.popen.wait(10) == -signal.SIGTERM

    def test_may_end_properly(self, tmp_path: Path) -> None:
        with playing(tmp_path, sys.executable, "-c", POLITE) as scene, child() as owner:
            assert scene.popen.stdout
            scene.popen.stdout.readline()
            scene.start(found(owner))
            owner.kill()
            assert scene.popen.wait(10) == 7

    def test_is_none_if_the_store_has_been_moved(self, tmp_path: Path) -> None:
        """The handle is found where it is now, and so are the logs."""
        (tmp_path / "store").mkdir()
        with playing(tmp_path / "store") as scene, child() as owner:
            scene.start(found(owner))
            scene.handle_file.write_text(json.dumps({"boot_id": BOOT_ID}))
            moved = (tmp_path / "store").rename(tmp_path / "elsewhere")
            owner.kill()
            assert scene.lives()
            (moved / "serial.log").write_bytes(b"x" * (CAP + 1))
            eventually((moved / "serial.log.1").exists)

    def test_that_is_deaf_is_killed(self, tmp_path: Path) -> None:
        with playing(tmp_path, sys.executable, "-c", DEAF) as scene, child() as owner:
            assert scene.popen.stdout
            scene.popen.stdout.readline()
            scene.start(found(owner))
            owner.kill()
            assert scene.popen.wait(10) == -signal.SIGKILL

    def test_that_is_stopped_is_killed(self, scene: Scene) -> None:
        with child() as owner:
            scene.start(found(owner))
            scene.qemu.send(signal.SIGSTOP)
            eventually(lambda: b") T " in Path(f"/proc/{scene.qemu.pid}/stat").read_bytes())
            owner.kill()
            assert scene.popen.wait(10) == -signal.SIGKILL

    @pytest.mark.parametrize(
        "handle",
        [
            json.dumps({"boot_id": BOOT_ID}),
            "",
            '{"boot_id": "7a11',
            "[]",
            '{"boot_id": 7}',
            "{}",
            "\udcff",
            "[" * 100_000,
        ],
        ids=["whole", "empty", "cut", "list", "number", "no id", "no text", "deep"],
    )
    def test_is_none_if_the_handle_may_claim_it(self, scene: Scene, handle: str) -> None:
        with child() as owner:
            scene.start(found(owner))
            scene.handle_file.write_text(handle, errors="surrogateescape")
            owner.kill()
            assert scene.lives()
        assert scene.said() == ""
        scene.log.write_bytes(b"x" * (CAP + 1))
        eventually(scene.old.exists)

    def test_is_none_if_the_handle_cannot_be_read(self, scene: Scene) -> None:
        scene.handle_file.mkdir()
        with child() as owner:
            scene.start(found(owner))
            owner.kill()
            assert scene.lives()
        assert (
            f"QEMU runs on, although the process that booted it has ended: {scene.handle_file.name}: Is a"
            in scene.said()
        )

    def test_is_none_if_the_owner_ends_as_soon_as_it_has_written_the_handle(self, scene: Scene) -> None:
        made = scene.handle_file.with_name("made")
        code = "import os, sys; sys.stdin.read(); os.replace(*sys.argv[1:])"
        with child(sys.executable, "-c", code, str(made), str(scene.handle_file)) as owner:
            made.write_text(json.dumps({"boot_id": BOOT_ID}))
            scene.start(found(owner))
            assert owner.stdin
            owner.stdin.close()
            assert owner.wait(10) == 0
            assert scene.lives()
        assert scene.said() == ""

    def test_is_nobody_else(self, scene: Scene) -> None:
        """A pid that was given to another process since."""
        other = replace(scene.qemu, start_ticks=scene.qemu.start_ticks - 1)
        with child() as owner:
            ended = found(owner)
        keeper.start(other, ended, BOOT_ID, scene.handle_file, [scene.log], CAP, scene.qemu_log)
        scene.log.write_bytes(b"x" * (CAP + 1))
        eventually(scene.old.exists)
        eventually(lambda: not scene.keepers())
        assert scene.qemu.alive
        assert scene.said() == ""

    def test_has_no_owner_with_a_reused_pid(self, scene: Scene) -> None:
        with child() as another:
            reused = replace(found(another), start_ticks=found(another).start_ticks - 1)
            keeper.start(scene.qemu, reused, BOOT_ID, scene.handle_file, [scene.log], CAP, scene.qemu_log)
            assert scene.popen.wait(10) == -signal.SIGTERM
            assert another.poll() is None


class TestStart:
    def test_nothing_of_the_starter_is_inherited(self, scene: Scene) -> None:
        """The starter holds the writing end of a pipe, inheritable; it is closed when the starter has ended."""
        code = (
            "import sys, os\nfrom pathlib import Path\nfrom pipeline.process import Process\n"
            "from pipeline.qemu import keeper\n"
            "pid, handle, log, errors = sys.argv[1:]\nqemu = Process.find(int(pid))\n"
            f"keeper.start(qemu, qemu, '{BOOT_ID}', Path(handle), [Path(log)], {CAP}, Path(errors))"
        )
        reader, writer = os.pipe()
        words = [str(scene.qemu.pid), str(scene.handle_file), scene.log.name, str(scene.qemu_log)]
        command = [sys.executable, "-c", code, *words]
        with os.fdopen(reader, "rb") as stream:
            with os.fdopen(writer), subprocess.Popen(command, cwd=scene.log.parent, pass_fds=[writer]) as starter:
                pass
            assert starter.returncode == 0
            os.set_blocking(reader, False)
            assert stream.read() == b"", "the end of the file: nobody holds the other end"
        eventually(scene.keepers)
        (ours,) = scene.keepers()
        facts = Path(f"/proc/{ours.pid}")
        assert (facts / "cwd").readlink() == scene.log.parent
        assert os.getsid(ours.pid) not in (os.getsid(0), starter.pid)
        assert os.fsencode(scene.log) in (facts / "cmdline").read_bytes().split(b"\0"), "a path that holds in / too"
        eventually(lambda: len(pidfds(ours)) == 2)
        links = {int(entry.name): str(entry.readlink()) for entry in (facts / "fd").iterdir()}
        assert {links.pop(0), links.pop(1), links.pop(2)} == {"/dev/null", str(scene.qemu_log)}
        assert all("pidfd" in link for link in links.values())

    def test_it_is_a_child_of_nobody_who_matters(self, scene: Scene) -> None:
        with child() as owner:
            ours = scene.start(found(owner))
            stat = Path(f"/proc/{ours.pid}/stat").read_text().rpartition(")")[2].split()
            assert int(stat[1]) not in (os.getpid(), scene.qemu.pid, owner.pid)

    def test_without_setsid(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(scene.log.parent))
        with child("/bin/cat") as owner, pytest.raises(HostFault, match="cannot be started") as failure:
            scene.start(found(owner))
        assert "util-linux" in failure.value.hint

    def test_without_a_place_to_write_to(self, scene: Scene) -> None:
        scene.qemu_log.mkdir()
        with child() as owner, pytest.raises(StoreError, match="writing QEMU's log: Is a directory"):
            scene.start(found(owner))
