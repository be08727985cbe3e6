"""The base of all tasks that make files: such a task makes them only when they are stale, and says why."""

import functools
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import luigi

from pipeline.errors import InputChanged, UsageError
from pipeline.host.deadline import utc_now
from pipeline.host.faults import host_faults
from pipeline.host.locks import locked
from pipeline.host.tools import Tool
from pipeline.store import freshness
from pipeline.store.digest_cache import DigestCache
from pipeline.store.digests import combined
from pipeline.store.freshness import Key, Proof, Reason
from pipeline.store.publish import remove, replacing
from tasks.engine.context import context
from tasks.engine.defaults import refuse, refusing
from tasks.engine.targets import ArtifactTarget

log = logging.getLogger("topcoat")

Tasks = Mapping[str, luigi.Task]


def workers() -> int:
    """The value of luigi's --workers. Ends the process if it is below 1: luigi would do nothing, or hang."""
    count: int = luigi.interface.core().workers
    if count < 1:
        refuse(UsageError(f"--workers {count}: nobody would work", hint="let it be 1, or more"))
    return count


class Check:
    """One look at the graph of tasks: every task is asked once, however many tasks depend on it."""

    def __init__(self, known: DigestCache) -> None:
        self.digests = known
        self._reasons: dict[str, Reason | None] = {}

    def why(self, task: luigi.Task) -> Reason | None:
        """The first reason why the task would run, or None if it is done."""
        name = task.task_id
        if name not in self._reasons:
            self._reasons[name] = task.why(self) if isinstance(task, FreshTask) else _missing(task)
        return self._reasons[name]

    def first_stale(self, tasks: Tasks) -> Reason | None:
        """The first of these tasks that is not done, as a reason with its name and cause; None if all are done."""
        return _first((name, self.why(task)) for name, task in tasks.items())


def _first(reasons: Iterable[tuple[str, Reason | None]]) -> Reason | None:
    return next((Reason(f"{name} is stale", reason) for name, reason in reasons if reason), None)


def _missing(task: luigi.Task) -> Reason | None:
    return None if task.complete() else Reason("missing")


class FreshTask(luigi.Task):
    """A task that can say why it would run."""

    @classmethod
    @functools.cache  # luigi asks four times for each instance, and looks through the whole class each time
    def get_params(cls) -> list[tuple[str, luigi.Parameter]]:
        """The names and parameters of the class, as luigi's own method returns them."""
        look: Callable[[], list[tuple[str, luigi.Parameter]]] = super().get_params
        return look()

    def why(self, check: Check) -> Reason | None:
        """The first reason why the task would run, or None if it and all tasks that it depends on are done."""
        raise NotImplementedError

    @property
    def refuses(self) -> bool:
        """Whether a run would fail instead of doing what `why` says must be done."""
        return False

    def below(self) -> Tasks:
        """The tasks that this one depends on, by name, even if it requires none of them at the moment."""
        required: Tasks = self.requires()
        return required

    def cost(self) -> float | None:
        """How many seconds the task took the last time, or None if that is not known."""
        return None

    def follow(self) -> str:
        """The command that shows the progress of another process that runs the same task."""
        return "topcoat instances"

    def complete(self) -> bool:
        """Whether nothing must be done. If that cannot be found out, ends luigi, which would print a traceback."""
        workers()
        known = context().digests
        with refusing():
            fresh = Check(known).why(self) is None
        known.save()
        return fresh

    def unusual(self) -> dict[str, str]:
        """The significant parameters whose values differ from those in luigi.cfg or, failing that, the defaults."""
        return {
            name: str(self.param_kwargs[name])
            for name, parameter in self.get_params()
            if parameter.significant
            and not (
                parameter.has_task_value(self.task_family, name)
                and parameter.task_value(self.task_family, name) == self.param_kwargs[name]
            )
        }

    @property
    def title(self) -> str:
        """The task's name for people: the class, with the parameters of `unusual` in brackets."""
        shown = ", ".join(f"{name}={value}" for name, value in self.unusual().items())
        return f"{self.task_family}({shown})" if shown else str(self.task_family)


class WrapperTask(FreshTask, luigi.WrapperTask):
    """A task that only requires others, like luigi's, but what several of these need is looked at only once."""

    def requires(self) -> Tasks:
        """The required tasks, by names for people."""
        raise NotImplementedError

    def why(self, check: Check) -> Reason | None:
        """The first required task that is not done, as a reason; None if all are done."""
        return check.first_stale(self.requires())


