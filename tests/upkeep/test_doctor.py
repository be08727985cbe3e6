"""`topcoat doctor`: what is wrong with a host, and what to do."""

import errno
import os
import resource
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import settings as all_settings
from pipeline.errors import TopcoatError
from pipeline.fuzz.corpus import CorpusLimits
from pipeline.settings import Store
from pipeline.upkeep import doctor, findings, gc
from pipeline.upkeep.findings import Finding
from pipeline.vm.instance import Instance
from pipeline.vm.qemu import accel, growth

GIB = 1 << 30
MIB_KB = 1024
MEMINFO = "MemTotal:       16000000 kB\nMemFree:        1 kB\nMemAvailable:   {} kB\nSwapTotal: 9 kB\nSwapFree: {} kB\n"
PRESSURE = "some avg10=90.00 avg60=41.60 avg300=1.00 total=5\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"


def summary(finding: Finding) -> tuple[str, bool]:
    return finding.level, bool(finding.hint)


class TestVitals:
    @pytest.mark.parametrize(
        ("free", "images", "growth", "level"),
        [
            (6 * GIB, 3 * GIB, 0, "ok"),
            (6 * GIB - 1, 3 * GIB, 0, "warning"),
            (GIB, 0, 0, "ok"),
            (GIB - 1, 0, 0, "error"),
            (0, 3 * GIB, 0, "error"),
            (6 * GIB, 0, 6 * GIB, "ok"),
            (6 * GIB, 0, 6 * GIB + 1, "warning"),
            (0, 0, GIB, "error"),
        ],
    )
    def test_space(self, free: int, images: int, growth: int, level: str) -> None:
        found = findings.space(free, images, growth)
        assert ("topcoat stop" in found.hint) == (growth > free)
        assert ("the guests that run could write " in found.text) == (growth > 0 and level != "error")
        assert summary(found) == (level, level != "ok")
        assert "are free for the store" in found.text
        assert (", and 1.0 GiB is the least" in found.text, "the images" in found.text) == (
            level == "error",
            level != "error",
        )

    @pytest.mark.parametrize(
        ("available", "swap", "level"),
        [(512, 0, "ok"), (511, 1, "warning"), (511, 0, "error"), (0, 0, "error"), (0, 512, "warning")],
    )
    def test_memory(self, available: int, swap: int, level: str) -> None:
        found = findings.memory(MEMINFO.format(available * MIB_KB, swap * MIB_KB), 512)
        assert summary(found) == (level, level != "ok")
        assert f"{available} MiB of memory are available; a guest takes 512 MiB" in found.text or not available

    @pytest.mark.parametrize("text", ["", "MemFree: 1 kB\n", "MemAvailable: many kB\n"])
    def test_a_kernel_that_tells_nothing_of_memory(self, text: str) -> None:
        assert findings.memory(text, 512) == Finding("memory", "ok", "the kernel does not tell")

    def test_open_files(self) -> None:
        assert summary(findings.open_files(1023)) == ("warning", True)
        assert summary(findings.open_files(1024)) == ("ok", False)
        assert findings.open_files(resource.RLIM_INFINITY).text == "a process may open any number of files"

    def test_processes(self) -> None:
        assert summary(findings.processes(100, 36)) == ("ok", False)
        assert summary(findings.processes(100, 37)) == ("warning", True)
        assert summary(findings.processes(resource.RLIM_INFINITY, 10**6)) == ("ok", False)

    @pytest.mark.parametrize(
        ("loadavg", "cores", "level"),
        [("4.00 1.0 1.0 1/100 5\n", 2, "ok"), ("4.01 1 1 1/1 1", 2, "warning"), ("0.00 9 9 1/1 1", 1, "ok")],
    )
    def test_load(self, loadavg: str, cores: int, level: str) -> None:
        assert summary(findings.load(loadavg, "", cores)) == (level, level != "ok")
        assert findings.load(loadavg, PRESSURE, cores).text.endswith("cores; some wait 42 % of the time")

    def test_a_kernel_that_tells_nothing_of_load(self) -> None:
        assert findings.load("", "", 1).level == "ok"

    @given(st.text(), st.text())
    def test_whatever_the_kernel_says_is_one_line(self, one: str, other: str) -> None:
        for found in (findings.memory(one, 512), findings.load(one, other, 2)):
            assert "\n" not in found.text


