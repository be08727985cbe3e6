"""What is known of libFuzzer's flags, and which of a target's hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.builds.targets.options import evaluated
from pipeline.fuzz.flags import INT, NUMBERS, REFUSED, TEXTS, hint_for, is_known, of_target


def test_each_flag_is_of_one_kind() -> None:
    assert len(NUMBERS) + len(TEXTS) + len(REFUSED) == len(NUMBERS | TEXTS | REFUSED.keys())
    assert is_known("max_len")
    assert is_known("focus_function")
    assert not is_known("max_lenn")


def test_what_may_be_meant() -> None:
    assert hint_for("mx_len") == "did you mean max_len?"
    assert "-help=1" in hint_for("own_one_of_mine")


@pytest.mark.parametrize("name", REFUSED)
def test_what_topcoat_sets_itself_is_passed_over(name: str) -> None:
    held, (clause,) = of_target({name: "1", "max_len": "5"})
    assert held == {"max_len": "5"}
    assert clause == f"{name} = 1 is passed over: {REFUSED[name]}"


@pytest.mark.parametrize(
    "value",
    [
        *("", "x", "5x", "0.5", "1e6", "0x10", " 5", "+5", "5 6", "٣", "2147483648", "-2147483649", "9" * 5000),
        *("random(5, 1)", "random(1)", "random(1, 2147483648)", "random(-1, 1)", "\x1b[1m"),
    ],
)
def test_a_number_that_is_none_is_passed_over(value: str) -> None:
    held, (clause,) = of_target({"max_len": value, "len_control": "0"})
    assert held == {"len_control": "0"}
    assert clause.startswith("max_len = ")
    assert clause.endswith(" is passed over: it takes a whole number that fits 32 bits")
    assert len(clause) < 200
    assert clause.isprintable()


@pytest.mark.parametrize(
    "flags",
    [
        {"max_len": "2147483647", "verbosity": "-2147483648", "close_fd_mask": "3", "only_ascii": "01"},
        {"max_len": "random(1, 2147483647)", "timeout": " random( 5,5 ) "},
        {"focus_function": "", "exit_on_item": "a b=c"},
        {"own": "", "own_too": "x y"},
    ],
)
def test_the_rest_holds_as_it_is_written(flags: dict[str, str]) -> None:
    assert of_target(flags) == (flags, ())


@given(st.dictionaries(st.sampled_from(sorted(NUMBERS)), st.text(max_size=8) | st.integers().map(str)), st.integers())
def test_a_number_that_holds_is_one_that_libfuzzer_can_keep(flags: dict[str, str], seed: int) -> None:
    held, clauses = of_target(flags)
    assert len(held) + len(clauses) == len(flags)
    assert all(int(evaluated(value, seed)) in INT for value in held.values())
