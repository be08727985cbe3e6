"""What is known of libFuzzer's flags: which there are, of what type, and which nobody but Topcoat may set.

The flags and their types are those of llvm-project, compiler-rt/lib/fuzzer/FuzzerFlags.def at commit 0ffea756ec5b.
"""

import re
from collections.abc import Mapping

from pipeline.builds.targets.options import random_range
from pipeline.text.printable import one_line
from pipeline.text.spelling import nearest

_TIME = "slices have limits of their own: see budget and slice"
_ARTIFACTS = "Topcoat chooses where artifacts go, and fetches them from there"
_PROCESSES = "Topcoat runs one process for each slice, and many guests side by side"
_MODE = "it makes the run something else than fuzzing"

REFUSED = {
    "artifact_prefix": _ARTIFACTS,
    "exact_artifact_path": _ARTIFACTS,
    "max_total_time": _TIME,
    "runs": _TIME,
    "seed": "each slice has a seed of its own, made from the campaign's: set seed beside name",
    "jobs": _PROCESSES,
    "workers": _PROCESSES,
    "fork": _PROCESSES,
    "dict": "give a [[fuzzer]] its dictionary = PATH: Topcoat brings it into the guest",
    "print_final_stats": "Topcoat sets it, and reads what it prints",
    **dict.fromkeys(
        (
            *("merge", "set_cover_merge", "merge_inner", "merge_control_file", "minimize_crash", "cleanse_crash"),
            *("minimize_crash_internal_step", "analyze_dict", "collect_data_flow", "help", "ignore_remaining_args"),
        ),
        _MODE,
    ),
}
"""Options that neither a campaign nor the options file of a target may set, and why."""

_NUMBERS = (
    "verbosity max_len len_control keep_seed cross_over cross_over_uniform_dist mutate_depth reduce_depth shuffle "
    "prefer_small timeout error_exitcode timeout_exitcode exit_on_time fork_corpus_groups ignore_timeouts ignore_ooms "
    "ignore_crashes use_counters use_memmem use_value_profile use_cmp shrink reduce_inputs reload report_slow_units "
    "only_ascii print_pcs print_funcs print_corpus_stats print_coverage print_full_coverage dump_coverage handle_segv "
    "handle_bus handle_abrt handle_ill handle_fpe handle_int handle_term handle_trap handle_xfsz handle_usr1 "
    "handle_usr2 handle_winexcept close_fd_mask detect_leaks purge_allocator_interval trace_malloc rss_limit_mb "
    "malloc_limit_mb entropic entropic_feature_frequency_threshold entropic_number_of_rarest_features "
    "entropic_scale_per_exec_time create_missing_dirs"
)
_TEXTS = (
    "seed_inputs stop_file features_dir mutation_graph_file exit_on_src_pos exit_on_item focus_function data_flow_trace"
)

NUMBERS = frozenset(_NUMBERS.split())
"""Options whose value is a whole number. libFuzzer reads the digits that it finds, or 0 if there are none."""

TEXTS = frozenset(_TEXTS.split())
"""Options whose value is text."""

INT = range(-(1 << 31), 1 << 31)
"""The numbers that libFuzzer can keep."""

_SHOWN = 80  # characters of a value
_NUMBER = re.compile(r"-?[0-9]{1,10}")


def of_target(flags: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Divide the flags of a target's options file into those that hold, and one clause for each that is passed over.

    A number may be `random(LOWEST, HIGHEST)`, which is kept as it is: see pipeline.builds.targets.options. Flags that
    libFuzzer does not have are kept too: it only warns of them, and they may be the target's own.
    """
    held, passed_over = {}, []
    for name, value in flags.items():
        if reason := _unfit(name, value):
            passed_over.append(f"{name} = {one_line(value, _SHOWN)} is passed over: {reason}")
        else:
            held[name] = value
    return held, tuple(passed_over)


def _unfit(name: str, value: str) -> str:
    """Why a target may not set this; empty if it may."""
    if name in REFUSED:
        return REFUSED[name]
    ends = random_range(value) or (value,)
    if name in NUMBERS and not all(_NUMBER.fullmatch(str(end)) and int(end) in INT for end in ends):
        return "it takes a whole number that fits 32 bits"
    return ""


def is_known(name: str) -> bool:
    """Whether libFuzzer has an option of this name. It only warns of others in its output."""
    return name in NUMBERS or name in TEXTS


def hint_for(name: str) -> str:
    """What to do about an option that libFuzzer does not have."""
    near = nearest(name, NUMBERS | TEXTS)
    return f"did you mean {near[0]}?" if near else "it is passed on all the same; its own flags are told by -help=1"
