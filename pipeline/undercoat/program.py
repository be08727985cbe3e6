"""The commands of `undercoat` and their flags, and what is printed when these are wrong."""

import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StartFailed, TopcoatError, UsageError, empty_value
from pipeline.host import interrupt, stdio
from pipeline.host.faults import paths_explained
from pipeline.host.interrupt import Interrupted
from pipeline.host.stdio import OutputError
from pipeline.text.printable import printable
from pipeline.undercoat import flags, guest
from pipeline.undercoat.handle import HandleFile

VERSION = "v0.1.0"
"""The version of undercoat's interface; ClusterFuzz refuses a major version above 0."""

_SWITCHES = ("logtostderr", "alsologtostderr")
_GLOBAL = ("v", "stderrthreshold", "vmodule", "log_dir", "log_backtrace_at")
"""Flags of the original's logging library, which come before the command; they are accepted and ignored."""

_BAD_GLOBAL = 2


@dataclass(frozen=True)
class Subcommand:
    """One command: its flags, and the function that does it, given the flags' values and the words after them."""

    run: Callable[[Mapping[str, str], Sequence[str]], None]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    takes_words: bool = False

    def read(self, words: Sequence[str]) -> flags.Parsed:
        """Read the flags of the command from `words`.

        If they are wrong, prints its usage to stderr and raises UsageError with the texts of the original.
        """
        try:
            return self._checked(flags.parse(words, (*self.required, *self.optional)))
        except UsageError:
            print(self.usage(), file=sys.stderr)
            raise

    def _checked(self, parsed: flags.Parsed) -> flags.Parsed:
        if missing := [name for name in self.required if not parsed.values.get(name)]:
            raise UsageError("not enough arguments", hint=f"give -{' and -'.join(missing)}, each with a value")
        if empty := [name for name in self.optional if parsed.values.get(name) == ""]:
            raise empty_value(f"-{empty[0]}")
        if parsed.rest and not self.takes_words:
            raise UsageError("too many arguments", hint=f"leave out {printable(parsed.rest[0])}")
        return parsed

    def usage(self) -> str:
        """The lines that list the flags of the command, for people."""
        lines = [f"  -{name} string" for name in self.required]
        lines += [f"  -{name} string (may be left out)" for name in self.optional]
        return "\n".join(["Flags:", *lines, *(["  -- WORD... (libFuzzer's arguments)"] if self.takes_words else [])])


def _file(values: Mapping[str, str]) -> HandleFile:
    return HandleFile(Path(values["handle"]))


def _version(values: Mapping[str, str], words: Sequence[str]) -> None:
    print(VERSION)


def _start(values: Mapping[str, str], words: Sequence[str]) -> None:
    _require_reader()
    guest.settle_store()
    with guest.started() as file:
        _hand_over(f"{file.path}\n")


def _require_reader() -> None:
    """Raise StartFailed if it is known beforehand that nobody would read the path of the handle."""
    if problem := stdio.why_unheard():
        raise StartFailed(
            f"the handle of a guest is told on standard output, and {problem}", hint="have its first line read"
        )


def _hand_over(line: str) -> None:
    """Print the line with the path of the handle. Raises StartFailed if it cannot be written."""
    try:
        print(line, end="", flush=True)
    except OSError as error:
        stdio.give_up_output()
        raise StartFailed(
            f"the handle could not be written to standard output, so the guest was stopped again: {error.strerror}",
            hint="have its first line read",
        ) from error


def _stop(values: Mapping[str, str], words: Sequence[str]) -> None:
    guest.stop(_file(values))


def _logs(values: Mapping[str, str], words: Sequence[str]) -> None:
    guest.logs(_file(values), sys.stdout.buffer)


def _list(values: Mapping[str, str], words: Sequence[str]) -> None:
    from pipeline.undercoat import session

    print("".join(f"{name}\n" for name in session.fuzzers(_file(values))), end="")


