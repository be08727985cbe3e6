"""Go's patterns, against Go's own table and against its algorithm, told once more."""

import os
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.text import goglob

# The cases of Go's path/filepath/match_test.go for Unix; None: a syntax error
TABLE = [
    ("abc", "abc", True), ("*", "abc", True), ("*c", "abc", True), ("a*", "a", True), ("a*", "abc", True),
    ("a*", "ab/c", False), ("a*/b", "abc/b", True), ("a*/b", "a/c/b", False),
    ("a*b*c*d*e*/f", "axbxcxdxe/f", True), ("a*b*c*d*e*/f", "axbxcxdxexxx/f", True),
    ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", False), ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", False),
    ("a*b?c*x", "abxbbxdbxebxczzx", True), ("a*b?c*x", "abxbbxdbxebxczzy", False), ("ab[c]", "abc", True),
    ("ab[b-d]", "abc", True), ("ab[e-g]", "abc", False), ("ab[^c]", "abc", False), ("ab[^b-d]", "abc", False),
    ("ab[^e-g]", "abc", True), ("a\\*b", "a*b", True), ("a\\*b", "ab", False), ("a?b", "a☺b", True),
    ("a[^a]b", "a☺b", True), ("a???b", "a☺b", False), ("a[^a][^a][^a]b", "a☺b", False), ("[a-ζ]*", "β", True),
    ("*[a-ζ]", "A", False), ("a?b", "a/b", False), ("a*b", "a/b", False), ("[\\]a]", "]", True), ("[\\-]", "-", True),
    ("[x\\-]", "x", True), ("[x\\-]", "-", True), ("[x\\-]", "z", False), ("[\\-x]", "x", True), ("[\\-x]", "a", False),
    ("[]a]", "]", None), ("[-]", "-", None), ("[x-]", "x", None), ("[-x]", "x", None), ("\\", "a", None),
    ("[a-b-c]", "a", None), ("[", "a", None), ("[^", "a", None), ("[^bc", "a", None), ("a[", "a", None),
    ("a[", "ab", None), ("a[", "x", None), ("a/b[", "x", None), ("*x", "xxx", True),
    ("[!a]", "!", True), ("[!a]", "b", False), ("{a,b}", "a", False), ("{a,b}", "{a,b}", True), ("*", ".hidden", True),
    ("**", "a/b", False), ("[z-a]", "m", False), ("[^z-a]", "m", True), ("?", "\n", True), ("a", "a\n", False),
    ("?", "\udcff", True), ("", "", True), ("*", "", True), ("[[]", "[", True), ("a.c", "abc", False),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "name", "expected"), TABLE)
def test_the_table(pattern: str, name: str, expected: bool | None) -> None:
    if expected is None:
        with pytest.raises(UsageError, match="syntax error in pattern"):
            goglob.match(pattern, name)
    else:
        assert goglob.match(pattern, name) is expected


def in_class(inside: str, character: str) -> bool:
    found, text = False, inside.removeprefix("^")
    while text:
        low, text = text[0], text[1:]
        high = low
        if text.startswith("-"):
            high, text = text[1], text[2:]
        found |= low <= character <= high
    return found is not inside.startswith("^")


def reference(pattern: str, name: str) -> bool:
    """By trying everything. The pattern has a right syntax."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        ends = [at for at in range(len(name) + 1) if "/" not in name[:at]]
        return any(reference(pattern[1:], name[at:]) for at in ends)
    if not name:
        return False
    if pattern[0] == "?":
        return name[0] != "/" and reference(pattern[1:], name[1:])
    if pattern[0] == "[":
        inside, _, rest = pattern[1:].partition("]")
        return in_class(inside, name[0]) and reference(rest, name[1:])
    if pattern[0] == "\\":
        pattern = pattern[1:]
    return pattern[0] == name[0] and reference(pattern[1:], name[1:])


LETTERS = "ab.\n☺\udc80"
PIECES = st.one_of(
    st.sampled_from([*LETTERS, "*", "*", "?", "\\*", "\\[", "\\\\", "]", "{", "!", "(", "|", "$"]),
    st.builds(
        lambda negated, ranges: f"[{negated}{''.join(ranges)}]",
        st.sampled_from(["", "^"]),
        st.lists(st.sampled_from(["a", "b", "a-b", "b-a", ".", "☺", "!"]), min_size=1, max_size=3),
    ),
)


@pytest.mark.parametrize(("name", "matches"), [("[/", False), ("/", True), ("b/", False), ("/b", True), ("ab", True)])
def test_a_class_may_take_a_slash_where_go_tries_it(name: str, matches: bool) -> None:
    """A chunk between stars is matched as early as it can be, and never again later: filepath.Match, scanChunk."""
    assert goglob.match("*[^a]*", name) is matches


@given(st.lists(PIECES, max_size=7).map("".join), st.text(f"{LETTERS}/*[\\]{{", max_size=8))
def test_it_is_what_trying_everything_finds(pattern: str, name: str) -> None:
    assume(not ("[^" in pattern and "/" in name))  # there Go does not try everything
    assert goglob.match(pattern, name) is reference(pattern, name)


@given(st.text(f"{LETTERS}*?[]^-\\/", max_size=10))
def test_a_pattern_is_right_or_wrong_whatever_the_name(pattern: str) -> None:
    def told(name: str) -> bool:
        try:
            goglob.match(pattern, name)
        except UsageError:
            return False
        return True

    assert len({told(name) for name in ("", "a", "b/a", pattern)}) == 1


@given(st.binary(max_size=20))
def test_every_name_has_its_own_text(name: bytes) -> None:
    assert goglob.encoded(goglob.decoded(name)) == name


def test_a_pattern_made_to_take_for_ever_does_not() -> None:
    assert not goglob.match("*a" * 40 + "b", "a" * 255)


def found(root: Path, pattern: str) -> list[str]:
    def names(directory: str) -> list[str]:
        path = root / directory
        return [entry.name for entry in path.iterdir()] if path.is_dir() else []

    return goglob.expand(pattern, lambda path: os.path.exists(f"{root}/{path}"), names)  # noqa: PTH110  Path drops a slash


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a", ["a"]), ("a/", ["a/"]), ("no", []), ("*", [".hid", "a", "b"]), ("a/*", ["a/.x", "a/1", "a/2"]),
        ("*/1", ["a/1", "b/1"]), ("*/[12]", ["a/1", "a/2", "b/1"]), ("./a/1", ["./a/1"]), ("./*", [".hid", "a", "b"]),
        ("a/1/*", []), ("a/\\1", ["a/1"]), ("?/.x", ["a/.x"]), ("**/1", ["a/1", "b/1"]), ("no/*", []),
        ("[ab]/", ["a/", "b/"]), ("\\a/", ["a/"]), ("a/*/", []), ("*/", ["a/", "b/"]),
    ],
)  # fmt: skip
def test_paths_are_found_level_by_level(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    for name in ("a/1", "a/2", "a/.x", "b/1", ".hid"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert found(tmp_path, pattern) == expected


def test_a_bad_pattern_is_told_even_where_nothing_could_match(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        found(tmp_path, "no/such/[")
