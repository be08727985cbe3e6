"""Luigi as its users expect it: failures have exit codes, signals clean up, mistakes are explained without a traceback.

Luigi reads luigi.cfg only in the current directory, and without it ends with 0 whatever has happened. `--module tasks`
imports this module before luigi reads its settings, so that the defaults set here hold everywhere, but luigi.cfg wins.
"""

import configparser
import functools
import logging
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import NoReturn

import luigi
from luigi.cmdline_parser import CmdlineParser
from luigi.parameter import ParameterException
from luigi.task_register import Register, TaskClassException
from luigi.worker import TaskProcess

from pipeline import settings
from pipeline.errors import CampaignBusy, SettingsError, TopcoatError, UsageError, empty_value
from pipeline.host import interrupt, stdio
from pipeline.host.deadline import Deadline
from pipeline.host.faults import explained
from pipeline.host.interrupt import Interrupted
from pipeline.text.printable import one_line
from tasks.engine.repetition import refuse_repetitions

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
        # Otherwise luigid ignores a second request within 10 s
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
"""The exit code after SIGINT, SIGTERM or SIGHUP, whatever was being done."""
_CLEANUP_LIMIT = 300.0  # seconds; an interrupted worker fetches what a campaign has found, and stops guests
_DYING = 10.0  # seconds; a killed worker that waits for a broken disk dies when that answers
_AGAIN = 0.05  # seconds; after this time an interrupt that was thrown away is raised again, a lost signal sent again
_SEE = "see what the task takes: luigi --module tasks TASK --help"


def install() -> None:
    """Set luigi up as this module promises. A mistake in luigi.cfg ends the process, with exit code 2."""
    stdio.set_up(needed=False)
    sys.excepthook = _explain_and_exit
    sys.unraisablehook = _raise_again
    for number in interrupt.numbers():
        signal.signal(number, _interrupt)
    _log_plainly()
    _build_parsers_once()
    _refuse_empty_values()
    _end_workers_quietly()
    luigi.Task.event_handler(luigi.Event.PROCESS_FAILURE)(_tell_of_death)
    refuse_repetitions(settings.load().store)
    for section, values in DEFAULTS.items():
        for option, value in values.items():
            _set(section, option, value)


def _build_parsers_once() -> None:
    """Cache luigi's parser of all parameters: it is built nine times for one command line, a fifth of a short run."""
    build = getattr(CmdlineParser, "_build_parser", None)
    if build is None:  # luigi does not promise this method, so it may be missing
        return

    @functools.cache
    def built(tasks_known: int, *arguments: object, **options: object) -> object:
        return build(*arguments, **options)

    def build_parser(*arguments: object, **options: object) -> object:
        return built(len(Register.task_names()), *arguments, **options)

    setattr(CmdlineParser, "_build_parser", staticmethod(build_parser))  # noqa: B010  mypy forbids the assignment


def _refuse_empty_values() -> None:
    """Refuse options with empty values, which luigi ignores, so that `--name "$UNSET"` would mean the default."""
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
    """Logs to what sys.stderr is at the moment: while a live line is shown, that writes above the line."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")  # at once: two workers share the stream
        sys.stderr.flush()


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return level + super().format(record)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Filter luigi's log: log one of our errors in its own words, and return False to drop luigi's record.

    A mistake of the user, or a busy campaign, ends the process. Luigi's record about a missing file is dropped too,
    because the task has logged more.
    """
    error = record.exc_info[1] if record.exc_info else sys.exc_info()[1]
    understood = _understood(error)
    if understood and (understood.exit_code == USAGE or isinstance(understood, CampaignBusy)):
        refuse(understood)
    if understood:
        log.error("%s", understood.explain())
    if understood or isinstance(error, SystemExit):  # of `refuse`, which has told why
        return False
    return not record.msg.startswith("Data for %s does not exist")


def refuse(error: TopcoatError) -> NoReturn:
    """Print what the error was and what to do about it, and end the process with the error's exit code."""
    print(f"error: {error.explain()}", file=sys.stderr)
    raise SystemExit(error.exit_code)


@contextmanager
def refusing() -> Iterator[None]:
    """Call `refuse` for an exception of the body, unless it is a bug, which is raised on."""
    try:
        yield
    except Exception as error:
        if understood := _understood(error):
            refuse(understood)
        raise


