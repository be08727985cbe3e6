"""The launcher of guests in QEMU, by the contract in pipeline.vm.launcher."""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipeline.builds.build import Build
from pipeline.errors import AlreadyRunning, BootError, MissingResource, StopError, StoreError, TopcoatError
from pipeline.host import aging
from pipeline.host.faults import host_faults
from pipeline.host.locks import locked
from pipeline.host.pidfile import owner_of_pidfile
from pipeline.settings import Ready, Settings
from pipeline.store.freshness import Key
from pipeline.store.publish import publish_bytes, remove, write_new
from pipeline.text.printable import one_line
from pipeline.vm import boot_progress
from pipeline.vm.boot_progress import BootProgress
from pipeline.vm.capacity import require_room
from pipeline.vm.capsule import Capsule
from pipeline.vm.handle import Handle
from pipeline.vm.instance import Instance
from pipeline.vm.keepalive import KeepAlive
from pipeline.vm.launcher import KILL_LIMIT
from pipeline.vm.qemu import disk, growth
from pipeline.vm.qemu.boot import boot
from pipeline.vm.qemu.keeper import parts
from pipeline.vm.qemu.plan import UNKNOWN, Plan, plan, plan_of_capsule
from pipeline.vm.qemu.stopping import stop, stop_qemu
from pipeline.vm.sockets import require_sockets
from pipeline.vm.template import NoTemplateError, OpenTemplate, Templates
from pipeline.vm.timeline import Timeline, ready_seconds

if TYPE_CHECKING:
    from pipeline.ssh.connector import Connector

log = logging.getLogger("topcoat")


@cache
def _tell_slow(why: str) -> None:
    """Warn that guests are emulated, once in a process: a campaign boots many."""
    log.warning("no KVM: %s; guests are emulated, several times slower", why)


class QemuLauncher:
    """Starts and stops one instance of a build in QEMU. See pipeline.vm.launcher.Launcher for the operations.

    The images must have been made. `made_of` is stored in the handle. With `keepalive`, the guest is ended once that
    has no users. `shown` makes what displays the progress of a boot. With `templates`, the guest is a clone if one can
    be made. With `memory`, it is a boot whose guest has its memory in that new file, so that it can be saved. With
    `capsule`, that is opened in place of a boot, and no images are needed.
    """

    def __init__(
        self,
        settings: Settings,
        build: Build,
        instance: Instance,
        ready: Ready,
        made_of: Key = UNKNOWN,
        keepalive: KeepAlive | None = None,
        shown: Callable[[], AbstractContextManager[BootProgress]] = boot_progress.shown,
        *,
        templates: Templates | None = None,
        memory: Path | None = None,
        capsule: Capsule | None = None,
    ) -> None:
        self._settings, self._build, self._instance = settings, build, instance
        self._ready, self._made_of, self._keepalive = ready, made_of, keepalive
        self._shown = shown
        self._templates, self._memory, self._capsule = templates, memory, capsule
        self._plan: Plan | None = None
        self._timeline: Timeline | None = None

    def prepare(self) -> None:
        """See Launcher. Every attempt to start has its own plan, with its own boot id."""
        if self._plan is None:
            made = self._new_plan()
            _require_files(made)
            require_room(self._instance)
            self._plan = made

    def _new_plan(self, template: OpenTemplate | None = None) -> Plan:
        if self._capsule:
            return plan_of_capsule(self._settings, self._build, self._instance, self._capsule, self._made_of)
        what = (self._settings, self._build, self._instance, self._ready, self._made_of, self._keepalive)
        return plan(*what, template=template, memory=self._memory)

    @property
    def plan(self) -> Plan:
        """The plan of the next start. Raises what `prepare` raises."""
        self.prepare()
        assert self._plan is not None
        return self._plan

    def start(self) -> "Connector":
        """See Launcher."""
        instance = self._instance
        with locked(instance.directory):
            _require_stopped(instance)
            plan, self._plan = self.plan, None
            if plan.slow:
                _tell_slow(plan.slow)
            size = disk.size(plan.images.disk, plan.disk_form)
            growth.tell_if_full(self._settings.store, size, plan.log_size)
            with _naming(instance), _abandoning(instance), host_faults("booting"):
                handle = self._clone() or self._boot(plan)
        from pipeline.ssh.connector import Connector

        return Connector(handle.ssh, plan.timeouts)

    def _clone(self) -> Handle | None:
        """Make the guest as a clone; None if it must be booted instead, which is logged with the reason."""
        if self._templates is None:
            return None
        name = self._instance.name
        try:
            with self._templates.open() as template:
                try:
                    return self._boot(self._new_plan(template))
                except BootError as error:
                    self._templates.failed(template, error)
                    log.warning("%s: it is booted instead, for its clone failed: %s", name, error)
        except NoTemplateError as reason:
            log.info("%s: it is booted, not cloned: %s", name, reason)
        return None

    def _boot(self, plan: Plan) -> Handle:
        instance = self._instance
        with ExitStack() as held:
            self._make_way(plan)
            if self._timeline is None:
                self._timeline = Timeline(instance.timeline)
            self._timeline.attempt(plan.boot_id, plan.how)
            # As long as QEMU lives, systemd-tmpfiles must delete nothing that QEMU or Topcoat will need
            kept = held.enter_context(aging.kept(self._settings.store.root, instance.directory))
            publish_bytes(instance.key, plan.images.key.read_bytes(), mode=0o600)
            if plan.template:
                disk.copy_overlay(plan.template, plan.images.disk, instance.overlay)
                kept = (*kept, plan.template.ram)
            else:
                disk.make_overlay(plan.build.path("qemu-img"), plan.images.disk, instance.overlay, plan.disk_form)
            handle = boot(plan, kept, self._timeline, held.enter_context(self._shown()))
            self._timeline.reached("ready")
        self._timeline = None
        if (seconds := ready_seconds(instance.timeline)) is not None:
            plan.history.add(seconds)
        return handle

    def _make_way(self, plan: Plan) -> None:
        """Prepare the instance's directory for a new boot; the logs of the last boot stay, as *.previous."""
        instance = self._instance
        # Whoever could enter it could speak to QEMU. A QEMU that becomes another user has opened it before
        instance.directory.mkdir(0o700, exist_ok=True)
        instance.directory.chmod(0o700)
        if stop_qemu(instance.pidfile, instance.qmp_socket, KILL_LIMIT) != "not running":
            log.warning("%s: stopped a QEMU that an interrupted boot had left behind", instance.name)
        remove(*instance.transient)
        if self._timeline is None and instance.timeline.exists():
            instance.timeline.replace(f"{instance.timeline}.previous")
        for kept in (instance.serial_log, instance.qemu_log):
            _set_aside(kept)
        write_new(instance.serial_log, _so_far(plan), mode=0o600)
        require_sockets(instance.directory)
        for name, target in plan.files.links().items():
            (instance.directory / name).symlink_to(target)

    def is_running(self) -> bool:
        """See Launcher."""
        return self._instance.live_handle() is not None

    def kill(self) -> None:
        """See Launcher."""
        stop(self._instance, KILL_LIMIT)

    def get_logs(self, into: BinaryIO) -> None:
        """See Launcher."""
        with host_faults("reading the serial log"):
            found = parts(self._instance.serial_log)
            if not found:
                raise FileNotFoundError(2, "there is none", str(self._instance.serial_log))
            for part in found:
                with part.open("rb") as stream:
                    shutil.copyfileobj(stream, into)


