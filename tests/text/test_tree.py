from collections.abc import Sequence

from pipeline.text.tree import draw


def test_a_tree_is_drawn_and_visited_in_the_order_of_its_lines() -> None:
    below = {"root": ["a", "b"], "a": ["c", "d"], "b": ["e"], "c": ["f"]}
    visited = []

    def visit(name: str) -> tuple[str, Sequence[str]]:
        visited.append(name)
        return name, below.get(name, [])

    assert list(draw("root", visit)) == ["root", "├─ a", "│  ├─ c", "│  │  └─ f", "│  └─ d", "└─ b", "   └─ e"]
    assert visited == ["root", "a", "c", "f", "d", "b", "e"]


def test_a_root_alone() -> None:
    assert list(draw(1, lambda number: (str(number), []))) == ["1"]
