"""What differs between two trees, as a pure function."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pipeline.images.difference import Difference, differences
from pipeline.images.part import Part

KEY = Part("file", "data/ssh/authorized_keys", 80, 4096, "b3:aa")
BIN = Part("file", "bin/sh", 10, 8192, "b3:bb", {"mode": "0755"})
BOOTFS = Part("BOOTFS", size=90, offset=32, parts=(KEY, BIN))
ZBI = Part("ZBI", size=200, parts=(Part("CMDLINE", size=5, digest="b3:cc"), BOOTFS))


def zbi(*parts: Part) -> Part:
    return replace(ZBI, parts=parts)


def bootfs(*parts: Part) -> Part:
    return replace(BOOTFS, parts=parts)


def test_nothing_differs_from_itself() -> None:
    assert differences(ZBI, ZBI) == []


def test_where_a_part_lies_does_not_count() -> None:
    moved = bootfs(replace(BIN, offset=4096), replace(KEY, offset=12288))
    assert differences(zbi(BOOTFS), zbi(replace(moved, offset=64))) == []


def test_a_file_that_is_in_one_only() -> None:
    added = differences(zbi(bootfs(BIN)), zbi(BOOTFS))
    after = {"kind": "file", "size": 80, "digest": "b3:aa", "holds": 0}
    assert added == [Difference("BOOTFS/data/ssh/authorized_keys", "only in B", {}, after)]
    removed = differences(zbi(BOOTFS), zbi(bootfs(BIN)))
    assert removed == [Difference("BOOTFS/data/ssh/authorized_keys", "only in A", after, {})]


def test_only_what_changed_is_told() -> None:
    other = replace(BIN, size=11, facts={"mode": "0700"}, problems=("it is cut off",))
    assert differences(bootfs(BIN), bootfs(other)) == [
        Difference(
            "bin/sh",
            "changed",
            {"size": 10, "facts": {"mode": "0755"}, "problems": []},
            {"size": 11, "facts": {"mode": "0700"}, "problems": ["it is cut off"]},
        )
    ]


def test_the_image_itself() -> None:
    assert differences(ZBI, replace(ZBI, digest="b3:dd")) == [
        Difference(".", "changed", {"digest": None}, {"digest": "b3:dd"})
    ]


def test_the_parts_of_two_kinds_are_not_compared() -> None:
    assert differences(ZBI, Part("cpio", parts=(KEY,))) == [
        Difference(".", "changed", {"kind": "ZBI"}, {"kind": "cpio"})
    ]


def test_a_whole_subtree_is_one_difference() -> None:
    (found,) = differences(zbi(), zbi(BOOTFS))
    assert (found.path, found.what, found.after["holds"]) == ("BOOTFS", "only in B", 2)


def test_among_equal_siblings_the_first_is_compared_with_the_first() -> None:
    first, second, third = (Part("CMDLINE", size=size) for size in (1, 2, 3))
    found = differences(zbi(first, BOOTFS, second), zbi(first, replace(second, size=9), BOOTFS, third))
    assert [(difference.path, difference.what) for difference in found] == [
        ("CMDLINE#2", "changed"),
        ("CMDLINE#3", "only in B"),
    ]


def test_a_file_in_place_of_a_link_is_another_part() -> None:
    found = differences(bootfs(Part("symlink", "sh")), bootfs(Part("file", "sh")))
    assert [(difference.path, difference.what) for difference in found] == [("sh", "only in A"), ("sh", "only in B")]


_LEAVES = st.builds(Part, st.sampled_from("ab"), st.sampled_from(["", "x", "y/z"]), st.integers(0, 2))
_TREES = st.recursive(
    _LEAVES, lambda below: st.builds(replace, _LEAVES, parts=st.lists(below, max_size=4).map(tuple)), max_leaves=12
)


def ordered(part: Part) -> Part:
    """The same tree, whatever the order of siblings that differ in kind or name."""
    parts = sorted(map(ordered, part.parts), key=lambda below: (below.kind, below.name))
    return replace(part, parts=tuple(parts))


@given(_TREES, _TREES)
def test_the_other_way_round_is_the_same_turned_round(first: Part, second: Part) -> None:
    there, back = differences(first, second), differences(second, first)
    turned = {"only in A": "only in B", "only in B": "only in A", "changed": "changed"}
    assert sorted((turned[found.what], found.path, str(found.after), str(found.before)) for found in there) == sorted(
        (found.what, found.path, str(found.before), str(found.after)) for found in back
    )
    assert (there == []) == (ordered(first) == ordered(replace(second, name=first.name)))
