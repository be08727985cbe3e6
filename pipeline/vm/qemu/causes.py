"""The table of all causes that a failed boot can have, those that explain more before those that explain less.

The table is data. A row holds if all of its conditions hold; the first row that holds is the verdict. To add a cause,
add a row here and one to the scenarios in tests/vm/qemu/test_verdict.py.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.errors import BootError, BootTimeout, ConnectError, GuestDied, HostFault, QemuRefused, WrongServer
from pipeline.text.printable import tail
from pipeline.vm import halt

STARVED = 0.6
"""The share of the time for which QEMU had to wait for a CPU, above which the host counts as overloaded.

Four virtual CPUs that spin on two cores keep each other waiting for half of the time, and that is the guest's doing.
"""

_NO_COMPLAINT = re.compile(r": (warning|info): ")
_OF_QEMU = re.compile(r"(\S+Z )?(\S*/)?qemu[\w.+-]*: ")  # the time stands before it with -msg timestamp=on

_LITTLE = 1 << 20  # bytes
_STARTING = "spawn|monitor|marker"  # QEMU makes its pidfile and sockets before it loads the images
_LOOK_THERE = "see what the guest says: topcoat logs NAME"
_ARGV = "see the command line that was used: topcoat argv NAME"
_IMAGE = "is it meant for this machine, and whole? topcoat why shows what it was made of; topcoat force remakes it"


@dataclass(frozen=True)
class Evidence:
    """All that was seen of a boot that has failed."""

    stage: str
    """What was being waited for: spawn, monitor, restore, renewal, marker, moment after the marker, tcp, banner, auth,
    host key, echo, boot id."""
    qemu: str = ""
    """The end of what QEMU itself has said, printable."""
    console: str = ""
    """The end of what the guest has written to its serial port, printable."""
    ended: bool = False
    """Whether the QEMU process has ended."""
    events: tuple[str, ...] = ()
    """QEMU's events in their order, each with its reason, such as "SHUTDOWN guest-reset"."""
    markers: int = 0
    """How many times the guest has printed the marker."""
    problem: str = ""
    """The error message of the part that waited, such as the SSH client."""
    seconds: float = 0.0
    """How many seconds the boot had been under way."""
    limit: float = 0.0
    """How many seconds the boot was allowed to take."""
    starved: float = 0.0
    """The share of the time, 0 to 1, in which QEMU was ready to run but had no CPU."""
    frozen: bool = False
    """Whether QEMU has been stopped by a signal (SIGSTOP)."""
    usual: float | None = None
    """How many seconds slow boots of this kind take on this host; None if that is not known."""
    free: int = 1 << 40
    """How many bytes are free on the disk of the instance."""

    @property
    def complaints(self) -> str:
        """What QEMU has said, without the lines that are warnings or information: a QEMU that boots has them too."""
        return "\n".join(line for line in self.qemu.splitlines() if not _NO_COMPLAINT.search(line))

    @property
    def refusal(self) -> str:
        """The line in which QEMU says why it ends: the last complaint with its name, for hints follow without it."""
        lines = self.complaints.splitlines()
        return tail("\n".join(line for line in lines if _OF_QEMU.match(line)) or self.complaints, 1)


@dataclass(frozen=True)
class Cause:
    """A row of the table: the conditions under which it holds, and what it says then.

    The conditions are regular expressions: `stage` must match in full; `qemu`, `console`, `event` and `problem` are
    searched for; an empty one always holds. In `says` and `hint`, `{quote}` is the line in which an expression was
    found; the fields of Evidence and of `_derived` (verdict.py) can be named in the same way.
    """

    name: str
    error: type[BootError]
    says: str
    hint: str
    stage: str = ""
    qemu: str = ""
    console: str = ""
    event: str = ""
    problem: str = ""
    when: Callable[[Evidence], bool] = field(default=lambda _: True)
    """A further condition."""
    transient: bool = False
    """Whether the host is at fault and that may pass, so that the boot is tried again."""
    at_once: bool = False
    """Whether there is no use in waiting any longer once `console` or `event` has been seen."""

    def found_in(self, seen: Evidence) -> str | None:
        """The line that proves that the row holds ("" if it needs none), or None if it does not hold."""
        quotes = [
            _line_with(pattern, text)
            for pattern, text in (
                (self.qemu, seen.complaints),
                (self.console, seen.console),
                (self.problem, seen.problem),
            )
        ]
        events = [_line_with(self.event, event) for event in seen.events or ("",)]
        holds = (
            None not in quotes
            and any(event is not None for event in events)
            and (not self.stage or re.fullmatch(self.stage, seen.stage) is not None)
            and self.when(seen)
        )
        return next((quote for quote in quotes if quote), "") if holds else None


