"""One boot: from a plan to a guest that is ready, or to the verdict why it is not."""

import logging
import os
from contextlib import ExitStack, suppress
from dataclasses import replace

from pipeline.errors import BootError
from pipeline.host.deadline import Deadline, Patience, utc_now
from pipeline.host.process import Process
from pipeline.host.resources import Starvation, free_bytes, is_frozen
from pipeline.ssh.address import Address
from pipeline.text.printable import printable
from pipeline.vm.boot_progress import BootProgress
from pipeline.vm.capsule import Capsule
from pipeline.vm.handle import Handle
from pipeline.vm.qemu import keeper, machine, migration, renewal
from pipeline.vm.qemu.causes import Evidence
from pipeline.vm.qemu.plan import Plan
from pipeline.vm.qemu.probe import LoginProbe
from pipeline.vm.qemu.profile import USER
from pipeline.vm.qemu.qmp import Monitor, MonitorError
from pipeline.vm.qemu.serial import Console
from pipeline.vm.qemu.verdict import judge
from pipeline.vm.qemu.watch import Watch, watching
from pipeline.vm.template import NoTemplateError, OpenTemplate
from pipeline.vm.timeline import Timeline

log = logging.getLogger("topcoat")

LOOPBACK = "127.0.0.1"

_MOMENT = 0.5  # seconds; a marker alone proves little: QEMU may be about to die, or the kernel to halt
_ENOUGH = 1 / 3  # of the limit: from then on, people who watch are told that the boot may be in vain
_DYING = 1.0  # seconds; a process closes its sockets before it counts as ended
_LAST_WORD = 1.0  # seconds; the boot has failed already, so QEMU's last answer must not keep anybody waiting
_QEMU_SAID = 1 << 16  # bytes at the end of QEMU's log that are looked at


def boot(plan: Plan, held: tuple[int, ...], timeline: Timeline, progress: BootProgress) -> Handle:
    """Start QEMU and return once the guest is ready; QEMU then runs on by itself, with its keeper.

    QEMU holds the descriptors `held` open as long as it lives. If anything fails, or the process is interrupted, QEMU
    is ended. The caller has prepared the instance's directory, and holds its lock. Raises BootError.
    """
    return _Boot(plan, held, timeline, progress).run()


