"""The keeper keeps the logs short."""

import fcntl
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.vm.qemu import keeper
from tests.children import child, found
from tests.needs import with_mounts
from tests.vm.qemu.keeping import BOOT_ID, CAP, Scene
from tests.waiting import SOON, eventually

LINE = 16
LOSS = 4 << 10
"""Bytes that may be missing at a seam here, unless another process gets the CPU just there."""

WRITER = """
import itertools, os, sys
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
for number in itertools.count():
    os.write(log, b"%015d\\n" % number)
"""


def numbers(data: bytes) -> tuple[int, int]:
    """The first number of the lines and the one after the last. None is missing between them."""
    lines = [int(line) for line in data.splitlines()]
    assert lines == list(range(lines[0], lines[-1] + 1))
    return lines[0], lines[-1] + 1


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
        """No line is missing within a part, and between two parts at most what LOSS says, unless the host is busy."""
        follows, lost = 0, list[int]()
        with child(sys.executable, "-c", WRITER, str(log)):
            while len(lost) < 20:
                eventually(lambda: keeper.rotate(log, CAP // 4))
                first, after = numbers(old.read_bytes())
                lost.append(first - follows)
                follows = after
        assert min(lost) >= 0, "no line is there twice"
        assert sorted(lost)[2] <= LOSS // LINE  # while the copying waits for a CPU, the writer may go on

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
            "import json, os, sys\nfrom pathlib import Path\nfrom pipeline.vm.qemu import keeper\n"
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
    """Run a command in `directory` with a tmpfs on it."""
    mount = f'mount -t tmpfs -o size={size} none "$0" && cd "$0" && exec "$@"'
    command = with_mounts(mount, str(directory), *words)
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_parts_of_a_log(log: Path, old: Path) -> None:
    assert keeper.parts(log) == []
    log.touch()
    assert keeper.parts(log) == [log]
    old.touch()
    assert keeper.parts(log) == [old, log]


class TestLogs:
    @pytest.mark.slow
    def test_a_flood_stays_bounded(self, scene: Scene) -> None:
        peak, kept = 0, set[int]()
        with child() as owner, child(sys.executable, "-c", WRITER, str(scene.log)) as writer:
            ours = scene.start(found(owner))

            def rotated_often() -> bool:
                nonlocal peak
                peak = max(peak, sum(size(path) for path in scene.log.parent.glob("serial.log*")))
                with suppress(FileNotFoundError):
                    kept.add(scene.old.stat().st_mtime_ns)
                return len(kept) > 6

            eventually(rotated_often)
            writer.kill()
            writer.wait()
            scene.popen.kill()
            assert ours.wait(SOON)
        assert scene.said() == ""
        first, after = numbers(scene.old.read_bytes())
        assert first > 0, "it was rotated more than once"
        rest = scene.log.read_bytes()
        assert len(rest) <= CAP, "once more at the end"
        if rest:
            first, after = numbers(rest)
        assert peak < 0.8 * after * LINE, "what came in one period is there twice at times, but not all that came"

    @pytest.mark.slow
    def test_the_seam_between_the_parts(self, scene: Scene) -> None:
        with child() as owner, child(sys.executable, "-c", WRITER, str(scene.log)) as writer:
            ours = scene.start(found(owner))
            eventually(scene.old.exists)
            eventually(lambda: 0 < size(scene.log) < CAP // 2)
            writer.kill()
            writer.wait()
            scene.popen.kill()
            assert ours.wait(SOON)
        _, follows = numbers(scene.old.read_bytes())
        first, _ = numbers(scene.log.read_bytes())
        assert follows <= first

    def test_its_own_words_are_kept_short_too(self, scene: Scene) -> None:
        scene.qemu_log.write_bytes(b"x" * 101)
        with child() as owner:
            scene.start(found(owner), cap=100)
            eventually(lambda: size(scene.qemu_log) == 0)
            # When the owner has ended, the keeper says that it ends QEMU, and these words are more than the cap too
            assert scene.qemu_log.with_name("qemu.log.1").read_bytes() == b"x" * 101

    def test_a_log_that_cannot_be_rotated_is_told_and_hinders_no_other(self, scene: Scene) -> None:
        scene.log.mkdir()
        scene.qemu_log.write_bytes(b"x" * 101)
        with child() as owner:
            scene.start(found(owner), cap=100)
            second = scene.qemu_log.with_name("qemu.log.1")
            eventually(second.exists)
            eventually(lambda: f"{scene.log.name} cannot be kept short: Is a directory" in scene.said())
            eventually(lambda: len(scene.keepers()) == 1)

    def test_it_ends_with_qemu_and_looks_at_the_logs_once_more(self, scene: Scene) -> None:
        with child() as owner:
            ours = scene.start(found(owner))
            scene.log.write_bytes(b"x" * (CAP + 1))
            scene.popen.kill()
            assert ours.wait(SOON)
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
