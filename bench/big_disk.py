"""What bench/targets.py measures: the disk with targets, boots and clones with it, the guest's memory, the host."""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.grown import PACKAGE, GrownTargets
from bench.measures import cpu, disk, memory, opened
from pipeline import settings
from pipeline.builds import build
from pipeline.builds.build import Build
from pipeline.builds.targets import listing
from pipeline.builds.targets.places import IMAGE_FILES, TargetsPlaces
from pipeline.settings import Settings
from pipeline.ssh.connector import Connector
from pipeline.store.freshness import Key
from pipeline.vm.boot_progress import plainly
from pipeline.vm.instance import Instance
from pipeline.vm.qemu.launcher import QemuLauncher
from pipeline.vm.qemu.stopping import stop
from pipeline.vm.template import PublishedTemplate, Template

BIN = Path(sys.executable).parent
MADE_OF = Key("bench", 1, {}, {}, {})
MEMORY = 1024
"""MiB of each guest."""

SLOWER = 1.2
"""How many times as long boots and clones may take."""

LESS = 32.0
"""MiB by which less of the guest's memory may be available than with few targets.

By up to 24 it differs from boot to boot, and after a large program has ended: pages on the kernel's lists of free ones
for each CPU do not count as available.
"""

_LIMIT = 600.0  # seconds for a command in a guest
_AT_ONCE = 4
_LUIGI = ("luigi", "--module", "tasks")


@dataclass(frozen=True)
class Figure:
    """One figure of both sides; lower is better, but for memory that is available."""

    what: str
    unit: str
    many: float
    few: float | None = None
    """None: only the side with many targets has it."""

    @property
    def ratio(self) -> float | None:
        """How much more it is with many targets."""
        return self.many / self.few if self.few else None

    def __str__(self) -> str:
        few = f"{self.few:10.2f}" if self.few is not None else " " * 10
        ratio = f"{self.ratio:7.2f}" if self.ratio is not None else ""
        return f"{self.what:<58} {self.unit:<4} {self.many:10.2f} {few} {ratio}".rstrip()


