"""Which files a pattern means."""

import re
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.builds.targets.patterns import takes

FILES = ("a.xml", "testdata/b.xml", "testdata/deep/c.xml", "testdata/deep/d.txt", "sub/testdata/e.xml", ".hidden/f")


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [
        ("testdata", [1, 2, 3]),
        ("testdata/", [1, 2, 3]),
        ("./testdata", [1, 2, 3]),
        ("testdata/*", [1, 2, 3]),
        ("testdata/*.xml", [1]),
        ("testdata/**", [1, 2, 3]),
        ("testdata/**/*.xml", [1, 2]),
        ("**/*.xml", [0, 1, 2, 4]),
        ("**/testdata", [1, 2, 3, 4]),
        ("*.xml", [0]),
        ("*/testdata", [4]),
        ("test????/deep", [2, 3]),
        ("testdata/[!b].xml", []),
        ("testdata/[ab].xml", [1]),
        ("Testdata", []),
        ("data", []),
        ("testdata/b.xml/more", []),
        (".", [0, 1, 2, 3, 4, 5]),
        ("**", [0, 1, 2, 3, 4, 5]),
        ("*", [0, 1, 2, 3, 4, 5]),
        ("[", []),
        ("**/**/f", [5]),
    ],
)
def test_what_a_pattern_takes(pattern: str, taken: list[int]) -> None:
    assert [at for at, file in enumerate(FILES) if takes(pattern, PurePosixPath(file))] == taken


NAMES = st.sampled_from(["a", "b"])
PATHS = st.lists(NAMES, min_size=1, max_size=5).map("/".join)
PATTERNS = st.lists(NAMES | st.just("*") | st.just("**"), min_size=1, max_size=5).map("/".join)


@given(pattern=PATTERNS, path=PATHS)
def test_it_is_what_a_regular_expression_says(pattern: str, path: str) -> None:
    said = "".join({"**": "(?:[^/]+/)*", "*": "[^/]+/"}.get(part, f"{part}/") for part in pattern.split("/"))
    assert takes(pattern, PurePosixPath(path)) == bool(re.match(said, f"{path}/"))


def test_many_stars_take_no_time() -> None:
    path = PurePosixPath("/".join("a" * 32))
    assert not takes("/".join(["**", "*"] * 100 + ["b"]), path)
    assert not takes("*a" * 100 + "b", PurePosixPath("a" * 200))