def _prepare(values: Mapping[str, str], words: Sequence[str]) -> None:
    from pipeline.undercoat import session

    session.prepare(_file(values), values["fuzzer"])


def _run_fuzzer(values: Mapping[str, str], words: Sequence[str]) -> None:
    from pipeline.undercoat import session

    directory = values.get("artifact-dir")
    artifacts = Path(directory) if directory else None
    session.run(_file(values), values["fuzzer"], words, sys.stdout.buffer, artifacts)


def _get(values: Mapping[str, str], words: Sequence[str]) -> None:
    from pipeline.undercoat import session

    session.get(_file(values), values["fuzzer"], values["src"], Path(values["dst"]))


def _put(values: Mapping[str, str], words: Sequence[str]) -> None:
    from pipeline.undercoat import session

    session.put(_file(values), values["fuzzer"], values["src"], values["dst"])


_FUZZER = ("handle", "fuzzer")

COMMANDS = {
    "version": Subcommand(_version),
    "start_instance": Subcommand(_start),
    "stop_instance": Subcommand(_stop, ("handle",)),
    "list_fuzzers": Subcommand(_list, ("handle",)),
    "prepare_fuzzer": Subcommand(_prepare, _FUZZER),
    "run_fuzzer": Subcommand(_run_fuzzer, _FUZZER, ("artifact-dir",), takes_words=True),
    "get_data": Subcommand(_get, (*_FUZZER, "src", "dst")),
    "put_data": Subcommand(_put, (*_FUZZER, "src", "dst")),
    "get_logs": Subcommand(_logs, ("handle",)),
}
"""The commands, by the words that call them."""


def usage() -> str:
    """The lines that list all commands, for people."""
    return "\n".join(["Usage: undercoat COMMAND [FLAGS]", "Commands:", *(f"  {name}" for name in COMMANDS)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code: 0, 1 if it fails, or 130 after Ctrl-C.

    The reason for a failure goes to stderr and to stdout, where ClusterFuzz reads it. After a wrong flag before the
    command the exit code is 2, as with the original. SIGTERM and SIGHUP raise SystemExit with 128 and their number.
    """
    stdio.set_up(needed=True)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        words = list(flags.parse(words, _GLOBAL, _SWITCHES).rest)
    except UsageError as error:
        print(error.message, usage(), sep="\n", file=sys.stderr)
        return _BAD_GLOBAL
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("topcoat").setLevel(logging.INFO)
    try:
        with _orderly_end():
            return _run(words)
    except KeyboardInterrupt as error:
        if isinstance(error, Interrupted):  # during the task that boots
            print(f"Error executing command: {error.explain()}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        stdio.give_up_output()
        return 1
    except OutputError as error:
        stdio.give_up_output()
        print(f"Error executing command: {error.explained().explain()}", file=sys.stderr)
        return 1


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise SystemExit in the body, so that what runs in the guest is ended too."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    others = [number for number in interrupt.numbers() if number != signal.SIGINT]
    handlers = [(number, signal.signal(number, end)) for number in others]
    try:
        yield
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)


def _run(words: Sequence[str]) -> int:
    doing = "parsing args"
    try:
        command, parsed = _parsed(words)
        doing = "executing command"
        with paths_explained(words[0]):
            command.run(parsed.values, parsed.rest)
        sys.stdout.flush()
    except TopcoatError as error:
        print(f"Error {doing}: {error.explain()}", file=sys.stderr)
        print(f"Error {doing}: {error.message}", flush=True)
        return 1
    return 0


def _parsed(words: Sequence[str]) -> tuple[Subcommand, flags.Parsed]:
    if not words:
        print(usage())
        raise UsageError("missing subcommand", hint="name one of the commands")
    name, *rest = words
    if name not in COMMANDS:
        print(usage())
        raise UsageError(f"unknown subcommand: {printable(name)}", hint="name one of the commands")
    return COMMANDS[name], COMMANDS[name].read(rest)
