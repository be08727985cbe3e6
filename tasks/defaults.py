"""Luigi as its users expect it: failures have exit codes, signals clean up, mistakes are explained without a traceback.

Luigi reads luigi.cfg in the current directory only, and without it ends with 0 whatever happened. `--module tasks`
imports this before luigi reads its settings, so the defaults set here hold everywhere, and luigi.cfg still wins.
"""

import atexit
import functools
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import NoReturn

import luigi
from luigi.cmdline_parser import CmdlineParser
from luigi.parameter import ParameterException
from luigi.task_register import Register, TaskClassException

from pipeline import settings
from pipeline.errors import TopcoatError, empty_value
from pipeline.garbage.run_locks import lock_directory, tidy

log = logging.getLogger("topcoat")

DEFAULTS = {
    "core": {
        "local_scheduler": "true",
        "log_level": "WARNING",
        "autoload_range": "false",
    },
    "worker": {
        # A task that made nothing has failed
        "check_complete_on_run": "true",
        "keep_alive": "false",
        "wait_interval": "0.2",
        "wait_jitter": "0",
    },
    "scheduler": {
        # Else luigid ignores a second request within 10 s
        "stable_done_cooldown_secs": "0",
    },
    "retcode": {
        "already_running": "10",
        "missing_data": "20",
        "not_run": "25",
        "task_failed": "30",
        "scheduling_error": "35",
        "unhandled_exception": "40",
    },
}
USAGE = 2
INTERRUPTED = 130
"""The exit code after SIGINT or SIGTERM, whatever was being done."""
_CLEANUP_LIMIT = 300.0  # seconds for an interrupted worker: it fetches what a campaign has found, and stops guests
_MISTAKES = (ParameterException, TaskClassException)


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM. Luigi lets a KeyboardInterrupt end everything; any other exception only ends one task."""


def install() -> None:
    """Set everything up. Ends the process with exit code 2 if luigi.cfg holds a mistake."""
    sys.excepthook = _explain_and_exit
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    _log_plainly()
    _build_parsers_once()
    _refuse_empty_values()
    pids = lock_directory(settings.load().store)
    atexit.register(tidy, pids)
    _set("core", "lock_pid_dir", str(pids))
    for section, values in DEFAULTS.items():
        for option, value in values.items():
            _set(section, option, value)


def _build_parsers_once() -> None:
    """Luigi builds a parser of the parameters of all tasks nine times for one command line: a fifth of a short run."""
    build = getattr(CmdlineParser, "_build_parser", None)
    if build is None:  # it is not a promise of luigi's, so do without
        return

    @functools.cache
    def built(tasks_known: int, *arguments: object, **options: object) -> object:
        return build(*arguments, **options)

    def build_parser(*arguments: object, **options: object) -> object:
        return built(len(Register.task_names()), *arguments, **options)

    setattr(CmdlineParser, "_build_parser", staticmethod(build_parser))  # noqa: B010  mypy forbids the assignment


def _refuse_empty_values() -> None:
    """Luigi takes an option with an empty value for one that was left out: `--name "$UNSET"` would mean the default."""
    read: Callable[[CmdlineParser, list[str]], None] = CmdlineParser.__init__
    config = luigi.configuration.get_config()

    def read_and_look(self: CmdlineParser, words: list[str]) -> None:
        read(self, words)
        for name, value in vars(self.known_args).items():
            if value == "":
                raise empty_value(f"--{name.removeprefix('core_').replace('_', '-')}")
        for task, _, name, _ in Register.get_all_params():
            if Register.get_task_cls(task).__module__.startswith("tasks.") and config.get(task, name, None) == "":
                raise empty_value(f"[{task}] {name} in luigi.cfg")

    setattr(CmdlineParser, "__init__", read_and_look)  # noqa: B010  mypy forbids the assignment


def _set(section: str, option: str, value: str) -> None:
    config = luigi.configuration.get_config()
    if not config.has_option(section, option):
        config.set(section, option, value)


def _log_plainly() -> None:
    if not log.handlers:
        handler = _ToStderr()
        handler.setFormatter(_Plain())
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    logging.getLogger("luigi-interface").addFilter(_without_traceback)


class _ToStderr(logging.Handler):
    """To what sys.stderr is at the moment: while a live line is shown, that is what draws above it."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")  # at once: two workers share the stream
        sys.stderr.flush()


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return level + super().format(record)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Say one of our errors in its own words instead of luigi's. For a mistake of the user, end here.

    What luigi says of a missing file is dropped: the task has said more.
    """
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, _MISTAKES) or (isinstance(error, TopcoatError) and error.exit_code == USAGE):
        refuse(error)
    if isinstance(error, TopcoatError):
        log.error("%s", error.explain())
        return False
    return not record.msg.startswith("Data for %s does not exist")


def refuse(error: BaseException) -> NoReturn:
    """End the process over a mistake of its user's: explained, with exit code 2."""
    print(f"error: {_explained(error)}", file=sys.stderr)
    raise SystemExit(USAGE)


def _explained(error: BaseException) -> str:
    if isinstance(error, TopcoatError):
        return error.explain()
    if isinstance(error, TaskClassException):
        import tasks

        return f"{str(error).partition('.')[0]}\n  hint: there are: {', '.join(tasks.__all__)}"
    return f"{error}\n  hint: see what the task takes: luigi --module tasks TASK --help"


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, _pass)  # cleaning up has limits of its own; a second Ctrl-C must not cut it short
    raise Interrupted(signal.Signals(number).name)


def _pass(number: int, frame: FrameType | None) -> None:
    """Not SIG_IGN: Python prints a traceback for a signal that had come, unseen yet, when that was set."""


@contextmanager
def ending_quietly() -> Iterator[None]:
    """In a worker of luigi's, end the process over an interruption of the body, once that has cleaned up.

    Else multiprocessing prints a traceback; luigi itself, which is interrupted too, says what is to be said.
    """
    try:
        yield
    except Interrupted:
        if multiprocessing.parent_process() is None:
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)


def _explain_and_exit(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if isinstance(error, Interrupted):
        for worker in multiprocessing.active_children():  # luigi's: interrupted too, they have to clean up
            worker.join(_CLEANUP_LIMIT)
        text = f"error: interrupted by {error}; what was begun is cleaned up\n  hint: the same command again goes on"
        print(text, file=sys.stderr)
        raise SystemExit(INTERRUPTED)
    if isinstance(error, (TopcoatError, *_MISTAKES)):
        refuse(error)
    sys.__excepthook__(kind, error, traceback)
