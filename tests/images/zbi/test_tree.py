"""Names that must not be a directory and a file at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ImageError
from pipeline.images.zbi.tree import Tree


def tree(*names: str) -> Tree[int]:
    made: Tree[int] = Tree()
    for number, name in enumerate(names):
        made.insert(name, number, replace=False)
    return made


@pytest.mark.parametrize(
    ("before", "name", "told"),
    [
        (["a"], "a", "duplicate target path without --replace: a"),
        (["a/b"], "a/b", "duplicate target path without --replace: a/b"),
        (["a/b/c"], "a", "duplicate target path (directory vs file) without --replace: a"),
        (["a/b/c"], "a/b", "duplicate target path (directory vs file) without --replace: a/b"),
        (["a"], "a/b/c", "duplicate target path without --replace: a"),
        (["a/b"], "a/b/c", "duplicate target path without --replace: a/b"),
    ],
)
def test_clashes(before: list[str], name: str, told: str) -> None:
    with pytest.raises(ImageError) as caught:
        tree(*before).insert(name, 9, replace=False)
    assert caught.value.message == told
    assert caught.value.hint == "put --replace before what is to replace it"


@pytest.mark.parametrize(
    ("before", "name", "left"),
    [
        (["a", "b"], "a", ["a", "b"]),
        (["a/b/c", "a/b/d", "a/e"], "a/b", ["a/b", "a/e"]),
        (["a/b/c", "a/b/d", "ab"], "a", ["a", "ab"]),
        (["a", "ab"], "a/b/c", ["a/b/c", "ab"]),
        (["a/b"], "a/b/c/d", ["a/b/c/d"]),
    ],
)
def test_replacing(before: list[str], name: str, left: list[str]) -> None:
    made = tree(*before)
    made.insert(name, 9, replace=True)
    assert sorted(made.files) == left
    assert made.files[name] == 9


def test_a_directory_is_gone_with_its_last_file() -> None:
    made = tree("a/b/c")
    made.insert("a/b", 1, replace=True)
    made.insert("a", 2, replace=True)
    made.insert("a/x", 3, replace=True)
    with pytest.raises(ImageError, match="directory vs file"):
        made.insert("a", 4, replace=False)
    assert made.files == {"a/x": 3}


def test_deep_names_take_no_time() -> None:
    deep = "/".join("d" * 127)
    made = tree(*(f"{deep}{number}" for number in range(20_000)))
    made.insert("d", 0, replace=True)
    assert made.files == {"d": 0}


def test_what_else_is_in_a_directory_stays_known() -> None:
    made = tree("a/b", "a/c")
    made.insert("a/b/x", 2, replace=True)
    made.insert("a/b", 3, replace=True)
    with pytest.raises(ImageError, match="directory vs file"):
        made.insert("a", 4, replace=False)
    made.insert("a", 5, replace=True)
    assert made.files == {"a": 5}


NAMES = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map("/".join)
REPLACE = st.sampled_from([True] * 9 + [False])


def is_in(name: str, directory: str) -> bool:
    return f"{name}/".startswith(f"{directory}/")


@given(st.lists(st.tuples(NAMES, REPLACE)))
def test_it_is_as_if_all_were_compared(steps: list[tuple[str, bool]]) -> None:
    made: Tree[int] = Tree()
    wanted: dict[str, int] = {}
    for number, (name, replace) in enumerate(steps):
        clashes = [
            other for other in wanted if f"{other}/".startswith(f"{name}/") or f"{name}/".startswith(f"{other}/")
        ]
        if clashes and not replace:
            with pytest.raises(ImageError, match="duplicate target path"):
                made.insert(name, number, replace=False)
            return
        made.insert(name, number, replace=replace)
        wanted = {other: value for other, value in wanted.items() if other not in clashes} | {name: number}
        assert made.files == wanted
