"""Trying inputs: each is run by a process of its own, and what became of that is told, never guessed.

Everything that asks whether a crash comes again asks here: the canary of a campaign, verdicts, and minimisation. The
guest is one that was booted for it, so that nothing is left in it of what ran before. If it is lost, the try in which
it was lost is told as such, and the next ones are made in another guest, of which there are only so many.
"""

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from pipeline.campaign.guests import Guest, Guests, with_ending
from pipeline.campaign.output import Capture
from pipeline.campaign.work import GRACE, UNIT_TIMEOUT, as_words
from pipeline.errors import CommandError, ConnectError, FuzzerError, FuzzerTimeout, TopcoatError
from pipeline.fuzz.arguments import Arguments, mutable
from pipeline.fuzz.batch import Batch
from pipeline.fuzz.crashes import report as reports
from pipeline.fuzz.crashes import rules
from pipeline.fuzz.crashes.verdicts import TriedOutcome
from pipeline.fuzz.flags import REFUSED, TEXTS
from pipeline.fuzz.symbolizer import Writer
from pipeline.host.deadline import Clock
from pipeline.host.faults import host_faults
from pipeline.store.publish import scratch
from pipeline.text.printable import one_line

log = logging.getLogger("topcoat")

BATCH = 32
"""How many inputs are given to the guest at once, at most."""

BATCH_BYTES = 16 << 20
"""How many bytes of inputs are given to the guest at once, but for a single larger one."""

MOST_GUESTS = 4
"""How many guests are used before it is given up: an input may take each of them down."""

OUTPUT_LIMIT = 1 << 20
"""How many bytes of a run's output are kept: half from its beginning, half from its end."""

LEASE_LIMIT = 3600.0
"""Seconds to wait for a guest, of which others may use as many as there can be."""

DATA = "data"
"""The directory in which inputs are, as the fuzzer knows it."""

Fault = Literal["", "timeout", "failed", "lost"]
"""What went wrong with a run besides a crash: it was killed as it did not end, it failed, or the guest was lost."""


@dataclass(frozen=True)
class RunOutput:
    """What one run of the fuzzer came to."""

    output: bytes
    seconds: float
    fault: Fault = ""
    why: str = ""
    """Why there is a fault, on one line."""


@dataclass(frozen=True)
class SingleRuns:
    """Runs a fuzzer that is in a guest, in a process of its own each time, and all of them by one command if it can."""

    guest: Guest
    fuzzer: str
    clock: Clock = time.monotonic

    def run_each(self, words: Sequence[str], inputs: Sequence[str], limit: float) -> list[RunOutput]:
        """Run the fuzzer with these arguments on each of the inputs, each time for `limit` seconds at most.

        What comes of each is in the same order. If the guest is lost, that is the last one, and the runs after it are
        not made. Raises what is the host's fault.
        """
        outputs: list[RunOutput] = []
        while len(outputs) < len(inputs) and not (outputs and outputs[-1].fault == "lost"):
            outputs += self._command(words, Batch(inputs[len(outputs) :], limit))
        return outputs

    def _command(self, words: Sequence[str], batch: Batch) -> list[RunOutput]:
        """What came of the first inputs, at least of one: after a fault the others must be run by another command."""
        followed = _Followed(self.clock)
        fault: Fault = "failed"
        why = "the guest has ended the loop before it began"
        try:
            self.guest.workspace(self.fuzzer).guest_fuzzer.run_each(words, batch, followed)
        except TopcoatError as error:
            if not _of_guest(error):
                raise
            fault, why = self._blamed(error, followed.running)
            log.debug("%s, after %d of %d inputs: %s", self.fuzzer, len(followed.outputs), batch.most, why)
        none_is_left = len(followed.outputs) == batch.most
        if followed.running or not followed.outputs or (fault == "lost" and not none_is_left):
            followed.close(fault, why)
        return followed.outputs

    def _blamed(self, error: TopcoatError, running: bool) -> tuple[Fault, str]:
        """What went wrong with the run that was on, or was to begin: that one cannot have taken too long."""
        if not self._answers():
            return "lost", with_ending(self.guest, error)
        return "timeout" if running and isinstance(error, FuzzerTimeout) else "failed", one_line(str(error))

    def _answers(self) -> bool:
        guest_fuzzer = self.guest.workspace(self.fuzzer).guest_fuzzer
        try:
            return not self.guest.ending() and guest_fuzzer.alive() and guest_fuzzer.sizes(DATA) is not None
        except (ConnectError, CommandError):
            return False


