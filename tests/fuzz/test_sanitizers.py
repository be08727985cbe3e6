"""The environment that fuzzers get for their sanitizers, and what of a user's own costs findings."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.builds.linux import compiler
from pipeline.builds.linux.compiler import Compiler
from pipeline.fuzz.crashes.report import parse
from pipeline.fuzz.sanitizers import LASTING, OPTIONS, environment, loses, reads
from pipeline.text import sanitizer_options

OF_ALL = {"symbolize": "0", "exitcode": "1", "print_summary": "1", "use_sigaltstack": "1"}

KEYS = st.sampled_from(["exitcode", "halt_on_error", "symbolize", "handle_abort", "own"])
VALUES = st.text(st.sampled_from("01a: '"), max_size=4)
LAYERS = st.lists(
    st.dictionaries(st.sampled_from([*OPTIONS, "CFI_OPTIONS"]), st.dictionaries(KEYS, VALUES, max_size=3), max_size=3),
    max_size=3,
)


def values(made: Mapping[str, str], name: str) -> Mapping[str, str]:
    read = sanitizer_options.parse(made[name])
    assert not read.rest
    return read.values


class TestOurs:
    """What is set if nobody says anything."""

    @pytest.mark.parametrize("name", ["ASAN", "HWASAN", "MSAN", "TSAN", "UBSAN"])
    def test_each_sanitizer_halts_at_what_it_finds(self, name: str) -> None:
        assert values(environment({}), f"{name}_OPTIONS").items() > {**OF_ALL, "halt_on_error": "1"}.items()

    def test_what_is_set_is_written_once_and_sorted(self) -> None:
        made = environment()
        assert made.keys() == OPTIONS.keys()
        for name, text in made.items():
            assert text.split(":") == sorted(f"{key}={value}" for key, value in OPTIONS[name].items())

    @pytest.mark.parametrize("signal", ["abort", "segv", "sigbus", "sigfpe", "sigill", "sigtrap"])
    def test_signals_and_their_stacks_are_left_to_libfuzzer(self, signal: str) -> None:
        assert not [
            name for name, ours in OPTIONS.items() if {f"handle_{signal}", "fast_unwind_on_fatal"} & ours.keys()
        ]

    def test_nothing_of_ours_costs_a_finding(self) -> None:
        assert loses(environment()) == loses(environment(lasting=True)) == ()


class TestMerging:
    """What the user says counts, option by option."""

    def test_an_option_of_ones_own_takes_the_place_of_ours(self) -> None:
        made = environment({"ASAN_OPTIONS": "halt_on_error=0, own='a b'", "MODE": "x"})
        assert values(made, "ASAN_OPTIONS") == {**OPTIONS["ASAN_OPTIONS"], "halt_on_error": "0", "own": "a b"}
        assert made["MODE"] == "x"
        assert made["ASAN_OPTIONS"].count("halt_on_error") == 1
        assert {name: made[name] for name in OPTIONS if name != "ASAN_OPTIONS"} == {
            name: text for name, text in environment().items() if name != "ASAN_OPTIONS"
        }

    def test_later_layers_count_option_by_option_in_those_of_sanitizers_and_as_a_whole_in_others(self) -> None:
        first = {"UBSAN_OPTIONS": "a=1:b=1", "CFI_OPTIONS": "a=1:b=1", "MODE": "a=1:b=1", "FIRST": "1"}
        second = {"UBSAN_OPTIONS": "b=2", "CFI_OPTIONS": "b=2 c=2", "MODE": "b=2", "SECOND": "2"}
        made = environment(first, {}, second)
        assert values(made, "UBSAN_OPTIONS") == {**OPTIONS["UBSAN_OPTIONS"], "a": "1", "b": "2"}
        assert made["CFI_OPTIONS"] == "a=1:b=2:c=2"
        assert (made["MODE"], made["FIRST"], made["SECOND"]) == ("b=2", "1", "2")

    @pytest.mark.parametrize("apart", ["own", "own='x", "include=/x", "include_if_exists='/x y'"])
    def test_what_cannot_be_merged_comes_behind_all_that_can_as_it_is(self, apart: str) -> None:
        first, third = {"MSAN_OPTIONS": "halt_on_error=0"}, {"MSAN_OPTIONS": "halt_on_error=yes"}
        made = environment(first, {"MSAN_OPTIONS": f"a=1 {apart}"}, third)["MSAN_OPTIONS"]
        assert made == f"{environment(first)['MSAN_OPTIONS']}:a=1 {apart}:halt_on_error=yes"
        assert environment({"X_OPTIONS": apart, "DFSAN_OPTIONS": apart})["DFSAN_OPTIONS"] == apart

    def test_what_holds_for_all_holds_for_those_built_into_another_one_which_are_read_later(self) -> None:
        made = environment({"MSAN_OPTIONS": "exitcode=5:halt_on_error=0", "LSAN_OPTIONS": "exitcode=6:symbolize=1"})
        exits = {name: (values(made, name)["exitcode"], values(made, name)["symbolize"]) for name in OPTIONS}
        assert exits == {
            **dict.fromkeys(("ASAN_OPTIONS", "HWASAN_OPTIONS", "TSAN_OPTIONS"), ("1", "0")),
            "MSAN_OPTIONS": ("5", "0"),
            "LSAN_OPTIONS": ("6", "1"),
            "UBSAN_OPTIONS": ("6", "1"),
        }
        assert values(made, "UBSAN_OPTIONS")["halt_on_error"] == "1"
        made = environment({"UBSAN_OPTIONS": "exitcode=7"}, {"ASAN_OPTIONS": "exitcode=8"})
        assert values(made, "UBSAN_OPTIONS")["exitcode"] == "7"

    @given(LAYERS, st.booleans())
    def test_each_option_is_that_of_the_last_layer_that_has_it_or_else_ours(
        self, layers: list[dict[str, dict[str, str]]], lasting: bool
    ) -> None:
        written = [{name: sanitizer_options.joined(one) for name, one in layer.items()} for layer in layers]
        made = environment(*written, lasting=lasting)
        for name in made:
            own = {key: value for layer in layers for key, value in layer.get(name, {}).items()}
            ours = {**OPTIONS.get(name, {}), **(LASTING.get(name, {}) if lasting else {})}
            told = values(made, name)
            assert told.items() >= own.items()
            assert told.keys() == ours.keys() | own.keys()
            fixed = ours.keys() - own.keys() - (OF_ALL.keys() if name in ("LSAN_OPTIONS", "UBSAN_OPTIONS") else set())
            assert {key: told[key] for key in fixed} == {key: ours[key] for key in fixed}
            assert made[name] == sanitizer_options.joined(told)


class TestLasting:
    """A process that a sanitizer would end sleeps instead."""

    def test_only_address_sanitizer_can(self) -> None:
        plain, lasting = environment({}), environment({}, lasting=True)
        assert {name for name in plain if plain[name] != lasting[name]} == {"ASAN_OPTIONS"}
        options = values(lasting, "ASAN_OPTIONS")
        assert options == {**OPTIONS["ASAN_OPTIONS"], **LASTING["ASAN_OPTIONS"]}
        assert int(options["sleep_before_dying"]) < 1 << 31

    def test_users_words_count(self) -> None:
        mine = values(environment({"ASAN_OPTIONS": "sleep_before_dying=0"}, lasting=True), "ASAN_OPTIONS")
        assert mine == {**OPTIONS["ASAN_OPTIONS"], **LASTING["ASAN_OPTIONS"], "sleep_before_dying": "0"}


class TestLosses:
    """What of a user's own costs findings."""

    @pytest.mark.parametrize(
        ("name", "text", "told"),
        [
            (
                "UBSAN_OPTIONS",
                "halt_on_error=0",
                "halt_on_error=0 in UBSAN_OPTIONS: what is found is told, and its input",
            ),
            ("ASAN_OPTIONS", "halt_on_error='no'", "halt_on_error=no in ASAN_OPTIONS: what is found is told"),
            ("CFI_OPTIONS", "a=1,halt_on_error=false", "halt_on_error=false in CFI_OPTIONS: what is found is told"),
            ("MSAN_OPTIONS", "keep_going=1", "keep_going=1 in MSAN_OPTIONS: what is found is told"),
            ("ASAN_OPTIONS", "exitcode=0", "exitcode=0 in ASAN_OPTIONS: a merge takes a run that was ended by"),
            ("ASAN_OPTIONS", "log_path=", "log_path= in ASAN_OPTIONS: reports do not come to the output"),
            ("ASAN_OPTIONS", "log_path=stdout", "log_path=stdout in ASAN_OPTIONS: reports do not come to the output"),
            (
                "ASAN_OPTIONS",
                "handle_segv=0",
                "handle_segv=0 in ASAN_OPTIONS: a stack overflow ends the target without",
            ),
            ("HWASAN_OPTIONS", "use_sigaltstack=no", "use_sigaltstack=no in HWASAN_OPTIONS: a stack overflow ends"),
            ("ASAN_OPTIONS", "fast_unwind_on_fatal=1", "fast_unwind_on_fatal=1 in ASAN_OPTIONS: the stacks of failed"),
            (
                "UBSAN_OPTIONS",
                "print_stacktrace=0",
                "print_stacktrace=0 in UBSAN_OPTIONS: all undefined behaviour of a",
            ),
            ("TSAN_OPTIONS", "stack_trace_format='%n\x1b[1m'", "stack_trace_format=%n in TSAN_OPTIONS: stacks are"),
            (
                "LSAN_OPTIONS",
                "enable_symbolizer_markup=yes",
                "enable_symbolizer_markup=yes in LSAN_OPTIONS: stacks are",
            ),
            ("ASAN_OPTIONS", "a=1:\tno 'x", '"no \'x" in ASAN_OPTIONS: no sanitizer understands it, and so ends'),
        ],
    )
    def test_it_is_told_with_what_happens(self, name: str, text: str, told: str) -> None:
        (clause,) = loses({"MODE": "halt_on_error=0", name: text})
        assert clause.startswith(told)
        assert not clause.endswith(".")

    @pytest.mark.parametrize(
        "text",
        [
            "halt_on_error=1",
            "halt_on_error=0:halt_on_error=1",
            "x=' halt_on_error=0'",
            "exitcode=77",
            "handle_segv=2",
            "handle_abort=0",
            "log_path=stderr",
            "abort_on_error=1",
            "symbolize=1",
            "suppressions=pkg/known",
            "detect_leaks=0",
            "detect_stack_use_after_return=0",
            "keep_going=1",
            "print_stacktrace=0",
            "stack_trace_format=DEFAULT",
            "verbosity=2",
            "color=always",
        ],
    )
    def test_what_costs_nothing_or_is_a_choice_is_not(self, text: str) -> None:
        assert loses({"ASAN_OPTIONS": text}) == ()

    def test_each_is_told_in_the_order_in_which_it_is_set(self) -> None:
        told = loses({"UBSAN_OPTIONS": "print_stacktrace=0 halt_on_error=0", "ASAN_OPTIONS": "exitcode=0"})
        assert [clause.partition("=")[0] for clause in told] == ["print_stacktrace", "halt_on_error", "exitcode"]


