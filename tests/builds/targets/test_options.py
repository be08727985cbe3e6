"""Reading what the options file of a target says: whatever is sound counts, and nothing raises."""

import configparser
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.builds.targets.options import (
    LARGEST,
    MOST_PROBLEMS,
    SANITIZERS,
    TargetOptions,
    evaluated,
    parse,
    random_range,
)
from pipeline.text import sanitizer_options
from pipeline.text.printable import is_plain

WHOLE = b"""\
# A comment
[libfuzzer]
max_len = 4096
Timeout: 10
dict = dicts/xml.dict
focus_function = a=b : c
len_control = random(1, 9)

; Another one
[asan]
detect_leaks = 0
suppressions = a:b
handle_abort='1'
[ubsan]
halt_on_error=0
[env]
GODEBUG = x=1,y=2
LD_PRELOAD=./lib.so
empty =
[AFL]
dont care
"""


def told(content: bytes) -> tuple[str, ...]:
    return parse(content).problems


class TestSound:
    """What the sections say."""

    def test_a_whole_file(self) -> None:
        assert parse(WHOLE) == TargetOptions(
            flags={"max_len": "4096", "timeout": "10", "focus_function": "a=b : c", "len_control": "random(1, 9)"},
            dictionary="dicts/xml.dict",
            environment={
                "ASAN_OPTIONS": "detect_leaks=0:handle_abort=1:suppressions='a:b'",
                "GODEBUG": "x=1,y=2",
                "LD_PRELOAD": "./lib.so",
                "UBSAN_OPTIONS": "halt_on_error=0",
                "empty": "",
            },
        )

    def test_an_empty_file_says_nothing(self) -> None:
        assert parse(b"") == parse(b"\n# x\n[libfuzzer]\n[asan]\n[env]\n") == TargetOptions()

    @pytest.mark.parametrize(("section", "variable"), SANITIZERS.items())
    def test_each_sanitizer_has_a_section(self, section: str, variable: str) -> None:
        assert parse(f"[{section}]\nb = 2\na = 1\n".encode()) == TargetOptions(environment={variable: "a=1:b=2"})

    def test_the_section_of_a_sanitizer_counts_before_the_variable(self) -> None:
        made = parse(b"[asan]\na = 1\n[env]\nASAN_OPTIONS = a=2,b='3 4'\nMSAN_OPTIONS = b a=2\nTSAN_OPTIONS=b=1,a=2")
        assert made.environment == {"ASAN_OPTIONS": "a=1:b='3 4'", "TSAN_OPTIONS": "b=1,a=2"}
        assert made.problems == ("line 5: MSAN_OPTIONS is passed over: no sanitizer understands its value",)

    @pytest.mark.parametrize("ends", [b"\r\n", b"\r"])
    def test_line_ends_and_byte_order_mark(self, ends: bytes) -> None:
        assert parse(b"\xef\xbb\xbf" + WHOLE.replace(b"\n", ends)) == parse(WHOLE)

    def test_a_percent_sign_is_written_twice(self) -> None:
        made = parse(b"[libfuzzer]\nfocus_function = 5%%%%d\nown = %(max_len)s\nmine = 5%\n")
        assert made.flags == {"focus_function": "5%%d"}
        assert made.problems == tuple(
            f"line {line}: {name} is passed over: a percent sign is written twice: %%"
            for line, name in ((3, "own"), (4, "mine"))
        )

    @pytest.mark.parametrize(
        ("written", "value"),
        [("a b", "'a b'"), ("'a b'", "'a b'"), ('"it\'s x"', '"it\'s x"'), ("x'y\"z", "x'y\"z"), ('"1"', "1")],
    )
    def test_values_for_sanitizers_are_quoted_as_they_need_it(self, written: str, value: str) -> None:
        made = parse(f"[asan]\nlog_suffix = {written}\n".encode())
        assert made == TargetOptions(environment={"ASAN_OPTIONS": f"log_suffix={value}"})


