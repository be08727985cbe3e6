"""A boot, from the prepared images to a guest that answers."""

import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from pipeline.build import Build
from pipeline.deadline import Deadline, utc_now
from pipeline.demo import host_key_file
from pipeline.errors import (
    BootTimeout,
    BrokenInstance,
    CommandError,
    ConnectError,
    HostKeyChanged,
    QemuExited,
    StoreError,
    TopcoatError,
    host_faults,
)
from pipeline.freshness import Key
from pipeline.instance import SSH, Handle, Instance
from pipeline.prepare import disk_path, initrd_path
from pipeline.process import Process, owner_of_pidfile
from pipeline.publish import locked, remove
from pipeline.qemu import accel, disk, machine, qmp
from pipeline.qemu.command import Files, command
from pipeline.qemu.console import Console, exited, wait_for_marker
from pipeline.qemu.guest import USER, guest_of
from pipeline.settings import Ready, Settings, Store, Timeouts
from pipeline.text import printable

log = logging.getLogger("topcoat")

LOOPBACK = "127.0.0.1"
UNKNOWN = Key("", 0, {}, {}, {})
"""For a plan that is not carried out."""

_REPORT_EVERY = 10.0
_DYING = 1.0  # a process closes its sockets before it counts as ended
_REFUSALS = 3  # of our key, before the guest is believed


@dataclass(frozen=True)
class Images:
    """What the prepare tasks make of a build."""

    initrd: Path
    disk: Path
    key: Path
    """The private key whose public half is in the initrd."""
    host_key: str | None
    """The guest's host key, where it is known beforehand."""


def images_of(store: Store, build: Build) -> Images:
    """The images that the prepare tasks make of this build in this store."""
    host_key = None
    if "zbi" in build.demo_made:
        with suppress(FileNotFoundError):  # not made yet
            host_key = host_key_file(store.demo).read_text().strip()
    return Images(initrd_path(store, build), disk_path(store, build), store.keys / "sshid", host_key)


@dataclass(frozen=True)
class Plan:
    """One boot, decided in all details: nothing is looked up after this."""

    instance: Instance
    build: Build
    images: Images
    files: Files
    boot_id: str
    argv: tuple[str, ...]
    made_of: Key
    timeouts: Timeouts
    ready: Ready
    slow: str
    """Why the guest is emulated although KVM was welcome; empty if it is not."""


def plan(
    settings: Settings, build: Build, instance: Instance, images: Images, ready: Ready, made_of: Key = UNKNOWN
) -> Plan:
    """Decide on everything. Makes nothing but the cached answer whether KVM works.

    Raises MissingResource or SettingsError.
    """
    qemu, kernel = build.paths("qemu", "kernel")
    chosen, slow = accel.choose(settings.qemu.accel, build.arch, qemu, settings.store.cache / "kvm.json")
    boot_id = uuid4().hex
    files = Files(
        qemu=qemu,
        kernel=kernel,
        initrd=images.initrd,
        disk=instance.overlay,
        pidfile=instance.pidfile,
        serial_log=instance.serial_log,
        sockets=instance.sockets,
    )
    argv = command(guest_of(build, instance.name, boot_id), chosen, settings.qemu, files)
    timeouts = settings.boot.timeouts(chosen)
    return Plan(instance, build, images, files, boot_id, argv, made_of, timeouts, ready, slow)


class Timeline:
    """When a boot reached each stage: lines of {"event", "seconds"} since the start, in timeline.jsonl."""

    def __init__(self, path: Path, boot_id: str) -> None:
        self._path = path
        self._started = time.monotonic()
        path.write_text(json.dumps({"schema": 1, "boot_id": boot_id, "started": utc_now()}) + "\n")

    def reached(self, event: str) -> None:
        """Note that a stage was reached now."""
        seconds = round(time.monotonic() - self._started, 4)
        with self._path.open("a") as stream:
            stream.write(json.dumps({"event": event, "seconds": seconds}) + "\n")


def boot(plan: Plan) -> Handle:
    """Boot the instance and return once the guest is ready; QEMU then runs on by itself.

    If anything fails, or the process is interrupted, QEMU is stopped, and serial.log stays. Does nothing if the
    instance is alive by the time that its lock is free. Raises BootError and its kin.
    """
    instance = plan.instance
    with locked(instance.directory):
        if (handle := _running_already(instance)) is not None:
            return handle
        if plan.slow:
            log.warning("%s: no KVM: %s; the guest is emulated, several times slower", instance.name, plan.slow)
        try:
            with host_faults("booting"):
                _clear(plan)
                return _run(plan)
        except BaseException as error:
            _abandon(instance)
            if isinstance(error, TopcoatError):
                error.about(instance.name)
            raise


def _running_already(instance: Instance) -> Handle | None:
    try:
        handle = instance.handle()
    except ValueError as error:
        if owner_of_pidfile(instance.pidfile) is None:
            return None
        raise BrokenInstance(
            f"{instance.name} is running, but its handle cannot be understood: {error}",
            hint=f"it may be of another version of Topcoat; to end it: topcoat stop {instance.name}",
        ) from error
    return handle if handle and instance.live_handle() == handle else None


def _abandon(instance: Instance) -> None:
    """Remove what a failed boot leaves besides its logs, without hiding why it failed."""
    try:
        remove(instance.handle_file, instance.pidfile, instance.overlay)
        instance.remove_sockets()
    except StoreError as error:
        log.error("%s", error.about(instance.name).explain())


