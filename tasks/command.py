"""luigi's command line for these tasks, for programs that run a task as one step of their own."""

from collections.abc import Sequence

from luigi.cmdline import luigi_run


def run(words: Sequence[str]) -> None:
    """Do what `luigi --module tasks WORDS` does. Raises SystemExit with its exit code."""
    luigi_run(["--module", "tasks", *words])