class Side:
    """One of the two builds in the store."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._directory = directory
        self._environment = environment
        self.settings: Settings = settings.load(environment, directory)
        self.build: Build = build.load(self.settings, environment)
        template = Template(self.settings.store.template(self.build.name))
        self._templates = PublishedTemplate(template, lambda: None)

    @property
    def places(self) -> TargetsPlaces:
        """Where its targets are."""
        assert self.build.targets
        return self.build.targets

    def command(self, *words: str) -> float:
        """Run one of Topcoat's commands. Returns the seconds that it took."""
        began = time.monotonic()
        done = subprocess.run(
            [str(BIN / words[0]), *words[1:]],
            cwd=self._directory,
            env={**os.environ, **self._environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return time.monotonic() - began

    def instance(self, name: str) -> Instance:
        """The instance of this name."""
        return Instance.named(self.settings.store, name)

    def start(self, name: str, *, clone: bool) -> Connector:
        """Start a guest; it runs on."""
        templates = self._templates if clone else None
        what = (self.settings, self.build, self.instance(name), "ssh", MADE_OF, None, plainly)
        guest = QemuLauncher(*what, templates=templates).start()  # type: ignore[arg-type]
        assert ('"how": "clone"' in self.instance(name).timeline.read_text()) == clone, "it is a clone if it should be"
        return guest

    def digests(self) -> dict[str, str]:
        """What the list of its targets says of each of them."""
        return {one.full_name: one.digest for one in listing.read(self.places.listing).targets}

    def stop_all(self) -> None:
        """End all instances of the store."""
        for instance in Instance.all(self.settings.store):
            stop(instance, 10)


class TargetsBench:
    """A store with both guests, and what was measured of them so far; `said` gets each figure at once."""

    def __init__(self, directory: Path, count: int, size: int, said: IO[str]) -> None:
        (directory / "luigi.cfg").write_text(f"[qemu]\nmemory = {MEMORY}\n")
        self._directory, self._said = directory, said
        self.store = directory / "out"
        """The root of the store, in which all guests are."""
        self._grown = GrownTargets(directory / PACKAGE, self.store / "demo" / "tools", count, size)
        environment = {"TOPCOAT_ROOT": str(self.store)}
        self._few = Side(directory, environment)
        self._many = Side(directory, {**environment, "TOPCOAT_TARGETS": str(self._grown.directory)})
        self.figures: list[Figure] = []
        self.promises: dict[str, bool] = {}

    def run(self, rounds: int, store: Path | None) -> None:
        """Measure everything. `store` is one that has the guest's packages and the compiler already."""
        self._prepare(store)
        self._image()
        self._commands(rounds)
        self._figure("making the template", "s", self._many.command(*_LUIGI, "BootTemplate"))
        for clone in (False, True):
            self._starts(rounds, clone=clone)
        self._guest_memory()
        self._at_once()

    def stop(self) -> None:
        """End all guests."""
        self._few.stop_all()

    def promise(self, what: str, kept: bool) -> None:
        """Note, and say, whether a promise is kept."""
        self.promises[what] = kept
        print(f"{'kept' if kept else 'BROKEN'}: {what}", file=self._said, flush=True)

    def _figure(self, what: str, unit: str, many: float, few: float | None = None) -> Figure:
        self.figures.append(Figure(what, unit, many, few))
        print(self.figures[-1], file=self._said, flush=True)
        return self.figures[-1]

    def _prepare(self, store: Path | None) -> None:
        if store:
            self.store.mkdir(0o700)
            shutil.copytree(store / "demo", self.store / "demo", ignore=shutil.ignore_patterns("*.lock"))
        self._few.command(*_LUIGI, "BootTemplate")
        work = self._directory / "work"
        work.mkdir()
        began = time.monotonic()
        self._grown.make(self.store / "demo" / "sysroot.tar", work)
        print(
            f"{self._grown.count} targets of {self._grown.size >> 20} MiB, made in {time.monotonic() - began:.0f} s\n"
            f"{'':<58} {'':<4} {'many':>10} {'few':>10} {'ratio':>7}",
            file=self._said,
            flush=True,
        )

    def _image(self) -> None:
        """The disk with targets: made the first time, not again, and after one target has changed."""
        many, image = self._many, self._many.places.image
        self._figure("targets image, the first time", "s", many.command(*_LUIGI, "TargetsImage"))
        self._figure("size of the targets", "MiB", disk(self._grown.directory))
        self._figure(
            "size of the image",
            "MiB",
            image.stat().st_size / (1 << 20),
            self._few.places.image.stat().st_size / (1 << 20),
        )
        before, was = many.digests(), _identity(image)
        many.command(*_LUIGI, "TargetsImage")
        self.promise("the image is made once", _identity(image) == was)
        self._grown.change(self._grown.count // 2, self._directory / "work")
        self._figure("targets image, one target changed", "s", many.command(*_LUIGI, "TargetsImage"))
        after = many.digests()
        changed = [name for name in after if after[name] != before.get(name)]
        wanted = [f"{PACKAGE}/{self._grown.names[self._grown.count // 2]}"]
        self.promise(
            "only the target that has changed has another digest", changed == wanted and len(after) == len(before)
        )

    def _commands(self, rounds: int) -> None:
        """Commands that look at all targets, and find that there is nothing to do."""
        for words in ((*_LUIGI, "TargetsImage"), ("topcoat", "why", "TargetsImage"), ("topcoat", "targets")):
            many, few = self._by_turns(min(rounds, 3), lambda side, words=words: (side.command(*words),))  # type: ignore[misc]
            self._figure(f"{' '.join(words)}, all fresh", "s", many[0], few[0])

    def _by_turns(
        self, rounds: int, measure: Callable[[Side], Sequence[float]]
    ) -> tuple[Sequence[float], Sequence[float]]:
        """The medians of what is measured on both sides, many first."""
        found: dict[Side, list[Sequence[float]]] = {self._many: [], self._few: []}
        for number in range(rounds):
            for side in (self._many, self._few) if number % 2 else (self._few, self._many):
                found[side].append(measure(side))
        many, few = ([statistics.median(column) for column in zip(*rows, strict=True)] for rows in found.values())
        return many, few

    def _starts(self, rounds: int, *, clone: bool) -> None:
        """Boots or clones by turns, each alone."""
        what, warm = ("clone", "always") if clone else ("boot", "never")

        def started(side: Side) -> tuple[float, float, float, float]:
            began = time.monotonic()
            side.start("bench", clone=clone).close()
            ready = time.monotonic() - began
            process = side.instance("bench").require_running().process
            took = (ready, cpu(process), *memory(process))
            stop(side.instance("bench"), 10)
            return took

        def commanded(side: Side) -> tuple[float]:
            took = side.command(*_LUIGI, "BootInstance", "--name", "bench", "--warm", warm)
            stop(side.instance("bench"), 10)
            return (took,)

        many, few = self._by_turns(rounds, started)
        rows = (("ready", "s"), ("CPU of QEMU", "s"), ("Pss of QEMU", "MiB"), ("private pages of QEMU", "MiB"))
        figures = [
            self._figure(f"{what}: {name}", unit, *both) for (name, unit), *both in zip(rows, many, few, strict=True)
        ]
        whole = self._figure(f"{what}: whole command", "s", *(one[0] for one in self._by_turns(rounds, commanded)))
        for figure in (figures[0], figures[1], whole):
            assert figure.ratio is not None
            self.promise(f"{figure.what}: at most {SLOWER} times as long", figure.ratio <= SLOWER)

    def _guest_memory(self) -> None:
        """What is available in the guest of both sides, at each of several stages."""
        found = [self._stages(side, name) for side, name in ((self._many, PACKAGE), (self._few, "example-fuzzers"))]
        many, few = found
        for stage in many:
            self._figure(f"guest: {stage}", "s" if "cold" in stage else "MiB", many[stage], few.get(stage))
        ready, *_, last = many
        self.promise(f"at most {LESS:.0f} MiB less are available once ready", many[ready] >= few[ready] - LESS)
        self.promise(f"at most {LESS:.0f} MiB less are available at last", many[last] >= few[last] - LESS)

    def _stages(self, side: Side, package: str) -> dict[str, float]:
        """The figures of one guest, in which first one target is run, and then others are read."""
        programs = [one.program for one in listing.read(side.places.listing).targets if one.package == package]
        found: dict[str, float] = {}

        def note(what: str) -> None:
            said = guest.run("grep MemAvailable /proc/meminfo", _LIMIT).stdout
            found[f"available {what}"] = int(said.split()[1]) / 1024

        with closing(side.start("bench", clone=False)) as guest:
            note("once ready")
            found["one target run, cold"] = _seconds(guest, f"{_first(programs)} -runs=1")
            note("when one target was run")
            found[f"another one read, cold ({_size(guest, programs[-1]):.0f} MiB)"] = _seconds(
                guest, f"cat {programs[-1]} >/dev/null"
            )
            note("when another one was read")
            if side is self._many:
                # More than fits its memory
                most = 2 * MEMORY * (1 << 20) // self._grown.size + 1
                read = programs[:most]
                found[f"{len(read)} of them read, cold"] = _seconds(guest, f"cat {' '.join(read)} >/dev/null")
                note(f"when {len(read)} of them were read")
            guest.run("sync; echo 3 >/proc/sys/vm/drop_caches", _LIMIT)
            note("once caches are dropped")
            killed = guest.run("dmesg | grep -ci 'out of memory'", _LIMIT).stdout
            assert killed.strip() == b"0", killed
        stop(side.instance("bench"), 10)
        return found

    def _at_once(self) -> None:
        """Several clones at once: that all of them have the image itself."""
        names, image = [f"bench-{number}" for number in range(_AT_ONCE)], self._many.places.image
        taken = {}
        for side in (self._few, self._many):
            for name in names:
                side.start(name, clone=True).close()
            taken[side] = sum(disk(side.instance(name).directory) for name in names)
            if side is self._many:
                living = [side.instance(name).require_running().process for name in names]
                self.promise(
                    "each QEMU has the image open once", [opened(one, image) for one in living] == [1] * _AT_ONCE
                )
                pss = statistics.mean(memory(one)[0] for one in living)
                self._figure(f"Pss of each of {_AT_ONCE} clones at once", "MiB", pss)
            for name in names:
                stop(side.instance(name), 10)
        self._figure(f"disk that {_AT_ONCE} clones at once take", "MiB", taken[self._many], taken[self._few])
        self.promise("no guest has a copy of the image", taken[self._many] < taken[self._few] + _AT_ONCE)


def _identity(file: Path) -> tuple[int, int]:
    facts = file.stat()
    return facts.st_ino, facts.st_mtime_ns


def _seconds(guest: Connector, command: str) -> float:
    """How long a command takes in the guest, measured from the host."""
    began = time.monotonic()
    done = guest.run(command, _LIMIT)
    assert done.status == 0, done.stderr[-2000:]
    return time.monotonic() - began


def _size(guest: Connector, program: str) -> float:
    """The size of a file in the guest, in MiB."""
    return int(guest.run(f"stat -c %s {program}", _LIMIT).stdout) / (1 << 20)


def _first(programs: Sequence[str]) -> str:
    """The program that is run: of Topcoat's own targets, one that finds nothing."""
    own = str(IMAGE_FILES / "example-fuzzers" / "noop_fuzzer")
    return own if own in programs else programs[0]
