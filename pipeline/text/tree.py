"""A tree, drawn with lines of text, the same on a terminal and in a pipe."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def draw(root: T, visit: Callable[[T], tuple[str, Sequence[T]]]) -> Iterator[str]:
    """Yield the lines that draw a tree.

    `visit` returns the line and the children of a node. It is called once for each node, in the order of the lines.
    """
    line, below = visit(root)
    yield line
    yield from _branches(below, "", visit)


def _branches(nodes: Sequence[T], indent: str, visit: Callable[[T], tuple[str, Sequence[T]]]) -> Iterator[str]:
    for number, node in enumerate(nodes, start=1):
        last = number == len(nodes)
        line, below = visit(node)
        yield indent + ("└─ " if last else "├─ ") + line
        yield from _branches(below, indent + ("   " if last else "│  "), visit)
