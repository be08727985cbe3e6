"""What was played, and the one cause that it must be called. Each row of the tables is one way for a boot to fail."""

import re
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import BootError, HostFault
from pipeline.vm.qemu.causes import CAUSES, Evidence
from pipeline.vm.qemu.verdict import hopeless, judge
from tests.conftest import Workspace, qemus_of
from tests.fakes import sshd
from tests.vm.qemu.playing import HASTY, PATIENT, Played

ZIRCON = r"serial [00000.000] 00000.00000> welcome to Zircon\r\n"
PANIC = r"serial $ \r\nZIRCON KERNEL PANIC\r\n\r\nUPTIME: 3ms\r\nbt#00: 0xffffffff8\r\n"
HALT = r"serial platform_halt suggested_action 0 reason 9\r\nHalting...\r\nHalted\r\nentering panic shell loop\r\n! "
USERBOOT = r"serial [00000.300] 01024.01026> userboot: searching bootfs for 'bin/bootsvc'\r\n"

SCENARIOS = [
    # QEMU does not come up
    ("say -enable-kvm: Could not access KVM kernel module: Permission denied; exit 1", "no KVM"),
    ("say qemu: failed to initialize kvm: Device or resource busy; exit 1", "no KVM"),
    ("status internal-error; up; say KVM internal error. Suberror: 1; event STOP", "KVM gave up"),
    ("say -netdev user: Could not set up host forwarding rule 'tcp:127.0.0.1:0-:22'; exit 1", "port refused"),
    ("say qemu: cannot set up guest memory 'pc.ram': Cannot allocate memory; exit 1", "no memory"),
    ("say qemu_thread_create: Resource temporarily unavailable; exit 1", "host limits"),
    ('say -drive id=d0: Failed to get "write" lock; exit 1', "image in use"),
    ("say cannot create PID file: Cannot lock pid file: Resource temporarily unavailable; exit 1", "pidfile in use"),
    ("say Failed to open file 'run/a'; exit 1", "image unreadable"),
    ("say -drive file=x: Could not open 'x': Permission denied; exit 1", "image unreadable"),
    ("say qemu: could not load kernel 'multiboot.bin': Invalid argument; exit 1", "image unreadable"),
    ("say qemu: error while loading shared libraries: libslirp.so.0: cannot open; exit 127", "no such program"),
    ("say qemu: -cpu nonsense: unable to find CPU model 'nonsense'; exit 1", "arguments refused"),
    ("say qemu: -foo: invalid option; exit 1", "arguments refused"),
    ("say qemu: -cdrom x: machine type does not support if=ide,bus=2,unit=0; exit 1", "no SATA"),
    ("up; say qemu: linux kernel too old to load a ram disk; exit 1", "image unreadable"),
    ("say qemu: warning: externally provided fw_cfg item names should be prefixed; crash", "QEMU ended"),
    ("up; say qemu: terminating on signal 15 from pid 1 (init); exit 0", "QEMU stopped"),
    ("exit 0", "QEMU ended"),
    ("crash", "QEMU ended"),
    ("hang", "QEMU hangs"),
    ("say qemu: could not write: No space left on device; exit 1", "disk full"),
    # its monitor
    ("mute; up", "monitor silent"),
    ("no-forward; up", "no forward"),
    # the guest does not come up
    ("up", "no serial output"),
    (ZIRCON, "no userspace"),
    (f"{ZIRCON}; {USERBOOT}", "marker never came"),
    (ZIRCON + r"; serial {{{rese", "marker never came"),
    (r"serial Booting from ROM..\r\n", "marker never came"),
    (f"{ZIRCON}; {HALT}", "kernel halted"),
    (f"{ZIRCON}; {USERBOOT}; {PANIC}; {HALT}", "kernel panic"),
    (r"serial HALT: spinning forever... (reason = 9)\r\n", "kernel halted"),
    (r"serial [   1.234567] reboot: System halted\r\n", "kernel halted"),
    # the marker has come, and no more is wanted
    (f"{ZIRCON}; marker; exit 0", "QEMU died"),
    (f"{ZIRCON}; marker; sleep 0.2; crash", "QEMU died"),
    (f"{ZIRCON}; marker; sleep 0.1; {HALT}", "kernel halted"),
    (f"{ZIRCON}; marker; {PANIC}; {HALT}", "kernel panic"),
    (f"{ZIRCON}; marker; event SHUTDOWN guest-reset; exit 0", "guest rebooted"),
    (ZIRCON + "; " + PANIC, "kernel panic"),
    (r"serial Kernel panic - not syncing: Attempted to kill init!; event SHUTDOWN guest-reset; exit 0", "kernel panic"),
    (r"serial Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n", "not bootable"),
    (r"serial userboot: ZX_ERR_INVALID_ARGS: bad magic number for compressed bootfs\r\n", "not bootable"),
    (ZIRCON + "; event SHUTDOWN guest-reset; exit 0", "guest rebooted"),
    (ZIRCON + "; event RESET guest-reset", "guest rebooted"),
    (ZIRCON + "; event SHUTDOWN guest-shutdown; exit 0", "guest powered off"),
    (ZIRCON + "; event GUEST_PANICKED", "guest panicked"),
    (ZIRCON + "; event SHUTDOWN host-signal; exit 0", "QEMU stopped"),
    (ZIRCON + "; exit 0", "QEMU died"),
    (ZIRCON + "; crash", "QEMU died"),
    (ZIRCON + "; freeze", "QEMU frozen"),
    ("status prelaunch; up", "guest paused"),
    (ZIRCON + "; event BLOCK_IO_ERROR nospace", "disk full"),
]  # fmt: skip

