"""Clones against boots: how soon a Linux guest is ready by SSH, for how much CPU time, memory and disk.

Both sides go through the same launcher, in this process, by turns; a guest is ready when it has run a command over SSH.
CPU time is that of its QEMU until then, memory what QEMU maps (Pss, and private pages) once it is ready, disk what its
directory takes. Then so many guests at once: until the last one is ready. Then leases of the pool with a spare.

    python -m bench.warm_boot [--rounds 7] [--memory 512,3072] [--at-once 1,8,16] [--leases 50]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from bench.measures import cpu, disk, machine, memory
from pipeline import settings
from pipeline.builds import build
from pipeline.builds.build import Build
from pipeline.host.deadline import Deadline
from pipeline.settings import PoolSettings, Settings
from pipeline.store.freshness import Key
from pipeline.vm.boot_progress import plainly
from pipeline.vm.instance import Instance
from pipeline.vm.pool import Pool
from pipeline.vm.qemu.launcher import QemuLauncher
from pipeline.vm.qemu.pooled import QemuGuests
from pipeline.vm.qemu.stopping import stop
from pipeline.vm.template import PublishedTemplate, Template

BIN = Path(sys.executable).parent
MADE_OF = Key("bench", 1, {}, {}, {})


@dataclass(frozen=True)
class Cost:
    """What one guest has cost until it was ready, in seconds and MiB."""

    ready: float
    cpu: float
    pss: float
    private: float
    disk: float


def main() -> int:
    """Measure, and print both sides and their ratio."""
    parser = argparse.ArgumentParser(description="Compare clones of a saved guest with boots.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", default="512,3072")
    parser.add_argument("--at-once", default="1,8,16")
    parser.add_argument("--leases", type=int, default=50)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as directory:
        for size in map(int, options.memory.split(",")):
            bench = Bench(Path(directory), size)
            bench.one_by_one(options.rounds)
            for count in map(int, options.at_once.split(",")):
                bench.at_once(count)
            bench.leases(options.leases)
    return 0


class Bench:
    """A store with the Linux guest of so many MiB, and its template."""

    def __init__(self, directory: Path, size: int) -> None:
        (directory / "luigi.cfg").write_text(f"[qemu]\nmemory = {size}\n")
        environment = {**os.environ, "TOPCOAT_ROOT": str(directory / "out")}
        words = [str(BIN / "luigi"), "--module", "tasks", "BootTemplate"]
        began = time.monotonic()
        subprocess.run(words, cwd=directory, env=environment, check=True, stderr=subprocess.DEVNULL)
        self.settings: Settings = settings.load({"TOPCOAT_ROOT": str(directory / "out")}, directory)
        self.build: Build = build.load(self.settings, {})
        template = Template(self.settings.store.template(self.build.name))
        self.templates = PublishedTemplate(template, lambda: None)
        taken = sum(path.stat().st_blocks * 512 for path in template.files) / (1 << 20)
        print(f"\n{size} MiB: the template was made in {time.monotonic() - began:.1f} s, and takes {taken:.0f} MiB")

    def guest(self, name: str, *, clone: bool) -> Cost:
        """Start a guest, and return what it has cost; it runs on."""
        instance = Instance.named(self.settings.store, name)
        templates = self.templates if clone else None
        what = (self.settings, self.build, instance, "ssh", MADE_OF, None, plainly)
        began = time.monotonic()
        QemuLauncher(*what, templates=templates).start().close()  # type: ignore[arg-type]
        ready = time.monotonic() - began
        process = instance.require_running().process
        return Cost(ready, cpu(process), *memory(process), disk=disk(instance.directory))

    def one_by_one(self, rounds: int) -> None:
        """Boots and clones by turns, each alone."""
        sides: dict[bool, list[Cost]] = {False: [], True: []}
        for number in range(rounds):
            for clone in (False, True) if number % 2 else (True, False):
                sides[clone].append(self.guest("bench", clone=clone))
                stop(Instance.named(self.settings.store, "bench"), 3)
        cold, warm = ([_median(sides[clone], name) for name in Cost.__annotations__] for clone in (False, True))
        print(f"{'alone, medians of ' + str(rounds):<24}   ready s   CPU s   Pss MiB  private MiB  disk MiB")
        ratios = [boot / clone for boot, clone in zip(cold, warm, strict=True)]
        for name, row in (("boot", cold), ("clone", warm), ("boot / clone", ratios)):
            print(f"{name:<24} {row[0]:9.2f} {row[1]:7.2f} {row[2]:9.1f} {row[3]:12.1f} {row[4]:9.2f}")

    def at_once(self, count: int) -> None:
        """So many boots at once, and so many clones."""
        took = {clone: self._together(count, clone=clone) for clone in (False, True)}
        (cold, _), (warm, pss) = took[False], took[True]
        print(
            f"{count} at once, the last ready: boots {cold:.2f} s, clones {warm:.2f} s, ratio {cold / warm:.1f}; "
            f"Pss of a clone {pss:.1f} MiB"
        )

    def _together(self, count: int, *, clone: bool) -> tuple[float, float]:
        names = [f"bench-{number}" for number in range(count)]
        threads = [threading.Thread(target=self.guest, args=(name,), kwargs={"clone": clone}) for name in names]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - began
        instances = [Instance.named(self.settings.store, name) for name in names]
        pss = statistics.median(memory(instance.require_running().process)[0] for instance in instances)
        for instance in instances:
            stop(instance, 10)
        return took, pss

    def leases(self, count: int) -> None:
        """Leases of a spare: until the guest is handed out; a second passes between two, in which the next is made."""
        pool = replace(self.settings, pool=PoolSettings(1, "auto", 1))
        guests = QemuGuests(pool, self.build, "ssh", lambda: MADE_OF, self.templates)
        took, owners = [], set()
        with closing(Pool(pool, guests)) as opened:
            for _ in range(count):
                began = time.monotonic()
                with opened.lease(Deadline(60)) as lease:
                    took.append(time.monotonic() - began)
                    owners.add(lease.handle.boot_id)
                    time.sleep(1)
        assert len(owners) == count, "each lease has a guest of its own"
        took = sorted(took[1:])
        print(f"leases of a spare: median {statistics.median(took) * 1000:.1f} ms, worst {took[-1] * 1000:.1f} ms")


def _median(costs: Sequence[Cost], name: str) -> float:
    values: list[float] = [getattr(cost, name) for cost in costs]
    return statistics.median(values)


if __name__ == "__main__":
    sys.exit(main())
