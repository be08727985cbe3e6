"""Commands about artifacts: which are fresh, which are stale and why, and how to remake or delete them."""

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.host.stdio import only_telling
from pipeline.settings import Settings
from pipeline.text.quantity import readable_size
from pipeline.text.tree import draw

if TYPE_CHECKING:
    from pipeline.upkeep.clean import Removable
    from tasks.engine.explain import Graph, Node

_NAMED = 8  # titles of tasks that would be redone; --json has all


def why(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat why`: print for a task, and for each that it needs, whether it is fresh."""
    from tasks.engine import explain

    graph = explain.look([options.task, *options.parameters])
    if options.json:
        print(json.dumps(graph.encode_tree(), indent=2, sort_keys=True))
    else:
        print(*tree(graph), sep="\n")
    return 0


def plan(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat plan`: print what a run would make. With --check, returns 1 if that is anything."""
    from tasks.engine import explain

    graph = explain.look([options.task, *options.parameters])
    if options.json:
        print(json.dumps(graph.encode_plan(), indent=2, sort_keys=True))
    else:
        print("".join(f"{line}\n" for line in plan_lines(graph)), end="")
    return 1 if options.check and graph.pending() else 0


def tree(graph: "Graph") -> Iterator[str]:
    """The lines that `topcoat why` shows of a graph. A task that several others need is described only once."""
    told: set[str] = set()

    def visit(need: tuple[str, str]) -> tuple[str, list[tuple[str, str]]]:
        name, title = need
        if title in told:
            return f"{name}{title}  (see above)", []
        told.add(title)
        node = graph.nodes[title]
        return _line(graph, node, name), [(f"{name}: ", title) for name, title in node.needs.items()]

    return draw(("", graph.root.title), visit)


def _line(graph: "Graph", node: "Node", name: str) -> str:
    cost = f", took {node.seconds:.1f} s" if node.seconds is not None else ""
    if node.reason is None:
        return f"{name}{node.title}  fresh{cost}"
    others = [other.title for other in graph.because_of(node.title)]
    more = [f"{len(others) - _NAMED} more"] if len(others) > _NAMED else []
    redone = ", ".join([*others[:_NAMED], *more])
    return f"{name}{node.title}  stale: {node.reason.text}{cost}" + (f"; would redo {redone}" if redone else "")


def plan_lines(graph: "Graph") -> Iterator[str]:
    """The lines that `topcoat plan` shows of a graph: one for each task that would run or be refused."""
    for node in graph.pending():
        assert node.reason is not None
        notes = [f"took {node.seconds:.1f} s"] if node.seconds is not None else []
        if node.refused:
            notes.append("would be refused without --replace")
        elif not node.reason.certain:
            notes.append("unless that comes out as it was")
        # A stale input has a line of its own with its reason, unless it would not be made
        reason = str(node.reason) if node.refused else node.reason.text
        yield f"{node.title}: {reason}" + (f" ({'; '.join(notes)})" if notes else "")


@only_telling()
def force(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat force`: have the next run make the artifacts of a task again."""
    from tasks.engine import explain

    print(explain.force([options.task, *options.parameters]))
    return 0


def clean(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat clean`: delete what can be made again, or without --yes only show it."""
    from pipeline.upkeep import clean

    items = clean.items(chosen.store)
    if options.yes:
        items = [item if item.kept else clean.delete(item) for item in items]
    with only_telling(options.yes):
        _tell(items, options)
    return 0


def _tell(items: "Sequence[Removable]", options: argparse.Namespace) -> None:
    if options.json:
        rows = [{"path": str(item.path), "bytes": item.bytes, "kept": item.kept or None} for item in items]
        print(json.dumps({"schema": 1, "done": options.yes, "items": rows}, indent=2, sort_keys=True))
        return
    for item in items:
        verb = "keep" if item.kept else "deleted" if options.yes else "delete"
        print(f"{verb:<8} {item.path} ({readable_size(item.bytes)})" + (f": {item.kept}" if item.kept else ""))
    if not options.yes and not all(item.kept for item in items):
        print("nothing was deleted; to do it: topcoat clean --yes")
