"""Guests of a script, with a clock of their own: what a real guest cannot be made to do when it is wanted."""

import math
import threading
from base64 import b64encode
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path

from pipeline.campaign.guest_fuzzer import CORPUS, MERGED
from pipeline.campaign.guests import Guest, GuestWorkspace
from pipeline.errors import BootError, CommandError, FuzzerError, FuzzerTimeout, TransferRefused
from pipeline.fuzz.batch import Batch
from pipeline.fuzz.loop import Runs
from pipeline.fuzz.repetition import Repetition, next_seed
from pipeline.fuzz.symbolizer import Writer
from pipeline.vm.capsule import FACTS, CrashedProcess
from pipeline.vm.lease import Boot
from pipeline.vm.qemu.capturing import NotCapturedError

CRASH = b"""==1== ERROR: libFuzzer: deadly signal
    #7 0x55726e88fa28 in %(function)s fuzzers/planted.c:10:17
    #8 0x55726e88fa28 in LLVMFuzzerTestOneInput fuzzers/planted.c:14:5
SUMMARY: libFuzzer: deadly signal
artifact_prefix='tmp/'; Test unit written to tmp/%(artifact)s
"""
TIMEOUT = b"""ALARM: working on the last Unit for 2 seconds
       and the timeout value is 1 (use -timeout=N to change)
==1== ERROR: libFuzzer: timeout after 2 seconds
    #7 0x55726e88fa28 in LLVMFuzzerTestOneInput fuzzers/planted.c:14:5
SUMMARY: libFuzzer: timeout
artifact_prefix='tmp/'; Test unit written to tmp/timeout-1
"""
PANIC = "its kernel has halted: Kernel panic - not syncing: sysrq triggered crash"


def unit(text: str) -> tuple[str, bytes]:
    """A unit as libFuzzer stores it: name and content."""
    return sha1(text.encode(), usedforsecurity=False).hexdigest(), text.encode()


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds


@dataclass
class Behaviour:
    """What a fuzzer does each time it runs: by default, uses its time and finds one unit."""

    units: int = 1
    """That it finds each time."""
    rate: int = 1000
    crash: str = ""
    """The function in which it crashes, after `after` seconds."""
    after: float = 1.0
    artifact: str = "crash-1"
    """The name of what it writes then."""
    keeps: bytes | None = None
    """What the guest has under that name, if it is not the function's name."""
    sleeper: int = 0
    """The pid of the process that sleeps after the crash, if it is asked to; 0: it does not."""
    forgets: bool = False
    """Whether nobody is told of the artifact."""
    base64: bytes = b""
    """What it prints as the content, if it does."""
    fate: str = ""
    """hangs, dies (the guest), fails, fills (the guest's disk), leaves (its command ends well, too early)"""
    last: bytes = b""
    """What it prints last, when it fails or leaves."""
    reports: str = ""
    """An artifact that it tells of while it runs."""
    said: bytes = b""
    """What it prints before anything else."""
    slow: bytes = b""
    """The unit for which it takes two seconds."""


@dataclass
class World:
    """All guests of a test."""

    clock: Clock = field(default_factory=Clock)
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    found: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """All units that any fuzzer ever wrote, by fuzzer."""
    runs: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    """The fuzzers of all commands that run one again and again."""
    merged_part: float = 0.5
    """Of the units that a merge keeps."""
    unbootable: int = 0
    """Boots that will fail."""
    refuses_merge: bool = False
    stopped: list[str] = field(default_factory=list)
    """The boots in which a fuzzer was ended."""
    captured: list[CrashedProcess] = field(default_factory=list)
    """For which processes guests were saved, or should have been."""
    capturing: Callable[[Path], object] | None = None
    """Called in place of the saving of a guest, with the directory of the capsule; None: that is made."""
    slow: float = 0.0
    """Seconds that each copy into a guest takes."""
    on_fetch: Callable[[], object] | None = None
    """Called before anything is fetched."""
    on_run: Callable[[str], None] | None = None
    on_found: Callable[[], object] | None = None
    """Called when an artifact was reported, and the fuzzer has not ended."""


