"""The files that a build brings, and the base of tasks that need some of them."""

import logging
from collections.abc import Callable, Mapping
from typing import ClassVar, TypeVar

import luigi

from pipeline.errors import MissingResource, StoreError
from pipeline.host.tools import Tool
from pipeline.store.freshness import Proof, Reason
from tasks.engine.artifact import ArtifactTask, Check, Tasks
from tasks.engine.context import context, say_once
from tasks.engine.targets import ArtifactTarget

TaskClass = TypeVar("TaskClass", bound=type[luigi.Task])

_makers: dict[str, type[luigi.Task]] = {}


def makes(*keys: str) -> Callable[[TaskClass], TaskClass]:
    """A class decorator: the task makes these files of the Linux guest, so tasks that need one of them require it."""

    def note(task: TaskClass) -> TaskClass:
        _makers.update(dict.fromkeys(keys, task))
        return task

    return note


class BuildResource(luigi.ExternalTask):
    """A file that the build must bring. While it is missing, luigi ends with exit code 20."""

    key = luigi.Parameter()

    def complete(self) -> bool:
        """Whether the file is there. If not, the reason is logged once."""
        try:
            context().build.require(self.key)
        except MissingResource as error:
            say_once(logging.ERROR, error.explain())
            return False
        return True

    def output(self) -> ArtifactTarget:
        """The file as a target of luigi."""
        return ArtifactTarget(context().build.path(self.key))


class StoreRoot(luigi.ExternalTask):
    """The directory of the store. While it cannot be written to, luigi ends with exit code 20."""

    def complete(self) -> bool:
        """Whether files can be made in the store. If not, the reason is logged once."""
        try:
            context().settings.store.require_writable()
        except StoreError as error:
            say_once(logging.ERROR, error.explain())
            return False
        return True


class BuildTask(luigi.Task):
    """A task that needs the store and files of the build. While one of them is missing, it requires nothing else."""

    needs: ClassVar[tuple[str, ...]] = ()
    """The keys of the needed files of the build, including those that the prerequisites need."""

    def prerequisites(self) -> Tasks:
        """The tasks that must be done before, other than those for files of the build, by name."""
        return {}

    def requires(self) -> Tasks:
        """What is missing; if nothing is, the tasks that provide files of the build, and all prerequisites."""
        return self.missing() or {**self.providers(), **self.prerequisites()}

    def missing(self) -> Tasks:
        """The tasks for what is not there: the store, by "store", and files of the build, by key."""
        wanted: Tasks = {"store": StoreRoot(), **{key: BuildResource(key=key) for key in self.needs}}
        return {key: task for key, task in wanted.items() if not task.complete()}

    def providers(self) -> Tasks:
        """The tasks that make or check the needed files of the build, by key, without tools that Topcoat replaces."""
        found = context().build
        made = {key: maker() for key, maker in _makers.items() if key in found.made}
        return {key: made.get(key) or BuildResource(key=key) for key in self.needs if key not in found.own_tools}


class BuildArtifactTask(BuildTask, ArtifactTask):
    """A task that makes files from files of the build."""

    uses: ClassVar[tuple[str, ...]] = ()
    """The keys among `needs` whose files are programs that the task runs."""

    proved: ClassVar[bool] = False
    """Whether `make` checks what it has made, unless `[tools] proof` is off."""

    def must_be_proved(self, proof: Proof | None) -> bool:
        """Whether wanted checks are missing, or the proof has a doubt although luigi.cfg says `[tools] proof = on`."""
        tools = context().settings.tools
        return self.proved and tools.proof and (proof is None or (tools.strict and "doubt" in proof))

    def tools(self) -> Mapping[str, Tool]:
        """The programs of `uses`: the build's, or Topcoat's own in their place."""
        found = context().build
        return {key: found.tool(key) for key in self.uses}

    def why(self, check: Check) -> Reason | None:
        """The first reason why the files must be made: a missing file of the build comes before all others."""
        missing = self.missing()
        return Reason(f"{next(iter(missing))} is missing") if missing else super().why(check)
