"""The files that a build brings, and tasks that need some of them."""

import logging
from collections.abc import Mapping
from typing import ClassVar

import luigi

from pipeline import build, image_tools, settings
from pipeline.build import Build
from pipeline.errors import MissingResource, StoreError
from pipeline.freshness import Proof, Reason
from pipeline.settings import Settings
from pipeline.targets import ArtifactTarget
from pipeline.tools import Tool
from tasks.base import ArtifactTask, Check, Tasks, digests, say_once
from tasks.demo import DemoCompiler, DemoDisk, DemoFuzzers, DemoInitramfs, DemoKernel

_DEMO: dict[str, type[luigi.Task]] = {
    "zbi": DemoInitramfs,
    "blk": DemoDisk,
    "kernel": DemoKernel,
    "fuzzers.json": DemoFuzzers,
    "tests.json": DemoFuzzers,
    "llvm-symbolizer": DemoCompiler,
}


_found: list[tuple[Settings, Build]] = []  # luigi asks every task several times; looking took half of a boot's checks


def current() -> tuple[Settings, Build]:
    """Today's settings and build. One process stays with the build that it has found for the same settings.

    Raises MissingResource or SettingsError.
    """
    chosen = settings.load()
    for known, found in _found:
        if known == chosen:
            return chosen, found
    found = image_tools.settle(build.load(chosen), chosen, digests().of)
    say_once(logging.INFO, f"build: {found.name} ({found.why})")
    for key, why in found.own_why.items():
        say_once(logging.INFO, f"{key}: Topcoat's own: {why}")
    _found[:] = [(chosen, found)]
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
        return self.missing() or {**self.providers(), **self.prerequisites()}

    def missing(self) -> Tasks:
        """The store or the files of the build that are not there."""
        wanted: Tasks = {"store": StoreRoot(), **{key: BuildResource(key=key) for key in self.needs}}
        return {key: task for key, task in wanted.items() if not task.complete()}

    def providers(self) -> Tasks:
        """For each needed file of the build, the task behind it."""
        found = current()[1]
        made = {key: maker() for key, maker in _DEMO.items() if key in found.demo_made}
        return {key: made.get(key) or BuildResource(key=key) for key in self.needs if key not in found.own_tools}


class BuildArtifactTask(BuildTask, ArtifactTask):
    """A task that makes files of files of the build."""

    uses: ClassVar[tuple[str, ...]] = ()
    """Those of `needs` that are programs."""

    proved: ClassVar[bool] = False
    """Whether `make` proves what it has made, unless `[tools] proof` is off."""

    def must_be_proved(self, proof: Proof | None) -> bool:
        """Files that were only believed are made again once proofs are wanted, those in doubt once that is refused."""
        tools = current()[0].tools
        return self.proved and tools.proof and (proof is None or (tools.strict and "doubt" in proof))

    def tools(self) -> Mapping[str, Tool]:
        """The build's programs, or ours in their place."""
        found = current()[1]
        return {key: found.tool(key) for key in self.uses}

    def why(self, check: Check) -> Reason | None:
        """A missing file of the build is a reason before all others."""
        missing = self.missing()
        return Reason(f"{next(iter(missing))} is missing") if missing else super().why(check)