class ScriptedSite:
    """See GuestFuzzer."""

    def __init__(self, world: World, guest: "ScriptedGuest", fuzzer: str) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self._world, self._guest, self._fuzzer = world, guest, fuzzer
        self._lasting = False
        self._ended = threading.Event()

    def _answer(self) -> None:
        if not self._guest.lives:
            raise CommandError("the guest does not answer", hint="it is dead")

    def prepare(self) -> None:
        self._answer()
        self.files.clear()

    def stop(self) -> None:
        self._world.stopped.append(self._guest.boot_id)
        self._ended.set()
        self._answer()

    def push(self, files: Mapping[str, Path], directory: str) -> None:
        self._answer()
        self._world.clock.pass_(self._world.slow)
        self.files.setdefault(directory, {}).update({name: path.read_bytes() for name, path in files.items()})

    def sizes(self, directory: str) -> dict[str, int]:
        self._answer()
        return {name: len(content) for name, content in self.files.get(directory, {}).items()}

    def fetch(self, directory: str, names: Collection[str], into: Path) -> None:
        self._answer()
        if self._world.on_fetch:
            self._world.on_fetch()
        if directory == "forbidden":
            raise TransferRefused("the guest sends a name that is none", hint="")
        for name in names:
            if (content := self.files.get(directory.rstrip("/") or ".", {}).get(name)) is not None:
                (into / name).write_bytes(content)

    def remove(self, directory: str, names: Collection[str]) -> None:
        self._answer()
        for name in names:
            self.files.get(directory, {}).pop(name, None)

    def built_with(self) -> None:
        """Only the guest knows, as on Fuchsia."""

    def shortage(self) -> str:
        self._answer()
        return self._guest.short

    def alive(self) -> bool:
        return self._guest.lives

    def run(self, words: Sequence[str], output: Writer, limit: float) -> None:
        self._run(words, output, lambda _: None)

    def _run(self, words: Sequence[str], output: Writer, found: Callable[[str], object]) -> None:
        self._answer()
        world, behaviour = self._world, self._world.behaviours.get(self._fuzzer, Behaviour())
        world.runs.append((self._fuzzer, tuple(words)))
        if world.on_run:
            world.on_run(self._fuzzer)
        output.write(behaviour.said)
        options = dict(word[1:].partition("=")[::2] for word in words if word.startswith("-"))
        corpus = self.files.setdefault(CORPUS, {})
        if "merge" in options and world.refuses_merge:
            raise FuzzerError("it was killed", hint="")
        if "merge" in options:
            kept = sorted(corpus.items())[: max(1, int(len(corpus) * self._world.merged_part))]
            self.files.setdefault(MERGED, {}).update(dict(kept))
        if "merge" in options or options.get("runs") == "0":
            output.write(b"#2\tINITED cov: 5 ft: 9 corp: 1/1b exec/s: 0 rss: 31Mb\n")
            output.write(b"Done %d runs in 0 second(s)\n" % (len(corpus) + 1))
            return
        if "max_total_time" not in options:  # it is given one input
            self._crash(behaviour, output)
            return
        self._fuzz(behaviour, float(options["max_total_time"]), options, output, found)

    def repeat(
        self, words: Sequence[str], repetition: Repetition, runs: Runs, limit: float, *, lasting: bool = False
    ) -> None:
        """As from the host: see Fuzzer."""
        self._lasting = lasting
        self._world.commands.append(self._fuzzer)
        clock, seed, over = self._world.clock, repetition.seed, self._world.clock() + repetition.seconds
        for _ in range(repetition.most):
            own = (f"-seed={seed}", f"-max_total_time={max(1, math.ceil(over - clock()))}")
            self._run([*words, *own], runs.begin(), runs.found)
            if not runs.end(None) or not self._world.behaviours.get(self._fuzzer, Behaviour()).crash or clock() >= over:
                return
            seed = next_seed(seed)

    def run_each(self, words: Sequence[str], batch: Batch, runs: Runs) -> None:
        """As from the host: see Fuzzer."""
        for path in batch.inputs:
            self.run([*words, path], runs.begin(), batch.seconds)
            runs.end(None)

    def _fuzz(
        self,
        behaviour: Behaviour,
        seconds: float,
        options: Mapping[str, str],
        output: Writer,
        found: Callable[[str], object],
    ) -> None:
        world, corpus = self._world, self.files[CORPUS]
        if behaviour.slow in corpus.values() and int(options.get("timeout", "0")) == 1:
            world.clock.pass_(2)
            self.files.setdefault("tmp", {})["timeout-1"] = behaviour.slow
            output.write(TIMEOUT)
            found("tmp/timeout-1")
            raise CommandError("unexpected return code: 70", hint="")
        output.write(b"#2\tINITED cov: 2 ft: 2 corp: 1/1b exec/s: 0 rss: 31Mb\n")
        early = behaviour.crash or behaviour.fate
        took = min(seconds, behaviour.after) if early else seconds
        runs = int(took * behaviour.rate)
        if "runs" in options:
            runs = min(runs, int(options["runs"]))
            took = runs / behaviour.rate
        world.clock.pass_(took)
        if behaviour.reports:
            found(behaviour.reports)
            if world.on_found:
                world.on_found()
        if behaviour.fate == "leaves":
            output.write(b"#9\tNEW    cov: 3 ft: 3 corp: 2/2b exec/s: 9 rss: 40Mb\n" + behaviour.last)
            return
        everything = world.found.setdefault(self._fuzzer, {})
        for _ in range(behaviour.units):
            name, content = unit(f"{self._fuzzer} {len(everything)}")
            corpus[name] = everything[name] = content
        size = len(corpus)
        output.write(b"#%d\tNEW    cov: %d ft: %d corp: %d/9b exec/s: 9 rss: 40Mb\n" % (runs, size, 2 * size, size))
        self._end(behaviour, output, found)
        output.write(b"#%d\tDONE   cov: %d ft: %d corp: %d/9b exec/s: 9 rss: 40Mb\n" % (runs, size, 2 * size, size))
        output.write(b"Done %d runs in %d second(s)\nstat::number_of_executed_units: %d\n" % (runs, took, runs))

    def _end(self, behaviour: Behaviour, output: Writer, found: Callable[[str], object]) -> None:
        if behaviour.crash:
            kept = behaviour.crash.encode() if behaviour.keeps is None else behaviour.keeps
            self.files.setdefault("tmp", {})[behaviour.artifact] = kept
            self._crash(behaviour, output)
            if not behaviour.forgets:
                found(f"tmp/{behaviour.artifact}")
            if self._world.on_found:
                self._world.on_found()
            self._sleep(behaviour, output)
        if behaviour.fate == "fills":
            self._guest.short = "0 B are left on its disk of 237 MiB"
        if behaviour.fate == "dies":
            self._guest.lives = False
            self._answer()
        if behaviour.fate == "hangs":
            raise FuzzerTimeout("it did not end in time", hint="")
        if behaviour.fate == "fails":
            output.write(behaviour.last)
            raise CommandError("unexpected return code: 66", hint="")

    def _sleep(self, behaviour: Behaviour, output: Writer) -> None:
        if behaviour.sleeper and self._lasting:
            self._ended.clear()
            output.write(b"==%d==Sleeping for 8640000 second(s) before dying\n" % behaviour.sleeper)
            assert self._ended.wait(30), "nobody has ended it"
            self._answer()
            raise FuzzerError("unexpected return code: 137", hint="")

    def _crash(self, behaviour: Behaviour, output: Writer) -> None:
        if behaviour.crash:
            output.write(CRASH % {b"function": behaviour.crash.encode(), b"artifact": behaviour.artifact.encode()})
            if behaviour.base64:
                output.write(b"Base64: %s\n" % b64encode(behaviour.base64))


