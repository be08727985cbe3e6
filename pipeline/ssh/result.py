"""The result of a command in a guest."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """The result of a command in a guest: its exit status, and all that it wrote to stdout and stderr."""

    status: int
    stdout: bytes
    stderr: bytes
