"""Go's rules for flags."""

import pytest

from pipeline.errors import UsageError
from pipeline.undercoat.flags import parse

NAMES = ("handle", "fuzzer")


@pytest.mark.parametrize(
    ("words", "values", "rest"),
    [
        ([], {}, []),
        (["-handle", "h"], {"handle": "h"}, []),
        (["--handle", "h"], {"handle": "h"}, []),
        (["-handle=h"], {"handle": "h"}, []),
        (["--handle=h=i"], {"handle": "h=i"}, []),
        (["-handle="], {"handle": ""}, []),
        (["-handle", ""], {"handle": ""}, []),
        (["-handle", "-fuzzer"], {"handle": "-fuzzer"}, []),
        (["-handle", "a", "-handle", "b"], {"handle": "b"}, []),
        (["-handle", "a", "word", "-fuzzer", "f"], {"handle": "a"}, ["word", "-fuzzer", "f"]),
        (["-handle", "a", "--", "-runs=1"], {"handle": "a"}, ["-runs=1"]),
        (["--", "--"], {}, ["--"]),
        (["-"], {}, ["-"]),
        (["", "-handle"], {}, ["", "-handle"]),
    ],
)
def test_flags(words: list[str], values: dict[str, str], rest: list[str]) -> None:
    parsed = parse(words, NAMES)
    assert (dict(parsed.values), list(parsed.rest)) == (values, rest)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["-runs=1"], "flag provided but not defined: -runs"),
        (["-Handle", "h"], "flag provided but not defined: -Handle"),
        (["-handle"], "flag needs an argument: -handle"),
        (["---handle", "h"], "bad flag syntax: ---handle"),
        (["-=h"], "bad flag syntax: -=h"),
        (["--=h"], "bad flag syntax: --=h"),
        (["-h"], "flag: help requested"),
        (["--help"], "flag: help requested"),
    ],
)
def test_what_is_no_flag(words: list[str], problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words, NAMES)
    assert caught.value.message == problem


def test_switches_stand_alone() -> None:
    parsed = parse(["-logtostderr", "-v", "2", "--logtostderr=false", "version"], ("v",), ("logtostderr",))
    assert (dict(parsed.values), list(parsed.rest)) == ({"logtostderr": "false", "v": "2"}, ["version"])
