"""What every task that makes files has in common: it makes them when they are stale, and says why."""

import functools
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import luigi

from pipeline import freshness, settings
from pipeline.deadline import utc_now
from pipeline.digest_cache import DigestCache
from pipeline.digests import combined
from pipeline.errors import InputChanged, UsageError
from pipeline.faults import host_faults
from pipeline.freshness import Key, Proof, Reason
from pipeline.publish import locked, remove, replacing
from pipeline.targets import ArtifactTarget
from pipeline.tools import Tool
from tasks.defaults import refuse, refusing

log = logging.getLogger("topcoat")

Tasks = Mapping[str, luigi.Task]

_said: set[str] = set()
_digests: dict[Path, DigestCache] = {}


def say_once(level: int, text: str) -> None:
    """Log a line, unless this process has logged it before: luigi asks every task several times."""
    if text not in _said:
        _said.add(text)
        log.log(level, "%s", text)


def digests() -> DigestCache:
    """The digests that are known in the store."""
    path = settings.load().store.cache / "digests.jsonl"
    return _digests.setdefault(path, DigestCache(path))


def workers() -> int:
    """Luigi's --workers. Ends the process over fewer than one, with which luigi would do nothing, or hang."""
    count: int = luigi.interface.core().workers
    if count < 1:
        refuse(UsageError(f"--workers {count}: nobody would work", hint="let it be 1, or more"))
    return count


class Check:
    """One look at the graph: every task is asked once, however many depend on it."""

    def __init__(self, known: DigestCache) -> None:
        self.digests = known
        self._reasons: dict[str, Reason | None] = {}

    def why(self, task: luigi.Task) -> Reason | None:
        """Why the task would run: None if it is done. For an artifact, the first reason that there is."""
        name = task.task_id
        if name not in self._reasons:
            self._reasons[name] = task.why(self) if isinstance(task, FreshTask) else _missing(task)
        return self._reasons[name]

    def first_stale(self, tasks: Tasks) -> Reason | None:
        """That one of these tasks is not done, by its name; None if all are."""
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
        """The parameters of the class."""
        look: Callable[[], list[tuple[str, luigi.Parameter]]] = super().get_params
        return look()

    def why(self, check: Check) -> Reason | None:
        """Why the task would run: the first reason, or None if it is done and all that it depends on."""
        raise NotImplementedError

    def follow(self) -> str:
        """The command that tells how another process stands that does the same."""
        return "topcoat instances"

    def complete(self) -> bool:
        """Whether nothing must be done. Where that cannot be told, it ends luigi, which would print a traceback."""
        workers()
        known = digests()
        with refusing():
            fresh = Check(known).why(self) is None
        known.save()
        return fresh

    def unusual(self) -> dict[str, str]:
        """The parameters that identify the task, without those that have the value of luigi.cfg or the default."""
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
        """The task as for people."""
        shown = ", ".join(f"{name}={value}" for name, value in self.unusual().items())
        return f"{self.task_family}({shown})" if shown else str(self.task_family)


class WrapperTask(FreshTask, luigi.WrapperTask):
    """luigi's WrapperTask, but it looks at all that it requires once, whatever they have in common."""

    def requires(self) -> Tasks:
        """The tasks, by names for people."""
        raise NotImplementedError

    def why(self, check: Check) -> Reason | None:
        """The first one that is not done."""
        return check.first_stale(self.requires())


class ArtifactTask(FreshTask):
    """A task that makes files: whole or not at all, by one process at a time, and only when they are stale."""

    version: ClassVar[int] = 1
    """To be raised by hand when `make` makes something else of the same inputs."""

    def artifacts(self) -> tuple[Path, ...]:
        """What the task makes: files, and directories full of them, all in one directory.

        The first one is a file: it carries the lock and the record.
        """
        raise NotImplementedError

    def make(self, made: Sequence[Path]) -> Proof | None:
        """Make the artifacts at the paths `made`, in their order. Returns what was proved of them.

        The paths are in a private directory and have the artifacts' names. If this raises, what was there before stays.
        """
        raise NotImplementedError

    def files(self) -> tuple[Path, ...]:
        """All files of the artifacts, those in directories too."""
        return tuple(file for path in self.artifacts() for file in _files(path))

    def discover(self) -> None:
        """Find out which further files go in, where only looking into others tells. Called before the files are made.

        What is found must be in `inputs` from then on, also in other processes.
        """

    def must_be_proved(self, proof: Proof | None) -> bool:
        """Whether files of which so much was proved must be made again."""
        return False

    def requires(self) -> Tasks:
        """What must be done before, by the names that stand in the record."""
        return {}

    def tools(self) -> Mapping[str, Tool]:
        """The programs whose work the files are."""
        return {}

    def inputs(self) -> Mapping[str, Path]:
        """The files that go in, by name: "NAME" or "NAME/FILE" for those of the required task NAME, without tools."""
        found: dict[str, Path] = {}
        for name, task in self.requires().items():
            paths = [target.path for target in luigi.task.flatten(task.output())]
            found |= {name: paths[0]} if len(paths) == 1 else {f"{name}/{path.name}": path for path in paths}
        return {name: path for name, path in found.items() if name not in self.tools()}

    def key(self, known: DigestCache, without: Collection[str] = ()) -> Key:
        """All that the files depend on, as it is now, but for what the required tasks in `without` make.

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
        """Why the files must be made: the first reason, or None if they are fresh."""
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

    def output(self) -> list[ArtifactTarget]:
        """The files as luigi knows them."""
        return [ArtifactTarget(path) for path in self.files()]

    def run(self) -> None:
        """Make the files unless they are fresh by now: another process made them, or what they need came out equal.

        Raises InputChanged if what they are made of does not hold still meanwhile.
        """
        artifact, known = self.artifacts()[0], digests()
        with locked(artifact):
            reason = Check(known).why(self)
            if reason is None:
                return
            log.info("%s: %s", self.title, reason)
            if not reason.certain:
                raise _changed(self, str(reason))
            seconds = self._remake(known)
            log.info("%s: made %s in %.1f s", self.title, _names(self.files()), seconds)

    def _remake(self, known: DigestCache) -> float:
        """Make the files, then put them in the place of the old ones, then write the record.

        Whatever goes wrong before they are all made, the old ones stay, stale. Returns what it cost, in seconds.
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
        freshness.write(self.files(), key, utc_now(), seconds, known, proof)
        known.save()
        return seconds

    def _key_now(self, known: DigestCache) -> Key:
        with host_faults(f"reading what {self.title} is made of"):
            return self.key(known)


def _files(path: Path) -> list[Path]:
    """The files in a directory and below it; of all else, the path itself."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _names(paths: Sequence[Path]) -> str:
    first, *others = [path.name for path in paths]
    return f"{first} and {len(others)} others" if len(others) > 2 else ", ".join([first, *others])


def _changed(task: ArtifactTask, difference: str) -> InputChanged:
    return InputChanged(
        f"{task.title} was being made when what it is made of changed: {difference}",
        hint="when nobody works on it any more, the same command again makes it",
    )
