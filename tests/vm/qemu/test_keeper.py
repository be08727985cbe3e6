"""The keeper ends an orphan, and what is tied to users who have gone; and how it is started."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import HostFault, StoreError
from pipeline.host.process import Process
from pipeline.vm.keepalive import KeepAlive
from pipeline.vm.qemu import keeper
from tests.children import child, found
from tests.vm.qemu.keeping import BOOT_ID, CAP, Scene, pidfds, playing
from tests.waiting import SOON, eventually

DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
POLITE = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print(flush=True); signal.pause()"


class TestOrphan:
    @pytest.mark.parametrize("handle", [None, '{"boot_id": "of another boot"}'])
    def test_is_ended_if_the_owner_is_killed_before_the_handle_is_there(self, scene: Scene, handle: str | None) -> None:
        with child() as owner:
            ours = scene.start(found(owner))
            if handle:
                scene.handle_file.write_text(handle)
            owner.kill()
            assert scene.popen.wait(SOON) == -signal.SIGTERM
            assert ours.wait(SOON)
        assert "has ended before the guest was ready, so QEMU is ended too\n" in scene.said()

    def test_is_ended_if_the_owner_had_ended_before_the_keeper_was_there(self, scene: Scene) -> None:
        with child() as owner:
            ended = found(owner)
        keeper.start(scene.qemu, ended, BOOT_ID, scene.handle_file, [scene.log], CAP, scene.qemu_log)
        assert scene.popen.wait(SOON) == -signal.SIGTERM

    def test_may_end_properly(self, tmp_path: Path) -> None:
        with playing(tmp_path, sys.executable, "-c", POLITE) as scene, child() as owner:
            assert scene.popen.stdout
            scene.popen.stdout.readline()
            scene.start(found(owner))
            owner.kill()
            assert scene.popen.wait(SOON) == 7

    @pytest.mark.slow
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

    @pytest.mark.slow
    def test_that_is_deaf_is_killed(self, tmp_path: Path) -> None:
        with playing(tmp_path, sys.executable, "-c", DEAF) as scene, child() as owner:
            assert scene.popen.stdout
            scene.popen.stdout.readline()
            scene.start(found(owner))
            owner.kill()
            assert scene.popen.wait(SOON) == -signal.SIGKILL

    @pytest.mark.slow
    def test_that_is_stopped_is_killed(self, scene: Scene) -> None:
        with child() as owner:
            scene.start(found(owner))
            scene.qemu.send(signal.SIGSTOP)
            eventually(lambda: b") T " in Path(f"/proc/{scene.qemu.pid}/stat").read_bytes())
            owner.kill()
            assert scene.popen.wait(SOON) == -signal.SIGKILL

    @pytest.mark.slow
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
            assert owner.wait(SOON) == 0
            assert scene.lives()
        assert scene.said() == ""

    def test_is_nobody_else(self, scene: Scene) -> None:
        """A pid that was given to another process since."""
        other = replace(scene.qemu, start_ticks=scene.qemu.start_ticks - 1)
        with child() as owner:
            ended = found(owner)
        scene.log.write_bytes(b"x" * (CAP + 1))
        keeper.start(other, ended, BOOT_ID, scene.handle_file, [scene.log], CAP, scene.qemu_log)
        eventually(scene.old.exists)
        eventually(lambda: not scene.keepers())
        assert scene.qemu.alive
        assert scene.said() == ""

    def test_has_no_owner_with_a_reused_pid(self, scene: Scene) -> None:
        with child() as another:
            reused = replace(found(another), start_ticks=found(another).start_ticks - 1)
            keeper.start(scene.qemu, reused, BOOT_ID, scene.handle_file, [scene.log], CAP, scene.qemu_log)
            assert scene.popen.wait(SOON) == -signal.SIGTERM
            assert another.poll() is None


class TestTie:
    """With a grace of one second, so that the second look that finds no user is the last."""

    @pytest.fixture
    def keepalive(self, tmp_path: Path) -> KeepAlive:
        return KeepAlive(tmp_path / "pool" / "users.lock", 1.0)

    def start(self, scene: Scene, keepalive: KeepAlive) -> Process:
        """Its boot is done, and its owner lives on or not."""
        scene.handle_file.write_text(json.dumps({"boot_id": BOOT_ID}))
        with child() as owner:
            return scene.start(found(owner), keepalive=keepalive)

    @pytest.mark.slow
    def test_qemu_ends_when_its_users_have_gone(self, scene: Scene, keepalive: KeepAlive) -> None:
        with keepalive.held():
            with keepalive.held():
                ours = self.start(scene, keepalive)
            assert not scene.qemu.wait(3), "one is left"
        assert scene.popen.wait(SOON) == -signal.SIGTERM
        assert ours.wait(SOON)
        assert scene.said() == "topcoat: nobody has used this QEMU for 1 s, so it is ended\n"

    @pytest.mark.slow
    def test_that_is_so_while_the_owner_lives_too(self, scene: Scene, keepalive: KeepAlive) -> None:
        with child() as owner:
            with keepalive.held():
                scene.start(found(owner), keepalive=keepalive)
            assert scene.popen.wait(SOON) == -signal.SIGTERM
            assert owner.poll() is None

    @pytest.mark.slow
    def test_a_user_who_is_killed_has_gone(self, scene: Scene, keepalive: KeepAlive) -> None:
        code = (
            "import sys\nfrom pathlib import Path\nfrom pipeline.vm.keepalive import KeepAlive\n"
            "with KeepAlive(Path(sys.argv[1])).held():\n    print(flush=True)\n    sys.stdin.read()"
        )
        with child(sys.executable, "-c", code, str(keepalive.file)) as user:
            assert user.stdout
            assert user.stdout.readline() == b"\n"
            self.start(scene, keepalive)
            assert not scene.qemu.wait(3)
            user.kill()
            assert scene.popen.wait(SOON) == -signal.SIGTERM

    @pytest.mark.slow
    def test_a_user_who_comes_back_within_the_grace_finds_qemu(self, scene: Scene, tmp_path: Path) -> None:
        keepalive = KeepAlive(tmp_path / "users.lock", 8.0)
        with keepalive.held():
            self.start(scene, keepalive)
        assert not scene.qemu.wait(2)
        with keepalive.held():
            assert not scene.qemu.wait(7), "what has passed of the grace does not count any more"

    @pytest.mark.slow
    def test_without_its_file_nobody_uses_it(self, scene: Scene, keepalive: KeepAlive) -> None:
        self.start(scene, keepalive)
        assert scene.popen.wait(SOON) == -signal.SIGTERM

    @pytest.mark.slow
    def test_a_file_that_cannot_be_looked_at_ends_nobody(self, scene: Scene, keepalive: KeepAlive) -> None:
        keepalive.file.mkdir(parents=True)
        self.start(scene, keepalive)
        eventually(scene.said)
        assert not scene.qemu.wait(3)
        assert scene.said() == "topcoat: QEMU runs on whether it is used or not: pool/users.lock: Is a directory\n"

    @pytest.mark.slow
    def test_the_file_is_found_where_the_store_is_now(self, tmp_path: Path) -> None:
        """Also through a link on the way to the instances."""
        (tmp_path / "store" / "real" / "i0").mkdir(parents=True)
        (tmp_path / "store" / "instances").symlink_to("real")
        keepalive = KeepAlive(tmp_path / "store" / "users.lock", 1.0)
        with playing(tmp_path / "store" / "instances" / "i0") as scene:
            with keepalive.held():
                self.start(scene, keepalive)
                (tmp_path / "store").rename(tmp_path / "elsewhere")
                assert not scene.qemu.wait(3)
            assert scene.popen.wait(SOON) == -signal.SIGTERM

    @pytest.mark.slow
    def test_who_comes_while_qemu_is_being_ended_waits(self, tmp_path: Path) -> None:
        """So that no guest is found that ends at the next moment."""
        keepalive = KeepAlive(tmp_path / "users.lock", 1.0)
        with playing(tmp_path, sys.executable, "-c", DEAF) as scene:
            assert scene.popen.stdout
            scene.popen.stdout.readline()
            with keepalive.held():
                self.start(scene, keepalive)
            eventually(scene.said)
            with keepalive.held():
                assert not scene.qemu.alive
            assert scene.popen.wait(SOON) == -signal.SIGKILL

    @pytest.mark.slow
    def test_several_keepers_are_not_in_each_others_way(self, tmp_path: Path) -> None:
        keepalive = KeepAlive(tmp_path / "users.lock", 1.0)
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        with playing(tmp_path / "a", sys.executable, "-c", DEAF) as one, playing(tmp_path / "b") as other:
            assert one.popen.stdout
            one.popen.stdout.readline()
            with keepalive.held():
                self.start(one, keepalive)
                self.start(other, keepalive)
            assert one.popen.wait(SOON) == -signal.SIGKILL
            assert other.popen.wait(SOON) == -signal.SIGTERM


class TestStart:
    def test_nothing_of_the_starter_is_inherited(self, scene: Scene) -> None:
        """The starter holds the writing end of a pipe, inheritable; it is closed when the starter has ended."""
        code = (
            "import sys, os\nfrom pathlib import Path\nfrom pipeline.host.process import Process\n"
            "from pipeline.vm.qemu import keeper\n"
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
