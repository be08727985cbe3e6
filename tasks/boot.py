"""The main job: a guest that answers."""

import logging
from typing import cast

from pipeline.instance import Instance
from pipeline.settings import Ready, load
from pipeline.targets import InstanceTarget
from tasks.base import Tasks, say_once
from tasks.build import BuildTask, current
from tasks.parameters import Choice, InstanceName
from tasks.prepare import ExtendedBlk, InitrdWithKey, SSHKeyPair


class BootInstance(BuildTask):
    """A running guest, proved ready. While it lives, running the task again does nothing."""

    needs = ("qemu", "qemu-img", "kernel", *InitrdWithKey.needs, *ExtendedBlk.needs)

    name = InstanceName(default="i0", description="the name of the instance")
    ready = Choice(
        choices=("ssh", "marker"), default="", significant=False, description="what proves it ready: ssh or marker"
    )

    @property
    def instance(self) -> Instance:
        return Instance.named(load().store, self.name)

    def prerequisites(self) -> Tasks:
        return {"key": SSHKeyPair(), "initrd": InitrdWithKey(), "disk": ExtendedBlk()}

    def output(self) -> InstanceTarget:
        return InstanceTarget(self.instance)

    def complete(self) -> bool:
        alive = self.output().exists()
        if alive:
            say_once(logging.INFO, f"{self.name} is running: topcoat ssh {self.name}")
        return alive

    def run(self) -> None:
        from pipeline.qemu.boot import boot, images_of, plan

        settings, build = current()
        boot(
            plan(
                settings,
                build,
                self.instance,
                images_of(settings.store, build),
                cast(Ready, self.ready or settings.boot.ready),
            )
        )