IN_THE_END = (
    "QEMU hangs", "monitor silent", "no serial output", "no userspace", "marker never came",
    "QEMU frozen", "guest paused", "disk full", "not bootable", "no banner", "no shell", "SSH refused",
)  # fmt: skip
"""What is found out when time is up; all else must be found out at once."""

SSH_SCENARIOS = [
    ("ready", "none", None),
    ("ready", "close", "no banner"),
    ("ready", "no banner", "no banner"),
    ("ready", "refuse key", "key refused"),
    ("ready", "no exec", "no shell"),
    ("ready", "other answer", "no shell"),
    ("ready", "other boot", "another guest"),
    ("ready", "gone", "SSH refused"),
    ("ready; sleep 0.3; event SHUTDOWN guest-reset; exit 0", "no banner", "guest rebooted"),
    ("ready; sleep 0.3; " + PANIC, "no banner", "kernel panic"),
    ("ready; sleep 0.3; " + HALT, "no banner", "kernel halted"),
    ("ready; sleep 0.3; marker", "no banner", "guest rebooted"),
    ("ready; sleep 0.3; exit 0", "no banner", "QEMU died"),
]


@pytest.mark.parametrize(("part", "cause"), SCENARIOS, ids=[f"{cause}: {part[:40]}" for part, cause in SCENARIOS])
def test_a_boot_that_fails(bundle: Workspace, monkeypatch: pytest.MonkeyPatch, part: str, cause: str) -> None:
    played = Played(bundle, monkeypatch, HASTY if cause in IN_THE_END else PATIENT)
    played.play(part)
    with pytest.raises(BootError) as caught:
        played.launcher().start()
    check(played, caught.value, cause)


@pytest.mark.parametrize(("part", "fault", "cause"), SSH_SCENARIOS)
def test_a_guest_whose_ssh(
    bundle: Workspace, monkeypatch: pytest.MonkeyPatch, part: str, fault: sshd.Fault, cause: str | None
) -> None:
    late = cause in IN_THE_END or part.endswith("marker")  # a second marker may be a process that crashed
    played = Played(bundle, monkeypatch, HASTY if late else PATIENT)
    with sshd.running(played.public_key.decode().strip()) as server:
        server.fault = fault
        port = server.port
        if fault == "gone":
            server.stop()
        played.play(part.replace("ready", "serial welcome to Zircon\\r\\n; marker"), port)
        if cause is None:
            assert played.launcher("ssh").start().run("echo 7", 5).stdout == b"7\n"
            return
        with pytest.raises(BootError) as caught:
            played.launcher("ssh").start()
    check(played, caught.value, cause)


def check(played: Played, error: BootError, cause: str) -> None:
    """The verdict is that cause, is told in one block, stands in the timeline, and nothing is left."""
    assert error.cause == cause, error.explain()
    assert str(error).startswith("i0: ")
    assert error.hint
    assert "{" not in error.hint
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", error.explain()), "no control characters"
    failed = played.timeline()[-1]
    assert (failed["event"], failed["cause"], failed["fault"]) == ("failed", cause, error.fault)
    assert qemus_of(played.bundle.directory) == []
    assert played.remains() == []


def test_every_cause_is_played() -> None:
    played = {cause for _, cause in SCENARIOS} | {cause for _, _, cause in SSH_SCENARIOS}
    evidence = {cause for _, cause in EVIDENCE}
    assert {cause.name for cause in CAUSES} == (played | evidence) - {None}
    assert len(SCENARIOS) >= 25