class ScriptedGuest:
    """See Guest."""

    memory = 512

    def __init__(self, world: World, instance: str, boot_id: str) -> None:
        self.instance, self.boot_id = instance, boot_id
        self.lives, self.spoilt, self.retired, self.short = True, "", "", ""
        self._world = world
        self._workspaces: dict[str, GuestWorkspace] = {}

    def workspace(self, fuzzer: str) -> GuestWorkspace:
        if fuzzer not in self._workspaces:
            guest_fuzzer = ScriptedSite(self._world, self, fuzzer)
            guest_fuzzer.prepare()
            self._workspaces[fuzzer] = GuestWorkspace(guest_fuzzer)
        return self._workspaces[fuzzer]

    def serial(self) -> bytes:
        return b"the serial log\n"

    def ending(self) -> str:
        return "" if self.lives else PANIC

    def capture(self, crashed: CrashedProcess, directory: Path, most: int) -> None:
        self._world.captured.append(crashed)
        if self._world.capturing:
            try:
                self._world.capturing(directory)
            except NotCapturedError as error:
                self.lives = not error.lost
                raise
        else:
            directory.mkdir()
            (directory / FACTS).write_text("{}")

    def spoil(self, reason: str) -> None:
        self.spoilt = reason

    def retire(self, reason: str) -> None:
        self.retired = reason


class ScriptedGuests:
    """See Guests."""

    def __init__(self, world: World) -> None:
        self.boots: list[Boot] = []
        self._world = world
        self._idle: list[ScriptedGuest] = []
        self._lock = threading.Lock()

    @contextmanager
    def lease(self, limit: float, anew: str = "") -> Iterator[Guest]:
        with self._lock:
            guest = self._idle.pop() if self._idle and not anew else self._boot(anew)
        yield guest
        if not guest.spoilt and not guest.retired:
            with self._lock:
                self._idle.append(guest)

    def _boot(self, anew: str) -> ScriptedGuest:
        number = len(self.boots)
        if self._world.unbootable:
            self._world.unbootable -= 1
            self.boots.append(Boot(f"pool-{number}", "there was none", 2.0, failure="panic"))
            raise BootError("it panicked", hint="", stage="marker", cause="panic")
        self.boots.append(Boot(f"pool-{number}", anew or "there was none", 2.0, f"boot{number}"))
        return ScriptedGuest(self._world, f"pool-{number}", f"boot{number}")

    def expect(self, count: int) -> None:
        self.expected = count

    def close(self) -> None:
        self._idle.clear()