@pytest.mark.parametrize("name", [*OPTIONS, "NEWSAN_OPTIONS", "GWP_ASAN_OPTIONS", "CFI_OPTIONS", "SCUDO_OPTIONS"])
def test_variables_that_sanitizers_read(name: str) -> None:
    assert reads(name)


@pytest.mark.parametrize("name", ["ASAN_OPTIONS_X", "JAVA_OPTIONS", "OPTIONS", "ASAN_SYMBOLIZER_PATH", "asan_options"])
def test_variables_that_they_do_not(name: str) -> None:
    assert not reads(name)


SOURCE = """\
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char *volatile byte = malloc(1);
  byte[1 + (size & 0)] = (char)*data;
  free(byte);
  return 0;
}
"""


def test_a_real_sanitizer_understands_what_was_merged(demo_parts: Path, tmp_path: Path) -> None:
    root = compiler.unpack(demo_parts / "demo/sysroot.tar", tmp_path / "sysroot")
    source, program = tmp_path / "sources/one.c", tmp_path / "one"
    source.parent.mkdir()
    source.write_text(SOURCE)
    words = ("-fsanitize=fuzzer,address", source.name, "-lstdc++", "-lm")
    clang = Compiler(demo_parts / "demo/tools")
    clang.link(*words, directory=source.parent, output=program, root=root, timeout=200.0)
    own = {"ASAN_OPTIONS": "exitcode=5,help=1\nlog_suffix='a \"b\":c'"}
    made = {**os.environ, **environment(own, {"LSAN_OPTIONS": "max_leaks=3"})}
    ran = subprocess.run([program, "-runs=1"], cwd=tmp_path, env=made, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 5, "UBSAN_OPTIONS, which is read last, says so too"
    assert '(Current Value: a "b":c)' in ran.stderr
    assert "SCARINESS: " in ran.stderr
    report = parse(ran.stderr.encode())
    assert report is not None
    assert (report.kind, report.access, report.frames[0].place[:6]) == ("heap-buffer-overflow", "WRITE 1", "one+0x")
    assert "unrecognized flag" not in ran.stderr
