"""The tasks that boot a guest, which is the main job, and stop it."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, cast

import luigi

from pipeline.errors import AlreadyRunning, GuestDied, StaleInstance
from pipeline.settings import Ready, Timeouts
from pipeline.store import freshness
from pipeline.store.digest_cache import DigestCache
from pipeline.store.freshness import Key, Reason
from pipeline.vm.instance import Instance
from pipeline.vm.launcher import Launcher
from pipeline.vm.qemu.profile import settings_of
from tasks.engine.artifact import Check, FreshTask, Tasks
from tasks.engine.context import context, say_once
from tasks.engine.parameters import Choice, InstanceName
from tasks.engine.resources import BuildTask
from tasks.engine.targets import InstanceTarget
from tasks.prepare import ExtendedBlk, InitrdWithKey, SSHKeyPair

log = logging.getLogger("topcoat")


class BootInstance(BuildTask, FreshTask):
    """A running guest, proved ready. While it lives and is what a boot would make now, the task has nothing to do."""

    version: ClassVar[int] = 1
    needs = ("qemu", "qemu-img", "kernel", *InitrdWithKey.needs, *ExtendedBlk.needs)

    name = InstanceName(default="i0", description="the name of the instance")
    ready = Choice(
        choices=("ssh", "marker"), default="", significant=False, description="what proves it ready: ssh or marker"
    )
    replace = luigi.BoolParameter(significant=False, description="stop a running instance that is stale, and boot anew")

    @property
    def instance(self) -> Instance:
        return Instance.named(context().settings.store, self.name)

    @property
    def refuses(self) -> bool:
        """Whether the instance runs and must not be replaced, so that a run fails if it is stale."""
        return not self.replace and self.output().exists()

    def prerequisites(self) -> Tasks:
        return {"key": SSHKeyPair(), "initrd": InitrdWithKey(), "disk": ExtendedBlk()}

    def requires(self) -> Tasks:
        """Nothing if the instance runs and must not be replaced: what it was made of stays as it is."""
        return {} if self.refuses else super().requires()

    def below(self) -> Tasks:
        return self.missing() or {**self.providers(), **self.prerequisites()}

    def cost(self) -> float | None:
        return self.instance.boot_seconds()

    def output(self) -> InstanceTarget:
        return InstanceTarget(self.instance)

    def inputs(self) -> Mapping[str, Path]:
        build = context().build
        (initrd,), (disk,) = InitrdWithKey().artifacts(), ExtendedBlk().artifacts()
        return {"initrd": initrd, "disk": disk, "kernel": build.path("kernel")}

    def key(self, known: DigestCache) -> Key:
        """The key of all that the guest is booted with, as it is now."""
        settings, build = context().settings, context().build
        inputs = {name: known.of(path) for name, path in self.inputs().items()}
        tools = {"qemu": known.of(build.path("qemu"))}
        return Key(self.task_family, self.version, settings_of(settings.qemu, build), inputs, tools)

    def why(self, check: Check) -> Reason | None:
        """Why the guest must be booted: it does not run, has halted, or something has changed since it was booted."""
        handle = self.instance.live_handle()
        if handle is None:
            return Reason("not running")
        if line := self.instance.halt():
            return Reason(f"its kernel has halted: {line}")
        if missing := self.missing():
            return Reason(f"{next(iter(missing))} is missing")
        if stale := check.first_stale({**self.providers(), **self.prerequisites()}):
            return stale
        difference = freshness.changed(handle.made_of, self.key(check.digests))
        return Reason(difference) if difference else None

    def complete(self) -> bool:
        done = super().complete()
        if done:
            say_once(logging.INFO, f"{self.name} is running: topcoat ssh {self.name}")
        return done

    def run(self) -> None:
        from pipeline.vm import launcher

        self.clear_the_way()
        attempts = context().settings.boot.attempts
        with suppress(AlreadyRunning):  # another process was quicker; what it booted is looked at below
            launcher.start(self.launcher(), attempts).close()
        reason, line = Check(context().digests).why(self), self.instance.halt()
        if reason and (line or not self.output().exists()):
            raise GuestDied(
                f"{self.name} was ready, and ended at once" + (f": {line}" if line else ""),
                stage="ready",
                hint=f"see its last words: topcoat logs {self.name}",
                cause="ended at once",
            )
        if reason:
            raise self.stale(f"was booted, but meanwhile something has changed: {reason}")

    def launcher(self) -> Launcher:
        """The launcher that boots the instance as the settings say now."""
        from pipeline.vm.qemu.launcher import QemuLauncher

        settings, build = context().settings, context().build
        ready = cast(Ready, self.ready or settings.boot.ready)
        return QemuLauncher(settings, build, self.instance, ready, self.key(context().digests))

    def clear_the_way(self) -> None:
        """Stop the instance if it runs and is stale. Raises StaleInstance instead if --replace is not set."""
        from pipeline.vm.qemu import stopping

        handle, reason = self.instance.live_handle(), Check(context().digests).why(self)
        if reason is None or handle is None:
            return
        if not self.replace:
            what = "" if self.instance.halt() else "it is not what a boot would make now: "
            raise self.stale(f"is running, but {what}{reason}")
        log.info("%s: stopping %s, which is stale: %s", self.title, self.name, reason)
        stopping.stop(self.instance, Timeouts().stop, handle)

    def stale(self, problem: str) -> StaleInstance:
        """The error about the running instance with this problem."""
        return StaleInstance(
            f"{self.name} {problem}",
            hint=f"to stop it and boot anew: luigi --module tasks BootInstance --name {self.name} --replace",
        )


class StopInstance(FreshTask):
    """An instance whose guest has ended, with nothing left of it but logs."""

    name = InstanceName(default="i0", description="the name of the instance")
    gently = luigi.BoolParameter(significant=False, description="press the guest's power button first")

    @property
    def instance(self) -> Instance:
        return Instance.named(context().settings.store, self.name)

    def why(self, check: Check) -> Reason | None:
        """Why the instance must be stopped: its state, or the files that it has left behind."""
        state = self.instance.state()
        if state == "stopped":
            return Reason("it has left files behind") if self.instance.has_remains else None
        return Reason(f"it is {state}")

    def run(self) -> None:
        from pipeline.vm.qemu import stopping

        how = stopping.stop(self.instance, Timeouts().stop, gently=self.gently)
        log.info("%s: %s", self.name, stopping.ENDED[how])
