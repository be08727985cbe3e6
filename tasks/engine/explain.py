"""What luigi would do, and why: the work of `topcoat why`, `plan` and `force`. Nothing here makes an artifact."""

from collections.abc import Sequence
from dataclasses import dataclass

import luigi
from luigi.cmdline_parser import CmdlineParser
from luigi.task_register import TaskClassException

from pipeline.errors import UsageError
from pipeline.host.locks import locked
from pipeline.store import freshness
from pipeline.store.freshness import Reason
from pipeline.store.publish import remove
from tasks.engine.artifact import ArtifactTask, Check, FreshTask, Tasks
from tasks.engine.context import context
from tasks.engine.defaults import unknown_task
from tasks.engine.resources import BuildResource, StoreRoot

SCHEMA = 2
"""The version of the output of `topcoat why --json` and `topcoat plan --json`; docs/json.md describes both."""


@dataclass(frozen=True)
class Node:
    """The state of one task."""

    title: str
    """The task's name for people, which is unique in its graph."""
    task: str
    parameters: dict[str, str]
    reason: Reason | None
    """Why the task would run; None if it is done."""
    refused: bool
    """Whether a run would fail: a stale instance that runs is stopped only with --replace."""
    seconds: float | None
    """How many seconds the task took the last time; None if that is not known."""
    files: tuple[str, ...]
    needs: dict[str, str]
    """The titles of the tasks that it depends on, by the names under which it requires them."""

    def encode(self) -> dict[str, object]:
        """The node as data for JSON, without `files` and `needs`."""
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
    """A task and all tasks that it needs.

    `nodes` has them by title, in an order in which they could run: the last is the task itself.
    """

    nodes: dict[str, Node]

    @property
    def root(self) -> Node:
        """The node of the task that was asked about."""
        return next(reversed(self.nodes.values()))

    def pending(self) -> list[Node]:
        """The nodes of all tasks that would run or be refused, without those that only a refused task needs."""
        wanted = {self.root.title}
        for node in reversed(self.nodes.values()):
            if node.title in wanted and not node.refused:
                wanted.update(node.needs.values())
        return [node for node in self.nodes.values() if node.reason and node.title in wanted]

    def because_of(self, title: str) -> list[Node]:
        """The nodes of all tasks that need a stale task, directly or not, and so would run too; none if it is fresh."""
        if self.nodes[title].reason is None:
            return []
        found = {title}
        for node in self.nodes.values():
            if found.intersection(node.needs.values()):
                found.add(node.title)
        return [node for node in self.nodes.values() if node.title in found - {title}]

    def encode_tree(self) -> dict[str, object]:
        """The whole graph as data for JSON."""
        return {
            "schema": SCHEMA,
            "root": self.root.title,
            "tasks": [self._encode(node) for node in self.nodes.values()],
        }

    def _encode(self, node: Node) -> dict[str, object]:
        redone = [other.title for other in self.because_of(node.title)]
        return {**node.encode(), "files": list(node.files), "needs": node.needs, "redone": redone}

    def encode_plan(self) -> dict[str, object]:
        """The pending tasks as data for JSON."""
        return {"schema": SCHEMA, "pending": [node.encode() for node in self.pending()]}


def task_of(words: Sequence[str]) -> luigi.Task:
    """The task that luigi would run for these words, which are its name and its parameters.

    Raises UsageError for an unknown task or a value that its parameters refuse.
    """
    try:
        with CmdlineParser.global_instance(list(words)) as parser:
            task: luigi.Task = parser.get_task_obj()
    except TaskClassException as error:
        raise unknown_task(error) from error
    return task


def look(words: Sequence[str]) -> Graph:
    """The present state of a task and of all that it needs. Makes nothing, and does not save the cache of digests.

    `words` are the task and its parameters, as for luigi. Raises UsageError.
    """
    check = Check(context().digests)
    titles: dict[str, str] = {}
    nodes: dict[str, Node] = {}

    def visit(task: luigi.Task) -> str:
        if task.task_id not in titles:
            needs = {name: visit(need) for name, need in _below(task).items() if not _done_resource(need)}
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
        refused=reason is not None and isinstance(task, FreshTask) and task.refuses,
        seconds=task.cost() if isinstance(task, FreshTask) else None,
        files=tuple(str(path) for path in task.files().values()) if isinstance(task, ArtifactTask) else (),
        needs=needs,
    )


def _below(task: luigi.Task) -> Tasks:
    return task.below() if isinstance(task, FreshTask) else dict(task.requires() or {})  # luigi's own have a list


def _done_resource(task: luigi.Task) -> bool:
    return isinstance(task, (BuildResource, StoreRoot)) and task.complete()


def force(words: Sequence[str]) -> str:
    """Delete the record of a task's artifacts, so that the next run makes them again. Returns a line for people.

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