LATE = Evidence("marker", seconds=61.0, limit=60.0, console="booting")
EVIDENCE = [
    (replace(LATE, starved=0.8), "host overloaded"),
    (replace(LATE, starved=0.2), "marker never came"),
    (replace(LATE, starved=0.8, stage="banner"), "host overloaded"),
    (replace(LATE, starved=0.8, ended=True), "QEMU died"),
    (replace(LATE, starved=0.8, console="ZIRCON KERNEL PANIC"), "kernel panic"),
    (replace(LATE, free=100), "disk full"),
    (Evidence("spawn", problem="setsid: no such file", ended=True), "not started"),
    (Evidence("spawn", qemu="setsid: failed to execute x: Exec format error", ended=True), "no such program"),
    (Evidence("host key", problem="its host key is another one"), "host key changed"),
    (Evidence("auth", problem="the login broke off: EOF"), "login broke off"),
    (
        Evidence("restore", qemu="qemu-system-x86_64: load of migration failed: Invalid argument", ended=True),
        "not restored",
    ),
    (Evidence("restore", ended=True), "QEMU died"),
    (Evidence("renewal", starved=0.8, seconds=20, limit=80), "host overloaded"),
    (Evidence("restore", problem="no answer within 15 s"), "not restored"),
    (Evidence("renewal", problem="the gate of the guest does not answer: timed out"), "not restored"),
    (Evidence("nowhere"), "unexplained"),
]


@pytest.mark.parametrize(("seen", "cause"), EVIDENCE)
def test_what_was_seen(seen: Evidence, cause: str) -> None:
    assert judge(seen).error().cause == cause


def test_the_block_has_the_ends_of_both_logs_and_the_usual_time() -> None:
    seen = replace(LATE, qemu="qemu: a warning\n", console="one\ntwo {braces}\n", usual=2.5)
    error = judge(seen).error()
    assert error.detail == "qemu: a warning\none\ntwo {braces}"
    assert str(error) == (
        "the guest did not print {{{reset}}} within 61 s (slow boots take 2 s here); its last line: two {braces}"
    )


def test_a_zbi_that_is_cut_off_is_not_called_slow() -> None:
    error = judge(replace(LATE, console="[00000.000] 00000.00000> zbi: @ 0xff\nwelcome to Zircon\n")).error()
    assert str(error) == (
        "the guest's kernel started, but within 61 s none of its programs did; its last line: welcome to Zircon"
    )
    assert "timeout" not in error.hint
    assert "topcoat image" in error.hint


def test_only_what_is_the_hosts_fault_is_tried_again_by_rule() -> None:
    assert all(issubclass(cause.error, HostFault) for cause in CAUSES if cause.transient)
    assert any(cause.transient for cause in CAUSES)


_TEXTS = st.text(max_size=40) | st.sampled_from(
    ["KVM", "panic", "No space left on device", "ZX_ERR_", "{quote}", "\x1b[2J"]
)


@given(
    st.builds(
        Evidence,
        stage=st.sampled_from(["spawn", "monitor", "marker", "tcp", "banner", "auth", "echo", "host key", "ready"]),
        qemu=_TEXTS,
        console=_TEXTS,
        ended=st.booleans(),
        events=st.lists(_TEXTS, max_size=3).map(tuple),
        markers=st.integers(0, 3),
        problem=_TEXTS,
        seconds=st.floats(0, 1e4),
        limit=st.floats(0, 1e4),
        starved=st.floats(0, 1),
        frozen=st.booleans(),
        usual=st.none() | st.floats(0, 1e4),
        free=st.integers(0, 1 << 50),
    )
)
def test_whatever_was_seen_there_is_one_verdict_and_it_can_be_said(seen: Evidence) -> None:
    error = judge(seen).error()
    assert error.cause in {cause.name for cause in CAUSES}
    assert "\n" not in str(error)
    assert error.explain()


def test_a_line_without_an_end_does_not_hold_up_the_verdict() -> None:
    for text in ("zbi: ", "userboot: ", "multiboot", "Kernel panic - not "):
        began = time.thread_time()
        judge(replace(LATE, console=text * (65536 // len(text))))
        assert time.thread_time() - began < 10, "an expression that goes back takes minutes"


def test_no_boot_is_given_up_for_what_a_good_one_says() -> None:
    process = "[00000.500] 01031.01049> ZIRCON KERNEL PANIC\n"
    fuchsia = 'cmdline: kernel.halt-on-panic=true\nuserboot: option "kernel.halt-on-panic=true"\n{{{reset}}}\n'
    linux = "Command line: console=ttyS0 panic=-1 quiet\ndemo: disk vda has 3221225472 bytes, FVM magic: yes\n"
    assert not hopeless(process + fuchsia + linux, ("RESUME", "NIC_RX_FILTER_CHANGED", "RTC_CHANGE"))