def _line_with(pattern: str, text: str) -> str | None:
    if not pattern:
        return ""
    match = re.search(pattern, text)
    if match is None:
        return None
    start, end = text.rfind("\n", 0, match.start()) + 1, text.find("\n", match.end())
    return tail(text[start : end if end >= 0 else len(text)], 1)


def _late(seen: Evidence) -> bool:
    return not seen.ended and seen.seconds >= seen.limit > 0


CAUSES = (
    # The disk comes first: when it is full, everything else fails too, each in its own way
    Cause(
        "disk full",
        HostFault,
        "the disk is full: {free} bytes are free for what the guest writes",
        "free some space, see topcoat gc and topcoat clean; or move the store: [store] root or TOPCOAT_ROOT",
        event=r"^BLOCK_IO_ERROR nospace",
        at_once=True,
    ),
    Cause(
        "disk full",
        HostFault,
        "the disk is full: {free} bytes are free",
        "free some space, see topcoat gc and topcoat clean; or move the store: [store] root or TOPCOAT_ROOT",
        when=lambda seen: seen.free < _LITTLE or "No space left on device" in seen.complaints,
    ),
    Cause(
        "host key changed",
        WrongServer,
        "{problem}",
        "something else has taken the guest's port; stop the instance and boot it again",
        stage="host key",
    ),
    Cause(
        "another guest",
        WrongServer,
        "{problem}",
        "something else has taken the guest's port; stop the instance and boot it again",
        stage="boot id",
    ),
    Cause(
        "QEMU stopped",
        HostFault,
        "somebody ended QEMU while the guest booted ({last_event})",
        "was it topcoat stop, or the end of a session or container? then boot again",
        event=r"^SHUTDOWN host-",
    ),
    Cause(
        "QEMU stopped",
        HostFault,
        "somebody ended QEMU while the guest booted ({quote})",
        "was it topcoat stop, or the end of a session or container? then boot again",
        qemu=r"terminating on signal",
    ),
    # QEMU's own words, where they say more than that it has ended
    Cause(
        "no KVM",
        HostFault,
        "QEMU cannot use KVM: {quote}",
        "see topcoat doctor; [qemu] accel = tcg does without, several times slower",
        qemu=r"(?i)could not access KVM|failed to initialize KVM|invalid accelerator kvm|KVM is not (supported|avail)"
        r"|kvm run failed|ioctl\(KVM_|KVM[^\n]{0,80}not supported|requires KVM",
    ),
    Cause(
        "KVM gave up",
        HostFault,
        "KVM can run the guest no further: internal error",
        "see topcoat doctor; [qemu] accel = tcg does without, several times slower",
        event=r"^STATUS internal-error",
        at_once=True,
    ),
    Cause(
        "port refused",
        HostFault,
        "QEMU gets no port for SSH: {quote}",
        "are all ports of 127.0.0.1 in use? see: ss -ltn",
        stage=_STARTING,
        qemu=r"Could not set up host forwarding rule",
        transient=True,
    ),
    Cause(
        "no memory",
        HostFault,
        "the host has no memory for the guest: {quote}",
        "stop other guests (topcoat instances), or give this one less: [qemu] memory",
        qemu=r"(?i)cannot set up guest memory|cannot allocate memory|out of memory",
        transient=True,
    ),
    Cause(
        "image in use",
        HostFault,
        "another process uses the same image: {quote}",
        "which one? see: fuser -v on the files of topcoat argv NAME",
        stage=_STARTING,
        qemu=r"Failed to get [^\n]{0,80}lock|Is another process using the image",
        transient=True,
    ),
    Cause(
        "pidfile in use",
        HostFault,
        "another QEMU holds the pidfile of this instance: {quote}",
        "end it: topcoat stop NAME",
        stage=_STARTING,
        qemu=r"cannot create PID file",
    ),
    Cause(
        "host limits",
        HostFault,
        "the host gives QEMU no more files or threads: {quote}",
        "see ulimit -n and ulimit -u, and topcoat doctor",
        qemu=r"Too many open files|Resource temporarily unavailable|qemu_thread_create|failed to create thread",
        transient=True,
    ),
    Cause(
        "image unreadable",
        QemuRefused,
        "QEMU cannot use an image: {quote}",
        _IMAGE,
        stage=_STARTING,
        qemu=r"(?i)failed to open file|could not open '|could not load|could not read|error loading [^\n]{0,80}kernel"
        r"|invalid (elf|kernel) |kernel (image )?too (old|big|large)|Image is not in|no such image|initrd is too large",
    ),
    Cause(
        "no such program",
        QemuRefused,
        "QEMU cannot be run: {quote}",
        "is [build] qemu a program for this machine? see: topcoat doctor",
        stage=_STARTING,
        qemu=r"setsid: failed to execute|cannot execute|: not found$|error while loading shared libraries|GLIBC",
    ),
    Cause(
        "not started",
        HostFault,
        "QEMU cannot be started in the background: {problem}",
        "is the program setsid (package util-linux) there? see: topcoat doctor",
        stage="spawn",
        problem=r"setsid",
    ),
    Cause(
        "no SATA",
        QemuRefused,
        "QEMU refuses its arguments: {refusal}",
        "its machine has no SATA for -cdrom and -hda; with it: -machine sata=on, in [qemu] arguments too",
        stage="spawn|monitor",
        qemu=r"does not support if=ide",
    ),
    Cause(
        "arguments refused",
        QemuRefused,
        "QEMU refuses its arguments: {refusal}",
        "do [qemu] arguments, cpu or memory fit this QEMU? " + _ARGV,
        stage="spawn|monitor",
        when=lambda seen: seen.ended and bool(seen.complaints),
    ),
    Cause(
        "QEMU ended",
        HostFault,
        "QEMU ended at its start without a word",
        "was it killed? see dmesg; and try its command line by hand: topcoat argv NAME",
        stage="spawn",
        when=lambda seen: seen.ended,
    ),
    Cause(
        "not restored",
        QemuRefused,
        "QEMU does not restore the guest: {refusal}",
        "luigi --module tasks BootTemplate saves another one; [boot] warm = never does without",
        stage="restore",
        when=lambda seen: bool(seen.complaints),
    ),
    # The guest's own words
    Cause(
        "not bootable",
        QemuRefused,
        "the guest cannot use its images: {quote}",
        _IMAGE,
        console=r"bad magic number for compressed bootfs|zx_vmo_get_size failed on bootfs"
        r"|bootsvc: failed to (map|create) |userboot: [^\n]{0,80}ZX_ERR_"
        r"|multiboot[^\n]{0,80}ZBI|ZBI_ERROR|zbi: [^\n]{0,80}(invalid|bad|corrupt)"
        r"|VFS: Unable to mount root fs|No working init found|Initramfs unpacking failed|No bootable device"
        r"|No init found",
    ),
    Cause(
        "kernel panic",
        GuestDied,
        "the guest's kernel panicked: {quote}",
        "the trace is above, and whole in: topcoat logs NAME",
        console=halt.PANIC,
        at_once=True,
    ),
    Cause(
        "kernel halted",
        GuestDied,
        "the guest's kernel has halted: {quote}",
        "what led to it is above, and whole in: topcoat logs NAME",
        console=halt.HALT,
        at_once=True,
    ),
    Cause(
        "guest rebooted",
        GuestDied,
        "the guest reset itself while it was booting (waiting for the {stage})",
        _LOOK_THERE,
        event=r"^(SHUTDOWN|RESET) guest-reset",
        at_once=True,
    ),
    Cause(
        "guest powered off",
        GuestDied,
        "the guest powered itself off before it was ready (waiting for the {stage})",
        _LOOK_THERE,
        event=r"^SHUTDOWN guest-shutdown",
        at_once=True,
    ),
    Cause(
        "guest panicked",
        GuestDied,
        "the guest told QEMU that it has panicked",
        _LOOK_THERE,
        event=r"^GUEST_PANICKED",
        at_once=True,
    ),
    Cause(
        "QEMU died",
        HostFault,
        "QEMU died while the guest booted (waiting for the {stage})",
        "it was killed, perhaps for want of memory, or it crashed: see dmesg, and qemu.log in the instance's directory",
        when=lambda seen: seen.ended,
    ),
    # QEMU lives, but the guest was not ready
    Cause(
        "QEMU frozen",
        HostFault,
        "QEMU does not run: it has been stopped by a signal",
        "who sent it SIGSTOP? a debugger, or a batch system that suspends jobs",
        when=lambda seen: seen.frozen,
    ),
    Cause(
        "guest paused",
        QemuRefused,
        "the guest does not run: QEMU has paused it",
        "do [qemu] arguments hold -S? " + _ARGV,
        event=r"^(STOP|STATUS (paused|prelaunch))",
        when=lambda seen: seen.stage != "monitor",
    ),
    Cause(
        "QEMU hangs",
        HostFault,
        "QEMU was not up after {seconds:.0f} s: its {stage} does not answer",
        _ARGV,
        stage="spawn",
    ),
    Cause(
        "no forward",
        QemuRefused,
        "QEMU forwards no port to the guest's SSH server: {problem}",
        "do [qemu] arguments change the network? " + _ARGV,
        stage="monitor",
        problem=r"forwards no port",
    ),
    Cause(
        "monitor silent",
        HostFault,
        "QEMU's monitor does not tell the SSH port: {problem}",
        "is the host overloaded, or do [qemu] arguments change the monitor? " + _ARGV,
        stage="monitor",
    ),
    Cause(
        "host overloaded",
        HostFault,
        "the host is overloaded: QEMU waited for a CPU for {starved:.0%} of {seconds:.0f} s (waiting for the {stage})",
        "run fewer things at once, or raise [boot] timeout; see topcoat doctor",
        when=lambda seen: _late(seen) and seen.starved > STARVED,
    ),
    Cause(
        "no serial output",
        BootTimeout,
        "the guest wrote nothing at all to its serial port within {seconds:.0f} s",
        "is the kernel right for this machine, and whole? Fuchsia needs kernel.serial=legacy; " + _ARGV,
        stage="marker",
        when=lambda seen: not seen.console.strip(),
    ),
    Cause(
        "no userspace",
        BootTimeout,
        "the guest's kernel started, but within {seconds:.0f} s none of its programs did; its last line: {last_line}",
        "is the ZBI whole? look into the file after -initrd of topcoat argv NAME: topcoat image FILE",
        stage="marker",
        when=lambda seen: halt.only_kernel(seen.console),
    ),
    Cause(
        "marker never came",
        BootTimeout,
        "the guest did not print {{{{{{reset}}}}}} within {seconds:.0f} s{usually}; its last line: {last_line}",
        "if it is only slow, raise [boot] timeout; " + _LOOK_THERE,
        stage="marker",
    ),
    Cause(
        "guest rebooted",
        GuestDied,
        "the guest printed the marker {markers} times: it has rebooted, or a process in it crashed; {problem}",
        _LOOK_THERE,
        stage="tcp|banner|echo",
        when=lambda seen: seen.markers > 1,
    ),
    Cause(
        "SSH refused",
        ConnectError,
        "the guest's port refuses connections: {problem}",
        "does the guest start an SSH server, and its network? " + _LOOK_THERE,
        stage="tcp",
    ),
    Cause(
        "no banner",
        ConnectError,
        "no SSH server answers in the guest, for {seconds:.0f} s: {problem}",
        "does the guest start an SSH server, and its network? (QEMU accepts connections before) " + _LOOK_THERE,
        stage="banner",
    ),
    Cause(
        "key refused",
        ConnectError,
        "{problem}",
        "does its image hold this key? topcoat force InitrdWithKey, and run the same command again",
        stage="auth",
        problem=r"refuses the key",
    ),
    Cause(
        "login broke off",
        ConnectError,
        "{problem}",
        _LOOK_THERE,
        stage="auth",
    ),
    Cause(
        "no shell",
        ConnectError,
        "the guest lets us in, but does not prove itself: {problem}",
        "is there a shell in the guest? " + _LOOK_THERE,
        stage="echo",
    ),
    Cause(
        "host overloaded",
        HostFault,
        "the host is overloaded: QEMU waited for a CPU for {starved:.0%} of {seconds:.0f} s (waiting for the {stage})",
        "run fewer things at once; see topcoat doctor",
        stage="restore|renewal",
        when=lambda seen: seen.starved > STARVED,
    ),
    Cause(
        "not restored",
        QemuRefused,
        "the guest could not be restored, or does not come to life: {problem}",
        "luigi --module tasks BootTemplate saves another one; [boot] warm = never does without",
        stage="restore|renewal",
    ),
    Cause(
        "unexplained",
        BootError,
        "the boot failed while waiting for the {stage}, and no cause that Topcoat knows fits: {problem}",
        "this is a gap in pipeline/vm/qemu/causes.py; please report it with the whole directory of the instance",
    ),
)
"""Every cause that a failed boot can have, those that explain more before those that explain less."""
