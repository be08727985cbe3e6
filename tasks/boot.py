"""The main job: a guest that answers."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, cast

import luigi

from pipeline import freshness
from pipeline.digest_cache import DigestCache
from pipeline.errors import AlreadyRunning, GuestDied, StaleInstance
from pipeline.freshness import Key, Reason
from pipeline.instance import ENDED, Instance
from pipeline.launcher import Launcher
from pipeline.qemu.guest import settings_of
from pipeline.settings import Ready, Timeouts, load
from pipeline.targets import InstanceTarget
from tasks.base import Check, FreshTask, Tasks, digests, say_once
from tasks.build import BuildTask, current
from tasks.parameters import Choice, InstanceName
from tasks.prepare import ExtendedBlk, InitrdWithKey, SSHKeyPair

log = logging.getLogger("topcoat")


class BootInstance(BuildTask, FreshTask):
    """A running guest, proved ready. While it lives and is what a boot would make today, running it does nothing."""

    version: ClassVar[int] = 1
    needs = ("qemu", "qemu-img", "kernel", *InitrdWithKey.needs, *ExtendedBlk.needs)

    name = InstanceName(default="i0", description="the name of the instance")
    ready = Choice(
        choices=("ssh", "marker"), default="", significant=False, description="what proves it ready: ssh or marker"
    )
    replace = luigi.BoolParameter(significant=False, description="stop a running instance that is stale, and boot anew")

    @property
    def instance(self) -> Instance:
        return Instance.named(load().store, self.name)

    @property
    def refuses(self) -> bool:
        """Whether a run would rather fail than replace what is running."""
        return not self.replace and self.output().exists()

    def prerequisites(self) -> Tasks:
        return {"key": SSHKeyPair(), "initrd": InitrdWithKey(), "disk": ExtendedBlk()}

    def requires(self) -> Tasks:
        """Nothing for a running instance that must not be replaced: what it was made of stays as it is."""
        return {} if self.refuses else super().requires()

    def output(self) -> InstanceTarget:
        return InstanceTarget(self.instance)

    def inputs(self) -> Mapping[str, Path]:
        _, build = current()
        (initrd,), (disk,) = InitrdWithKey().artifacts(), ExtendedBlk().artifacts()
        return {"initrd": initrd, "disk": disk, "kernel": build.path("kernel")}

    def key(self, known: DigestCache) -> Key:
        """All that the guest is booted with."""
        settings, build = current()
        inputs = {name: known.of(path) for name, path in self.inputs().items()}
        tools = {"qemu": known.of(build.path("qemu"))}
        return Key(self.task_family, self.version, settings_of(settings.qemu, build), inputs, tools)

    def why(self, check: Check) -> Reason | None:
        """Why the guest must be booted: it is not running, or the first thing that has changed since it was booted."""
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
        from pipeline import launcher

        self.clear_the_way()
        attempts = load().boot.attempts
        with suppress(AlreadyRunning):  # another process was quicker; what it booted is looked at below
            launcher.start(self.launcher(), attempts).close()
        reason, line = Check(digests()).why(self), self.instance.halt()
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
        """What boots the instance as the settings say now."""
        from pipeline.qemu.launcher import QemuLauncher

        settings, build = current()
        ready = cast(Ready, self.ready or settings.boot.ready)
        return QemuLauncher(settings, build, self.instance, ready, self.key(digests()))

    def clear_the_way(self) -> None:
        """Stop a stale instance if that is wanted. Raises StaleInstance if it is not."""
        handle, reason = self.instance.live_handle(), Check(digests()).why(self)
        if reason is None or handle is None:
            return
        if not self.replace:
            what = "" if self.instance.halt() else "it is not what a boot would make now: "
            raise self.stale(f"is running, but {what}{reason}")
        log.info("%s: stopping %s, which is stale: %s", self.title, self.name, reason)
        self.instance.stop(Timeouts().stop, handle)

    def stale(self, problem: str) -> StaleInstance:
        """What to raise about the running instance."""
        return StaleInstance(
            f"{self.name} {problem}",
            hint=f"to stop it and boot anew: luigi --module tasks BootInstance --name {self.name} --replace",
        )


class StopInstance(FreshTask):
    """A guest that has ended. Its logs stay."""

    name = InstanceName(default="i0", description="the name of the instance")
    gently = luigi.BoolParameter(significant=False, description="press the guest's power button first")

    @property
    def instance(self) -> Instance:
        return Instance.named(load().store, self.name)

    def why(self, check: Check) -> Reason | None:
        """That something of it is still there."""
        state = self.instance.state()
        if state == "stopped":
            return Reason("it has left files behind") if self.instance.has_remains else None
        return Reason(f"it is {state}")

    def run(self) -> None:
        how = self.instance.stop(Timeouts().stop, gently=self.gently)
        log.info("%s: %s", self.name, ENDED[how])