class TestUnsound:
    """What is passed over, and that all else counts."""

    @pytest.mark.parametrize(
        ("lines", "problem"),
        [
            ("nonsense", "line 3: nonsense is passed over: it is not of the form NAME = VALUE"),
            ("= 5", "line 3: = 5 is passed over: it is not of the form NAME = VALUE"),
            ("-runs = 5", "line 3: -runs is passed over: it is no name"),
            ("a b = 5", "line 3: a b is passed over: it is no name"),
            ("é = 5", "line 3: é is passed over: it is no name"),
            ("x" * 65 + " = 5", "line 3: " + "x" * 65 + " is passed over: it is no name"),
            ("own = a\0b", "line 3: own is passed over: its value has control characters"),
            ("own = a\tb", "line 3: own is passed over: its value has control characters"),
            ("own = \x1b[31mx", "line 3: own is passed over: its value has control characters"),
            ("own =\n  a", "line 3: own is passed over: what is indented more below it counts to its value"),
            (
                "own = a\n\n  b",
                "line 3: own is passed over: what is indented more below it counts to its value",
            ),
            ("dict = /etc/x", "line 3: dict is passed over: it must name a file beside the options file, or below"),
            ("dict = a/../x", "line 3: dict is passed over: it must name a file beside the options file, or below"),
            ("dict =", "line 3: dict is passed over: it must name a file beside the options file, or below"),
            ("[libFuzzer]\nx = 1\ny", "line 3: the section libFuzzer is passed over: did you mean libfuzzer?"),
            ("[x y]\nx = 1\n", "line 3: the section x y is passed over: there are libfuzzer, asan, hwasan, lsan, msan"),
            ("[DEFAULT]\nx = 1\n", "line 3: the section DEFAULT is passed over: there are libfuzzer, asan"),
            ("[asan]\na =", "line 4: a is passed over: it has no value"),
            ("[asan]\na = x \"y' z", "line 4: a is passed over: its value has both kinds of quotes"),
            ("[env]\nA-B = 1", "line 4: A-B is passed over: it is no name"),
            ("[env]\nA = 1\x072", "line 4: A is passed over: its value has control characters"),
            ("MAX_LEN = 4096", "line 3: max_len was set in line 2 already: the last value counts"),
            ("[libfuzzer]", "line 3: the section libfuzzer began in line 1 already: both count"),
        ],
    )
    def test_it_is_told_with_its_line(self, lines: str, problem: str) -> None:
        made = parse(f"[libfuzzer]\nmax_len = 4096\n{lines}\n[msan]\na = 1\n".encode())
        (found,) = made.problems
        assert found.startswith(problem)
        assert (made.flags, made.dictionary) == ({"max_len": "4096"}, None)
        assert made.environment == {"MSAN_OPTIONS": "a=1"}

    def test_of_what_is_set_twice_the_last_counts(self) -> None:
        assert parse(b"[libfuzzer]\na = 1\n[env]\nA = 1\na = 2\nA = 3\n[libfuzzer]\na = 4").flags == {"a": "4"}
        assert parse(b"[env]\nA = 1\na = 2\nA = 3\n").environment == {"A": "3", "a": "2"}

    def test_what_stands_above_all_sections_is_told_once(self) -> None:
        made = parse(b"\nmax_len = 5\nx\ny = 6\n[libfuzzer]\nruns = 7\n")
        assert (made.flags, made.problems) == (
            {"runs": "7"},
            ("line 2: what stands above the first section is passed over",),
        )

    def test_one_that_is_too_large_is_not_read(self) -> None:
        line = b"[libfuzzer]\na = 1\n#"
        assert parse(line.ljust(LARGEST, b"x")) == TargetOptions({"a": "1"})
        assert parse(line.ljust(LARGEST + 1, b"x")) == TargetOptions(
            problems=("it has 65537 bytes, more than 65536, and was not read",)
        )

    def test_of_many_problems_only_some_are_told(self) -> None:
        problems = told(b"[libfuzzer]\n" + b"\xff\xfe\0\n" * 5000)
        assert len(problems) == MOST_PROBLEMS + 1
        assert problems[-1] == f"{5000 - MOST_PROBLEMS} more problems are not told"

    def test_bytes_that_are_no_text_are_told_where_they_stand(self) -> None:
        made = parse(b"[libfuzzer]\n# \xe9\na = \xe9\nb = \xc3\xa9\n")
        assert (made.flags, made.problems) == (
            {"b": "é"},
            ("line 3: a is passed over: its value has control characters",),
        )


