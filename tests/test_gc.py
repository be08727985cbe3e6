"""`topcoat gc`: what is nobody's is reclaimed, and nothing else is touched."""

import fcntl
import os
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline import gc, lease
from pipeline.errors import StopError
from pipeline.freshness import Key
from pipeline.garbage import item, processes, remains, sockets
from pipeline.garbage.item import Item, Spared, delete, used
from pipeline.garbage.run_locks import lock_directory
from pipeline.gc import Outcome
from pipeline.instance import SSH, Handle, Instance
from pipeline.process import Process
from pipeline.publish import lock_of, locked, publish
from pipeline.settings import Store
from tests.conftest import Workspace

DAY = 86400.0


class World:
    """A store, and a place for temporary files that no other test knows."""

    def __init__(self, directory: Path, temporary: Path) -> None:
        self.directory, self.temporary = directory, temporary
        self.store = Store(directory / "out")
        self.started: list[subprocess.Popen[bytes]] = []

    def instance(self, name: str = "i0", *, log: bool = True) -> Instance:
        found = Instance.named(self.store, name)
        found.directory.mkdir(parents=True, exist_ok=True)
        if log:
            found.serial_log.write_text("what the guest said")
        return found

    def qemu(self, pidfile: Path, *inherited: int, early: bool = False) -> Process:
        """A process with QEMU's argument, that holds its pidfile as QEMU does, if it is not too `early` for that.

        The lock is one of the open file, so that a shell can inherit it; it ends with the test at the latest.
        """
        with ExitStack() as opened:
            kept = list(inherited)
            if not early:
                stream = opened.enter_context(pidfile.open("w+"))
                fcntl.fcntl(stream, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
                kept.append(stream.fileno())
            words = ["sh", "-c", "read x", "qemu", "-pidfile", str(pidfile)]
            child = subprocess.Popen(words, stdin=subprocess.PIPE, pass_fds=kept)
            self.started.append(child)
            if not early:
                stream.write(str(child.pid))
        process = Process.find(child.pid)
        assert process
        limit = time.monotonic() + 5
        while not Path(f"/proc/{child.pid}/cmdline").read_bytes():  # for a moment after exec(2) it is empty
            assert time.monotonic() < limit
        return process

    def live(self, name: str = "i0") -> Instance:
        """An instance that runs: QEMU, its sockets with a lease, its disk, its handle."""
        instance = self.killed_boot(name)
        process = self.process_of(instance)
        instance.publish_handle(handle(instance, process))
        return instance

    def killed_boot(self, name: str = "i0") -> Instance:
        """All that a boot has made before the handle, which then was killed."""
        instance = self.instance(name)
        made = instance.make_sockets()
        with lease.held(made, instance.directory, "b") as descriptor:
            listen(made / "serial").close()
            instance.overlay.write_bytes(b"x" * 5000)
            self.qemu(instance.pidfile, descriptor)
        return instance

    def process_of(self, instance: Instance) -> Process:
        process = Process.find(int(instance.pidfile.read_text()))
        assert process
        return process

    def dead(self, name: str = "i0") -> Instance:
        """An instance whose QEMU has ended by itself."""
        instance = self.live(name)
        self.kill(self.process_of(instance))
        return instance

    def kill(self, process: Process) -> None:
        process.send(signal.SIGKILL)
        assert process.wait(5)

    def end(self) -> None:
        for child in self.started:
            with child:
                child.kill()

    def listed(self, keep_logs: float = DAY) -> dict[str, str]:
        return {self.short(item.what): item.kind for item in gc.items(self.store, keep_logs)}

    def short(self, what: str) -> str:
        return what.replace(str(self.directory), "").replace(str(self.temporary), "TMP").removeprefix("/out/")

    def collect(self, keep_logs: float = DAY) -> list[Outcome]:
        return [gc.reclaim(item) for item in gc.items(self.store, keep_logs)]

    def left(self) -> list[str]:
        """All files but locks, in the store and the place for sockets."""
        places = (self.store.root, self.temporary)
        found = (Path(parent, name) for place in places for parent, _, names in os.walk(place) for name in names)
        return sorted(self.short(str(path)) for path in found if path.suffix != ".lock")


def handle(instance: Instance, process: Process) -> Handle:
    return Handle(
        name=instance.name,
        boot_id="b",
        build="demo",
        started="2026-11-23T17:53:35Z",
        argv=("qemu",),
        process=process,
        sockets=str(instance.sockets),
        ssh=SSH("127.0.0.1", 1, "user", "/key", None),
        made_of=Key("", 0, {}, {}, {}),
    )


def listen(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    return server


def make_old(path: Path, seconds: float) -> None:
    """As if nothing had been written there for so long."""
    then = time.time() - seconds
    for parent, directories, files in os.walk(path, topdown=False):
        for name in (*directories, *files, "."):
            os.utime(Path(parent, name), (then, then), follow_symlinks=False)


@contextmanager
def new_world() -> Iterator[World]:
    # pytest's own directories are too long for sockets
    with tempfile.TemporaryDirectory(dir="/tmp") as base, pytest.MonkeyPatch.context() as patch:
        directory, temporary = Path(base, "w"), Path(base, "t")
        directory.mkdir()
        temporary.mkdir()
        patch.setenv("TMPDIR", str(temporary))
        patch.setattr(tempfile, "tempdir", str(temporary))
        patch.setattr(sockets, "_SHARED", temporary)
        world = World(directory, temporary)
        try:
            yield world
        finally:
            world.end()


@pytest.fixture(scope="module", autouse=True)
def _place_of_pytest_s_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp_path_factory.getbasetemp()  # before a test changes where temporary files go


@pytest.fixture
def world() -> Iterator[World]:
    with new_world() as made:
        yield made


def spared(outcomes: list[Outcome]) -> list[str]:
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    return [outcome.spared for outcome in outcomes]


def test_there_is_nothing_in_no_store_and_none_is_made(world: World) -> None:
    assert gc.items(world.store) == []
    assert not world.store.root.exists()
    world.instance()
    assert gc.items(world.store, DAY) == []


class TestProcesses:
    @pytest.mark.parametrize("early", [False, True])
    def test_what_a_killed_boot_left_goes_and_its_logs_stay(self, world: World, early: bool) -> None:
        instance = world.instance() if early else world.killed_boot()
        process = world.qemu(instance.pidfile, early=True) if early else world.process_of(instance)
        (item,) = gc.items(world.store, DAY)
        assert (item.kind, item.what) == ("process", str(process.pid))
        assert item.why == "the boot of i0 was killed, and its QEMU runs on"
        assert (item.bytes >= 5000) != early
        assert gc.reclaim(item) == Outcome(item)
        assert not process.alive
        assert world.left() == ["instances/i0/serial.log"]
        assert gc.items(world.store, DAY) == []
        assert gc.reclaim(item).error is None

    def test_what_lives_is_not_touched(self, world: World) -> None:
        instance = world.live()
        assert world.listed(0) == {}
        assert instance.live_handle()

    @pytest.mark.parametrize("content", ["", "{", "{}", '{"schema": 99}'])
    def test_one_whose_handle_cannot_be_understood_is_somebody_s(self, world: World, content: str) -> None:
        instance = world.live()
        instance.handle_file.write_text(content)
        assert world.listed(0) == {}

    def test_so_is_one_whose_handle_is_of_another(self, world: World) -> None:
        instance = world.live()
        other = replace(world.process_of(instance), start_ticks=1)
        instance.publish_handle(handle(instance, other))
        assert world.listed(0) == {}

    def test_and_one_that_lost_its_pidfile_but_has_a_handle(self, world: World) -> None:
        instance = world.live()
        instance.pidfile.unlink()
        assert world.listed(0) == {}

    def test_one_whose_instance_was_deleted_is_found(self, world: World) -> None:
        instance = world.killed_boot()
        process = world.process_of(instance)
        delete(instance.directory)
        assert world.listed() == {str(process.pid): "process"}
        assert spared(world.collect()) == [""]
        assert not process.alive
        assert not instance.directory.exists()

    def test_a_store_may_have_two_names(self, world: World) -> None:
        killed, live = world.killed_boot("i0"), world.live("i1")
        process = world.process_of(killed)
        (world.directory / "link").symlink_to(world.store.root)
        real, world.store = world.store, Store(world.directory / "link")
        early = world.qemu(Instance.named(world.store, "i2").pidfile, early=True)
        for store in (real, world.store):
            assert sorted(item.what for item in gc.items(store, DAY)) == sorted(map(str, (process.pid, early.pid)))
        assert spared([gc.reclaim(item) for item in gc.items(real, DAY)]) == ["", ""]
        assert not process.alive
        assert not early.alive
        assert live.live_handle()

    def test_a_guest_of_a_moved_store_is_not_taken_for_one_of_the_new(self, world: World) -> None:
        moved = world.live()
        process = world.process_of(moved)
        world.store.root.rename(world.directory / "elsewhere")
        there = Store(world.directory / "elsewhere")
        assert gc.items(world.store, 0) == []
        fresh = world.instance()
        fresh.overlay.touch()
        early = world.qemu(fresh.pidfile, early=True)
        # What ends the second would end the first
        assert world.listed() == {"instances/i0/overlay.qcow2": "disk"}
        assert gc.items(there, 0) == []
        assert spared(world.collect(0)) == [""]
        assert process.alive
        assert Instance.named(there, "i0").live_handle()
        assert (moved.sockets / "serial").exists()
        assert early.alive

    def test_other_commands_with_a_pidfile_are_not_ours(self, world: World) -> None:
        for path in ("qemu.pid", "instances/qemu.pid", "instances/i0/other.pid", "instances/i 0/qemu.pid"):
            world.qemu(world.store.root / path, early=True)
        world.qemu(Path("/x/instances/i0/qemu.pid"), early=True)
        world.qemu(Path("instances/i0/qemu.pid"), early=True)
        assert gc.items(world.store, 0) == []

    def test_one_that_does_not_end_is_an_error_of_its_own(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        from pipeline.qemu import machine

        def stop(*_: object) -> None:
            raise StopError("QEMU survived", hint="x")

        world.killed_boot("i0")
        world.dead("i1")
        monkeypatch.setattr(machine, "stop", stop)
        outcomes = {outcome.item.kind: outcome for outcome in world.collect()}
        assert isinstance(outcomes["process"].error, StopError)
        assert outcomes["disk"] == Outcome(outcomes["disk"].item)
        assert Instance.named(world.store, "i0").overlay.exists()
        assert not Instance.named(world.store, "i1").overlay.exists()


class TestDirectories:
    def test_what_an_instance_needed_goes_when_it_has_ended(self, world: World) -> None:
        instance = world.dead()
        instance.known_hosts.touch()
        items = {item.kind: item for item in gc.items(world.store, DAY)}
        assert items.keys() == {"sockets", "disk"}
        assert items["disk"].what == str(instance.overlay)
        assert items["disk"].why == "i0 has ended"
        assert items["disk"].bytes >= 5000
        assert spared(world.collect()) == ["", ""]
        assert world.left() == ["instances/i0/serial.log"]

    @pytest.mark.parametrize("name", ["overlay.qcow2", "handle.json", "qemu.pid", "known_hosts"])
    def test_also_if_it_is_one_file_only(self, world: World, name: str) -> None:
        (world.instance().directory / name).touch()
        assert world.listed() == {f"instances/i0/{name}": "disk"}
        assert spared(world.collect()) == [""]
        assert world.left() == ["instances/i0/serial.log"]

    def test_a_link_to_nothing_is_removed_and_none_is_followed(self, world: World, tmp_path: Path) -> None:
        instance = world.instance()
        (instance.directory / "run").symlink_to(tmp_path / "gone")
        (tmp_path / "precious").touch()
        instance.known_hosts.symlink_to(tmp_path / "precious")
        assert spared(world.collect()) == [""]
        assert world.left() == ["instances/i0/serial.log"]
        assert (tmp_path / "precious").exists()

    def test_old_logs_go_with_the_directory_but_not_the_lock(self, world: World) -> None:
        instance = world.instance()
        for name in ("serial.log.previous", "serial.log.1", "qemu.log", "timeline.jsonl", "overlay.qcow2"):
            (instance.directory / name).write_bytes(b"x" * 5000)
        (instance.directory / ".overlay.qcow2.abcdefgh.tmp").mkdir()
        with locked(instance.directory):
            pass
        make_old(instance.directory, DAY)
        assert world.listed(DAY + 60) == {
            "instances/i0/overlay.qcow2": "disk",
            "instances/i0/.overlay.qcow2.abcdefgh.tmp": "remains",
        }
        (item,) = gc.items(world.store, DAY)
        assert (item.kind, item.what) == ("logs", str(instance.directory))
        assert item.bytes >= 25000
        assert gc.reclaim(item) == Outcome(item)
        assert list(world.store.instances.iterdir()) == [lock_of(instance.directory)]

    def test_the_youngest_file_counts(self, world: World) -> None:
        instance = world.instance()
        make_old(instance.directory, DAY)
        instance.qemu_log.touch()
        assert world.listed() == {}

    def test_an_empty_directory_is_as_old_as_it_is(self, world: World) -> None:
        instance = world.instance(log=False)
        assert world.listed() == {}
        make_old(instance.directory, DAY)
        assert world.listed() == {"instances/i0": "logs"}

    def test_a_clock_that_was_wrong_deletes_nothing(self, world: World) -> None:
        make_old(world.instance().directory, -DAY)
        assert world.listed(0) == {}


class TestSockets:
    def make(self, world: World, name: str = "0123456789ab") -> Path:
        made = world.temporary / f"topcoat-{os.getuid()}" / name
        made.mkdir(mode=0o700, parents=True)
        made.parent.chmod(0o700)
        listen(made / "qmp").close()
        return made

    def leased(self, world: World, instance: Path) -> Path:
        made = self.make(world)
        with lease.held(made, instance, "b"):
            pass
        return made

    def test_those_of_a_store_that_is_gone(self, world: World, tmp_path: Path) -> None:
        made = self.leased(world, tmp_path / "gone/instances/i0")
        (item,) = gc.items(world.store, DAY)
        assert (item.kind, item.what) == ("sockets", str(made))
        assert item.why == f"its instance is gone: {tmp_path}/gone/instances/i0"
        assert gc.reclaim(item) == Outcome(item)
        assert not made.exists()
        assert not (tmp_path / "gone").exists()
        assert gc.reclaim(item).spared == "it is gone already"

    def test_not_those_of_another_store(self, world: World, tmp_path: Path) -> None:
        made = self.leased(world, tmp_path)
        make_old(made, DAY)
        assert world.listed() == {}

    def test_those_of_a_dead_instance_wherever_they_are(
        self, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        instance = world.dead()
        there = instance.sockets
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr(sockets, "_SHARED", tmp_path)
        assert instance.sockets != there
        assert [item.what for item in gc.items(world.store, DAY)] == [str(there), str(instance.overlay)]
        assert spared(world.collect()) == ["", ""]
        assert not there.exists()

    def test_without_a_lease_only_after_an_hour(self, world: World) -> None:
        made = self.make(world)
        assert world.listed() == {}
        make_old(made, 3500)
        assert world.listed() == {}
        make_old(made, 3700)
        (item,) = gc.items(world.store, DAY)
        assert item.why == "nobody listens, and nobody has for an hour"
        assert gc.reclaim(item) == Outcome(item)
        assert not made.exists()

    @pytest.mark.parametrize("damage", ["", "{", '{"schema": 7}', '{"schema": 1, "instance": "/a\\u0000b"}'])
    def test_a_damaged_lease_is_none(self, world: World, damage: str) -> None:
        made = self.make(world)
        (made / "lease").write_text(damage)
        assert world.listed() == {}
        make_old(made, 3700)
        assert spared(world.collect()) == [""]

    def test_an_instance_of_an_older_version_is_known_by_its_path(self, world: World) -> None:
        instance = world.dead()
        (instance.sockets / "lease").unlink()
        assert world.listed()["TMP" + str(instance.sockets).removeprefix(str(world.temporary))] == "sockets"

    def test_those_of_an_older_version_that_runs(self, world: World) -> None:
        instance = world.live()
        (instance.sockets / "lease").unlink()
        make_old(instance.sockets, DAY)
        assert world.listed() == {}

    def test_those_of_a_live_instance_whatever_the_lease_says(self, world: World) -> None:
        instance = world.live()
        (instance.sockets / "lease").unlink()
        with lease.held(instance.sockets, Path("/gone"), "b"):
            pass
        assert world.listed() == {}

    def test_a_held_lease_is_not_touched(self, world: World) -> None:
        made = self.make(world)
        with lease.held(made, Path("/gone/instances/i0"), "b"):
            make_old(made, DAY)
            assert world.listed() == {}
        (item,) = gc.items(world.store, DAY)
        with lease.held(made, Path("/gone/instances/i0"), "b"):
            assert gc.reclaim(item).spared == "a guest uses it"
        assert made.exists()

    def test_on_which_somebody_listens(self, world: World) -> None:
        made = self.leased(world, Path("/gone/instances/i0"))
        (item,) = gc.items(world.store, DAY)
        with listen(made / "serial") as server:
            server.listen(0)
            # A second connection would have to wait for the first to be served
            for _ in range(3):
                assert world.listed() == {}
            assert gc.reclaim(item).spared == "a guest uses it"
        assert gc.reclaim(item) == Outcome(item)

    def test_an_instance_that_came_back_has_its_own(self, world: World, tmp_path: Path) -> None:
        made = self.leased(world, tmp_path / "gone/instances/i0")
        (item,) = gc.items(world.store, DAY)
        with locked(tmp_path / "gone/instances/i0"):
            assert gc.reclaim(item).spared == "a guest uses it"
        (tmp_path / "gone/instances/i0").mkdir()
        assert gc.reclaim(item).spared == "a guest uses it"
        assert made.exists()

    def test_two_gcs_do_not_trip_over_each_other(self, world: World) -> None:
        made = [self.make(world, f"{number:012x}") for number in range(300)]
        for path in made[::2]:
            with lease.held(path, Path("/gone/instances/i0"), "b"):
                pass
        make_old(made[0].parent, DAY)
        outcomes: list[Outcome] = []
        threads = [threading.Thread(target=lambda: outcomes.extend(world.collect())) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [outcome.error for outcome in outcomes if outcome.error] == []
        assert not any(map(Path.exists, made))

    def test_who_takes_the_lease_while_it_is_being_removed_keeps_it(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = self.leased(world, Path("/gone/instances/i0"))
        (found,) = gc.items(world.store, DAY)
        delete_lease = Path.unlink

        def unlink(path: Path) -> None:
            delete_lease(path)
            if path.name == "lease":
                held.enter_context(lease.held(made, Path("/gone/instances/i0"), "c"))

        with ExitStack() as held:
            monkeypatch.setattr(Path, "unlink", unlink)
            assert gc.reclaim(found).spared == "somebody uses it by now"
            assert lease.is_held(made)

    @pytest.mark.parametrize("name", ["short", "0123456789AB", "0123456789abc", ".23456789abc"])
    def test_what_is_named_otherwise_is_not_ours(self, world: World, name: str) -> None:
        make_old(self.make(world, name), DAY)
        assert world.listed() == {}

    def test_links_and_what_others_may_write_to_are_not_ours(self, world: World, tmp_path: Path) -> None:
        made = self.make(world)
        (made.parent / "ffffffffffff").symlink_to(tmp_path)
        made.chmod(0o777)
        make_old(made.parent, DAY)
        assert world.listed() == {}
        made.chmod(0o700)
        assert len(world.listed()) == 1
        made.parent.chmod(0o777)
        assert world.listed() == {}

    def test_a_handle_cannot_point_gc_elsewhere(self, world: World, tmp_path: Path) -> None:
        instance = world.dead()
        process = Process(1, 1, "x")
        for path in (tmp_path / "0123456789ab", Path("/\0"), Path(f"/topcoat-{os.getuid()}/../{tmp_path}/x")):
            instance.publish_handle(replace(handle(instance, process), sockets=str(path)))
            assert set(world.listed().values()) == {"sockets", "disk"}
            assert len(world.listed()) == 2


class TestRemains:
    @pytest.mark.parametrize(
        "place", ["keys", "images/x", "demo", "demo/packages", "instances/i0", "images/x/deep/down"]
    )
    def test_they_are_found_everywhere(self, world: World, place: str) -> None:
        world.instance()
        made = world.store.root / place / ".sshid.abcdefgh.tmp"
        made.mkdir(parents=True)
        (made / "sshid").write_bytes(b"x" * 5000)
        (made.parent / "kept.tmp").touch()
        before = set(world.left())
        (item,) = gc.items(world.store, DAY)
        assert (item.kind, item.what, item.why) == ("remains", str(made), "whoever was making sshid was killed")
        assert item.bytes >= 5000
        assert set(world.left()) == before
        assert gc.reclaim(item) == Outcome(item)
        assert not made.exists()
        assert (made.parent / "kept.tmp").exists()
        assert gc.reclaim(item).spared == "it is gone already"

    @pytest.mark.parametrize(
        ("place", "lock"),
        [
            *(("keys", "keys/sshid"), ("images/x", "images/x/ssh.zbi"), ("demo/packages", "demo/packages.json")),
            ("instances/i0", "instances/i0"),
        ],
    )
    def test_what_is_being_made_is_not_touched(self, world: World, place: str, lock: str) -> None:
        world.instance()
        (world.store.root / place).mkdir(parents=True, exist_ok=True)
        with locked(world.store.root / lock), publish(world.store.root / place / "x.made.json") as made:
            assert world.listed() == {}
            made.touch()

    def test_who_begins_meanwhile_is_not_harmed(self, world: World) -> None:
        target = world.store.keys / "sshid"
        (world.store.keys / ".sshid.abcdefgh.tmp").mkdir(parents=True)
        with locked(target):
            pass
        (item,) = gc.items(world.store, DAY)
        with locked(target), publish(target) as made:
            made.touch()
            assert gc.reclaim(item).spared in ("another process works on it", "it is gone already")
        assert target.exists()

    def test_in_the_cache_not_all_is_made_under_a_lock(self, world: World) -> None:
        made = world.store.cache / ".kvm.json.abcdefgh.tmp"
        made.mkdir(parents=True)
        assert world.listed() == {}
        make_old(made, 3700)
        assert world.listed() == {"cache/.kvm.json.abcdefgh.tmp": "remains"}
        assert spared(world.collect()) == [""]

    def test_a_guest_that_runs_may_have_some_of_the_boot_before(self, world: World) -> None:
        instance = world.live()
        (instance.directory / ".handle.json.abcdefgh.tmp").mkdir()
        assert world.listed() == {"instances/i0/.handle.json.abcdefgh.tmp": "remains"}
        assert spared(world.collect()) == [""]
        assert instance.live_handle()


class TestLockDirectory:
    def test_it_goes_when_no_luigi_runs(self, world: World) -> None:
        made = lock_directory(world.store)
        assert made.is_relative_to(world.temporary)
        made.mkdir()
        (made / "a.pid").write_text("999999999\n")
        (made / "b.pid").write_text("")
        (item,) = gc.items(world.store, DAY)
        assert (item.kind, item.what, item.why) == ("lock directory", str(made), "no luigi runs on this store")
        assert gc.reclaim(item) == Outcome(item)
        assert not made.exists()
        assert gc.reclaim(item).spared == "it is gone already"

    def test_not_while_one_runs_or_if_it_is_not_luigi_s(self, world: World) -> None:
        made = lock_directory(world.store)
        made.mkdir()
        file = made / "a.pid"
        file.write_text("1\n")
        (made / "b.pid").write_text("999999999\n")
        for text in (f"999999999\n{os.getpid()}\n", "precious"):
            file.write_text(text)
            assert world.listed() == {}
        file.write_text("999999999\n")
        (item,) = gc.items(world.store, DAY)
        file.write_text(f"{os.getpid()}\n")
        assert gc.reclaim(item).spared == "luigi runs on this store"
        assert file.exists()

    def test_each_store_has_its_own(self, world: World) -> None:
        assert lock_directory(world.store) != lock_directory(Store(world.directory))
        lock_directory(Store(world.directory)).mkdir()
        assert world.listed() == {}


class TestMeanwhile:
    """What begins between the look and the reclaiming."""

    def everything(self, world: World) -> list[Item]:
        """Items of all kinds, all of i0 or i1."""
        dead, old = world.dead("i0"), world.dead("i1")
        (dead.directory / ".overlay.qcow2.abcdefgh.tmp").mkdir()
        make_old(old.directory, DAY)
        killed = world.killed_boot("i2")
        found = gc.items(world.store, DAY)
        kinds = [item.kind for item in found]
        assert kinds == ["process", "sockets", "sockets", "disk", "logs", "remains"]
        assert killed.pidfile.exists()
        return found

    def test_a_boot_that_has_begun_is_not_harmed(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(item, "_PATIENCE", 0.1)
        found = self.everything(world)
        before = world.left()
        with ExitStack() as held:
            for instance in Instance.all(world.store):
                held.enter_context(locked(instance.directory))
            outcomes = [gc.reclaim(item) for item in found]
        assert spared(outcomes) == ["another process works on it"] * len(found)
        assert world.left() == before
        assert processes.find(world.store)

    def test_a_boot_that_is_done_is_not_harmed(self, world: World) -> None:
        found = self.everything(world)
        for name in ("i0", "i1", "i2"):
            instance = Instance.named(world.store, name)
            instance.stop(3)
            world.live(name)
        before = world.left()
        outcomes = [gc.reclaim(item) for item in found]
        assert all(spared(outcomes)[:-1])
        assert found[-1].kind == "remains"
        assert world.left() == before
        assert all(instance.live_handle() for instance in Instance.all(world.store))

    def test_what_is_gone_is_no_error(self, world: World) -> None:
        found = self.everything(world)
        for name in ("i0", "i1", "i2"):
            Instance.named(world.store, name).stop(3)
        delete(world.store.root)
        outcomes = [gc.reclaim(item) for item in found]
        assert all(word in ("", "it is gone already") for word in spared(outcomes))
        assert not world.store.root.exists()

    def test_boots_go_on_undisturbed(self, world: World) -> None:
        """Again and again, as a boot does it, beside a gc that never rests."""
        instance, ended = world.instance(), threading.Event()
        outcomes: list[Outcome] = []

        def collect() -> None:
            while not ended.is_set():
                outcomes.extend(world.collect(0))

        thread = threading.Thread(target=collect)
        thread.start()
        try:
            for _ in range(200):
                with locked(instance.directory):
                    instance.directory.mkdir(exist_ok=True)
                    made = instance.make_sockets()
                    with lease.held(made, instance.directory, "b"), listen(made / "qmp"):
                        instance.overlay.touch()
                        assert (made / "lease").exists()
                        assert (made / "qmp").exists()
                        assert instance.overlay.exists()
        finally:
            ended.set()
            thread.join(60)
        spared(outcomes)
        assert any(not outcome.spared for outcome in outcomes)

    def test_two_at_once(self, world: World) -> None:
        for number in range(8):
            instance = world.dead(f"dead{number}")
            (instance.directory / ".x.abcdefgh.tmp").mkdir()
        for number in range(4):
            world.killed_boot(f"killed{number}")
            make_old(world.dead(f"old{number}").directory, DAY)
        live = world.live("live")
        outcomes: list[Outcome] = []
        threads = [threading.Thread(target=lambda: outcomes.extend(world.collect())) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        spared(outcomes)
        assert live.live_handle()
        assert world.listed() == {}
        kept = [path for path in world.left() if "/live/" not in path and not path.startswith("TMP")]
        assert all(path.endswith("serial.log") for path in kept)
        assert len(kept) == 12


def test_errors_are_reported_one_by_one() -> None:
    def fail() -> None:
        raise PermissionError(13, "Permission denied", "/x")

    def spare() -> None:
        raise Spared("somebody has it")

    broken, taken = (Item("disk", "/x", 1, "", remove) for remove in (fail, spare))
    error = gc.reclaim(broken).error
    assert str(error) == "removing /x: Permission denied: /x"
    assert gc.reclaim(taken) == Outcome(taken, spared="somebody has it")


def test_what_cannot_be_looked_at_hides_nothing_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def fail(*_: object) -> list[Item]:
        raise PermissionError(13, "Permission denied", "/x")

    monkeypatch.setattr(gc.log, "error", lambda _, text: said.append(text.partition("\n")[0]))
    monkeypatch.setattr(sockets, "items", fail)
    monkeypatch.setattr(remains, "items", fail)
    world.instance().overlay.touch()
    assert world.listed() == {"instances/i0/overlay.qcow2": "disk"}
    assert said == [
        "looking for sockets that are nobody's: Permission denied: /x",
        "looking for remains that are nobody's: Permission denied: /x",
    ]


def test_sizes_do_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 100_000)
    (tmp_path / "small").mkdir()
    (tmp_path / "small/link").symlink_to(tmp_path)
    assert used(tmp_path / "small", tmp_path / "gone") < 50_000
    assert used(tmp_path) > 100_000
    delete(tmp_path / "small", tmp_path / "gone")
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


MAKERS = {
    "live": World.live,
    "broken": World.live,
    "killed": World.killed_boot,
    "dead": World.dead,
    "old": World.dead,
    "logs": World.instance,
    "booting": World.killed_boot,
    "locked": World.dead,
}
SAFE = ("live", "broken", "booting", "locked")


@hypothesis_settings(max_examples=60)
@given(states=st.lists(st.sampled_from(sorted(MAKERS)), max_size=6), leases=st.booleans())
def test_what_lives_or_is_locked_stays_and_nothing_else_does(states: list[str], leases: bool) -> None:
    with new_world() as world, ExitStack() as held:
        for number, state in enumerate(states):
            instance = MAKERS[state](world, f"{state}{number}")
            if not leases:
                (instance.sockets / "lease").unlink(missing_ok=True)
            if state == "broken":
                instance.handle_file.write_text("{")
            if state == "old":
                make_old(instance.directory, 2 * DAY)
            if state in ("booting", "locked"):
                held.enter_context(locked(instance.directory))
        before = {path for path in world.left() if path.startswith("instances/")}
        alive = [child for child in world.started if child.poll() is None]
        assert set(spared(world.collect())) <= {""}
        assert world.listed() == {}
        after = {path for path in world.left() if path.startswith("instances/")}
        stays = {path for path in before if path.split("/")[1].startswith(SAFE)}
        logs = {f"instances/{state}{number}/serial.log" for number, state in enumerate(states) if state != "old"}
        assert after == stays | logs
        safe = [(number, state) for number, state in enumerate(states) if state in SAFE]
        assert sum(child.poll() is None for child in alive) == sum(state != "locked" for _, state in safe)
        expected = {Instance.named(world.store, f"{state}{number}").sockets for number, state in safe}
        assert set((world.temporary / f"topcoat-{os.getuid()}").glob("*")) == expected


class TestBoots:
    """With Topcoat's own boots of a scripted QEMU."""

    @pytest.fixture
    def running(self, world: World, bundle: Workspace) -> Workspace:
        bundle.environment["TMPDIR"] = str(world.temporary)
        assert bundle.luigi("BootInstance").status == 0
        return bundle

    def test_a_guest_that_was_killed_leaves_its_logs_only(self, running: Workspace) -> None:
        instance = running.instance()
        assert gc.items(running.store, 0) == []
        live = instance.live_handle()
        assert live
        live.process.send(signal.SIGKILL)
        assert live.process.wait(5)
        found = gc.items(running.store, DAY)
        assert [item.kind for item in found] == ["sockets", "disk"]
        assert spared([gc.reclaim(item) for item in found]) == ["", ""]
        assert not [
            path for path in instance.directory.iterdir() if ".log" not in path.name and "time" not in path.name
        ]
        assert running.luigi("BootInstance").status == 0
        assert instance.live_handle()
