"""The options of libFuzzer that a campaign may set, and the variables of a fuzzer's environment.

The flags and their types are those of llvm-project, compiler-rt/lib/fuzzer/FuzzerFlags.def at commit 0ffea756ec5b.
"""

import re

from pipeline.campaign.plan.problems import is_plain, nearest

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
"""Options that no campaign may set, and why."""

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

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_HIDES = re.compile(r"(?:^|[\s:,])log_path=")
_GOES_ON = re.compile(r"(?:^|[\s:,])halt_on_error=['\"]?(?:0|no|false)\b")
_INT = range(-(1 << 31), 1 << 31)


class Misused(ValueError):
    """An option or variable cannot be set in this way: what is wrong, and what to do instead."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def encoded(name: str, value: object) -> str:
    """The value of an option in the form that libFuzzer takes; True becomes 1. Raises Misused."""
    if _NAME.fullmatch(name) is None:
        raise Misused(f"{name!r} is no name of an option", "write it as libFuzzer does, without dashes: max_len = 4096")
    if name in REFUSED:
        raise Misused(f"the option {name} cannot be set", REFUSED[name])
    if isinstance(value, bool):
        value = int(value)
    if name in NUMBERS and not (isinstance(value, int) and value in _INT):
        raise Misused(f"the option {name} takes a whole number", f"write it without quotes and point: {name} = 1")
    if name in TEXTS and not isinstance(value, str):
        raise Misused(f"the option {name} takes text", f'write it in quotes: {name} = "…"')
    if not isinstance(value, int | float | str) or (isinstance(value, int) and value not in _INT):
        raise Misused(f"the option {name} cannot have this value", "write a number, a text, or true or false")
    if isinstance(value, str) and not is_plain(value):
        raise Misused(f"the option {name} has control characters", "leave them out")
    return str(value)


def variable(name: str, value: object) -> str:
    """The value of an environment variable as text; a number is written out. Raises Misused."""
    if _NAME.fullmatch(name) is None:
        raise Misused(f"{name!r} is no name of a variable", 'write it as a shell does: UBSAN_OPTIONS = "…"')
    if isinstance(value, bool) or not isinstance(value, int | str) or (isinstance(value, int) and value not in _INT):
        raise Misused(f"the variable {name} cannot have this value", f'write it in quotes: {name} = "…"')
    if isinstance(value, str) and not is_plain(value):
        raise Misused(f"the variable {name} has control characters", "leave them out")
    if _HIDES.search(str(value)) and name.endswith("SAN_OPTIONS"):
        raise Misused(f"log_path cannot be set in {name}", "Topcoat reads reports from the output of the fuzzer")
    return str(value)


def lets_go_on(name: str, value: str) -> bool:
    """Whether this variable makes a sanitizer go on after it has found something."""
    return name.endswith("SAN_OPTIONS") and _GOES_ON.search(value) is not None


def is_known(name: str) -> bool:
    """Whether libFuzzer has an option of this name. It only warns of others in its output."""
    return name in NUMBERS or name in TEXTS


def hint_for(name: str) -> str:
    """What to do about an option that libFuzzer does not have."""
    near = nearest(name, NUMBERS | TEXTS)
    return f"did you mean {near[0]}?" if near else "it is passed on all the same; its own flags are told by -help=1"