PIECES = st.sampled_from(
    (
        *(
            "[libfuzzer]",
            "[asan]",
            "[env]",
            "[x]",
            "[",
            "]",
            "\n",
            "\n",
            "\r\n",
            " ",
            "\t",
            "=",
            ":",
            "#",
            ";",
            "%",
            "%%",
            "'",
        ),
        *("a", "b", "dict", "5", '"', "random(1,2)", "é", "\ufeff", "\x1b[1m", "\x85", "\u2028", "/", "..", "DEFAULT"),
    )
)
CONTENTS = st.binary(max_size=200) | st.lists(PIECES | st.text(max_size=3), max_size=60).map(
    lambda pieces: "".join(pieces).encode(errors="replace")
)


@given(CONTENTS)
def test_whatever_a_file_has_what_is_taken_from_it_is_fit_for_use(content: bytes) -> None:
    made = parse(content)
    for name, value in [*made.flags.items(), *made.environment.items()]:
        assert re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name)
        assert is_plain(value)
    for variable in SANITIZERS.values():
        assert not sanitizer_options.parse(made.environment.get(variable, "")).rest
    assert "dict" not in made.flags
    assert made.dictionary is None or not made.dictionary.startswith("/")
    assert all(map(is_plain, made.problems))


def as_clusterfuzz_reads(content: bytes) -> dict[str, str] | None:
    """The section libfuzzer as configparser reads it; None if it takes the file or the section for wrong."""
    parser = configparser.ConfigParser()
    try:
        parser.read_string(content.decode().replace("\r\n", "\n").replace("\r", "\n"))
        return dict(parser.items("libfuzzer"))
    except (configparser.Error, UnicodeDecodeError):
        return None


NAMES = st.sampled_from(["max_len", "Timeout", "dict", "own", "a-b"])
VALUES = st.lists(
    st.sampled_from(["x", "y", " ", "=", ":", "#", ";", "%%", "%", "5", "é", "[", "]", "\x85"]), min_size=1, max_size=5
)
LINES = st.one_of(
    st.sampled_from(
        ["[libfuzzer]", "[asan]", "[other]", "", "# x", " ; x = 1", "  x", "[libfuzzer] # x", "\tmore = 1"]
    ),
    st.builds("{}{}{}{}".format, st.sampled_from(["", " "]), NAMES, st.sampled_from("=: "), VALUES.map("".join)),
)


@given(st.lists(LINES, max_size=10), st.sampled_from(["\n", "\r\n", "\r"]))
def test_what_is_right_for_clusterfuzz_is_read_as_it_reads_it(lines: list[str], end: str) -> None:
    content = end.join(["[libfuzzer]", *lines]).encode()
    expected = as_clusterfuzz_reads(content)
    if expected is None:
        assert told(content) or b"[asan]" in content or b"[other]" in content
        return
    made = parse(content)
    read = {**made.flags, **({"dict": made.dictionary} if made.dictionary else {})}
    named = {name: value for name, value in expected.items() if re.fullmatch("[a-z_]+", name) and is_plain(value)}
    assert read == {name: value for name, value in named.items() if value or name != "dict"}


class TestRandom:
    """Numbers that are drawn."""

    @given(st.integers(0, 10**18 - 1), st.integers(0, 10**18 - 1), st.integers())
    def test_it_is_one_of_them_and_always_the_same(self, one: int, other: int, seed: int) -> None:
        lowest, highest = sorted((one, other))
        drawn = evaluated(f" random( {lowest} , {highest})", seed)
        assert lowest <= int(drawn) <= highest
        assert drawn == evaluated(f"random({lowest},{highest})", seed)

    def test_each_of_them_is_drawn(self) -> None:
        assert {evaluated("random(3, 6)", seed) for seed in range(100)} == {"3", "4", "5", "6"}
        assert evaluated("random(3, 6)", 1) == evaluated("random(3, 6)", 1)
        assert evaluated("random(0, 1000000)", 7) == "931275"

    @pytest.mark.parametrize(
        "value",
        [
            *("", "5", "random(2, 1)", "random(1)", "random(-1, 1)", "random(1, 2) x", "Random(1, 2)"),
            *("random(\u0661, 5)", "random(0, 1" + "0" * 18 + ")"),
        ],
    )
    def test_all_else_is_returned_as_it_is(self, value: str) -> None:
        assert evaluated(value, 1) == value
        assert random_range(value) is None