class _Boot:
    def __init__(self, plan: Plan, held: tuple[int, ...], timeline: Timeline, progress: BootProgress) -> None:
        self.plan, self.held, self.timeline, self.progress = plan, held, timeline, progress
        self.console = Console(plan.instance.serial_log)
        self.stage = "spawn"
        self.started = utc_now()
        self.first_byte = False
        self.marked = 0.0
        """When the marker came, in seconds since the deadline was made."""
        self.probe: LoginProbe | None = None
        self.missed = False

    def run(self) -> Handle:
        instance, timeouts = self.plan.instance, self.plan.timeouts
        start = machine.Start(self.plan.argv, instance, self.held)
        try:
            with machine.running(start, timeouts.start) as process:
                self.timeline.reached("spawn")
                self._keep(process)
                handle = self._handle(process, self._until_ready(process))
                instance.publish_handle(handle)
                return handle
        except machine.NotStartedError as error:
            raise self._failed(Evidence("spawn", problem=str(error), ended=error.ended)) from error
        except KeyboardInterrupt:
            self.timeline.reached("interrupted")
            raise

    def _keep(self, process: Process) -> None:
        instance, ours = self.plan.instance, Process.find(os.getpid())
        assert ours is not None
        logs = (instance.serial_log, instance.qemu_log)
        boot_id, cap = self.plan.boot_id, self.plan.log_size
        try:
            keeper.start(
                process, ours, boot_id, instance.handle_file, logs, cap, instance.qemu_log, self.plan.keepalive
            )
        except BootError as error:
            self._note_failure(error)
            raise

    def _until_ready(self, process: Process) -> Address:
        self.starvation = Starvation(process)
        timeouts = self.plan.timeouts
        self.deadline = Patience(timeouts.boot, timeouts.boot_most, self.starvation.seconds)
        self.stage = "monitor"
        with ExitStack() as held:
            try:
                monitor = held.enter_context(
                    Monitor(self.plan.instance.qmp_socket, self.deadline.within(timeouts.start), process)
                )
                address = self._address(monitor.ssh_port())
                self.timeline.reached("port")
                # It loads what it needs while the guest boots, or is restored
                probe = held.enter_context(self._login_probe(address)) if self.plan.ready == "ssh" else None
                if self.plan.saved:
                    self._restore(monitor, self.plan.saved)
            except (MonitorError, NoTemplateError, renewal.RenewalError) as error:
                raise self._failed(self._seen(process, str(error), ended=process.wait(_DYING))) from error
            watch = held.enter_context(
                watching(self.console, self.plan.instance.serial_socket, monitor, process, self._tick)
            )
            self._await_marker(watch, monitor, process)
            if probe is not None:
                return self._log_in(watch, monitor, process, probe)
            self.stage = "moment after the marker"
            if not watch.stays(_MOMENT):
                raise self._failed(self._heard(watch, monitor, process))
            return address

    def _address(self, port: int) -> Address:
        return Address(LOOPBACK, port, USER, str(self.plan.instance.key), self.plan.images.host_key)

    def _login_probe(self, address: Address) -> LoginProbe:
        plan = self.plan
        return LoginProbe(address, plan.proof, plan.answer, plan.timeouts, self.deadline, self.timeline.reached)

    def _restore(self, monitor: Monitor, saved: OpenTemplate | Capsule) -> None:
        """Make the guest what the saved one was, but for what no two clones of a template may share."""
        self.stage, instance = "restore", self.plan.instance
        limit = Deadline(self.deadline.within(self.plan.timeouts.start))
        in_file = isinstance(saved, OpenTemplate)
        migration.restore(monitor, instance.migration_socket, saved.state(), limit, memory_in_file=in_file)
        self.timeline.reached("restored")
        if isinstance(saved, OpenTemplate) and saved.facts.renews:
            self.stage = "renewal"
            renewal.renew(instance.gate, self.plan.boot_id, instance.name, limit)
            self.timeline.reached("renewed")

    def _await_marker(self, watch: Watch, monitor: Monitor, process: Process) -> None:
        self.stage = "marker"
        # A saved guest's came before it was saved; of its log only the end may be left
        marked = self.plan.saved is not None or watch.until(lambda: watch.markers > 0, self.deadline)
        self._note_first_byte()
        if not marked:
            raise self._failed(self._heard(watch, monitor, process))
        self.timeline.reached("marker")
        self.marked = self.deadline.elapsed

    def _log_in(self, watch: Watch, monitor: Monitor, process: Process, probe: LoginProbe) -> Address:
        self.stage, self.probe = "SSH server", probe
        watch.listen_to(probe.fileno(), lambda: None)
        probe.begin()
        over = watch.until(lambda: probe.over, self.deadline)
        probe.end()
        if over and probe.address and not process.wait(0):
            if watch.markers > 1:
                log.warning("%s: the guest printed the marker %d times", self.plan.instance.name, watch.markers)
            return probe.address
        self.stage, problem = probe.blame
        raise self._failed(self._heard(watch, monitor, process, problem)) from probe.failure

    def _handle(self, process: Process, address: Address) -> Handle:
        plan = self.plan
        return Handle(
            name=plan.instance.name,
            boot_id=plan.boot_id,
            build=plan.build.name,
            started=self.started,
            argv=plan.argv,
            process=process,
            accelerator=plan.accelerator,
            ssh=address,
            made_of=plan.made_of,
        )

    def _tick(self) -> None:
        self._note_first_byte()
        waited = self.deadline.elapsed - self.marked
        if not self.missed and waited > self.deadline.seconds * _ENOUGH and (missing := self._missing(waited)):
            self.missed = True
            log.warning("%s: %s", self.plan.instance.name, missing)
        deadline, last_line = self.deadline, self.console.tail(1)
        self.progress.waiting(self.plan.instance.name, self.stage, deadline.elapsed, deadline.seconds, last_line)

    def _missing(self, seconds: float) -> str:
        """The warning about something that comes early or never, and has not come in `seconds`; "" if there is none."""
        if self.stage == "marker" and self.console.silent:
            return (
                f"nothing has come from its serial port for {seconds:.0f} s: does its kernel write to that? "
                "Fuchsia needs kernel.serial=legacy"
            )
        if self.probe is not None and not self.probe.answered:
            return (
                f"the marker came {seconds:.0f} s ago, and no SSH server has answered since: does this image have one? "
                "If not: --ready marker, or [boot] ready = marker"
            )
        return ""

    def _note_first_byte(self) -> None:
        # What the log of a saved guest begins with are not words of this one
        if self.plan.saved is None and not self.first_byte and not self.console.silent:
            self.first_byte = True
            self.timeline.reached("first byte")

    def _heard(self, watch: Watch, monitor: Monitor, process: Process, problem: str = "") -> Evidence:
        """The evidence at the moment when the wait for the guest has failed, with QEMU's events and status."""
        status: tuple[str, ...] = ()
        ended = watch.ended or process.wait(0)
        if not ended and not is_frozen(process):
            with suppress(MonitorError):
                status = (f"STATUS {monitor.status(_LAST_WORD)}",)
        return replace(self._seen(process, problem, ended), events=(*watch.events, *status), markers=watch.markers)

    def _seen(self, process: Process, problem: str, ended: bool) -> Evidence:
        self.console.update()
        return Evidence(
            self.stage,
            problem=problem,
            ended=ended,
            console=self.console.text(),
            seconds=self.deadline.elapsed,
            limit=self.deadline.seconds,
            starved=0.0 if ended else self.starvation.share(),
            frozen=is_frozen(process),
            usual=self.plan.usual,
        )

    def _failed(self, seen: Evidence) -> BootError:
        instance = self.plan.instance
        said = instance.qemu_log.read_bytes()[-_QEMU_SAID:] if instance.qemu_log.exists() else b""
        seen = replace(seen, qemu=printable(said), free=free_bytes(instance.directory))
        error = judge(seen).error()
        self._note_failure(error)
        return error

    def _note_failure(self, error: BootError) -> None:
        self.timeline.reached("failed", cause=error.cause, stage=error.stage, fault=error.fault)
