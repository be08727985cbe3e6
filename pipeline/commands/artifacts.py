"""Commands about artifacts: which are fresh, which are not and why, and how to be rid of them."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.settings import Settings
from pipeline.size import readable
from pipeline.streams import only_telling

if TYPE_CHECKING:
    from pipeline.clean import Item


def why(chosen: Settings, options: argparse.Namespace) -> int:
    """Say of all that a task needs whether it is fresh."""
    from tasks import explain

    graph = explain.look([options.task, *options.parameters])
    if options.json:
        print(json.dumps(graph.encode_tree(), indent=2, sort_keys=True))
    else:
        print(*graph.tree(), sep="\n")
    return 0


def plan(chosen: Settings, options: argparse.Namespace) -> int:
    """Say what a run would make."""
    from tasks import explain

    graph = explain.look([options.task, *options.parameters])
    if options.json:
        print(json.dumps(graph.encode_plan(), indent=2, sort_keys=True))
    else:
        print("".join(f"{line}\n" for line in graph.plan()), end="")
    return 1 if options.check and graph.pending() else 0


@only_telling()
def force(chosen: Settings, options: argparse.Namespace) -> int:
    """Have the next run make an artifact again."""
    from tasks import explain

    print(explain.force([options.task, *options.parameters]))
    return 0


def clean(chosen: Settings, options: argparse.Namespace) -> int:
    """Delete what can be made again."""
    from pipeline import clean

    items = clean.items(chosen.store)
    if options.yes:
        items = [item if item.kept else clean.delete(item) for item in items]
    with only_telling(options.yes):
        _tell(items, options)
    return 0


def _tell(items: "Sequence[Item]", options: argparse.Namespace) -> None:
    if options.json:
        rows = [{"path": str(item.path), "bytes": item.bytes, "kept": item.kept or None} for item in items]
        print(json.dumps({"schema": 1, "done": options.yes, "items": rows}, indent=2, sort_keys=True))
        return
    for item in items:
        verb = "keep" if item.kept else "deleted" if options.yes else "delete"
        print(f"{verb:<8} {item.path} ({readable(item.bytes)})" + (f": {item.kept}" if item.kept else ""))
    if not options.yes and not all(item.kept for item in items):
        print("nothing was deleted; to do it: topcoat clean --yes")
