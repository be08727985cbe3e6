"""What luigi would do, and why: the answers of `topcoat why`, `plan` and `force`. Nothing here makes anything."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import luigi
from luigi.cmdline_parser import CmdlineParser
from luigi.task_register import TaskClassException

from pipeline import freshness
from pipeline.errors import UsageError
from pipeline.publish import locked, remove
from tasks.base import ArtifactTask, Check, digests
from tasks.boot import BootInstance
from tasks.build import BuildResource, StoreRoot


@dataclass(frozen=True)
class Node:
    """One task as it stands: `reason` is None if it is done. `seconds` is what it cost the last time, if known."""

    task: str
    parameters: dict[str, str]
    reason: str | None
    seconds: float | None
    needs: dict[str, "Node"] = field(default_factory=dict)

    def encode(self) -> dict[str, object]:
        """As JSON, schema 1 of `topcoat why --json`: the same fields, and whether the task is fresh."""
        needs = {name: node.encode() for name, node in self.needs.items()}
        fresh = {"fresh": self.reason is None, "reason": self.reason, "seconds": self.seconds}
        return {"task": self.task, "parameters": self.parameters, **fresh, "needs": needs}

    @property
    def title(self) -> str:
        """The task with its parameters, as for people."""
        shown = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.task}({shown})" if shown else self.task

    def pending(self) -> "Iterator[Node]":
        """All that would run, in an order in which it could, each once."""
        seen = set()
        for node in self.depth_first():
            if node.reason is not None and node.title not in seen:
                seen.add(node.title)
                yield node

    def depth_first(self) -> "Iterator[Node]":
        """All nodes, each after those that it needs; one that several need comes several times."""
        for node in self.needs.values():
            yield from node.depth_first()
        yield self


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


def look(words: Sequence[str]) -> Node:
    """The whole graph below a task, as it stands now. Changes nothing, not even the cache of digests.

    `words` are the task and its parameters, as for luigi. Raises UsageError.
    """
    check = Check(digests())
    nodes: dict[str, Node] = {}

    def node_of(task: luigi.Task) -> Node:
        if task.task_id not in nodes:
            needs = {name: node_of(need) for name, need in _needs(task).items() if not _done_resource(need)}
            shown = {name: str(value) for name, value in task.param_kwargs.items() if name not in ("ready", "replace")}
            nodes[task.task_id] = Node(task.task_family, shown, check.why(task), _cost(task), needs)
        return nodes[task.task_id]

    return node_of(task_of(words))


def _needs(task: luigi.Task) -> dict[str, luigi.Task]:
    if isinstance(task, BootInstance):  # which requires nothing while it runs
        return dict(task.missing() or {**task.providers(), **task.prerequisites()})
    required = task.requires()
    return dict(required) if required else {}


def _done_resource(task: luigi.Task) -> bool:
    return isinstance(task, (BuildResource, StoreRoot)) and task.complete()


def _cost(task: luigi.Task) -> float | None:
    if not isinstance(task, ArtifactTask):
        return None
    try:
        record = freshness.read(task.artifacts()[0])
    except ValueError:
        return None
    return record.seconds if record else None


def tree(node: Node) -> list[str]:
    """The lines of `topcoat why`."""
    return [_line(node, ""), *_branches(node, "")]


def _branches(node: Node, indent: str) -> Iterator[str]:
    for number, (name, need) in enumerate(node.needs.items(), start=1):
        last = number == len(node.needs)
        yield indent + ("└─ " if last else "├─ ") + _line(need, f"{name}: ")
        yield from _branches(need, indent + ("   " if last else "│  "))


def _line(node: Node, name: str) -> str:
    cost = f", took {node.seconds:.1f} s" if node.seconds is not None else ""
    return f"{name}{node.title}  " + (f"stale: {node.reason}{cost}" if node.reason else f"fresh{cost}")


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
    if not record.exists():
        return f"{task.task_family} has no record; the next run makes it anyhow"
    with locked(artifact):
        remove(record)
    return f"{task.task_family}: the next run makes {artifact.name} again"
