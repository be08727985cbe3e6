"""Capsules with the real QEMU, the real Linux guest and its planted bugs: opened again when all else is gone."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StoreError
from pipeline.host.locks import locked
from pipeline.store import publish
from pipeline.store.digests import digest
from pipeline.vm.capsule import DISK, FACTS, NAME, STATE, Capsule, CrashedProcess
from pipeline.vm.qemu import capturing, disk
from pipeline.vm.qemu.capturing import NotCapturedError, capture
from tests.conftest import Workspace, qemus_of
from tests.tasks.test_faults_real import assert_nothing_is_left
from tests.waiting import eventually

OVERFLOW = "example-fuzzers/overflow_fuzzer"
QEMU_IMG = Path(shutil.which("qemu-img") or "qemu-img")
NO_GDB = shutil.which("gdb") is None or shutil.which("gdbserver") is None
MOST = 256 << 20

pytestmark = pytest.mark.timeout(600)


def boot(demo: Workspace, name: str = "i0", *words: str) -> None:
    done = demo.luigi("BootInstance", "--name", name, *words)
    assert done.status == 0, done.text


def ssh(demo: Workspace, line: str, name: str = "i0") -> str:
    done = demo.topcoat("ssh", name, "--", line)
    assert done.status == 0, done.text
    return done.stdout.decode()


def save(demo: Workspace, to: Path, name: str = "i0", pid: int = 1, most: int = MOST) -> Path:
    """Save the guest for the sake of its process `pid`; returns the directory of the crash."""
    to.mkdir(parents=True, exist_ok=True)
    with locked(to / NAME):
        instance = demo.instance(name)
        capture(instance, instance.require_running(), CrashedProcess(OVERFLOW, pid), to / NAME, QEMU_IMG, most=most)
    return to


def opened(demo: Workspace, crash: Path | str, *words: str) -> dict[str, Any]:
    done = demo.topcoat("open", str(crash), "--json", *words)
    assert done.status == 0, done.text
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, demo_parts: Path) -> Path:
    """The directory of a crash of a campaign, with a capsule; of that campaign nothing else is left."""
    directory = tmp_path_factory.mktemp("kept")
    environment = {name: value for name, value in os.environ.items() if name != "TOPCOAT_ROOT"}
    campaign = Workspace(directory, environment)
    subprocess.run(["cp", "-a", "--sparse=always", demo_parts, campaign.store.root], check=True)
    words = ("--name", "kept", "--fuzzers", OVERFLOW, "--budget", "3s", "--capsule", "first")
    done = campaign.luigi("FuzzCampaign", *words)
    assert done.status == 0, done.text
    (capsule,) = campaign.store.crashes.glob(f"*/*/*/*/{NAME}")
    crash = capsule.parent.relative_to(campaign.store.root)
    assert f": there is a capsule of its guest: topcoat open out/{crash}\n" in done.text
    assert f"capsules, each a guest as it was at a crash:\ntopcoat open out/{crash.parent}\n" in done.text
    result = json.loads((campaign.store.campaigns / "kept/campaign.json").read_text())
    (bucket,) = result["crashes"]
    assert (bucket["kind"], bucket["state"], bucket["capsule"]) == ("heap-buffer-overflow", "new", f"{crash}/{NAME}")
    told = campaign.topcoat("crash", "show", "heap-buffer-overflow").text
    assert f"the guest as it was at a crash: topcoat open out/{crash}\n" in told
    assert qemus_of(directory) == []
    shutil.copytree(capsule.parents[1], directory / "saved" / capsule.parents[1].name)
    shutil.rmtree(campaign.store.root)
    return directory / "saved" / Path(*crash.parts[-2:])


def test_a_crash_is_opened_when_its_guest_and_its_images_are_gone(demo: Workspace, kept: Path) -> None:
    """Another key, other images, another template: the capsule has all that it needs."""
    shutil.rmtree(demo.store.keys)
    shutil.rmtree(demo.store.root / "images")
    shutil.rmtree(demo.store.all_templates)
    before = {path.name: digest(path) for path in (kept / NAME).iterdir()}
    done = demo.topcoat("open", str(kept))
    assert done.status == 0, done.text
    name, pid = kept.parent.name + "-1", Capsule(kept / NAME).facts.crashed.pid
    told = done.stdout.decode()
    assert re.match(rf"{name} is running, from the guest as it was at \S+Z, when {OVERFLOW} had crashed\n", told)
    assert f"process {pid} is stopped where the sanitizer had reported: /targets/files/{OVERFLOW}" in told
    assert re.search(rf"^  [0-9a-f]+-[0-9a-f]+ r-xp .*/targets/files/{OVERFLOW}$", told, re.MULTILINE)
    for command in re.findall(r"topcoat (ssh \S+) -- (cat .*)\n", told):
        assert f"/targets/files/{OVERFLOW}" in demo.topcoat(*command[0].split(), "--", command[1]).text
    facts = opened(demo, kept)
    assert (facts["instance"], facts["pid"], facts["fuzzer"]) == (name, pid, OVERFLOW)
    assert facts["program"].endswith("/overflow_fuzzer")
    assert len(facts["maps"]) > 20
    assert len(qemus_of(demo.directory)) == 1, "it runs already"
    log = demo.instance(name).serial_log.read_text()
    assert log.startswith("--- topcoat: here goes on the guest that was saved at ")
    ssh(demo, "dd if=/dev/urandom of=/dev/vda bs=1M count=5 seek=9; rm -rf /data/fuzz; sync", name)
    assert demo.topcoat("stop", name).status == 0
    assert {path.name: digest(path) for path in (kept / NAME).iterdir()} == before
    again = opened(demo, kept, "--name", "again")
    assert again["program"] == facts["program"], "what was done in the guest is undone"
    ssh(demo, "sleep 30", "again")  # longer than libFuzzer leaves a process asleep
    assert ssh(demo, f"cut -d' ' -f3 /proc/{pid}/stat", "again") == "T\n"
    ssh(demo, f"kill -9 {pid}", "again")
    ended = demo.topcoat("open", str(kept), "--name", "again")
    hint = f"to have it again: topcoat stop again, then topcoat open {kept} --name again"
    assert ended.stdout.decode().splitlines()[1] == f"process {pid} has ended in it; {hint}"
    assert demo.topcoat("stop", "--all").status == 0
    assert_nothing_is_left(demo)


@pytest.mark.skipif(NO_GDB, reason="gdb and gdbserver are not installed: apt-get install gdb gdbserver")
def test_gdb_shows_function_and_line_of_the_crash(demo: Workspace, kept: Path) -> None:
    done = demo.topcoat("open", str(kept), "--name", "gdb", "--gdb", "--", "-batch", "-ex", "info threads")
    assert done.status == 0, done.text
    stack = done.stdout.decode()
    assert re.search(r"^#\d+ .* in copy_payload \(.*\) at \S*overflow_fuzzer\.c:1\d$", stack, re.MULTILINE), done.text
    assert re.search(r"^#\d+ .*LLVMFuzzerTestOneInput \(.*\) at \S*overflow_fuzzer\.c:\d\d$", stack, re.MULTILINE)
    assert "Thread " in stack
    pid = Capsule(kept / NAME).facts.crashed.pid
    assert "overflow_fuzzer" in ssh(demo, f"readlink /proc/{pid}/exe", "gdb"), "the process sleeps on"
    again = demo.topcoat("open", str(kept), "--name", "gdb", "--gdb", "--", "-batch")
    assert "copy_payload" in again.text
    told = demo.topcoat("open", str(kept), "--name", "gdb").stdout.decode()
    assert f"debug the process   topcoat open {kept} --name gdb --gdb\n" in told
    ssh(demo, f"kill -9 {pid}", "gdb")
    ended = demo.topcoat("open", str(kept), "--name", "gdb", "--gdb")
    assert (ended.status, f"process {pid} has ended in gdb: there is nothing to debug" in ended.text) == (2, True)


def test_a_guest_stands_still_only_while_it_is_saved(demo: Workspace, tmp_path: Path) -> None:
    """Memory and disk are as they were then, and it can be saved again."""
    boot(demo)
    boot_id = demo.instance("i0").require_running().boot_id
    middle = "/dev/vda bs=1M seek=1500 conv=fsync 2>/dev/null"
    ssh(demo, f"echo first >/tmp/word; dd if=/dev/urandom of=/tmp/random bs=1M count=1; dd if=/tmp/random of={middle}")
    random = ssh(demo, "md5sum </tmp/random").split()[0]
    first = save(demo, tmp_path / "b/1")
    assert ssh(demo, "cat /etc/boot_id; cat /tmp/word").split() == [boot_id, "first"]
    ssh(demo, f"echo second >/tmp/word; dd if=/dev/zero of={middle.replace('seek', 'count=1 seek')}")
    second = save(demo, tmp_path / "b/2")
    assert demo.topcoat("stop", "i0").status == 0
    look = "cat /tmp/word; dd if=/dev/vda bs=1M skip=1500 count=1 2>/dev/null | md5sum; cat /etc/boot_id"
    for crash, word, name in ((first, "first", "a"), (second, "second", "b")):
        assert opened(demo, crash, "--name", name)["pid"] == 1
        words = ssh(demo, look, name).split()
        assert (words[0], words[-1]) == (word, boot_id)
        assert (words[1] == random) == (word == "first")
    assert demo.instance("a").require_running().boot_id != demo.instance("b").require_running().boot_id


@pytest.mark.parametrize("how", ["never", "auto"])
def test_booted_guests_and_clones_alike(demo: Workspace, tmp_path: Path, how: str) -> None:
    boot(demo, "i0", "--warm", how)
    crash = save(demo, tmp_path / "b/1")
    facts = Capsule(crash / NAME).facts
    assert facts.machine.gate == facts.machine.generation == (how == "auto")
    assert facts.machine.kind.startswith("pc-q35-")
    assert opened(demo, crash, "--name", "a")["program"] == "/bin/busybox"


@pytest.mark.parametrize("most", [1, 1 << 20, 40 << 10])
def test_one_that_would_be_too_large_is_none_and_the_guest_goes_on(demo: Workspace, tmp_path: Path, most: int) -> None:
    boot(demo)
    with pytest.raises(
        NotCapturedError, match=r"it would take more than .*: raise \[campaign\] capsule_size"
    ) as caught:
        save(demo, tmp_path / "b/1", most=most)
    assert not caught.value.lost
    assert [path.name for path in (tmp_path / "b/1").iterdir()] == [f"{NAME}.lock"]
    assert ssh(demo, "echo well") == "well\n"
    assert opened(demo, save(demo, tmp_path / "b/1"), "--name", "a")["program"]


def test_a_disk_that_would_be_too_large(demo: Workspace, tmp_path: Path) -> None:
    boot(demo)
    ssh(demo, "dd if=/dev/urandom of=/dev/vda bs=1M count=64 seek=100 conv=fsync")
    with pytest.raises(NotCapturedError, match="it would take more than 60 MiB"):
        save(demo, tmp_path / "b/1", most=60 << 20)
    assert ssh(demo, "echo well") == "well\n"


class TestFaults:
    """Whatever goes wrong, there is no half of a capsule, and the guest goes on if it can."""

    def test_a_full_disk(self, demo: Workspace, tmp_path: Path) -> None:
        boot(demo)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, hard))
        try:
            with pytest.raises(StoreError, match="saving the guest"):
                save(demo, tmp_path / "b/1")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, ignored)
        assert [path.name for path in (tmp_path / "b/1").iterdir()] == [f"{NAME}.lock"]
        assert ssh(demo, "echo well") == "well\n"

    def test_too_little_room_is_seen_before_the_guest_stands_still(self, demo: Workspace, tmp_path: Path) -> None:
        boot(demo)
        with pytest.raises(NotCapturedError, match=r"the disk is full: .* are free, and .* are wanted"):
            save(demo, tmp_path / "b/1", most=1 << 60)

    @pytest.mark.parametrize("when", ["before", "state", "disk"])
    def test_qemu_is_killed_meanwhile(
        self, demo: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
    ) -> None:
        boot(demo)
        process = demo.instance("i0").require_running().process

        def then_killed(real: Callable[..., object]) -> Callable[..., object]:
            def call(*words: Any) -> object:
                os.kill(process.pid, signal.SIGKILL)
                assert process.wait(60)
                return real(*words)

            return call

        if when == "before":
            monkeypatch.setattr(capturing, "remove", then_killed(publish.remove))
        elif when == "state":
            monkeypatch.setattr(capturing._Compressed, "write", then_killed(capturing._Compressed.write))  # noqa: SLF001
        else:
            monkeypatch.setattr(capturing, "flatten", then_killed(disk.flatten))
        with pytest.raises(NotCapturedError) as caught:
            save(demo, tmp_path / "b/1")
        assert caught.value.lost
        assert not (tmp_path / "b/1" / NAME).exists()

    def test_an_image_that_was_made_again_is_not_mixed_with_what_the_guest_wrote(
        self, demo: Workspace, tmp_path: Path
    ) -> None:
        boot(demo)
        (image,) = (demo.store.root / "images/demo").glob("*.blk")
        subprocess.run(["cp", "--sparse=always", image, f"{image}.new"], check=True)
        Path(f"{image}.new").replace(image)
        with pytest.raises(NotCapturedError, match="the image below its disk was made again since it was booted"):
            save(demo, tmp_path / "b/1")
        assert ssh(demo, "echo well") == "well\n"

    def test_another_guest_is_not_saved_in_its_place(self, demo: Workspace, tmp_path: Path) -> None:
        boot(demo)
        handle = demo.instance("i0").require_running()
        assert demo.topcoat("stop", "i0").status == 0
        boot(demo)
        tmp_path.joinpath("b").mkdir()
        with pytest.raises(NotCapturedError, match="another guest has taken its place"):
            capture(
                demo.instance("i0"), handle, CrashedProcess(OVERFLOW, 1), tmp_path / "b" / NAME, QEMU_IMG, most=MOST
            )
        assert ssh(demo, "echo well") == "well\n"

    def test_whoever_saves_is_killed_and_the_next_one_saves_it_all_the_same(
        self, demo: Workspace, tmp_path: Path
    ) -> None:
        boot(demo)
        crash = tmp_path / "b/1"
        crash.mkdir(parents=True)
        for step in ("_Compressed.close", "flatten", "saved_files", "publish_json"):
            killed = subprocess.run(
                [demo.command("python")[0], "-c", KILLED, str(demo.store.root), str(crash), step],
                env=demo.environment, capture_output=True, timeout=120, check=False,
            )  # fmt: skip
            assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
            assert not (crash / NAME).exists()
        save(demo, crash)
        assert sorted(path.name for path in crash.iterdir()) == [NAME, f"{NAME}.lock"]
        assert ssh(demo, "echo well") == "well\n"
        assert opened(demo, crash, "--name", "a")["program"]

    @pytest.mark.parametrize("name", [STATE, DISK])
    def test_a_damaged_one_is_refused(self, demo: Workspace, kept: Path, name: str) -> None:
        crash = demo.directory / "damaged/1"
        shutil.copytree(kept, crash)
        with (crash / NAME / name).open("r+b") as stream:
            stream.seek(40)
            found = stream.read(1)
            stream.seek(40)
            stream.write(bytes([found[0] ^ 1]))
        done = demo.topcoat("open", str(crash))
        assert done.status == 30
        assert "is damaged: " in done.text
        assert "Traceback" not in done.text
        assert not list(demo.store.instances.glob("*"))

    def test_of_another_machine(self, demo: Workspace, kept: Path) -> None:
        """Such as a QEMU that does not know it any more: nothing is left, and it is told what saved it."""
        crash = demo.directory / "other/1"
        shutil.copytree(kept, crash)
        facts = json.loads((crash / NAME / FACTS).read_text())
        (crash / NAME / FACTS).write_text(
            json.dumps(facts | {"machine": facts["machine"] | {"kind": "pc-q35-99.9"}, "qemu": "99.9"})
        )
        done = demo.topcoat("open", str(crash), "--name", "a")
        assert done.status == 30
        assert "hint: it takes QEMU 99.9, in which it was saved; is that [build] qemu? else try the input" in done.text
        assert "Traceback" not in done.text
        assert qemus_of(demo.directory) == []

    def test_ctrl_c_while_it_opens(self, demo: Workspace, kept: Path) -> None:
        command = demo.command("topcoat", "open", str(kept), "--name", "a")
        with subprocess.Popen(command, cwd=demo.directory, env=demo.environment, stderr=subprocess.PIPE) as process:
            eventually(lambda: qemus_of(demo.directory) != [])
            process.send_signal(signal.SIGINT)
            assert process.stderr
            said = process.stderr.read().decode()
        assert process.returncode == 130, said
        assert "Traceback" not in said
        eventually(lambda: qemus_of(demo.directory) == [])


KILLED = f"""
import os, signal, sys
from pathlib import Path
from pipeline.settings import Store
from pipeline.vm.capsule import CrashedProcess
from pipeline.vm.instance import Instance
from pipeline.vm.qemu import capturing
root, crash, step = sys.argv[1:]
place, _, name = step.rpartition(".")
setattr(getattr(capturing, place) if place else capturing, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
instance = Instance.named(Store(Path(root)), "i0")
crashed, to = CrashedProcess("a/b", 1), Path(crash) / "capsule"
capturing.capture(instance, instance.require_running(), crashed, to, Path("qemu-img"), most={MOST})
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "no capsule is in nothing: there is no such path, bucket or campaign"),
        (["."], "no capsule is in ."),
        (["{kept}", "--", "-batch"], "what stands after -- is for gdb"),
        (["{kept}", "--gdb", "--json"], "--gdb and --json do not go together"),
        (["--gdb"], "say which crash to open"),
        (["{kept}", "--name", "pool-0"], "pool-0 is the name of a guest that Topcoat makes and ends by itself"),
        (["{kept}", "--name", "a/b"], "cannot be the name of an instance"),
        ([""], "empty"),
    ],
)
def test_what_makes_no_sense_is_refused(demo: Workspace, kept: Path, words: list[str], said: str) -> None:
    done = demo.topcoat("open", *(word.format(kept=kept) for word in words))
    assert done.status == 2, done.text
    assert said in done.text
    assert not list(demo.store.instances.glob("*"))


