"""What every task that makes files has in common: it makes them when they are stale, and says why."""

import functools
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import luigi

from pipeline import freshness, settings
from pipeline.deadline import utc_now
from pipeline.digests import Digests
from pipeline.freshness import Key
from pipeline.publish import locked, remove
from pipeline.targets import ArtifactTarget
from pipeline.tools import Tool

log = logging.getLogger("topcoat")

Tasks = Mapping[str, luigi.Task]

_said: set[str] = set()
_digests: dict[Path, Digests] = {}


def say_once(level: int, text: str) -> None:
    """Log a line, unless this process has logged it before: luigi asks every task several times."""
    if text not in _said:
        _said.add(text)
        log.log(level, "%s", text)


def digests() -> Digests:
    """The digests that are known in the store."""
    path = settings.load().store.cache / "digests.json"
    return _digests.setdefault(path, Digests(path))


class Check:
    """One look at the graph: every task is asked once, however many depend on it."""

    def __init__(self, known: Digests) -> None:
        self.digests = known
        self._reasons: dict[str, str | None] = {}

    def why(self, task: luigi.Task) -> str | None:
        """Why the task would run: None if it is done. For an artifact, the first reason that there is."""
        if task.task_id not in self._reasons:
            ask = getattr(task, "why", None)
            done = None if ask else task.complete()
            self._reasons[task.task_id] = ask(self) if ask else (None if done else "missing")
        return self._reasons[task.task_id]


class ArtifactTask(luigi.Task):
    """A task that makes files: whole or not at all, by one process at a time, and only when they are stale."""

    version: ClassVar[int] = 1
    """To be raised by hand when `make` makes something else of the same inputs."""

    @classmethod
    @functools.cache  # luigi asks four times for each instance, and looks through the whole class each time
    def get_params(cls) -> list[tuple[str, luigi.Parameter]]:
        """The parameters of the class."""
        look: Callable[[], list[tuple[str, luigi.Parameter]]] = super().get_params
        return look()

    def artifacts(self) -> tuple[Path, ...]:
        """The files that the task makes. The first one carries the lock and the record."""
        raise NotImplementedError

    def make(self) -> None:
        """Make the files. They do not exist when this is called."""
        raise NotImplementedError

    def requires(self) -> Tasks:
        """What must be done before, by the names that stand in the record."""
        return {}

    def tools(self) -> Mapping[str, Tool]:
        """The programs whose work the files are."""
        return {}

    def inputs(self) -> Mapping[str, Path]:
        """The files that go in: those of all that is required, but for the tools."""
        found: dict[str, Path] = {}
        for name, task in self.requires().items():
            paths = [target.path for target in luigi.task.flatten(task.output())]
            found |= {name: paths[0]} if len(paths) == 1 else {f"{name}/{path.name}": path for path in paths}
        return {name: path for name, path in found.items() if name not in self.tools()}

    def key(self, known: Digests) -> Key:
        """All that the files depend on, as it is now. Raises OSError if an input cannot be read."""
        return Key(
            task=self.task_family,
            version=self.version,
            parameters={name: str(value) for name, value in self.param_kwargs.items()},
            inputs={name: known.of(path) for name, path in self.inputs().items()},
            tools={name: known.of(tool.file) for name, tool in self.tools().items()},
        )

    def why(self, check: Check) -> str | None:
        """Why the files must be made: the first reason, or None if they are fresh."""
        artifacts = self.artifacts()
        try:
            record = freshness.read(artifacts[0])
        except ValueError as error:
            return str(error)
        if record is None:
            return "no record" if artifacts[0].exists() else "missing"
        for name, task in self.requires().items():
            if check.why(task) is not None:
                return f"{name} is stale"
        difference = freshness.changed(record.key, self.key(check.digests))
        return difference or freshness.damaged(record, artifacts, check.digests)

    def output(self) -> list[ArtifactTarget]:
        """The files as luigi knows them."""
        return [ArtifactTarget(path) for path in self.artifacts()]

    def complete(self) -> bool:
        """Whether the files are fresh, and all that they are made of."""
        known = digests()
        fresh = Check(known).why(self) is None
        known.save()
        return fresh

    def run(self) -> None:
        """Make the files unless they are fresh by now: another process made them, or what they need came out equal."""
        artifacts, known = self.artifacts(), digests()
        with locked(artifacts[0]):
            reason = Check(known).why(self)
            if reason is None:
                return
            log.info("%s: %s", self.task_family, reason)
            remove(freshness.record_path(artifacts[0]), *artifacts)
            key = self.key(known)
            started = time.monotonic()
            self.make()
            seconds = time.monotonic() - started
            freshness.write(artifacts, key, utc_now(), seconds, known)
            known.save()
            log.info("%s: made %s in %.1f s", self.task_family, ", ".join(path.name for path in artifacts), seconds)
