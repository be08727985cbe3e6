"""One fuzzer in a guest: its preparation, its runs, and where its files are."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pipeline.build import Build
from pipeline.deadline import Deadline
from pipeline.errors import CommandExited, FuzzerError, FuzzerTimeout, OutputLost, SymbolizerFailed, TopcoatError
from pipeline.fuzz_targets import FuzzTarget, FuzzTargets
from pipeline.fuzzer.arguments import Arguments
from pipeline.fuzzer.artifact_scanner import ArtifactScanner
from pipeline.fuzzer.connector import Command, Connector
from pipeline.fuzzer.pid_scanner import PidScanner
from pipeline.fuzzer.streams import FuzzerOutput, Scanned
from pipeline.fuzzer.styles import Style, style_of
from pipeline.lines import LineEnds
from pipeline.symbolize import Symbolizer, Writer
from pipeline.text import one_line, tail

log = logging.getLogger("topcoat")

WAIT_LIMIT = 60.0
"""Seconds that a fuzzer may take to end after the end of its output."""

_NOT_FOUND = 127
_LOGS = "see what the guest said last: topcoat logs NAME"


@dataclass(frozen=True)
class Fuzzer:
    """One fuzzer of a build, and how it is run and its stack traces get names."""

    target: FuzzTarget
    style: Style
    symbolizer: Symbolizer

    @classmethod
    def of(
        cls,
        build: Build,
        name: str,
        environ: Mapping[str, str] = os.environ,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> "Fuzzer":
        """The fuzzer of the build with this full name, to be run with these variables of its own.

        Raises UnknownFuzzer, MissingResource, SettingsError and NotSupported; no guest is asked.
        """
        target = FuzzTargets.of(build).find(name)
        return cls(target, style_of(build, target, environ, variables), Symbolizer.of(build))

    def absolute(self, path: str) -> str:
        """Where in the guest the file is that users of the fuzzer call `path`, such as data/corpus."""
        return self.style.absolute(path)

    def get(self, connector: Connector, source: str, target: Path) -> None:
        """Copy what matches `source`, such as data/corpus/*, into the directory `target` of the host."""
        connector.get(self.absolute(source), target)

    def put(self, connector: Connector, source: str, target: str) -> None:
        """Copy what matches `source` on the host into the directory `target`, such as data/corpus."""
        connector.put(source, self.absolute(target))

    def prepare(self, connector: Connector) -> None:
        """End what runs of the fuzzer and delete all its data. Needed before anything else.

        It is no part of a run, so that it does not count against the time of one. Raises what the connector raises.
        """
        self.style.prepare(connector)

    def run(
        self,
        connector: Connector,
        words: Sequence[str],
        output: Writer,
        artifact_directory: Path | None = None,
        limit: float | None = None,
        found: Callable[[str], object] | None = None,
    ) -> list[str]:
        """Run the fuzzer with libFuzzer's arguments, and write what it says to `output` as it says it.

        Returns the paths in the guest of the artifacts it wrote. `artifact_directory` is where the caller will put
        them; the output has their paths there. After `limit` seconds the fuzzer is killed. `found` gets the path in the
        guest of each artifact at once, in another thread; it must not take long. What the fuzzer finds is no error.

        Raises BadArguments, and FuzzerError or one of its kin; nothing of the run is left then.
        """
        arguments = Arguments.parse(words).in_guest()
        note = found and (lambda path: found(self.absolute(path)))
        artifacts = ArtifactScanner(arguments, artifact_directory, note)
        deadline = None if limit is None else Deadline(limit)
        command = self.style.command(connector, arguments)
        pids = PidScanner(connector.syslog)
        stages = (("PID scanning", LineEnds()), ("PID scanning", pids), ("artifact scanning", artifacts))
        source = Scanned(FuzzerOutput(command, self.style.merged), stages)
        try:
            self.symbolizer.symbolize(source, output, deadline)
        except (SymbolizerFailed, OutputLost, FuzzerTimeout, KeyboardInterrupt, SystemExit):
            self._stop(connector)
            raise
        self._wait(connector, command, arguments)
        return [self.absolute(path) for path in artifacts.artifacts]

    def _stop(self, connector: Connector) -> None:
        """End what the end of the command may have left, without hiding why."""
        try:
            self.style.stop(connector)
        except (OSError, TopcoatError) as error:
            log.warning("%s may still run in the guest: %s", self.target.full_name, one_line(str(error)))

    def _wait(self, connector: Connector, command: Command, arguments: Arguments) -> None:
        """Wait for the end of the command, and end what that has left behind."""
        exited: CommandExited | None = None
        try:
            command.wait(WAIT_LIMIT)
        except CommandExited as error:
            exited = error
        except (OSError, TopcoatError) as error:
            _kill(command)
            hint = error.hint if isinstance(error, TopcoatError) else _LOGS
            raise FuzzerError(f"failed during wait: {one_line(str(error))}", hint=hint) from error
        if self.style.leaves:
            self._stop(connector)
        if exited and not self.style.accepts(exited.status, arguments):
            raise self._exited(exited) from exited

    def _exited(self, error: CommandExited) -> FuzzerError:
        said = one_line(tail(error.stderr))
        about = f" ({said})" if said else ""
        if error.status == _NOT_FOUND:
            return FuzzerError(
                f"failed during wait: unexpected return code: {error.status}: {self.target.full_name} or what runs it"
                f" not found{about}",
                hint="is the fuzzer in the image, and has it been prepared?",
                detail=tail(error.stderr),
            )
        return FuzzerError(
            f"failed during wait: unexpected return code: {error.status}{about}", hint=_LOGS, detail=tail(error.stderr)
        )


def _kill(command: Command) -> None:
    try:
        command.kill()
    except (OSError, TopcoatError) as error:
        log.warning("killing a fuzzer: %s", one_line(str(error)))
