import errno
import json
import os
from pathlib import Path

import pytest

from pipeline.builds.linux.compiler import Compiler
from pipeline.errors import SettingsError
from pipeline.host.tools import run
from pipeline.settings import Accel
from pipeline.vm.qemu import accel
from pipeline.vm.qemu.accel import KvmProbe, choose, probe_device, probe_kernel
from tests.descriptors import descriptors
from tests.waiting import NEVER, SOON

DONE = "echo 'run to the end'"
BROKEN = "echo 'error: kvm run failed Function not implemented' >&2; exit 1"


class Host:
    """A host whose /dev/kvm works, with a script in place of QEMU that counts its runs."""

    def __init__(self, directory: Path) -> None:
        self.qemu, self.cache, self.log = directory / "qemu", directory / "cache/kvm.json", directory / "runs"
        self.play(DONE)

    def play(self, script: str) -> None:
        self.qemu.write_text(f"#!/bin/sh\necho \"$*\" >>'{self.log}'\n{script}\n")
        self.qemu.chmod(0o755)

    def choose(self) -> tuple[str, str]:
        return choose("auto", "x64", self.qemu, self.cache)

    @property
    def runs(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(accel, "probe_device", lambda arch: KvmProbe())
    return Host(tmp_path)


@pytest.fixture
def _x64_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


@pytest.mark.usefixtures("_x64_host")
@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("missing", "there is no {}"),
        ("directory", "{} cannot be opened: Is a directory"),
        ("file", "{} makes no virtual machine: Inappropriate ioctl for device"),
    ],
)
def test_a_device_that_is_no_kvm(tmp_path: Path, kind: str, problem: str) -> None:
    device = tmp_path / "kvm"
    if kind == "directory":
        device.mkdir()
    elif kind == "file":
        device.touch()
    probe = probe_device("x64", str(device))
    assert not probe.works
    assert probe.problem == problem.format(device)
    assert probe.hint


@pytest.mark.usefixtures("_x64_host")
@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_device_that_is_forbidden(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(path: str, flags: int) -> int:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr("pipeline.vm.qemu.accel.os.open", refuse)
    probe = probe_device("x64")
    monkeypatch.undo()
    assert probe == KvmProbe("your user may not open /dev/kvm", "add your user to the group kvm and log in again")


@pytest.mark.usefixtures("_x64_host")
def test_a_guest_of_another_architecture(tmp_path: Path) -> None:
    assert probe_device("arm64", str(tmp_path)).problem == "this x86_64 host cannot run arm64 guests with KVM"


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    (tmp_path / "kvm").touch()
    before = descriptors()
    probe_device("x64", str(tmp_path / "kvm"))
    assert descriptors() <= before


def test_tcg_is_wanted_and_nothing_is_asked(host: Host) -> None:
    assert choose("tcg", "x64", host.qemu, host.cache) == ("tcg", "")
    assert (host.runs, host.cache.exists()) == ([], False)


@pytest.mark.parametrize("wanted", ["auto", "kvm"])
def test_kvm_works(host: Host, wanted: Accel) -> None:
    assert choose(wanted, "x64", host.qemu, host.cache) == ("kvm", "")
    (words,) = host.runs
    assert "-enable-kvm -cpu host,migratable=no,+invtsc" in words


def test_kvm_is_demanded_and_absent(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "probe_device", lambda arch: KvmProbe("there is no /dev/kvm", "load kvm_intel"))
    with pytest.raises(SettingsError, match=r"^\[qemu\] accel = kvm, but there is no /dev/kvm$") as caught:
        choose("kvm", "x64", host.qemu, host.cache)
    assert caught.value.hint == "load kvm_intel, or set accel = auto"
    assert choose("auto", "x64", host.qemu, host.cache) == ("tcg", "there is no /dev/kvm (load kvm_intel)")
    assert host.runs == []


def test_kvm_that_qemu_cannot_use(host: Host) -> None:
    host.play(BROKEN)
    chosen, why = host.choose()
    assert chosen == "tcg"
    assert "a trial of QEMU with it failed: kvm run failed Function not implemented" in why
    with pytest.raises(SettingsError, match="kvm run failed"):
        choose("kvm", "x64", host.qemu, host.cache)


def test_arm64_tries_no_kernel(host: Host) -> None:
    assert choose("auto", "arm64", host.qemu, host.cache) == ("kvm", "")
    assert host.runs == []


@pytest.mark.parametrize(("script", "chosen"), [(DONE, "kvm"), (BROKEN, "tcg")], ids=["works", "broken"])
def test_the_answer_is_remembered(host: Host, script: str, chosen: str) -> None:
    host.play(script)
    answers = {host.choose() for _ in range(3)}
    assert [answer[0] for answer in answers] == [chosen]
    assert len(host.runs) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("kill -KILL $$", "something has killed it"),
        ("exec sleep 1000", "it hangs"),
        ("exec >&- 2>&-; sleep 1000", "it hangs"),
        ("exit 1", "it ended without a word"),
        ("echo 'qemu: cannot set up guest memory: Cannot allocate memory' >&2; exit 1", "cannot set up guest memory"),
        ("echo 'qemu: qemu_thread_create: Resource temporarily unavailable'; exit 1", "qemu_thread_create"),
    ],
    ids=["killed", "hanging", "hanging without output", "silent", "no memory", "no threads"],
)
def test_what_may_pass_is_tried_again(host: Host, monkeypatch: pytest.MonkeyPatch, script: str, why: str) -> None:
    monkeypatch.setattr("pipeline.vm.qemu.accel._LIMIT", 0.5 if "sleep" in script else SOON)
    host.play(script)
    chosen, told = host.choose()
    assert chosen == "tcg"
    assert f" with it failed: {why}" in told
    host.choose()
    assert (len(host.runs), host.cache.exists()) == (2, False)


