"""What of a campaign's options a merge takes over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.campaign.judging import COUNTED, LIMITS, PASSED, hit_own_limit, judging, value_profile
from pipeline.fuzz import flags
from pipeline.fuzz.crashes.report import parse

USUAL = {"timeout": "25", "rss_limit_mb": "307"}
ALONE = USUAL | {"max_len": "4096"}

LEFT_OUT = {
    "it cuts units, or refuses them": "max_len only_ascii",
    "by it less counts as covered": "use_counters shrink",
    "by it something is covered that is not in the corpus": "seed_inputs",
    "by it a measurement ends early, or is not told": "exit_on_item exit_on_src_pos exit_on_time stop_file verbosity",
    "it is for new inputs": "len_control cross_over cross_over_uniform_dist mutate_depth reduce_depth use_memmem "
    "use_cmp reduce_inputs keep_seed focus_function data_flow_trace entropic entropic_feature_frequency_threshold "
    "entropic_number_of_rarest_features entropic_scale_per_exec_time",
    "it is for the order in which units are read": "shuffle prefer_small reload",
    "it is for fork mode": "fork_corpus_groups ignore_timeouts ignore_ooms ignore_crashes",
    "it prints or writes more": "report_slow_units print_pcs print_funcs print_corpus_stats print_coverage "
    "print_full_coverage dump_coverage trace_malloc features_dir mutation_graph_file",
    "it changes nothing that a merge looks at": "error_exitcode timeout_exitcode purge_allocator_interval "
    "create_missing_dirs",
}
"""Why a merge goes without them. An option that is new in none of these lists has not been thought about."""


def test_each_option_that_a_campaign_may_set_is_passed_on_or_left_out_for_a_reason() -> None:
    left_out = [name for names in LEFT_OUT.values() for name in names.split()]
    decided = sorted([*left_out, *PASSED, *LIMITS, COUNTED])
    assert decided == sorted(flags.NUMBERS | flags.TEXTS)


values = st.integers(-1, 5000).map(str)


@given(st.dictionaries(st.sampled_from(sorted(flags.NUMBERS)), values), st.integers(0, 1 << 30), st.integers(0, 3))
def test_no_option_hides_anything(chosen: dict[str, str], largest: int, counted: int) -> None:
    found = judging(chosen, USUAL, largest, counted)
    assert int(found["max_len"]) >= largest
    assert found.keys() <= {*PASSED, *LIMITS, COUNTED, "max_len"}
    assert int(found.get(COUNTED, "0")) & counted == counted
    for name, usual in USUAL.items():
        assert int(found[name]) == 0 or int(found[name]) >= max(int(usual), int(chosen.get(name, "1")))
    if "malloc_limit_mb" in found:
        assert int(found["malloc_limit_mb"]) > int(found["rss_limit_mb"]) > 0


@pytest.mark.parametrize(
    ("chosen", "more"),
    [
        ({}, {}),
        ({"max_len": "4", "only_ascii": "1", "use_counters": "0", "seed_inputs": "x", "verbosity": "0"}, {}),
        ({"timeout": "1", "rss_limit_mb": "64", "malloc_limit_mb": "8"}, {}),
        ({"timeout": "60", "rss_limit_mb": "400"}, {"timeout": "60", "rss_limit_mb": "400"}),
        ({"timeout": "0", "rss_limit_mb": "-1"}, {"timeout": "0", "rss_limit_mb": "0"}),
        ({"malloc_limit_mb": "400"}, {"malloc_limit_mb": "400"}),
        ({"malloc_limit_mb": "400", "rss_limit_mb": "0"}, {"rss_limit_mb": "0"}),
        ({"detect_leaks": "0", "handle_usr1": "0"}, {"detect_leaks": "0", "handle_usr1": "0"}),
        ({"mode": "jpeg"}, {"mode": "jpeg"}),
        ({COUNTED: "2"}, {COUNTED: "2"}),
    ],
)
def test_what_is_taken_over(chosen: dict[str, str], more: dict[str, str]) -> None:
    assert judging(chosen, USUAL, 8, 0) == ALONE | more


def test_what_any_campaign_counts_as_covered_counts() -> None:
    assert judging({COUNTED: "2"}, USUAL, 5000, 1) == ALONE | {COUNTED: "3", "max_len": "5000"}
    assert (value_profile({}), value_profile({COUNTED: "1"})) == (0, 1)


@pytest.mark.parametrize(
    ("said", "chosen", "own"),
    [
        ("timeout after 2 seconds", {"timeout": "1"}, True),
        ("timeout after 26 seconds", {}, False),
        ("timeout after 26 seconds", {"timeout": "25"}, False),
        ("timeout after 61 seconds", {"timeout": "60"}, False),
        ("timeout after 26 seconds", {"timeout": "0", "rss_limit_mb": "1"}, False),
        ("out-of-memory (used: 65Mb; limit: 64Mb)", {"rss_limit_mb": "64"}, True),
        ("out-of-memory (malloc(9999999))", {"malloc_limit_mb": "8"}, True),
        ("out-of-memory (malloc(9999999999))", {"malloc_limit_mb": "307"}, False),
        ("out-of-memory (malloc(9999999999))", {"malloc_limit_mb": "0", "rss_limit_mb": "0"}, False),
        ("out-of-memory (malloc(9999999))", {"timeout": "1"}, False),
        ("deadly signal", {"timeout": "1", "rss_limit_mb": "64"}, False),
    ],
)
def test_only_a_lower_limit_than_that_of_others_is_the_campaign_s_own(
    said: str, chosen: dict[str, str], own: bool
) -> None:
    assert hit_own_limit(parse(f"==1== ERROR: libFuzzer: {said}\n".encode()), chosen, USUAL) is own


def test_what_reported_nothing_has_hit_no_limit() -> None:
    assert not hit_own_limit(None, {"timeout": "1"}, USUAL)


@given(st.dictionaries(st.sampled_from(LIMITS), values), st.sampled_from(["timeout after 2 s", "out-of-memory (x)"]))
def test_a_unit_that_merges_would_not_stop_for_is_not_bad_and_no_other(chosen: dict[str, str], said: str) -> None:
    report = parse(f"==1== ERROR: libFuzzer: {said}\n".encode())
    merged = judging(chosen, USUAL, 8, 0)
    if all(merged.get(name, merged["rss_limit_mb"]) == value for name, value in chosen.items()):
        assert not hit_own_limit(report, chosen, USUAL)
