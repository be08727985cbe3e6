"""Guests in QEMU, as pipeline.launcher wants them."""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipeline import aging, lease, progress
from pipeline.build import Build
from pipeline.errors import AlreadyRunning, MissingResource, StopError, StoreError, TopcoatError
from pipeline.faults import host_faults
from pipeline.freshness import Key
from pipeline.host import free_bytes
from pipeline.instance import Handle, Instance
from pipeline.launcher import KILL_LIMIT
from pipeline.process import owner_of_pidfile
from pipeline.progress import Progress
from pipeline.publish import locked, publish_bytes, remove
from pipeline.qemu import disk, machine
from pipeline.qemu.boot import boot
from pipeline.qemu.keeper import parts
from pipeline.qemu.plan import UNKNOWN, Plan, plan
from pipeline.settings import Ready, Settings
from pipeline.size import readable
from pipeline.tie import Tie
from pipeline.timeline import Timeline, ready_seconds

if TYPE_CHECKING:
    from pipeline.ssh import Connector

log = logging.getLogger("topcoat")

ROOM = 16 << 20
"""Bytes that must be free on the instance's disk for a boot to be worth trying: its overlay and its first logs."""


@cache
def _tell_slow(why: str) -> None:
    """Once in a process: a campaign boots many guests."""
    log.warning("no KVM: %s; guests are emulated, several times slower", why)


class QemuLauncher:
    """One instance of a build. See pipeline.launcher.Launcher for what each operation promises.

    The images must have been made. `made_of` is kept in the handle. With `tie`, the guest ends when nobody uses that.
    `shown` tells how a boot goes.
    """

    def __init__(
        self,
        settings: Settings,
        build: Build,
        instance: Instance,
        ready: Ready,
        made_of: Key = UNKNOWN,
        tie: Tie | None = None,
        shown: Callable[[], AbstractContextManager[Progress]] = progress.shown,
    ) -> None:
        self._settings, self._build, self._instance = settings, build, instance
        self._ready, self._made_of, self._tie = ready, made_of, tie
        self._shown = shown
        self._plan: Plan | None = None
        self._timeline: Timeline | None = None

    def prepare(self) -> None:
        """See Launcher. Every attempt has a plan of its own, with a boot id of its own."""
        if self._plan is None:
            made = plan(self._settings, self._build, self._instance, self._ready, self._made_of, self._tie)
            _require_images(made)
            require_room(self._instance)
            self._plan = made

    @property
    def plan(self) -> Plan:
        """What the next start will do. Raises what `prepare` raises."""
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
            with _naming(instance), _abandoning(instance), host_faults("booting"):
                handle = self._boot(plan)
        from pipeline.ssh import Connector

        return Connector(handle.ssh, plan.timeouts)

    def _boot(self, plan: Plan) -> Handle:
        instance = self._instance
        with ExitStack() as held:
            self._make_way(plan)
            if self._timeline is None:
                self._timeline = Timeline(instance.timeline)
            self._timeline.attempt(plan.boot_id)
            # As long as QEMU lives, nobody else takes its sockets, and nothing is cleaned up that it or we shall need
            owned = held.enter_context(lease.held(plan.files.sockets, instance.directory, plan.boot_id))
            kept = held.enter_context(aging.kept(self._settings.store.root, instance.directory, plan.files.sockets))
            publish_bytes(instance.key, plan.images.key.read_bytes(), mode=0o600)
            disk.make_overlay(plan.build.path("qemu-img"), plan.images.disk, instance.overlay)
            handle = boot(plan, (owned, *kept), self._timeline, held.enter_context(self._shown()))
            self._timeline.reached("ready")
        self._timeline = None
        if (seconds := ready_seconds(instance.timeline)) is not None:
            plan.history.add(seconds)
        return handle

    def _make_way(self, plan: Plan) -> None:
        """Make the instance's directory ready for a new boot. The logs of the last one stay, as *.previous."""
        instance = self._instance
        instance.directory.mkdir(exist_ok=True)
        if machine.stop(instance.pidfile, instance.sockets_in_use / "qmp", KILL_LIMIT) != "not running":
            log.warning("%s: stopped a QEMU that an interrupted boot had left behind", instance.name)
        remove(*instance.transient)
        if self._timeline is None and instance.timeline.exists():
            instance.timeline.replace(f"{instance.timeline}.previous")
        for kept in (instance.serial_log, instance.qemu_log):
            _set_aside(kept)
        instance.serial_log.touch(mode=0o600)
        instance.make_sockets()
        for link, target in plan.files.links().items():
            link.symlink_to(target)

    def is_running(self) -> bool:
        """See Launcher."""
        return self._instance.live_handle() is not None

    def kill(self) -> None:
        """See Launcher."""
        self._instance.stop(KILL_LIMIT)

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


def _set_aside(kept: Path) -> None:
    """Keep the parts of a log of the last boot as *.previous."""
    remove(*kept.parent.glob(f"{kept.name}*.previous"))
    for part in parts(kept):
        part.replace(f"{part}.previous")


def _require_images(plan: Plan) -> None:
    for key in ("qemu", "qemu-img", "kernel"):
        plan.build.require(key)
    for path in (plan.images.initrd, plan.images.disk, plan.images.key):
        if not path.is_file():
            raise MissingResource(
                f"the prepared {path.name} is missing: {path}",
                hint="make it: luigi --module tasks BootInstance makes all that a boot needs",
            )


def require_room(instance: Instance) -> None:
    """Raise StoreError if the disk of the instance is as good as full."""
    there = next(path for path in (instance.directory, *instance.directory.parents) if path.exists())
    with host_faults("looking at the disk"):
        free = free_bytes(there)
    if free < ROOM:
        raise StoreError(
            f"the disk of {there} is full: {readable(free)} are free, {readable(ROOM)} are wanted",
            hint="free some space, see topcoat gc and topcoat clean; or move the store: [store] root or TOPCOAT_ROOT",
        )


@contextmanager
def _naming(instance: Instance) -> Iterator[None]:
    try:
        yield
    except TopcoatError as error:
        raise error.about(instance.name) from error.__cause__


@contextmanager
def _abandoning(instance: Instance) -> Iterator[None]:
    """If the body fails or is interrupted, end QEMU and remove what a failed boot leaves besides its logs."""
    try:
        yield
    except BaseException:
        try:
            machine.stop(instance.pidfile, instance.sockets_in_use / "qmp", KILL_LIMIT)
            remove(*instance.transient)
            instance.remove_sockets()
        except (StoreError, StopError) as error:  # must not hide the error that led here
            log.error("%s", error.about(instance.name).explain())
        raise