class _Followed:
    """Keeps what came of the runs of one command. See pipeline.fuzz.loop.Runs."""

    def __init__(self, clock: Clock) -> None:
        self.outputs: list[RunOutput] = []
        """Those of the runs that have ended."""
        self.running = False
        """Whether a run has begun, and has not ended."""
        self._clock = clock
        self._said, self._began = Capture(OUTPUT_LIMIT), clock()

    def begin(self) -> Writer:
        """See Runs."""
        self._said, self._began, self.running = Capture(OUTPUT_LIMIT), self._clock(), True
        return self._said

    def found(self, path: str) -> None:
        """See Runs: whether an artifact was written does not matter."""

    def end(self, error: FuzzerError | None) -> bool:
        """See Runs."""
        self.close("failed" if error else "", one_line(str(error)) if error else "")
        return True

    def close(self, fault: Fault, why: str) -> None:
        """Take the end of the run that is on, or of one that could not begin."""
        self.outputs.append(RunOutput(self._said.content(), self._clock() - self._began, fault, why))
        self._said, self.running = Capture(OUTPUT_LIMIT), False


def _of_guest(error: TopcoatError) -> bool:
    return isinstance(error, FuzzerError | ConnectError | CommandError) and error.fault == "guest"


@dataclass(frozen=True)
class Tried:
    """What came of running one input once."""

    outcome: TriedOutcome
    slug: str
    """The bucket of the crash that the run has reported, whichever it is; empty if it has reported none."""
    output: bytes
    """What the run said, as it came: it is not fit to print."""
    seconds: float
    fault: Fault = ""
    """What went wrong besides: a guest can be lost after the crash was reported, too."""
    why: str = ""
    """Why there is a fault, or why the run says nothing, on one line."""


def replay_options(words: Sequence[str]) -> dict[str, str]:
    """libFuzzer's options for running an input again, from the words with which the fuzzer was run when it crashed.

    Left out are those that are about the whole run, as its seed, its time and its dictionary, and those that name other
    files.
    """
    given = Arguments.parse(words).options
    return {name: value for name, value in given.items() if name not in REFUSED and name not in TEXTS}


@dataclass(frozen=True)
class Conditions:
    """How the inputs of a fuzzer are run."""

    fuzzer: str
    """The full name, PACKAGE/FUZZER."""
    options: Mapping[str, str]
    """libFuzzer's options for each run; see `replay_options`."""

    @property
    def limit(self) -> float:
        """Seconds after which a run counts as hanging: libFuzzer itself should have ended it long before."""
        timeout = self.options.get("timeout", "")
        return GRACE + (float(timeout) if timeout.isdecimal() and int(timeout) else UNIT_TIMEOUT)

    @property
    def words(self) -> list[str]:
        """The arguments for running one input once, without its path."""
        return [*as_words(self.options), "-runs=1"]


def try_each(
    guest: Guest, conditions: Conditions, inputs: Sequence[bytes], clock: Clock = time.monotonic
) -> list[Tried]:
    """Run each input once in this guest, and tell what came of it; an input can be given several times.

    The fuzzer's data in the guest are deleted before. If the guest is lost, the last outcome has that as its fault, and
    the inputs behind it are not tried. Raises ConnectError or CommandError if no input could be run at all, and what is
    the host's fault.
    """
    names = {content: f"input-{at}" for at, content in enumerate(dict.fromkeys(inputs))}
    _give(guest, conditions.fuzzer, names)
    paths = [f"{DATA}/{names[content]}" for content in inputs]
    outputs = SingleRuns(guest, conditions.fuzzer, clock).run_each(conditions.words, paths, conditions.limit)
    return [_judged(one, names[content], conditions) for content, one in zip(inputs, outputs, strict=False)]


