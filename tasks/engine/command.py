"""luigi's command line for Topcoat's tasks, for programs that run a task as one of their steps."""

from collections.abc import Sequence

from luigi.cmdline import luigi_run


def run(words: Sequence[str]) -> None:
    """Do what `luigi --module tasks WORDS` does. Raises SystemExit with its exit code, also if that is 0."""
    luigi_run(["--module", "tasks", *words])
