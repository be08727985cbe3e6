"""The tasks that boot a guest, which is the main job, and stop it."""

import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, cast

import luigi

from pipeline.errors import AlreadyRunning, GuestDied, StaleInstance, TopcoatError
from pipeline.settings import Ready, Timeouts, Warm
from pipeline.store import freshness
from pipeline.store.digest_cache import DigestCache
from pipeline.store.digests import digest_of_text
from pipeline.store.freshness import Key, Proof, Reason
from pipeline.text.printable import one_line
from pipeline.vm.handle import DISK
from pipeline.vm.instance import Instance
from pipeline.vm.launcher import Launcher
from pipeline.vm.qemu.profile import settings_of
from pipeline.vm.template import PublishedTemplate, Template, warm
from tasks.engine.artifact import Check, FreshTask, Tasks
from tasks.engine.context import context, say_once
from tasks.engine.parameters import Choice, InstanceName
from tasks.engine.resources import BuildArtifactTask, BuildTask
from tasks.engine.targets import InstanceTarget
from tasks.prepare import ExtendedBlk, InitrdWithKey, SSHKeyPair
from tasks.targets import TargetsImage

log = logging.getLogger("topcoat")


NEEDS = ("qemu", "qemu-img", "kernel", *InitrdWithKey.needs, *ExtendedBlk.needs)
"""The keys of all files of the build that a boot needs."""


def images() -> Tasks:
    """The tasks that make what a guest is booted with, by the names that their files have in keys."""
    targets: Tasks = {"targets": TargetsImage()} if context().build.targets else {}
    return {"key": SSHKeyPair(), "initrd": InitrdWithKey(), "disk": ExtendedBlk(), **targets}


def key_of_boot(known: DigestCache) -> Key:
    """The key of all that a guest is booted with, as it is now. Raises OSError."""
    settings, build = context().settings, context().build
    (initrd,), (disk,) = InitrdWithKey().artifacts(), ExtendedBlk().artifacts()
    targets = {DISK: build.targets.image} if build.targets else {}
    inputs = {"initrd": initrd, "disk": disk, "kernel": build.path("kernel"), **targets}
    digests = {name: known.of(path) for name, path in inputs.items()}
    tools = {"qemu": known.of(build.path("qemu"))}
    return Key("BootInstance", BootInstance.version, settings_of(settings.qemu, build), digests, tools)


class BootTemplate(BuildArtifactTask):
    """A booted guest, saved when it was ready and proved by two clones. Instances are made as clones of it."""

    needs = NEEDS

    @property
    def template(self) -> Template:
        chosen, build = context().settings, context().build
        return Template(chosen.store.template(build.name))

    def prerequisites(self) -> Tasks:
        return images()

    def artifacts(self) -> tuple[Path, ...]:
        return self.template.files

    def key(self, known: DigestCache, without: Collection[str] = ()) -> Key:
        """The key of all that a boot depends on, of the whole command line, and of the host's CPU."""
        from pipeline.host.resources import cpu_model
        from pipeline.vm.qemu.plan import command_of

        command = digest_of_text(command_of(context().settings, context().build))
        boot = key_of_boot(known).without(without)
        return Key(
            self.task_family,
            self.version,
            {**boot.parameters, "host cpu": cpu_model()},
            {**boot.inputs, "command line": command},
            boot.tools,
        )

    def why(self, check: Check) -> Reason | None:
        """The first reason why another template must be made: it is not fresh, or a clone of it has failed."""
        reason, doubt = super().why(check), self.template.doubt()
        return reason or (Reason(doubt) if doubt else None)

    def make(self, made: Sequence[Path]) -> Proof:
        from pipeline.vm.qemu import saving

        settings, build = context().settings, context().build
        return saving.make(settings, build, key_of_boot(context().digests), made[0].parent)

    def published(self) -> PublishedTemplate:
        """The template as a launcher needs it, which asks at each boot whether clones can be made of it."""
        return PublishedTemplate(self.template, self.unfit)

    def unfit(self) -> str | None:
        """Why no clone can be made of the template; None if one can be.

        Other than `why`, it looks at the images as they are now, not at what they are made from: a boot would too.
        """
        known = context().digests
        try:
            record = freshness.read(self.template.file)
            if record is None:
                return f"there is no template yet; luigi --module tasks {self.task_family} makes one"
            stale = freshness.changed(record.key, self.key(known)) or freshness.damaged(record, self.files(), known)
        except (OSError, ValueError) as error:
            return f"its template cannot be looked at: {one_line(str(error))}"
        return f"its template is stale: {stale}" if stale else None


def template_of_pool() -> PublishedTemplate | None:
    """The template of the pool's guests, made first if need be; None if they are booted.

    That it could not be made is only logged, but raised if `[boot] warm` is always.
    """
    settings = context().settings
    how = warm(settings.boot.warm, "ssh", settings, context().build)
    if how == "never":
        return None
    try:
        BootTemplate().run()
    except TopcoatError as error:
        if how == "always":
            raise
        log.warning("guests are booted, as no template can be made of which they could be clones: %s", error)
        return None
    return BootTemplate().published()


class BootInstance(BuildTask, FreshTask):
    """A running guest, proved ready. While it lives and is what a boot would make now, the task has nothing to do."""

    version: ClassVar[int] = 1
    needs = NEEDS

    name = InstanceName(default="i0", description="the name of the instance")
    ready = Choice(
        choices=("ssh", "marker"), default="", significant=False, description="what proves it ready: ssh or marker"
    )
    warm = Choice(
        choices=("auto", "always", "never"),
        default="",
        significant=False,
        description="make it as a clone: if there is a template (auto), after making one (always), or never",
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
        return images()

    def requires(self) -> Tasks:
        """Nothing if the instance runs and must not be replaced: what it was made of stays as it is."""
        return {} if self.refuses else self.below()

    def below(self) -> Tasks:
        if missing := self.missing():
            return missing
        template = {"template": BootTemplate()} if self.how_warm() == "always" else {}
        return {**self.providers(), **self.prerequisites(), **template}

    def how_warm(self) -> Warm:
        """Whether the guest is made as a clone. Raises UsageError if it always should be, and cannot."""
        settings = context().settings
        wanted, ready = cast(Warm, self.warm or settings.boot.warm), cast(Ready, self.ready or settings.boot.ready)
        return warm(wanted, ready, settings, context().build)

    def would_clone(self) -> bool:
        """Whether a run would make the guest as a clone, as far as can be told now. Raises UsageError as `how_warm`."""
        how = self.how_warm()
        return how == "always" or (how == "auto" and BootTemplate().published().has_one())

    def cost(self) -> float | None:
        return self.instance.boot_seconds()

    def output(self) -> InstanceTarget:
        return InstanceTarget(self.instance)

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
        difference = freshness.changed(handle.made_of, key_of_boot(check.digests))
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
        templates = None if self.how_warm() == "never" else BootTemplate().published()
        made_of = key_of_boot(context().digests)
        return QemuLauncher(settings, build, self.instance, ready, made_of, templates=templates)

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
