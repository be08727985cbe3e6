"""The words of `undercoat`: what is taken, what is refused, and what is said."""

import re

import pytest

from pipeline.undercoat import program
from pipeline.undercoat.program import COMMANDS, main


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "missing subcommand"),
        ([""], "unknown subcommand: "),
        (["invalid"], "unknown subcommand: invalid"),
        (["version", "extra"], "too many arguments"),
        (["stop_instance"], "not enough arguments"),
        (["stop_instance", "-handle", ""], "not enough arguments"),
        (["stop_instance", "-handle", "handle", "extra"], "too many arguments"),
        (["stop_instance", "extra"], "not enough arguments"),
        (["get_logs", "-h"], "flag: help requested"),
        (["get_logs", "-runs=1"], "flag provided but not defined: -runs"),
        (["run_fuzzer", "-handle", "h", "-fuzzer", "f", "-runs=1"], "flag provided but not defined: -runs"),
        (["run_fuzzer", "-handle", "h"], "not enough arguments"),
        (["run_fuzzer", "-handle", "h", "-fuzzer", "f", "-artifact-dir="], "-artifact-dir has an empty value"),
        (["prepare_fuzzer", "-handle", "h", "-fuzzer", "f", "x"], "too many arguments"),
        (["put_data", "-handle", "h", "-fuzzer", "f", "-src", "s"], "not enough arguments"),
        (["start_instance", "-handle", "x"], "flag provided but not defined: -handle"),
    ],
)
def test_a1_words_that_are_refused(words: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 1
    said = capsys.readouterr()
    assert said.out.endswith(f"Error parsing args: {problem}\n")
    assert f"Error parsing args: {problem}\n" in said.err
    usage = problem.startswith(("missing sub", "unknown sub"))
    assert (program.usage() in said.out) == usage


def test_a2_words_that_are_taken() -> None:
    assert COMMANDS["version"].read([]).values == {}
    assert COMMANDS["stop_instance"].read(["-handle", "handle"]).values == {"handle": "handle"}
    assert COMMANDS["stop_instance"].read(["--handle=a", "-handle=b"]).values == {"handle": "b"}


def test_a3_words_for_the_fuzzer() -> None:
    parsed = COMMANDS["run_fuzzer"].read(["-handle", "handle", "-fuzzer", "fuzzer", "--", "extra1", "extra2"])
    assert parsed.values == {"handle": "handle", "fuzzer": "fuzzer"}
    assert list(parsed.rest) == ["extra1", "extra2"]


def test_e1_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert re.fullmatch(r"v\d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("words", [["-logtostderr"], ["--v=2", "-alsologtostderr=true"], ["-stderrthreshold", "0"]])
def test_global_flags_stand_before_the_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "version"]) == 0
    assert capsys.readouterr().out == "v0.1.0\n"


def test_a_bad_global_flag_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-bad", "version"]) == 2
    assert capsys.readouterr() == ("", f"flag provided but not defined: -bad\n{program.usage()}\n")


def test_help_lists_the_commands_or_the_flags_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 2
    assert "\n  put_data\n" in capsys.readouterr().err
    assert main(["get_data", "-help"]) == 1
    assert "\n  -src string\n" in capsys.readouterr().err


def test_who_forgets_the_two_dashes_is_told_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run_fuzzer", "-handle", "h", "-fuzzer", "f", "-runs=1"]) == 1
    assert capsys.readouterr().err.endswith("what is for a fuzzer goes behind --\n")


def test_what_is_missing_has_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["put_data", "-handle", "h", "-fuzzer", "f"]) == 1
    assert capsys.readouterr().err.endswith("hint: give -src and -dst, each with a value\n")


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.required])
def test_a_handle_that_is_not_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    others = [word for flag in COMMANDS[name].required if flag != "handle" for word in (f"-{flag}", "x")]
    assert main([name, "-handle", "/nowhere/x", *others]) == 1
    said = capsys.readouterr()
    problem = "Error executing command: Bad handle: /nowhere/x: No such file or directory\n"
    assert said.out == problem
    assert said.err.startswith(problem)
    assert "hint: " in said.err
