"""One fuzzer in a guest: its preparation, its runs, and where its files are."""

import logging
import math
import os
import posixpath
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from pipeline.builds.build import Build
from pipeline.builds.targets.options import evaluated
from pipeline.errors import CommandExited, FuzzerError, TopcoatError
from pipeline.fuzz.arguments import Arguments, mutable
from pipeline.fuzz.artifact_scanner import ArtifactScanner
from pipeline.fuzz.batch import Batch
from pipeline.fuzz.connector import GuestCommand, GuestConnector
from pipeline.fuzz.crashes.artifacts import is_crash
from pipeline.fuzz.flags import of_target
from pipeline.fuzz.lines import LineEnds, Stage
from pipeline.fuzz.loop import Runs, RunSplitter
from pipeline.fuzz.pid_scanner import PidScanner
from pipeline.fuzz.repetition import Repetition, next_seed
from pipeline.fuzz.streams import FuzzerOutput, Scanned, Staged
from pipeline.fuzz.styles import Style, style_of
from pipeline.fuzz.symbolizer import Symbolizer, Writer
from pipeline.fuzz.targets import FuzzTarget, FuzzTargets
from pipeline.host.deadline import Deadline
from pipeline.text.printable import one_line, tail

log = logging.getLogger("topcoat")

WAIT_LIMIT = 60.0
"""Seconds that a fuzzer may take to end after the end of its output."""

_NOT_FOUND = 127
_OF_A_RUN = ("seed", "max_total_time")
_LOGS = "see what the guest said last: topcoat logs NAME"