def _give(guest: Guest, fuzzer: str, names: Mapping[bytes, str]) -> None:
    """Have the fuzzer's data be these inputs, by their names, and nothing else."""
    workspace = guest.workspace(fuzzer)
    workspace.known.clear()
    workspace.guest_fuzzer.prepare()
    with scratch("tries") as place:
        files = {name: place / name for name in names.values()}
        with host_faults("writing inputs that are to be tried", "temporary"):
            for content, name in names.items():
                files[name].write_bytes(content)
        workspace.guest_fuzzer.push(files, DATA)


def _judged(run: RunOutput, name: str, conditions: Conditions) -> Tried:
    """What came of the run of the input with this name. Without a report, only libFuzzer's own word makes it harmless.

    Its good end proves nothing: the target can end the process by `_exit(0)`.
    """
    if report := reports.parse(run.output):
        slug = rules.slug(report, conditions.fuzzer)
        return Tried("bucket", slug, run.output, run.seconds, run.fault, run.why)
    if run.fault:
        return Tried(run.fault, "", run.output, run.seconds, run.fault, run.why)
    path = mutable(f"{DATA}/{name}").encode()
    if re.search(rb"Executed %b in \d{1,9} ms\s*$" % re.escape(path), run.output, re.MULTILINE):
        return Tried("none", "", run.output, run.seconds)
    return Tried("failed", "", run.output, run.seconds, "", "the process ended before its input was done")


class Tries:
    """Tries inputs of one fuzzer in a guest that is booted for it, and in others if that is lost.

    It is a context manager, which leases the first guest when there is something to try.
    """

    def __init__(
        self, guests: Guests, conditions: Conditions, *, most_guests: int = MOST_GUESTS, clock: Clock = time.monotonic
    ) -> None:
        self.boots: list[str] = []
        """The ids of the boots of all guests so far."""
        self.given_up = ""
        """Why no more inputs are tried, on one line: too many guests were lost; empty if they are."""
        self._guests, self._conditions, self._most, self._clock = guests, conditions, most_guests, clock
        self._held = ExitStack()
        self._guest: Guest | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._guest = None
        self._held.__exit__(kind, error, traceback)

    def each(self, inputs: Sequence[bytes]) -> list[Tried]:
        """Run each input once, and tell what came of it; fewer, the first ones, once it is given up.

        Raises what is the host's fault, and what leasing a guest raises.
        """
        tried: list[Tried] = []
        for batch in _batches(inputs):
            tried += self._batch(batch)
            if self.given_up:
                break
        return tried

    def _batch(self, inputs: Sequence[bytes]) -> list[Tried]:
        tried: list[Tried] = []
        while len(tried) < len(inputs) and (guest := self._leased()):
            try:
                came = try_each(guest, self._conditions, inputs[len(tried) :], self._clock)
            except (ConnectError, CommandError) as error:
                self._lose(guest, with_ending(guest, error))
                continue
            tried += came
            if came[-1].fault == "lost":
                self._lose(guest, came[-1].why)
        return tried

    def _leased(self) -> Guest | None:
        if self._guest is None and not self.given_up:
            anew = f"inputs of {self._conditions.fuzzer} are tried in it"
            self._guest = self._held.enter_context(self._guests.lease(LEASE_LIMIT, anew))
            self.boots.append(self._guest.boot_id)
        return self._guest

    def _lose(self, guest: Guest, why: str) -> None:
        """Go on without the guest, or give up if it was the last one that may be used."""
        log.warning("%s is lost while inputs of %s are tried: %s", guest.instance, self._conditions.fuzzer, why)
        guest.spoil(f"{self._conditions.fuzzer}: {why}")
        self._guest = None
        self._held.close()
        if len(self.boots) >= self._most:
            self.given_up = f"{len(self.boots)} guests were lost, the last one: {why}"


def _batches(inputs: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """The inputs in batches that are not too much for a guest at once."""
    start = size = 0
    for at, content in enumerate(inputs):
        if at > start and (at - start >= BATCH or size + len(content) > BATCH_BYTES):
            yield inputs[start:at]
            start, size = at, 0
        size += len(content)
    if start < len(inputs):
        yield inputs[start:]