def test_the_answer_is_forgotten_when_qemu_changes(host: Host) -> None:
    assert host.choose()[0] == "kvm"
    host.play(BROKEN)
    assert host.choose()[0] == "tcg"
    facts = host.qemu.stat()
    os.utime(host.qemu, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert host.choose()[0] == "tcg"
    assert len(host.runs) == 3


@pytest.mark.parametrize(
    "change",
    [{"schema": 1}, {"key": "another boot"}, {"problem": None, "schema": None}, {"hint": ...}],
    ids=["schema", "boot", "nulls", "hint missing"],
)
def test_a_cache_that_does_not_fit_is_asked_anew(host: Host, change: dict[str, object]) -> None:
    host.choose()
    kept = {**json.loads(host.cache.read_bytes()), **change}
    host.cache.write_text(json.dumps({key: value for key, value in kept.items() if value is not ...}))
    assert host.choose() == ("kvm", "")
    assert len(host.runs) == 2
    assert host.choose() == ("kvm", "")
    assert len(host.runs) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
def test_a_corrupt_cache_is_asked_anew(host: Host, content: bytes) -> None:
    host.choose()
    host.cache.write_bytes(content)
    assert [host.choose(), host.choose()] == [("kvm", "")] * 2
    assert len(host.runs) == 2


def test_a_cache_that_cannot_be_written_is_no_error(host: Host) -> None:
    host.cache.parent.touch()
    assert [host.choose(), host.choose()] == [("kvm", "")] * 2
    assert len(host.runs) == 2


@pytest.mark.parametrize("make", [False, True], ids=["missing", "not executable"])
def test_a_qemu_that_cannot_be_started_is_left_to_the_boot(host: Host, make: bool) -> None:
    host.qemu.unlink()
    if make:
        host.qemu.touch(0o644)
    assert host.choose() == ("kvm", "")
    assert not host.cache.exists(), "it has not been tried"


def test_a_kernel_that_hangs_is_killed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.vm.qemu.accel._LIMIT", 0.2)
    host.play("exec sleep 1000")
    assert probe_kernel(host.qemu).problem.endswith(": it hangs")


def test_a_kernel_that_is_done_is_not_waited_for(host: Host) -> None:
    host.play(f"{DONE}; exec sleep 1000")
    assert probe_kernel(host.qemu).works


def test_what_qemu_says_is_printable(host: Host) -> None:
    host.play(r"printf 'error: \033[31mcolour\033[0m\nEAX=0\n' >&2; exit 1")
    assert probe_kernel(host.qemu).problem.endswith(": colour")


def test_a_qemu_that_ends_with_other_words_does_not_hang(host: Host) -> None:
    host.play("echo 'qemu: failed to initialize kvm: Permission denied' >&2; exit 1")
    problem = probe_kernel(host.qemu).problem
    assert problem.endswith("failed to initialize kvm: Permission denied")


def emulated(host: Host) -> None:
    """QEMU itself in the place of the script, but with its own emulation in the place of KVM."""
    kvm, tcg = "-enable-kvm -cpu host,migratable=no,+invtsc", "-accel tcg -cpu max"
    host.play(f'exec qemu-system-x86_64 $(echo " $*" | sed "s/ {kvm}/ {tcg}/")')


def test_the_trial_kernel_runs_to_its_end(host: Host) -> None:
    emulated(host)
    assert probe_kernel(host.qemu) == KvmProbe()
    (words,) = host.runs
    assert "-accel" not in words


def test_the_trial_kernel_is_what_its_source_says(demo_parts: Path, tmp_path: Path) -> None:
    source, compiler = Path(accel.__file__).with_name("trial_kernel.S"), Compiler(demo_parts / "demo/tools")
    assembled = tmp_path / "trial_kernel.o"
    run(compiler.program("clang", tmp_path, tmp_path), "-c", str(source), "-o", str(assembled), timeout=NEVER)
    linking = ("--oformat=binary", "-Ttext=0", "-e", "0", str(assembled), "-o", str(tmp_path / "trial_kernel"))
    run(compiler.program("ld.lld", tmp_path, tmp_path), *linking, timeout=NEVER)
    assert (tmp_path / "trial_kernel").read_bytes() == accel.TRIAL_KERNEL


@pytest.mark.slow
def test_a_host_that_interprets_its_guests_has_no_kvm(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second or two of CPU time are enough to know it; only a busy host takes longer for them."""
    monkeypatch.setattr("pipeline.vm.qemu.accel._LIMIT", SOON)
    host.play("while :; do :; done")
    for _ in range(2):
        assert "failed: a kernel runs slower than emulated" in host.choose()[1]
    assert len(host.runs) == 1


def test_a_guest_that_kvm_gives_up_is_not_waited_for(host: Host) -> None:
    host.play("echo 'KVM internal error. Suberror: 1\nextra data[0]: 0x0\nRAX=0' >&2; exec sleep 1000")
    assert probe_kernel(host.qemu).problem.endswith(" with it failed: KVM internal error. Suberror: 1")


def test_warnings_of_qemu_are_no_reason(host: Host) -> None:
    host.play("echo 'qemu: warning: host lacks this\nqemu: kvm run failed Bad address' >&2; exit 1")
    assert probe_kernel(host.qemu).problem.endswith(" with it failed: kvm run failed Bad address")
