"""The options under which a merge judges a corpus. All campaigns share it: what one of them hides must not cost others.

So libFuzzer's options of a campaign are left out, but for those below, none of which can hide a unit or part of one.
Left out are above all max_len and only_ascii, which cut and refuse units; use_counters=0, by which less counts as
covered; seed_inputs, which cover something without being in the corpus; and exit_on_item, exit_on_src_pos,
exit_on_time and verbosity=0, with which nothing, or not everything, is measured. Options that libFuzzer does not have
are the target's own, and are passed on: it may not even start without them.
"""

from collections.abc import Mapping
from typing import Final

from pipeline.campaign import options
from pipeline.crashes.report import CrashReport

PASSED: Final = frozenset(
    (
        *(f"handle_{signal}" for signal in ("segv", "bus", "abrt", "ill", "fpe", "int", "term", "trap", "xfsz")),
        *("handle_usr1", "handle_usr2", "handle_winexcept", "close_fd_mask", "detect_leaks"),
    )
)
"""Options that are passed on as they are: they say what does not end the target, and what it prints."""

LIMITS: Final = ("timeout", "rss_limit_mb", "malloc_limit_mb")
"""Options that count only where they allow more than what holds for everybody."""

COUNTED: Final = "use_value_profile"
"""By this option more counts as covered. A corpus remembers it, so that each merge counts what any campaign has."""

_LEAST = 4096  # bytes; libFuzzer's own lower bound for what it reads of a unit


def value_profile(chosen: Mapping[str, str]) -> int:
    """What a campaign with these options counts as covered besides edges: libFuzzer's bits, 0 for nothing."""
    return int(chosen.get(COUNTED, "0"))


def judging(chosen: Mapping[str, str], usual: Mapping[str, str], largest: int, counted: int) -> dict[str, str]:
    """The options for a merge by a campaign that has `chosen` these.

    `usual` are the limits that hold for everybody, timeout and rss_limit_mb; `largest` is the size of the largest unit
    in bytes, all of which is read; `counted` are the bits of value_profile that the corpus is known to need.
    """
    found = {name: value for name, value in chosen.items() if name in PASSED or not options.is_known(name)}
    found |= {name: _laxer(limit, chosen.get(name, limit)) for name, limit in usual.items()}
    if 0 < int(found["rss_limit_mb"]) < int(chosen.get("malloc_limit_mb", "0")):  # else it is as rss_limit_mb
        found["malloc_limit_mb"] = chosen["malloc_limit_mb"]
    if counted := counted | value_profile(chosen):
        found[COUNTED] = str(counted)
    return found | {"max_len": str(max(_LEAST, largest))}


def hit_own_limit(report: CrashReport | None, chosen: Mapping[str, str], usual: Mapping[str, str]) -> bool:
    """Whether a campaign that has `chosen` these options has ended a run by a limit lower than what merges go by.

    Then the unit is no bad one: it stays in the corpus, which is that of all campaigns.
    """
    limits = {"timeout": ("timeout",), "out-of-memory": ("rss_limit_mb", "malloc_limit_mb")}
    usual = {**usual, "malloc_limit_mb": usual["rss_limit_mb"]}
    own = {name: chosen[name] for name in limits.get(report.kind if report else "", ()) if name in chosen}
    return any(_laxer(usual[name], value) != _laxer(value, value) for name, value in own.items())


def _laxer(one: str, other: str) -> str:
    """The limit that allows more; 0 is none."""
    return "0" if min(int(one), int(other)) <= 0 else str(max(int(one), int(other)))