@dataclass(frozen=True)
class Fuzzer:
    """One fuzzer of a build, with the way in which it is run and the symbolizer for its stack traces."""

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
        """Find the fuzzer of the build with this full name, PACKAGE/NAME. No guest is asked.

        `variables` are set in its environment, `environ` is that of this process. Raises UnknownFuzzer,
        MissingResource, SettingsError and NotSupported.
        """
        target = FuzzTargets.of(build).find(name)
        return cls(target, style_of(build, target, environ, variables), Symbolizer.of(build))

    def lasting(self) -> "Fuzzer":
        """The same fuzzer, but a process that a sanitizer would end sleeps instead, until `style.stop` ends it.

        Raises NotSupported: see Style.lasting.
        """
        return replace(self, style=self.style.lasting())

    def own_flags(self) -> list[str]:
        """The words that the target's own options say; of a flag that is given twice, libFuzzer takes the last.

        A campaign has them in its plans. `random(A, B)` is drawn anew each time.
        """
        listed = self.target.listed
        flags, _ = of_target(listed.flags) if listed else ({}, ())
        seed = secrets.randbelow(1 << 32)
        return [f"-{name}={evaluated(value, seed)}" for name, value in flags.items()]

    def absolute(self, path: str) -> str:
        """Return the path in the guest of what users of the fuzzer call `path`, such as data/corpus."""
        return self.style.absolute(path)

    def get(self, connector: GuestConnector, source: str, target: Path) -> None:
        """Copy what matches `source` in the guest, such as data/corpus/*, into the directory `target` of the host."""
        connector.get(self.absolute(source), target)

    def put(self, connector: GuestConnector, source: str, target: str) -> None:
        """Copy what matches `source` on the host into the directory `target` of the guest, such as data/corpus."""
        connector.put(source, self.absolute(target))

    def prepare(self, connector: GuestConnector) -> None:
        """End all processes of the fuzzer, and delete all its data. Needed before anything else.

        It is not part of `run`, so that it does not count against the time of one. Raises what the connector raises.
        """
        self.style.prepare(connector)

    def run(
        self,
        connector: GuestConnector,
        words: Sequence[str],
        output: Writer,
        artifact_directory: Path | None = None,
        limit: float | None = None,
        found: Callable[[str], object] | None = None,
    ) -> list[str]:
        """Run the fuzzer with libFuzzer's arguments, and write its output to `output` as it comes.

        Returns the paths in the guest of the artifacts that it wrote. `artifact_directory` is where the caller will put
        them on the host; the output names them by their paths there. After `limit` seconds the fuzzer is killed.
        `found` gets the path in the guest of each artifact as soon as it is reported, in another thread, and must not
        take long. A crash that the fuzzer finds is no error.

        Raises BadArguments, and FuzzerError or a subclass of it; the run is ended then, as far as the guest answers.
        """
        arguments = Arguments.parse(words).in_guest()
        note = found and (lambda path: found(self.absolute(path)))
        artifacts = ArtifactScanner(arguments, artifact_directory, note)
        command = self.style.command(connector, arguments)
        pids = PidScanner(connector.syslog)
        stages = (("PID scanning", LineEnds()), ("PID scanning", pids), ("artifact scanning", artifacts))
        self._symbolize(connector, command, stages, output, None if limit is None else Deadline(limit))
        self._wait(connector, command, arguments)
        return [self.absolute(path) for path in artifacts.artifacts]

    def repeat(
        self, connector: GuestConnector, words: Sequence[str], repetition: Repetition, runs: Runs, limit: float
    ) -> None:
        """Run the fuzzer, and start it again each time that it has crashed, as the repetition says; `runs` follows.

        The seed and the time in `words` do not count. After `limit` seconds for all runs the fuzzer is killed. If a
        loop in the guest does it, the output has nothing of the guest's log: to fetch that would slow the next run.

        Raises what `run` raises. If a run is on then, it is to blame, and `runs` is not told of its end.
        """
        arguments = Arguments.parse(words).in_guest()
        options = {name: value for name, value in arguments.options.items() if name not in _OF_A_RUN}
        command = self.style.repeated(connector, replace(arguments, options=options), repetition)
        if command is None:
            self._repeat_from_here(connector, words, repetition, runs, limit)
            return
        self._follow(connector, command, arguments, repetition, runs, Deadline(limit))

    def _repeat_from_here(
        self, connector: GuestConnector, words: Sequence[str], repetition: Repetition, runs: Runs, limit: float
    ) -> None:
        """See `repeat`: one command for each run, where no shell can do it."""
        seed, deadline, budget = repetition.seed, Deadline(limit), Deadline(repetition.seconds)
        for _ in range(repetition.most):
            own = (f"-seed={seed}", f"-max_total_time={max(1, math.ceil(budget.remaining))}")
            found = self.run(connector, [*words, *own], runs.begin(), limit=deadline.remaining, found=runs.found)
            if not runs.end(None) or not any(map(is_crash, map(posixpath.basename, found))) or budget.expired:
                return
            seed = next_seed(seed)

    def run_each(self, connector: GuestConnector, words: Sequence[str], batch: Batch, runs: Runs) -> None:
        """Run the fuzzer on each input of the batch, in a process of its own; `runs` follows.

        If a loop in the guest does it, a run that ends oddly is told as such and the next one is made, and the output
        has nothing of the guest's log. A run that takes longer than it may is killed, and the loop with it.

        Raises what `run` raises. If a run is on then, it is to blame, and `runs` is not told of its end; those behind
        it have not begun. They have not either if this returns early: something has ended the loop between two runs.
        """
        arguments = Arguments.parse(words).in_guest()
        in_guest = replace(batch, inputs=[mutable(path) for path in batch.inputs])
        command = self.style.batched(connector, arguments, in_guest)
        if command is None:
            for path in batch.inputs:
                self.run(connector, [*words, path], runs.begin(), limit=batch.seconds, found=runs.found)
                if not runs.end(None):
                    return
            return
        deadline = Deadline(batch.seconds)
        self._follow(connector, command, arguments, batch, _Timed(runs, deadline), deadline)

    def _follow(
        self,
        connector: GuestConnector,
        command: GuestCommand,
        arguments: Arguments,
        loop: Repetition | Batch,
        runs: Runs,
        deadline: Deadline,
    ) -> None:
        """Run a loop in the guest, and have `runs` follow its runs."""

        def prepared(output: Writer) -> Writer:
            return Staged(
                (LineEnds(), ArtifactScanner(arguments, None, lambda path: runs.found(self.absolute(path)))), output
            )

        def judged(status: int) -> FuzzerError | None:
            return None if self.style.accepts(status, arguments) else self._exited(status, b"")

        splitter = RunSplitter(loop.token, loop.most, runs, prepared, judged, lambda: self._stop(connector))
        self._symbolize(connector, command, (("reading", LineEnds()),), splitter, deadline)
        splitter.close()
        try:
            self._wait(connector, command, arguments, left=splitter.running)
        except FuzzerError:
            if splitter.running or not splitter.begun:
                raise
            log.debug("%s: the loop was ended between two runs", self.target.full_name)

    def _symbolize(
        self,
        connector: GuestConnector,
        command: GuestCommand,
        stages: Sequence[tuple[str, Stage]],
        output: Writer,
        deadline: Deadline | None,
    ) -> None:
        """Start the command, and pass its output through the stages and the symbolizer. If that fails, end it."""
        source = Scanned(FuzzerOutput(command, self.style.merged), stages)
        try:
            self.symbolizer.symbolize(source, output, deadline)
        except BaseException:
            self._stop(connector)
            raise

    def _stop(self, connector: GuestConnector) -> None:
        """End what the command may have left behind. A failure is logged, so that it hides no other error."""
        try:
            self.style.stop(connector)
        except (OSError, TopcoatError) as error:
            log.warning("%s may still run in the guest: %s", self.target.full_name, one_line(str(error)))

    def _wait(
        self, connector: GuestConnector, command: GuestCommand, arguments: Arguments, *, left: bool = True
    ) -> None:
        """Wait for the end of the command, and end what it may have `left` behind. Raises FuzzerError."""
        exited: CommandExited | None = None
        try:
            command.wait(WAIT_LIMIT)
        except CommandExited as error:
            exited = error
        except (OSError, TopcoatError) as error:
            _kill(command)
            hint = error.hint if isinstance(error, TopcoatError) else _LOGS
            raise FuzzerError(f"failed during wait: {one_line(str(error))}", hint=hint) from error
        if left and self.style.leaves:
            self._stop(connector)
        if exited and not self.style.accepts(exited.status, arguments):
            raise self._exited(exited.status, exited.stderr) from exited

    def _exited(self, status: int, stderr: bytes) -> FuzzerError:
        said = one_line(tail(stderr))
        about = f" ({said})" if said else ""
        if status == _NOT_FOUND:
            return FuzzerError(
                f"failed during wait: unexpected return code: {status}: {self.target.full_name} or what runs it"
                f" not found{about}",
                hint="is the fuzzer in the image, and has it been prepared?",
                detail=tail(stderr),
            )
        return FuzzerError(
            f"failed during wait: unexpected return code: {status}{about}", hint=_LOGS, detail=tail(stderr)
        )


class _Timed:
    """See Runs: for those who follow runs of which each has the whole time of the deadline."""

    def __init__(self, runs: Runs, deadline: Deadline) -> None:
        self._runs, self._deadline = runs, deadline
        self.found, self.end = runs.found, runs.end

    def begin(self) -> Writer:
        self._deadline.renew()
        return self._runs.begin()


def _kill(command: GuestCommand) -> None:
    try:
        command.kill()
    except (OSError, TopcoatError) as error:
        log.warning("killing a fuzzer: %s", one_line(str(error)))