def _clear(plan: Plan) -> None:
    """Make the instance's directory ready for a new boot. The logs of the last one stay, as *.previous."""
    instance = plan.instance
    instance.directory.mkdir(exist_ok=True)
    if machine.stop(instance.pidfile, plan.files.qmp, plan.timeouts.stop) != "not running":
        log.warning("%s: stopped a QEMU that an interrupted boot had left behind", instance.name)
    remove(instance.handle_file, instance.pidfile, instance.known_hosts)
    for old in (instance.serial_log, instance.timeline):
        if old.exists():
            old.replace(old.with_name(old.name + ".previous"))
    instance.serial_log.touch(mode=0o600)
    instance.make_sockets()
    for link, target in plan.files.links().items():
        link.symlink_to(target)
    disk.make_overlay(plan.build.path("qemu-img"), plan.images.disk, instance.overlay)


def _run(plan: Plan) -> Handle:
    instance, timeouts = plan.instance, plan.timeouts
    timeline = Timeline(instance.timeline, plan.boot_id)
    deadline = Deadline(timeouts.boot)
    started = utc_now()
    qemu = machine.running(plan.argv, instance.pidfile, plan.files.qmp, instance.qemu_log, timeouts.start)
    with qemu as process:
        timeline.reached("spawn")
        boot = _Boot(plan, process, Console(instance.serial_log), deadline, timeline)
        address = boot.wait_until_ready()
        handle = Handle(
            name=instance.name,
            boot_id=plan.boot_id,
            build=plan.build.name,
            started=started,
            argv=plan.argv,
            process=process,
            sockets=str(plan.files.sockets),
            ssh=address,
            made_of=plan.made_of,
        )
        instance.publish_handle(handle)
        timeline.reached("ready")
        return handle


@dataclass
class _Boot:
    """A boot under way: QEMU runs, the guest is not ready yet."""

    plan: Plan
    process: Process
    console: Console
    deadline: Deadline
    timeline: Timeline
    stage: str = "marker"
    reported: float = 0.0

    def wait_until_ready(self) -> SSH:
        port = self._port()
        self.timeline.reached("port")
        if self.plan.ready == "ssh":
            import pipeline.ssh  # noqa: F401  0.25 s, better spent now while the guest boots
        wait_for_marker(self.console, self.plan.files.serial, self.process, self.deadline, self._report)
        self.timeline.reached("marker")
        address = SSH(LOOPBACK, port, USER, str(self.plan.images.key), self.plan.images.host_key)
        if self.plan.ready == "ssh":
            self.stage = "ssh"
            address = self._wait_for_ssh(address)
        if self.process.wait(0):
            raise self._died()
        return address

    def _port(self) -> int:
        try:
            return qmp.ssh_port(self.plan.files.qmp, self.deadline.within(self.plan.timeouts.start))
        except qmp.MonitorError as error:
            if self.process.wait(_DYING):
                raise self._died() from error
            raise BootTimeout(
                f"QEMU's monitor does not tell the SSH port: {error}",
                stage="port",
                hint="do [qemu] arguments change the network or the monitor? see: topcoat argv NAME",
            ) from error

    def _wait_for_ssh(self, address: SSH) -> SSH:
        refusals = 0
        while True:
            try:
                return self._probe(address)
            except ConnectError as error:
                error.detail = error.detail or self.console.tail()
                refusals += error.stage == "auth"
                failure = error
            if self.process.wait(self.plan.timeouts.retry):  # the pause between two attempts
                raise self._died() from failure
            if isinstance(failure, HostKeyChanged) or refusals >= _REFUSALS or self.deadline.expired:
                raise failure
            self._report(self.console)

    def _probe(self, address: SSH) -> SSH:
        """Run a command in the guest that answers with this boot's id. Returns the address with the host key."""
        from pipeline import ssh

        timeouts, limit = self.plan.timeouts, max(1.0, self.deadline.remaining)
        to = ssh.Address(address.host, address.port, address.user, Path(address.key), address.host_key)
        try:
            with ssh.connect(to, timeouts, limit, self.timeline.reached) as connection:
                answer = connection.run(f"echo {self.plan.boot_id}", min(timeouts.command, limit))
                if answer.status != 0 or answer.stdout.strip() != self.plan.boot_id.encode():
                    raise ConnectError(
                        f"the guest answers {printable(answer.stdout)[:80]!r} to an echo",
                        stage="echo",
                        hint="is there a shell in the guest? see: topcoat logs NAME",
                    )
                self.timeline.reached("echo")
                return replace(address, host_key=connection.host_key)
        except CommandError as error:
            raise ConnectError(error.message, stage="echo", hint=error.hint, detail=error.detail) from error

    def _died(self) -> QemuExited:
        self.console.update()
        return exited(self.console, self.stage)

    def _report(self, console: Console) -> None:
        """A line each 10 s, so that nobody has to guess whether something still happens."""
        if self.deadline.elapsed - self.reported >= _REPORT_EVERY:
            self.reported = self.deadline.elapsed
            log.info(
                "%s: waiting for the %s for %.0f s, at most %.0f s; last line: %s",
                self.plan.instance.name,
                self.stage,
                self.deadline.elapsed,
                self.deadline.seconds,
                console.tail(1) or "(nothing yet)",
            )
