"""Guests of a script in which a target is given single inputs, and does with each what it is told to."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.campaign.guests import Guest, GuestWorkspace
from pipeline.errors import BootError, CommandError, FuzzerError, FuzzerTimeout
from pipeline.fuzz.batch import Batch
from pipeline.fuzz.crashes import report as reports
from pipeline.fuzz.crashes import rules
from pipeline.fuzz.crashes.report import UNKNOWN
from pipeline.fuzz.loop import Runs
from pipeline.fuzz.symbolizer import Writer
from pipeline.vm.lease import Boot
from tests.campaign.scripted import CRASH, ScriptedGuest, ScriptedGuests, ScriptedSite, World

A = "fuzzers/a"
EXECUTED = b"Running: %(path)s\nExecuted %(path)s in 3 ms\n***\n*** NOTE: fuzzing was not performed\n"
HANGS, DIES, EXITS, FAILS, DIES_LATE, ENDS = "hangs", "dies", "exits", "fails", "dies late", "ends"

Target = Callable[[bytes], str]
"""What the target does with an input: empty if nothing, a word above, or the function in which it crashes."""


def crash_in(function: str) -> bytes:
    return CRASH % {b"function": function.encode(), b"artifact": b"crash-1"}


def bucket_of(function: str) -> str:
    return rules.slug(reports.parse(crash_in(function)) or UNKNOWN, A)


class Fuzzer(ScriptedSite):
    """A fuzzer that is given one input in each run."""

    def __init__(self, tries: "TryWorld", guest: ScriptedGuest) -> None:
        super().__init__(tries.world, guest, tries.fuzzer)
        self._tries = tries

    def run(self, words: Sequence[str], output: Writer, limit: float) -> None:
        self._answer()
        path = next(word for word in words if not word.startswith("-"))
        directory, _, name = path.rpartition("/")
        self._tries.runs.append((self._guest.boot_id, tuple(words)))
        self._world.clock.pass_(self._tries.takes)
        does = self._tries.target(self.files[directory][name])
        if does == HANGS:
            self._world.clock.pass_(limit)
            raise FuzzerTimeout("it did not end in time", hint="")
        if does in (DIES, DIES_LATE):
            if does == DIES_LATE:
                output.write(crash_in("late"))
            self._guest.lives = False
            raise CommandError("the connection is lost", hint="")
        if does == FAILS:
            raise FuzzerError("failed during wait: unexpected return code: 127", hint="")
        if does and does != EXITS:
            output.write(crash_in(does))
        elif not does:
            output.write(EXECUTED % {b"path": path.replace("data/", "tmp/").encode()})

    def run_each(self, words: Sequence[str], batch: Batch, runs: Runs) -> None:
        """As by a loop in the guest."""
        self._tries.commands.append(len(batch.inputs))
        for path in batch.inputs:
            if self._happens() == ENDS:
                return
            output = runs.begin()
            try:
                self.run([*words, path], output, batch.seconds)
                runs.end(None)
            except FuzzerError as error:
                if isinstance(error, FuzzerTimeout) or error.fault != "guest":
                    raise
                runs.end(error)
        self._happens()

    def _happens(self) -> str:
        happens = self._tries.between(len(self._tries.runs))
        if happens == HANGS:
            raise FuzzerTimeout("it did not end in time", hint="")
        self._guest.lives = self._guest.lives and happens != DIES
        self._answer()
        return happens

    def push(self, files: Mapping[str, Path], directory: str) -> None:
        if self._tries.unfillable:
            self._tries.unfillable -= 1
            self._guest.lives = False
        super().push(files, directory)
        self._tries.pushed.append(len(files))


class TryGuest(ScriptedGuest):
    """A guest in which that fuzzer is."""

    def __init__(self, tries: "TryWorld", instance: str, boot_id: str) -> None:
        super().__init__(tries.world, instance, boot_id)
        self._tries = tries
        self._place = GuestWorkspace(Fuzzer(tries, self))

    def workspace(self, fuzzer: str) -> GuestWorkspace:
        assert fuzzer == self._tries.fuzzer
        return self._place


class TryWorld:
    """The target, and all guests in which it runs."""

    def __init__(self, target: Target = lambda _: "", fuzzer: str = A) -> None:
        self.world = World()
        self.fuzzer = fuzzer
        self.target = target
        self.runs: list[tuple[str, tuple[str, ...]]] = []
        """The boot, and the words, of each run."""
        self.pushed: list[int] = []
        """How many files each transfer into a guest had."""
        self.commands: list[int] = []
        """How many inputs each command in a guest was given."""
        self.between: Callable[[int], str] = lambda _: ""
        """Called before each run, and behind the last, with how many there were: what happens there, or nothing."""
        self.takes = 0.25
        """Seconds that each run takes."""
        self.unfillable = 0
        """How many guests are lost when they are given inputs."""
        self.lent: list[TryGuest] = []
        self.environments: list[Mapping[str, str]] = []
        """Those with which guests were asked for."""
        self.guests = TryGuests(self)

    def guests_with(self, environment: Mapping[str, str]) -> "TryGuests":
        self.environments.append(environment)
        return self.guests


class TryGuests(ScriptedGuests):
    """See Guests: each lease boots one."""

    def __init__(self, tries: TryWorld) -> None:
        super().__init__(tries.world)
        self._tries = tries

    @contextmanager
    def lease(self, limit: float, anew: str = "") -> Iterator[Guest]:
        assert anew, "inputs are tried in guests that were booted for it"
        number = len(self._tries.lent)
        if self._world.unbootable:
            self._world.unbootable -= 1
            raise BootError("it panicked", hint="", stage="marker", cause="panic")
        guest = TryGuest(self._tries, f"pool-{number}", f"boot{number}")
        self._tries.lent.append(guest)
        self.boots.append(Boot(guest.instance, anew, 2.0, guest.boot_id))
        yield guest
