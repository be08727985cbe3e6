"""The libFuzzer options under which a merge judges a corpus, which all campaigns share.

What one campaign hides must not cost the others. So its options are left out, but for those below, none of which can
hide a unit or part of one. Left out are above all max_len and only_ascii, which cut and refuse units; use_counters=0,
with which less counts as covered; seed_inputs, which cover something without being in the corpus; and exit_on_item,
exit_on_src_pos, exit_on_time and verbosity=0, with which nothing, or not everything, is measured. Options that
libFuzzer does not have are the target's own, and are passed on: it may not even start without them.
"""

from collections.abc import Mapping
from typing import Final

from pipeline.fuzz import flags
from pipeline.fuzz.crashes.report import CrashReport

PASSED: Final = frozenset(
    (
        *(f"handle_{signal}" for signal in ("segv", "bus", "abrt", "ill", "fpe", "int", "term", "trap", "xfsz")),
        *("handle_usr1", "handle_usr2", "handle_winexcept", "close_fd_mask", "detect_leaks"),
    )
)
"""Options that are passed on unchanged: they tell what does not end the target, and what it prints."""

LIMITS: Final = ("timeout", "rss_limit_mb", "malloc_limit_mb")
"""Options that are passed on only where they allow more than the usual limits."""

COUNTED: Final = "use_value_profile"
"""The option with which more counts as covered.

A corpus remembers its value, so that each merge counts what any campaign has counted.
"""

_LEAST = 4096  # bytes; libFuzzer's own lower bound for what it reads of a unit


def value_profile(chosen: Mapping[str, str]) -> int:
    """The bits of use_value_profile in these options: what counts as covered besides edges; 0 for nothing."""
    return int(chosen.get(COUNTED, "0"))


def judging(chosen: Mapping[str, str], usual: Mapping[str, str], largest: int, counted: int) -> dict[str, str]:
    """The options for a merge by a campaign whose own options are `chosen`.

    `usual` are the limits that hold for everybody, timeout and rss_limit_mb. `largest` is the size of the largest unit
    in bytes: all of it is read. `counted` are the bits of use_value_profile that the corpus is known to need.
    """
    found = {name: value for name, value in chosen.items() if name in PASSED or not flags.is_known(name)}
    found |= {name: _laxer(limit, chosen.get(name, limit)) for name, limit in usual.items()}
    if 0 < int(found["rss_limit_mb"]) < int(chosen.get("malloc_limit_mb", "0")):  # else it is the same as rss_limit_mb
        found["malloc_limit_mb"] = chosen["malloc_limit_mb"]
    if counted := counted | value_profile(chosen):
        found[COUNTED] = str(counted)
    return found | {"max_len": str(max(_LEAST, largest))}


def hit_own_limit(report: CrashReport | None, chosen: Mapping[str, str], usual: Mapping[str, str]) -> bool:
    """Whether a run ended by a limit of its campaign, in `chosen`, that is lower than the one merges use.

    Then the unit is not a bad one: it stays in the corpus, which belongs to all campaigns.
    """
    limits = {"timeout": ("timeout",), "out-of-memory": ("rss_limit_mb", "malloc_limit_mb")}
    usual = {**usual, "malloc_limit_mb": usual["rss_limit_mb"]}
    own = {name: chosen[name] for name in limits.get(report.kind if report else "", ()) if name in chosen}
    return any(_laxer(usual[name], value) != _laxer(value, value) for name, value in own.items())


def _laxer(one: str, other: str) -> str:
    """The limit that allows more; 0 means no limit."""
    return "0" if min(int(one), int(other)) <= 0 else str(max(int(one), int(other)))