def _understood(error: BaseException | None) -> TopcoatError | None:
    """Our error for an exception: the exception itself, or a new one for a mistake of the user; None for a bug."""
    if error is None or isinstance(error, TopcoatError):
        return error
    if "luigi.setup_logging" in [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)]:
        return SettingsError(
            f"luigi's logging cannot be set up: {one_line(str(error) or type(error).__name__)}",
            hint="correct --logging-conf-file, or in luigi.cfg [core] logging_conf_file and [logging]",
        )
    if isinstance(error, OSError) and error.filename is not None:
        return explained("luigi", error)
    if isinstance(error, configparser.Error):
        return SettingsError(one_line(str(error)), hint="correct luigi.cfg")
    if isinstance(error, TaskClassException):
        return unknown_task(error)
    if isinstance(error, ParameterException):
        return UsageError(str(error), hint=_SEE)
    if isinstance(error, ValueError) and (name := _parameter_of(error)):
        reason = f"{error.__cause__ or error}"
        return UsageError(f"--{name}: {reason}", hint=f"give another value, here or in luigi.cfg; {_SEE}")
    return None


def unknown_task(error: TaskClassException) -> UsageError:
    """The error for a task that luigi does not find; its hint lists the tasks that there are."""
    families = {name: Register.get_task_cls(name) for name in Register.task_names()}
    ours = [name for name, task in families.items() if task.__module__.rpartition(".")[0] == "tasks"]
    names = sorted(name for name in ours if not name.startswith("_"))
    return UsageError(str(error).partition(".")[0], hint=f"there are: {', '.join(names)}")


def _parameter_of(error: ValueError) -> str | None:
    """The name of the parameter whose value luigi was reading, with dashes; None if the error came from elsewhere."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames or not frames[-1].f_globals["__name__"].startswith("luigi."):
        return None
    names = [str(frame.f_locals["param_name"]) for frame in frames if "param_name" in frame.f_locals]
    return names[-1].replace("_", "-") if names else None


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    for other in interrupt.numbers():
        signal.signal(other, _pass)  # cleaning up has time limits of its own; a second Ctrl-C must not cut it short
    raise Interrupted(signal.Signals(number).name)


def _raise_again(thrown_away: "sys.UnraisableHookArgs") -> None:
    """Raise an interrupt again, a moment later, if Python ignored it because a finalizer or callback raised it."""
    error = thrown_away.exc_value
    if not isinstance(error, Interrupted):
        sys.__unraisablehook__(thrown_away)
        return

    def again(number: int, frame: FrameType | None) -> NoReturn:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise Interrupted(*error.args)

    signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, _AGAIN, _AGAIN)


def _pass(number: int, frame: FrameType | None) -> None:
    """Ignore a signal. With SIG_IGN, Python would print a traceback for one that came just before that was set."""


def _end_workers_quietly() -> None:
    """Let interrupted worker processes of luigi clean up and end silently; the main process tells of the interrupt.

    Otherwise multiprocessing prints a traceback for each worker. And where psutil is installed, luigi would wait for a
    worker without a limit, and then end what that has left running, such as a guest.
    """
    run: Callable[[TaskProcess], None] = TaskProcess.run

    @functools.wraps(run)
    def quietly(worker: TaskProcess) -> None:
        try:
            run(worker)
        except Interrupted:
            if multiprocessing.parent_process() is None:
                raise
            raise SystemExit(INTERRUPTED) from None

    setattr(TaskProcess, "run", quietly)  # noqa: B010  mypy forbids the assignment
    setattr(TaskProcess, "terminate", multiprocessing.Process.terminate)  # noqa: B010


def _tell_of_death(task: luigi.Task, said: str) -> None:
    """Log how a task's worker process has died, which luigi does not log. `said` ends with the process's exit code."""
    code = int(said.rpartition(" ")[2])
    how = f"died by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with {code}"
    hint = "run it again"
    if code == -signal.SIGKILL:
        hint = "most likely the kernel ended it because memory ran out (see dmesg); free some, or use fewer --workers"
    title = getattr(task, "title", task.task_family)
    log.error("%s: the process that worked at it %s\n  hint: %s", title, how, hint)


def _end_workers() -> list[str]:
    """Wait until luigi's worker processes have cleaned up, and kill those that have not at the limit. Returns these.

    Each is interrupted until it ends, since one signal may be lost: if it comes between Python's last look for signals
    and a system call that blocks, nothing interrupts that call.
    """
    limit, killed = Deadline(_CLEANUP_LIMIT), []
    for worker in multiprocessing.active_children():
        while worker.is_alive() and not limit.expired:
            worker.terminate()
            worker.join(_AGAIN)
        if worker.is_alive():
            worker.kill()
            worker.join(_DYING)
            killed.append(f"worker process {worker.pid}")
    return killed


def _explain_and_exit(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    if isinstance(error, Interrupted):
        said = error.explain()
        if killed := _end_workers():
            said = (
                f"interrupted by {error}; not cleaned up within {_CLEANUP_LIMIT:.0f} s, and killed: {', '.join(killed)}"
            )
            said += "\n  hint: topcoat gc removes what that has left; then the same command again goes on"
        print(f"error: {said}", file=sys.stderr)
        raise SystemExit(INTERRUPTED)
    if understood := _understood(error):
        refuse(understood)
    sys.__excepthook__(kind, error, where)