def test_two_open_it_at_once(demo: Workspace, kept: Path) -> None:
    """The one that comes later only tells of it, too."""
    command = demo.command("topcoat", "open", str(kept), "--name", "a", "--json")
    started = [
        subprocess.Popen(command, cwd=demo.directory, env=demo.environment, stdout=subprocess.PIPE) for _ in range(2)
    ]
    said = [json.loads(process.communicate(timeout=300)[0]) for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert said[0] == said[1]
    assert len(qemus_of(demo.directory)) == 1


def test_a_machine_that_arguments_have_chosen_is_not_saved(demo: Workspace, tmp_path: Path) -> None:
    """It could not be opened again: that is told while the crash can still be looked at."""
    demo.configure("[qemu]\ncpu = max,model-id=it's mine\n")
    boot(demo, "i0", "--warm", "never")
    with pytest.raises(NotCapturedError, match="what Topcoat makes no machine of: a CPU of the kind max,model-id=it's"):
        save(demo, tmp_path / "b/1")
    assert ssh(demo, "echo well") == "well\n"


def test_an_instance_that_is_something_else_is_left_alone(demo: Workspace, kept: Path) -> None:
    boot(demo)
    done = demo.topcoat("open", str(kept), "--name", "i0")
    assert done.status == 10
    assert "i0 is running, and was not opened from this capsule" in done.text
    assert ssh(demo, "echo well") == "well\n"


def test_it_is_found_by_the_name_of_its_bucket(demo: Workspace, kept: Path) -> None:
    bucket = kept.parent
    known = demo.topcoat("open", "nothing")
    assert f"none is in {demo.store.root} either, is that the right store? campaigns make them" in known.text
    assert "has a capsule; campaigns make them with --capsule first" in demo.topcoat("open").text
    shared, older = demo.store.crashes / OVERFLOW / bucket.name, demo.store.campaigns / "x/crashes" / bucket.name
    shutil.copytree(bucket, shared)
    assert opened(demo, bucket.name, "--name", "a")["program"]
    assert opened(demo, "kept", "--name", "a")["program"], "or by that of its campaign, if it has one only"
    shutil.copytree(bucket, older)
    several = demo.topcoat("open", bucket.name)
    assert (several.status, "there are several capsules of" in several.text) == (2, True)
    assert f"{older}/1" in several.text
    assert opened(demo, "x", "--name", "a")["program"], "one that an older version of Topcoat has made"
    known = demo.topcoat("open", "nothing")
    assert f"there are: {shared}/1, {older}/1" in known.text
    listed = demo.topcoat("open").stdout.decode().splitlines()
    assert listed[0].split() == ["fuzzer", "saved", "size", "crash"]
    assert [line.split()[0] for line in listed[1:]] == [OVERFLOW] * 2
    assert listed[1].endswith(f"out/crashes/{OVERFLOW}/{bucket.name}/1")
    answer = json.loads(demo.topcoat("open", "--json").stdout)
    assert [Path(one["crash"]).parents[0] for one in answer["capsules"]] == [shared, older]
    assert all(one["bytes"] > 1 << 20 for one in answer["capsules"])


def test_a_capsule_may_lie_anywhere_and_have_any_name(demo: Workspace, kept: Path) -> None:
    shutil.copytree(kept / NAME, demo.directory / "my bug 42")
    done = demo.topcoat("open", "my bug 42")
    assert done.status == 0, done.text
    assert "-my-bug-42 is running, from" in done.text
    assert "topcoat open 'my bug 42' --gdb" in done.text


def test_the_demo_guests_capsule_and_a_fuchsia_build(demo: Workspace, kept: Path) -> None:
    demo.configure("[build]\nkind = clusterfuzz\n")
    done = demo.topcoat("open", str(kept))
    assert (done.status, "the capsule is of the build demo, and the settings choose clusterfuzz" in done.text) == (
        2,
        True,
    )
