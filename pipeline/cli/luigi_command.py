"""The `luigi` program as Topcoat installs it: luigi's own, but errors before it knows any task are explained.

luigi reads luigi.cfg while it is imported, and the package named `tasks` may be another project's: in both cases an
error would come before any code of Topcoat runs. If luigi's own script is installed instead, all else works as well.
"""

import importlib.util
import os
import sys
from pathlib import Path

from pipeline import settings
from pipeline.configuration import Configuration
from pipeline.errors import TopcoatError, UsageError
from pipeline.host import stdio


def main() -> int:
    """Do what luigi does with the arguments of this process. Returns the exit code, or raises SystemExit with it."""
    stdio.set_up(needed=False)
    words = sys.argv[1:]
    ours = "tasks" in words or "--module=tasks" in words
    try:
        if ours:
            settings.load()
        else:  # sections of the same name may be another project's
            Configuration({}, os.environ, Path.cwd())
        _run(words, ours=ours)
    except TopcoatError as error:
        print(f"error: {error.explain()}", file=sys.stderr)
        return error.exit_code
    return 0


def _run(words: list[str], *, ours: bool) -> None:
    from luigi.cmdline import luigi_run
    from luigi.task_register import TaskClassException

    try:
        luigi_run(words)
    except TaskClassException as error:
        if ours and (shadow := shadow_of_tasks()):
            raise shadow from error
        raise
    except ModuleNotFoundError as error:
        if error.name and any(f"{word.removeprefix('--module=')}.".startswith(f"{error.name}.") for word in words):
            raise UsageError(str(error), hint="is it spelled rightly? Topcoat's: luigi --module tasks TASK") from error
        raise
    except SystemExit as end:
        if isinstance(end.code, str):  # luigi's text for a mistake
            raise UsageError(end.code, hint="name one: luigi --module tasks TASK; see luigi --help") from end
        raise


def shadow_of_tasks() -> UsageError | None:
    """The error to raise if the package `tasks` is not the one installed with this program; None if it is."""
    spec = importlib.util.find_spec("tasks")
    origin = Path(spec.origin) if spec and spec.origin else None
    if origin and os.path.realpath(origin) == os.path.realpath(Path(__file__).parents[2] / "tasks/__init__.py"):
        return None
    return UsageError(
        f"the package named tasks is not Topcoat's here, but {origin or 'another one'}",
        hint="take the directory in which it lies out of PYTHONPATH",
    )
