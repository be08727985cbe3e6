"""luigi's command line for Topcoat's tasks, for programs that run a task as one of their steps."""

from collections.abc import Sequence

from luigi.cmdline import luigi_run


def run(words: Sequence[str]) -> None:
    """Do what `luigi --module tasks WORDS` does. Raises SystemExit with its exit code, also if that is 0."""
    luigi_run(["--module", "tasks", *words])


def exit_code_of(words: Sequence[str]) -> int:
    """Do what `run` does, and return the exit code instead: 0 if all is done. What went wrong has been told then."""
    try:
        run(words)
    except SystemExit as end:
        if isinstance(end.code, str):  # luigi's text for a mistake
            raise
        return end.code or 0
    return 0
