"""The main job: a guest that answers."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, cast

import luigi

from pipeline import freshness
from pipeline.digests import Digests
from pipeline.errors import StaleInstance
from pipeline.freshness import Key
from pipeline.instance import Instance
from pipeline.settings import Ready, Timeouts, load
from pipeline.targets import InstanceTarget
from tasks.base import Check, Tasks, digests, say_once
from tasks.build import BuildTask, current
from tasks.parameters import Choice, InstanceName
from tasks.prepare import ExtendedBlk, InitrdWithKey, SSHKeyPair


class BootInstance(BuildTask):
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

    def prerequisites(self) -> Tasks:
        return {"key": SSHKeyPair(), "initrd": InitrdWithKey(), "disk": ExtendedBlk()}

    def requires(self) -> Tasks:
        """Nothing for a running instance that must not be replaced: what it was made of stays as it is."""
        return super().requires() if self.replace or not self.output().exists() else {}

    def output(self) -> InstanceTarget:
        return InstanceTarget(self.instance)

    def inputs(self) -> Mapping[str, Path]:
        _, build = current()
        (initrd,), (disk,) = InitrdWithKey().artifacts(), ExtendedBlk().artifacts()
        return {"initrd": initrd, "disk": disk, "kernel": build.path("kernel")}

    def key(self, known: Digests) -> Key:
        """All that the guest is booted with."""
        from pipeline.qemu.boot import settings_of

        settings, build = current()
        inputs = {name: known.of(path) for name, path in self.inputs().items()}
        tools = {"qemu": known.of(build.path("qemu"))}
        return Key(self.task_family, self.version, settings_of(settings, build), inputs, tools)

    def why(self, check: Check) -> str | None:
        """Why the guest must be booted: it is not running, or the first thing that has changed since it was booted."""
        handle = self.instance.live_handle()
        if handle is None:
            return "not running"
        if missing := self.missing():
            return f"{next(iter(missing))} is missing"
        for name, task in self.prerequisites().items():
            if reason := check.why(task):
                return f"{name} is stale: {reason}"
        return freshness.changed(handle.made_of, self.key(check.digests))

    def complete(self) -> bool:
        known = digests()
        done = Check(known).why(self) is None
        known.save()
        if done:
            say_once(logging.INFO, f"{self.name} is running: topcoat ssh {self.name}")
        return done

    def run(self) -> None:
        from pipeline.qemu.boot import boot, images_of, plan

        self.clear_the_way()
        settings, build = current()
        images, ready = images_of(settings.store, build), cast(Ready, self.ready or settings.boot.ready)
        boot(plan(settings, build, self.instance, images, ready, self.key(digests())))

    def clear_the_way(self) -> None:
        """Stop a stale instance if that is wanted. Raises StaleInstance if it is not."""
        reason = Check(digests()).why(self)
        if not self.output().exists():
            return
        if not self.replace:
            raise StaleInstance(
                f"{self.name} is running, but it is not what a boot would make now: {reason}",
                hint=f"to stop it and boot anew: luigi --module tasks BootInstance --name {self.name} --replace",
            )
        say_once(logging.INFO, f"BootInstance: stopping {self.name}, which is stale: {reason}")
        self.instance.stop(Timeouts().stop)
