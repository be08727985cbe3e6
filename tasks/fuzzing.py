"""What all tasks have in common that run fuzzers in guests of the pool."""

import multiprocessing
import signal
from typing import ClassVar

from pipeline.host.process import die_with_parent
from pipeline.store.freshness import Reason
from tasks.boot import BootInstance, images
from tasks.demo import DemoCompiler
from tasks.engine.artifact import Check, FreshTask, Tasks
from tasks.engine.context import context
from tasks.engine.resources import BuildTask
from tasks.targets import TargetsImage


class FuzzingTask(BuildTask, FreshTask):
    """A task that runs fuzzers in guests of the pool: it needs all that a boot needs, and the list of fuzzers."""

    needs: ClassVar[tuple[str, ...]] = BootInstance.needs

    def providers(self) -> Tasks:
        """See BuildTask; adds the tasks that make the Linux guest's lists of fuzzers and its llvm-symbolizer."""
        names: Tasks = {"llvm-symbolizer": DemoCompiler()} if "llvm-symbolizer" in context().build.made else {}
        return {**super().providers(), **self.lists(), **names}

    def lists(self) -> Tasks:
        """The task that makes the list of the Linux guest's targets; none if the build has a list of its own."""
        return {"targets": TargetsImage()} if context().build.lists_targets else {}

    def prerequisites(self) -> Tasks:
        return images()

    def unready(self, check: Check) -> Reason | None:
        """Why it cannot be looked at yet what is to be done: what is needed is missing or stale. None if it can be."""
        if missing := self.missing():
            return Reason(f"{next(iter(missing))} is missing")
        return check.first_stale({**self.providers(), **self.prerequisites()})


def end_with_luigi() -> None:
    """Have this process end when luigi does, if it is one of luigi's workers: luigi itself may be killed."""
    if (parent := multiprocessing.parent_process()) and parent.pid:
        die_with_parent(parent.pid, signal.SIGTERM)()