def _require_stopped(instance: Instance) -> None:
    if owner_of_pidfile(instance.pidfile) and instance.readable_handle():
        handle = instance.require_running()
        raise AlreadyRunning(
            f"{instance.name} is running already (pid {handle.process.pid})",
            hint=f"end it: topcoat stop {instance.name}",
        )


def _so_far(plan: Plan) -> bytes:
    """What the serial log begins with. That of a clone: all that its template had said, and where that ends."""
    if plan.template:
        note = f"topcoat: so far the serial log of the template that was saved at {plan.template.facts.saved}"
        return plan.template.serial() + f"\n--- {note} ---\n".encode()
    if isinstance(plan.saved, Capsule):
        return (
            f"--- topcoat: here goes on the guest that was saved at {one_line(plan.saved.facts.saved)} ---\n".encode()
        )
    return b""


def _set_aside(kept: Path) -> None:
    """Rename the parts of a log of the last boot to *.previous, in place of older ones."""
    remove(*kept.parent.glob(f"{kept.name}*.previous"))
    for part in parts(kept):
        part.replace(f"{part}.previous")


def _require_files(plan: Plan) -> None:
    for key in ("qemu", "qemu-img"):
        plan.build.require(key)
    if isinstance(plan.saved, Capsule):
        return
    plan.build.require("kernel")
    images = plan.images
    for path in (images.initrd, images.disk, images.key, *((images.targets,) if images.targets else ())):
        if not path.is_file():
            raise MissingResource(
                f"the prepared {path.name} is missing: {path}",
                hint="make it: luigi --module tasks BootInstance makes all that a boot needs",
            )


@contextmanager
def _naming(instance: Instance) -> Iterator[None]:
    try:
        yield
    except TopcoatError as error:
        raise error.about(instance.name) from error.__cause__


@contextmanager
def _abandoning(instance: Instance) -> Iterator[None]:
    """If the body fails or is interrupted, end QEMU and remove what the boot leaves besides its logs."""
    try:
        yield
    except BaseException:
        try:
            stop_qemu(instance.pidfile, instance.qmp_socket, KILL_LIMIT)
            remove(*instance.transient)
        except (StoreError, StopError) as error:  # logged, not raised: it must not hide the error that led here
            log.error("%s", error.about(instance.name).explain())
        raise
