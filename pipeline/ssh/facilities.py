"""What a guest may have that makes transfers faster, and the end of commands certain.

Fuchsia has none of it; everything works without.
"""

from dataclasses import dataclass

from pipeline.ssh.result import Result

QUESTION = "sh -c 'test -r /proc/self/environ && echo environ; tar --version 2>&1'"
"""The command line whose result `of` reads. The error of a guest without a shell is an answer too: it has nothing."""


@dataclass(frozen=True)
class Facilities:
    """What one guest has that can be relied upon."""

    environ: bool = False
    """Whether /proc/PID/environ tells the environment of every process, as in Linux."""
    tar: bool = False
    """Whether `tar` is busybox's or GNU's, both of which read and write GNU's format."""


def of(answer: Result) -> Facilities:
    """Read the facilities from the result of QUESTION."""
    first, _, _ = answer.stdout.partition(b"\n")
    return Facilities(first == b"environ", b"(busybox)" in answer.stdout or b"(GNU tar)" in answer.stdout)
