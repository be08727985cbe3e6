"""On which lines of a TOML text its values stand."""

import tomllib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.campaign.plan.toml_lines import KeyPath, TomlLines

TEXT = '''# a comment with [ and """
name = "x"   # ]
"quoted.key" = 1

fuzzers = [
  "a[",  # ]
  "b", \'c]\',
]
text = """
[no.header]
key = "x\\""""" # closed
literal = \'\'\'
x = ''[\'\'\'
table.dotted.key = { a = 1, b = { c = [ {d = 1} ] } }
[options]
max_len = 1
[[fuzzer]]
name = "first"
[fuzzer.options]
timeout = 5
[[fuzzer]]
[[fuzzer.inner]]
[[fuzzer.inner]]
x = 1
[a.b]
c = 1
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ((), 1),
        (("name",), 2),
        (("quoted.key",), 3),
        (("fuzzers",), 5),
        (("fuzzers", 2), 5),
        (("text",), 9),
        (("literal",), 12),
        (("table",), 14),
        (("table", "dotted", "key", "b", "c", 0, "d"), 14),
        (("options",), 15),
        (("options", "max_len"), 16),
        (("fuzzer",), 17),
        (("fuzzer", 0), 17),
        (("fuzzer", 0, "name"), 18),
        (("fuzzer", 0, "options"), 19),
        (("fuzzer", 0, "options", "timeout"), 20),
        (("fuzzer", 1), 21),
        (("fuzzer", 1, "inner", 0), 22),
        (("fuzzer", 1, "inner", 1, "x"), 24),
        (("a",), 25),
        (("a", "b", "c"), 26),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_each_value_has_the_first_line_of_its_statement(path: KeyPath, line: int, end: str) -> None:
    assert TomlLines(TEXT.replace("\n", end)).line(path) == line


def test_what_is_not_there_has_the_line_of_what_it_would_be_in() -> None:
    lines = TomlLines(TEXT)
    assert lines.line(("fuzzer", 1, "name")) == 21
    assert lines.line(("gone", 3)) == 1
    assert TomlLines("").line(("name",)) == 1


def paths(value: object, path: KeyPath = ()) -> Iterator[KeyPath]:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from paths(child, (*path, key))


def shortest_with(text: str, path: KeyPath) -> int:
    """By definition, and slowly: how many lines it takes until tomllib finds the path."""
    lines = text.split("\n")
    for count in range(len(lines) + 1):
        try:
            if path in paths(tomllib.loads("\n".join(lines[:count]))):
                return count
        except tomllib.TOMLDecodeError:
            continue
    raise AssertionError(path)


STATEMENTS = [
    *("{k} = 1", "{k} = '[#'", '{k} = """\n[x]\n"""', "{k} = [\n1, # ]\n'''\n[''']", "{k}.{k} = {{ a = [] }}"),
    *("[{k}]", "[[{k}]]", "[{k}.x]", "# [", "", '{k} = "\\\\"', '{k} = """"q" """""'),
]


@given(st.lists(st.tuples(st.sampled_from(STATEMENTS), st.sampled_from("abc")), max_size=8))
def test_the_line_is_where_tomllib_finds_it_first(chosen: list[tuple[str, str]]) -> None:
    text = ""
    for form, key in chosen:
        longer = f"{text}{form.format(k=key)}\n"
        try:
            tomllib.loads(longer)
        except tomllib.TOMLDecodeError:
            continue
        text = longer
    lines, told = text.split("\n"), TomlLines(text)
    for path in paths(tomllib.loads(text)):
        if path:
            first, last = told.line(path), shortest_with(text, path)
            assert is_toml(lines[first - 1 : last])
            assert not any(is_toml(lines[first - 1 : end]) for end in range(first, last))
            assert lines[first - 1].strip("# [")


def is_toml(lines: list[str]) -> bool:
    try:
        tomllib.loads("\n".join(lines))
    except tomllib.TOMLDecodeError:
        return False
    return True
