"""What luigi would do, and why: the answers of `topcoat why`, `plan` and `force`. Nothing here makes anything."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import luigi
from luigi.cmdline_parser import CmdlineParser
from luigi.task_register import TaskClassException

from pipeline import freshness
from pipeline.errors import UsageError
from pipeline.freshness import Reason
from pipeline.publish import locked, remove
from pipeline.tree import draw
from tasks.base import ArtifactTask, Check, FreshTask, digests
from tasks.boot import BootInstance
from tasks.build import BuildResource, StoreRoot

SCHEMA = 2
"""Of `topcoat why --json` and `topcoat plan --json`. README describes both."""

_NAMED = 8  # of what would be redone; --json has all


@dataclass(frozen=True)
class Node:
    """One task as it stands."""

    title: str
    """Unique in its graph."""
    task: str
    parameters: dict[str, str]
    reason: Reason | None
    """None if it is done."""
    refused: bool
    """It would not run but fail: a stale instance is only stopped when that is asked for."""
    seconds: float | None
    """What it cost the last time, if known."""
    files: tuple[str, ...]
    needs: dict[str, str]
    """Titles, by the names that stand in the record."""

    def encode(self) -> dict[str, object]:
        """As JSON, without `files` and `needs`."""
        return {
            "title": self.title,
            "task": self.task,
            "parameters": self.parameters,
            "reason": self.reason and self.reason.text,
            "certain": self.reason is not None and self.reason.certain,
            "refused": self.refused,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Graph:
    """A task and all that it needs. `nodes` are in an order in which they could run: the last is the task itself."""

    nodes: dict[str, Node]

    @property
    def root(self) -> Node:
        """The task that was asked about."""
        return next(reversed(self.nodes.values()))

    def pending(self) -> list[Node]:
        """All that would run. What only a task needs that would be refused does not."""
        wanted = {self.root.title}
        for node in reversed(self.nodes.values()):
            if node.title in wanted and not node.refused:
                wanted.update(node.needs.values())
        return [node for node in self.nodes.values() if node.reason and node.title in wanted]

    def because_of(self, title: str) -> list[Node]:
        """All that would be made again because of a task that is stale: what needs it, directly or not."""
        if self.nodes[title].reason is None:
            return []
        found = {title}
        for node in self.nodes.values():
            if found.intersection(node.needs.values()):
                found.add(node.title)
        return [node for node in self.nodes.values() if node.title in found - {title}]

    def encode_tree(self) -> dict[str, object]:
        """As JSON."""
        return {
            "schema": SCHEMA,
            "root": self.root.title,
            "tasks": [self._encode(node) for node in self.nodes.values()],
        }

    def _encode(self, node: Node) -> dict[str, object]:
        redone = [other.title for other in self.because_of(node.title)]
        return {**node.encode(), "files": list(node.files), "needs": node.needs, "redone": redone}

    def encode_plan(self) -> dict[str, object]:
        """As JSON."""
        return {"schema": SCHEMA, "pending": [node.encode() for node in self.pending()]}

    def tree(self) -> Iterator[str]:
        """The lines of `topcoat why`. What several tasks need is told once."""
        told: set[str] = set()

        def visit(need: tuple[str, str]) -> tuple[str, list[tuple[str, str]]]:
            name, title = need
            if title in told:
                return f"{name}{title}  (see above)", []
            told.add(title)
            node = self.nodes[title]
            return self._line(node, name), [(f"{name}: ", title) for name, title in node.needs.items()]

        return draw(("", self.root.title), visit)

    def _line(self, node: Node, name: str) -> str:
        cost = f", took {node.seconds:.1f} s" if node.seconds is not None else ""
        if node.reason is None:
            return f"{name}{node.title}  fresh{cost}"
        others = [other.title for other in self.because_of(node.title)]
        more = [f"{len(others) - _NAMED} more"] if len(others) > _NAMED else []
        redone = ", ".join([*others[:_NAMED], *more])
        return f"{name}{node.title}  stale: {node.reason.text}{cost}" + (f"; would redo {redone}" if redone else "")

    def plan(self) -> Iterator[str]:
        """The lines of `topcoat plan`."""
        for node in self.pending():
            assert node.reason is not None
            notes = [f"took {node.seconds:.1f} s"] if node.seconds is not None else []
            if node.refused:
                notes.append("would be refused without --replace")
            elif not node.reason.certain:
                notes.append("unless that comes out as it was")
            # Why what lies behind is stale has a line of its own, unless that would not run
            reason = str(node.reason) if node.refused else node.reason.text
            yield f"{node.title}: {reason}" + (f" ({'; '.join(notes)})" if notes else "")


def task_of(words: Sequence[str]) -> luigi.Task:
    """The task that luigi would run for these words: its name and its parameters.

    Raises UsageError for an unknown task or a value that its parameters refuse.
    """
    try:
        with CmdlineParser.global_instance(list(words)) as parser:
            task: luigi.Task = parser.get_task_obj()
    except TaskClassException as error:
        import tasks

        raise UsageError(str(error).partition(".")[0], hint=f"there are: {', '.join(tasks.__all__)}") from error
    return task


def look(words: Sequence[str]) -> Graph:
    """The whole graph below a task, as it stands now. Changes nothing, not even the cache of digests.

    `words` are the task and its parameters, as for luigi. Raises UsageError.
    """
    check = Check(digests())
    titles: dict[str, str] = {}
    nodes: dict[str, Node] = {}

    def visit(task: luigi.Task) -> str:
        if task.task_id not in titles:
            needs = {name: visit(need) for name, need in _needs(task).items() if not _done_resource(need)}
            node = _node(task, check.why(task), needs)
            titles[task.task_id] = node.title
            nodes[node.title] = node
        return titles[task.task_id]

    visit(task_of(words))
    return Graph(nodes)


def _node(task: luigi.Task, reason: Reason | None, needs: dict[str, str]) -> Node:
    return Node(
        title=task.title if isinstance(task, FreshTask) else str(task),
        task=task.task_family,
        parameters=task.to_str_params(only_significant=True),
        reason=reason,
        refused=reason is not None and isinstance(task, BootInstance) and task.refuses,
        seconds=_cost(task),
        files=tuple(str(path) for path in task.files()) if isinstance(task, ArtifactTask) else (),
        needs=needs,
    )


def _needs(task: luigi.Task) -> dict[str, luigi.Task]:
    if isinstance(task, BootInstance):  # which requires nothing while it runs
        return dict(task.missing() or {**task.providers(), **task.prerequisites()})
    return dict(task.requires() or {})


def _done_resource(task: luigi.Task) -> bool:
    return isinstance(task, (BuildResource, StoreRoot)) and task.complete()


def _cost(task: luigi.Task) -> float | None:
    if isinstance(task, BootInstance):
        return task.instance.boot_seconds()
    if not isinstance(task, ArtifactTask):
        return None
    try:
        record = freshness.read(task.artifacts()[0])
    except ValueError:
        return None
    return record.seconds if record else None


def force(words: Sequence[str]) -> str:
    """Delete the record of one artifact, so that the next run makes it again. Returns what to say.

    Raises UsageError for a task that makes no artifact.
    """
    task = task_of(words)
    if not isinstance(task, ArtifactTask):
        raise UsageError(
            f"{task.task_family} makes no file",
            hint="force one of its needs; a running instance: luigi --module tasks BootInstance --replace",
        )
    artifact = task.artifacts()[0]
    record = freshness.record_path(artifact)
    try:
        record.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return f"{task.title} has no record; the next run makes it anyhow"
    with locked(artifact):
        remove(record)
    return f"{task.title}: the next run makes {artifact.name} again"