class ArtifactTask(FreshTask):
    """A task that makes files: wholly or not at all, in one process at a time, and only when they are stale."""

    version: ClassVar[int] = 1
    """The version of `make`: raise it by hand when the same inputs give another result."""

    def artifacts(self) -> tuple[Path, ...]:
        """The paths of what the task makes: files, and directories with files in them, all in one directory.

        The first one is a file, beside which the lock and the record lie.
        """
        raise NotImplementedError

    def make(self, made: Sequence[Path]) -> Proof | None:
        """Make the artifacts at the paths `made`, which are in the order of `artifacts`.

        The paths are in a private directory and have the artifacts' names. If this raises, the old artifacts stay.
        Returns the results of the checks on what was made, or None if there were none.
        """
        raise NotImplementedError

    def files(self) -> Mapping[str, Path]:
        """All files of the artifacts by their names in the record: those in directories by their paths below these."""
        return {name: file for path in self.artifacts() for name, file in _files(path).items()}

    def discover(self) -> None:
        """Find inputs that only other inputs tell of, such as included headers; called before the files are made.

        What is found must be in `inputs` from then on, also in other processes.
        """

    def must_be_proved(self, proof: Proof | None) -> bool:
        """Whether files whose record has this proof must be made again, for lack of a better one."""
        return False

    def requires(self) -> Tasks:
        """The tasks that must be done before, by the names that their files have in the record."""
        return {}

    def tools(self) -> Mapping[str, Tool]:
        """The programs that make the files, by the names that they have in the record."""
        return {}

    def inputs(self) -> Mapping[str, Path]:
        """The paths of the input files except tools, by name: "NAME", or "NAME/FILE" if the task NAME makes several."""
        found: dict[str, Path] = {}
        for name, task in self.requires().items():
            paths = [target.path for target in luigi.task.flatten(task.output())]
            found |= {name: paths[0]} if len(paths) == 1 else {f"{name}/{path.name}": path for path in paths}
        return {name: path for name, path in found.items() if name not in self.tools()}

    def key(self, known: DigestCache, without: Collection[str] = ()) -> Key:
        """The key of all that the files depend on, as it is now, except what the required tasks in `without` make.

        Raises OSError if an input cannot be read.
        """
        inputs = self.inputs().items()
        return Key(
            task=self.task_family,
            version=self.version,
            parameters={name: str(value) for name, value in self.param_kwargs.items()},
            inputs={name: known.of(path) for name, path in inputs if name.partition("/")[0] not in without},
            tools={name: combined([known.of(file) for file in tool.files]) for name, tool in self.tools().items()},
        )

    def why(self, check: Check) -> Reason | None:
        """The first reason why the files must be made, or None if they are fresh."""
        artifact = self.artifacts()[0]
        try:
            record = freshness.read(artifact)
        except ValueError as error:
            return Reason(str(error))
        if record is None:
            return Reason("no record" if artifact.exists() else "missing")
        stale = {name: reason for name, task in self.requires().items() if (reason := check.why(task))}
        made_of = record.key.without(stale) if stale else record.key
        try:
            own = freshness.changed(made_of, self.key(check.digests, stale))
        except OSError as error:  # the run says the same, with a hint
            return Reason(f"an input cannot be read: {error.strerror}: {error.filename}")
        own = own or freshness.damaged(record, self.files(), check.digests)
        own = own or ("not proved" if self.must_be_proved(record.proof) else None)
        return Reason(own) if own else _first(stale.items())

    def cost(self) -> float | None:
        """How many seconds it took to make the files, as their record says; None without a readable record."""
        try:
            record = freshness.read(self.artifacts()[0])
        except ValueError:
            return None
        return record.seconds if record else None

    def output(self) -> list[ArtifactTarget]:
        """The files as targets of luigi."""
        return [ArtifactTarget(path) for path in self.files().values()]

    def run(self) -> None:
        """Make the files, unless they are fresh by now: another process made them, or their inputs came out as before.

        Raises InputChanged if an input changes while they are made.
        """
        artifact, known = self.artifacts()[0], context().digests
        with locked(artifact):
            reason = Check(known).why(self)
            if reason is None:
                return
            log.info("%s: %s", self.title, reason)
            if not reason.certain:
                raise _changed(self, str(reason))
            seconds = self._remake(known)
            log.info("%s: made %s in %.1f s", self.title, _names([*self.files()]), seconds)

    def _remake(self, known: DigestCache) -> float:
        """Make the files, then replace the old ones by them, then write the record.

        If anything fails before all files are made, the old ones stay, as stale ones. Returns how many seconds it took
        to make them.
        """
        self.discover()
        key, artifacts = self._key_now(known), self.artifacts()
        remove(freshness.record_path(artifacts[0]))
        started = time.monotonic()
        with replacing(artifacts) as made:
            proof = self.make(made)
            seconds = time.monotonic() - started
            if difference := freshness.changed(key, self._key_now(known)):
                raise _changed(self, difference)
        freshness.write(artifacts[0], self.files(), key, utc_now(), seconds, known, proof)
        known.save()
        return seconds

    def _key_now(self, known: DigestCache) -> Key:
        with host_faults(f"reading what {self.title} is made of"):
            return self.key(known)


def _files(path: Path) -> dict[str, Path]:
    """All files in a directory and below it by their paths there, sorted; for anything else, itself by its name."""
    if not path.is_dir():
        return {path.name: path}
    return {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}


def _names(names: Sequence[str]) -> str:
    first, *others = names
    return f"{first} and {len(others)} others" if len(others) > 2 else ", ".join([first, *others])


def _changed(task: ArtifactTask, difference: str) -> InputChanged:
    return InputChanged(
        f"{task.title} was being made when what it is made of changed: {difference}",
        hint="when nobody works on it any more, the same command again makes it",
    )
