"""What a guest has that makes transfers faster and ends commands for certain. Fuchsia has none of it; all of it works
without.
"""

from dataclasses import dataclass

from pipeline.launcher import Result

QUESTION = "sh -c 'test -r /proc/self/environ && echo environ; tar --version 2>&1'"
"""The command line whose result `of` understands. A guest without a shell answers with an error, which is an answer."""


@dataclass(frozen=True)
class Facilities:
    """What can be relied upon in a guest."""

    environ: bool = False
    """/proc/PID/environ tells the environment of every process, as in Linux."""
    tar: bool = False
    """`tar` is busybox's or GNU's: both take GNU's format and both write it."""


def of(answer: Result) -> Facilities:
    """What the answer to QUESTION says."""
    first, _, _ = answer.stdout.partition(b"\n")
    return Facilities(first == b"environ", b"(busybox)" in answer.stdout or b"(GNU tar)" in answer.stdout)
