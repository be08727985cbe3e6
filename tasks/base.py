"""What every task that makes files has in common."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import luigi

from pipeline.publish import locked, remove
from pipeline.targets import ArtifactTarget

log = logging.getLogger("topcoat")

Tasks = Mapping[str, luigi.Task]

_said: set[str] = set()


def say_once(level: int, text: str) -> None:
    """Log a line, unless this process has logged it before: luigi asks every task several times."""
    if text not in _said:
        _said.add(text)
        log.log(level, "%s", text)


class ArtifactTask(luigi.Task):
    """A task that makes files: whole or not at all, and by one process at a time."""

    def artifacts(self) -> tuple[Path, ...]:
        """The files that the task makes. The first one carries the lock."""
        raise NotImplementedError

    def make(self) -> None:
        """Make the files. They do not exist when this is called."""
        raise NotImplementedError

    def output(self) -> list[ArtifactTarget]:
        """The files as luigi knows them."""
        return [ArtifactTarget(path) for path in self.artifacts()]

    def complete(self) -> bool:
        """Whether all files are there, everything before is complete, and nothing before is newer."""
        outputs = self.output()
        if not all(target.exists() for target in outputs):
            return False
        before = self.deps()
        if not all(task.complete() for task in before):
            return False
        inputs = [target for task in before for target in luigi.task.flatten(task.output())]
        oldest = min(_made_at(target) for target in outputs)
        return all(_made_at(target) <= oldest for target in inputs)

    def run(self) -> None:
        """Make the files unless another process has just made them."""
        artifacts = self.artifacts()
        with locked(artifacts[0]):
            if self.complete():
                return
            started = time.monotonic()
            remove(*artifacts)
            self.make()
            names = ", ".join(path.name for path in artifacts)
            log.info("%s: made %s in %.1f s", self.task_family, names, time.monotonic() - started)


def _made_at(target: ArtifactTarget) -> int:
    return target.path.stat().st_mtime_ns