class Host:
    """A directory with settings, in which doctor looks."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.programs = directory / "bin"
        self.programs.mkdir()
        self.config = {
            "[qemu]": ["accel = tcg"],
            "[build]": [f"qemu = {self.programs}/qemu", f"qemu-img = {self.programs}/qemu-img"],
        }
        self.program("qemu", "echo 'QEMU emulator version 7.2.22 (Debian)'; echo Copyright")
        self.program("qemu-img", "echo 'qemu-img version 7.2.22'")

    def program(self, name: str, script: str) -> None:
        (self.programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.programs / name).chmod(0o755)

    @property
    def settings(self) -> all_settings.Settings:
        text = "\n".join(line for section, lines in self.config.items() for line in (section, *lines))
        (self.directory / "luigi.cfg").write_text(text)
        return all_settings.load({}, self.directory)

    def examine(self) -> dict[str, Finding]:
        """What is found, by name; where there is more than one of a name, the last."""
        found = list(doctor.examine(self.settings))
        for finding in found:
            assert "\n" not in finding.text + finding.hint
            assert bool(finding.hint) == (finding.level != "ok")
        return {finding.name: finding for finding in found}

    def level(self, name: str) -> str:
        return self.examine()[name].level


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    for name in list(os.environ):
        if name.startswith("FUCHSIA_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(gc, "items", lambda _, limits: [])  # what others have left on this host
    return Host(tmp_path)


NAMES = {
    *("build", "QEMU", "qemu-img", "KVM", "memory", "setsid", "user", "store", "space", "sockets", "open files"),
    *("processes", "load", "instances", "leftovers"),
}


def test_a_host_in_good_health(host: Host) -> None:
    found = host.examine()
    assert found.keys() == NAMES
    assert {name for name, finding in found.items() if finding.level == "error"} == set()
    assert found["QEMU"].text == f"7.2 ({host.programs}/qemu)"
    assert found["qemu-img"].text == "qemu-img version 7.2.22"
    assert found["KVM"].text == "it is not wanted ([qemu] accel = tcg)"
    assert not host.settings.store.root.exists()


def test_a_directory_of_targets_that_is_not_there(host: Host) -> None:
    host.config["[build]"].append("targets = mine")
    found = host.examine()["build"]
    assert (found.level, found.text) == (
        "error", f"the directory of targets is not there: {host.directory}/mine",
    )  # fmt: skip
    (host.directory / "mine").mkdir()
    assert host.level("build") == "ok"


@pytest.mark.parametrize(
    ("script", "level", "text"),
    [
        ("echo QEMU emulator version 5.0.0", "ok", "5.0"),
        ("echo QEMU emulator version 4.2.1", "warning", "older than 5.0"),
        ("echo QEMU emulator version 10.1", "ok", "10.1"),
        ("echo hello", "warning", "does not say its version: hello"),
        ("true", "warning", "does not say its version"),
        ("echo no such library >&2; exit 127", "error", "exit code 127: no such library"),
        ("kill -9 $$", "error", "signal 9"),
        ("printf 'a\\033[2Jb\\n'", "warning", "its version: ab"),
    ],
)
def test_qemu_s_version(host: Host, script: str, level: str, text: str) -> None:
    host.program("qemu", script)
    found = host.examine()["QEMU"]
    assert found.level == level
    assert text in found.text


def test_a_qemu_that_hangs_is_killed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_VERSION_LIMIT", 0.2)
    host.program("qemu", "sleep 1000")
    found = host.examine()["QEMU"]
    assert (found.level, "[build] qemu" in found.hint) == ("error", True)


@pytest.mark.parametrize("name", ["qemu", "qemu-img"])
def test_a_missing_program(host: Host, name: str) -> None:
    (host.programs / name).unlink()
    found = host.examine()["QEMU" if name == "qemu" else name]
    assert found.level == "error"
    assert "there is no such file" in found.text
    host.program(name, "")
    (host.programs / name).chmod(0o644)
    assert host.examine()["QEMU" if name == "qemu" else name].level == "error"


def test_without_qemu_there_is_the_line_to_install_it(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(host.programs))
    del host.config["[build]"]
    found = host.examine()
    assert (found["QEMU"].level, "apt-get install" in found["QEMU"].hint) == ("error", True)
    assert (found["setsid"].level, "util-linux" in found["setsid"].hint) == ("error", True)


def test_a_build_that_is_not_there(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUCHSIA_DIR", str(host.directory / "nothing"))
    found = host.examine()
    assert found["build"].level == "error"
    assert "fx set" in found["build"].hint
    assert found.keys() == NAMES - {"QEMU", "qemu-img", "KVM", "memory"}


def test_each_missing_file_of_a_build(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUCHSIA_RESOURCES_DIR", str(host.directory))
    missing = [finding for finding in doctor.examine(host.settings) if finding.name == "build"]
    assert [finding.text.split()[2] for finding in missing] == ["zbi", "blk", "kernel"]
    assert all(finding.level == "error" and "[build]" in finding.hint for finding in missing)
    host.config["[tools]"] = ["zbi = build", "fvm = build"]
    missing = [finding for finding in doctor.examine(host.settings) if finding.name == "build"]
    assert [finding.text.split()[2] for finding in missing] == ["zbi", "blk", "kernel", "zbitool", "fvm"]


def test_topcoat_s_own_tools_in_place_of_the_build_s_are_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUCHSIA_RESOURCES_DIR", str(host.directory))
    for key, setting in (("zbitool", "zbi"), ("fvm", "fvm")):
        found = host.examine()[key]
        assert found.level == "warning"
        assert found.text.startswith(f"Topcoat's own: the build's {key} is missing")
        assert found.hint == f"to choose yourself: [tools] {setting}"


@pytest.mark.parametrize(
    ("wanted", "works", "level"),
    [("auto", True, "ok"), ("auto", False, "warning"), ("kvm", True, "ok"), ("kvm", False, "error")],
)
def test_kvm(host: Host, monkeypatch: pytest.MonkeyPatch, wanted: str, works: bool, level: str) -> None:
    host.config["[qemu]"] = [f"accel = {wanted}"]
    probe = accel.KvmProbe() if works else accel.KvmProbe("there is no /dev/kvm", "load it")
    monkeypatch.setattr(accel, "probe_device", lambda _: probe)
    monkeypatch.setattr(accel, "probe_kernel", lambda _: probe)
    found = host.examine()["KVM"]
    assert found.level == level
    assert works or "there is no /dev/kvm" in found.text
    assert level != "warning" or "emulated, several times slower" in found.text


def test_memory_follows_the_settings(host: Host) -> None:
    assert "takes 512 MiB" in host.examine()["memory"].text
    host.config["[qemu]"] += ["memory = 1000000000"]
    assert host.level("memory") == "error"


def test_a_store_that_cannot_be_used(host: Host) -> None:
    (host.directory / "out").touch()
    found = host.examine()
    assert (found["store"].level, "[store] root" in found["store"].hint) == ("error", True)


@pytest.mark.parametrize(
    ("mode", "told"), [(0o700, ""), (0o755, "others may look into it"), (0o775, "others may write to it")]
)
def test_a_store_that_others_can_enter(host: Host, mode: int, told: str) -> None:
    (host.directory / "out").mkdir()
    (host.directory / "out").chmod(mode)
    found = host.examine()["store"]
    assert (found.level, told in found.text) == ("warning" if told else "ok", True)
    assert found.hint.startswith("chmod 700 ") == bool(told)


def test_space_is_measured_by_the_build_s_disk(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "take 3.0 GiB" in host.examine()["space"].text
    (host.directory / "disk").write_bytes(b"x" * (1 << 20))
    host.config["[build]"] += [f"blk = {host.directory}/disk"]
    assert "take 1 MiB" in host.examine()["space"].text
    monkeypatch.setattr(doctor, "free_bytes", lambda _: 1000)
    assert host.level("space") == "error"


def test_what_running_guests_could_write_counts(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "could write" not in host.examine()["space"].text
    asked = []

    def of_running(*words: object) -> int:
        asked.append(words)
        return 1 << 50

    monkeypatch.setattr(growth, "of_running", of_running)
    host.config["[boot]"] = ["log_size = 5M"]
    found = host.examine()["space"]
    assert (found.level, "the guests that run could write 1024 TiB more" in found.text) == ("warning", True), found
    assert asked == [(host.settings.store, 5 << 20)]


def test_a_store_that_cannot_hold_sockets(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.level("sockets") == "ok"

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    assert "cannot hold sockets: Operation not permitted" in host.examine()["sockets"].text
    assert host.level("sockets") == "error"


@pytest.mark.parametrize(("uid", "level"), [(0, "warning"), (1000, "ok")])
def test_root_is_warned(host: Host, monkeypatch: pytest.MonkeyPatch, uid: int, level: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    found = host.examine()["user"]
    assert (found.level, "owns this host" in found.text, "of its own" in found.hint) == (level, not uid, not uid)


@pytest.mark.parametrize(("user", "level"), [("nobody", "ok"), ("no-such-user", "error")])
def test_root_whose_qemu_becomes_another_user(
    host: Host, monkeypatch: pytest.MonkeyPatch, user: str, level: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    host.config["[qemu]"] += [f"user = {user}"]
    found = host.examine()["user"]
    assert (found.level, user in found.text) == (level, True)


def test_broken_instances(host: Host) -> None:
    for name in ("i0", "i1"):
        instance = Instance.named(host.settings.store, name)
        instance.directory.mkdir(parents=True)
    assert host.examine()["instances"].text == "2 known, 0 running"
    instance.handle_file.write_text("{")
    found = host.examine()["instances"]
    assert (found.level, found.hint) == ("error", "topcoat stop i1")


def test_leftovers(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [gc.Leftover("disk", "/x", size, "i0 has ended", lambda: None) for size in (1024, 2048)]
    asked = []

    def found_by_gc(store: Store, limits: CorpusLimits) -> list[gc.Leftover]:
        asked.append((store, limits.kept))
        return items

    monkeypatch.setattr(gc, "items", found_by_gc)
    host.config["[campaign]"] = ["keep_replaced = 5s"]
    found = host.examine()["leftovers"]
    assert (found.level, found.hint) == ("warning", "topcoat gc")
    assert found.text == "2 things are nobody's, with 3 KiB"
    assert asked == [(host.settings.store, 5.0)], "as topcoat gc looks for them"


def test_limits_of_this_process(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: Mapping[int, int] = {resource.RLIMIT_NOFILE: 256, resource.RLIMIT_NPROC: 1}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits[which], 1 << 20))
    found = host.examine()
    assert found["open files"].level == "warning"
    assert found["processes"].level == ("warning" if os.getuid() else "ok")


def test_a_check_that_fails_hides_no_other_but_a_bug_is_one(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    problems: list[Exception] = [
        ZeroDivisionError(),
        TopcoatError("bad", hint="do", detail="a\nb"),
        PermissionError(13, "Permission denied", "/x"),
    ]

    def fail(*_: object, **__: object) -> list[gc.Leftover]:
        raise problems.pop()

    monkeypatch.setattr(gc, "items", fail)
    found = host.examine()
    assert found.keys() == NAMES
    assert found["leftovers"].text == "looking at it: Permission denied: /x"
    assert host.examine()["leftovers"] == Finding("leftovers", "error", "bad: b", "do")
    with pytest.raises(ZeroDivisionError):
        host.examine()
