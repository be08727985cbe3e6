"""The files that a build brings, and tasks that need some of them."""

import logging
from collections.abc import Callable
from typing import ClassVar

import luigi

from pipeline import build, settings
from pipeline.build import Build
from pipeline.errors import MissingResource, StoreError
from pipeline.settings import Settings
from pipeline.targets import ArtifactTarget
from tasks.base import Tasks, say_once
from tasks.demo import DemoDisk, DemoInitramfs, DemoKernel

_DEMO: dict[str, type[luigi.Task]] = {"zbi": DemoInitramfs, "blk": DemoDisk, "kernel": DemoKernel}


def current() -> tuple[Settings, Build]:
    """Today's settings and build. Raises MissingResource or SettingsError."""
    chosen = settings.load()
    found = build.load(chosen)
    say_once(logging.INFO, f"build: {found.name} ({found.why})")
    return chosen, found


class BuildResource(luigi.ExternalTask):
    """A file that the build must bring. While one is missing, luigi ends with exit code 20."""

    key = luigi.Parameter()

    def complete(self) -> bool:
        """Whether the file is there; why not is logged once."""
        try:
            current()[1].require(self.key)
        except MissingResource as error:
            say_once(logging.ERROR, error.explain())
            return False
        return True

    def output(self) -> ArtifactTarget:
        """The file."""
        return ArtifactTarget(current()[1].path(self.key))


class StoreRoot(luigi.ExternalTask):
    """The store. While it cannot be written to, luigi ends with exit code 20."""

    def complete(self) -> bool:
        """Whether files can be made in the store; why not is logged once."""
        try:
            settings.load().store.require_writable()
        except StoreError as error:
            say_once(logging.ERROR, error.explain())
            return False
        return True


class BuildTask(luigi.Task):
    """A task that needs the store and files of the build. While one is missing, nothing else is even scheduled."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Keys of the build, including those that prerequisites need."""

    def prerequisites(self) -> Tasks:
        """The other tasks that must be done before."""
        return {}

    def requires(self) -> Tasks:
        """The missing files; if there are none, what provides the files, and all prerequisites."""
        return self._missing() or {**self._providers(), **self.prerequisites()}

    def complete(self) -> bool:
        """Never while a file of the build is missing."""
        complete: Callable[[], bool] = super().complete
        return not self._missing() and complete()

    def _missing(self) -> Tasks:
        wanted: Tasks = {"store": StoreRoot(), **{key: BuildResource(key=key) for key in self.needs}}
        return {key: task for key, task in wanted.items() if not task.complete()}

    def _providers(self) -> Tasks:
        found = current()[1]
        made = {key: maker() for key, maker in _DEMO.items() if key in found.demo_made}
        return {key: made.get(key) or BuildResource(key=key) for key in self.needs if key not in found.own_tools}
