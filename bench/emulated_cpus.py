"""How much a fuzzer does in an emulated guest, by the CPU that QEMU plays.

One Linux guest for each CPU model, all at once; the fuzzer runs in them by turns, each time as many executions with the
same seed. What counts are the seconds of processor time that QEMU itself has used, so that a busy host does no harm.
Those of the boot, until the guest is ready, are told too.

    python -m bench.emulated_cpus [--rounds 5] [--runs 100000] [CPU...]
"""

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.settings import Store
from pipeline.vm.instance import Instance

BIN = Path(sys.executable).parent
CPUS = ("max", "max,erms=off,fsrm=off")
FUZZER = "example-fuzzers/noop_fuzzer"
_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description="Compare emulated CPUs.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("cpus", nargs="*", default=CPUS, metavar="CPU", help=f"default: {' '.join(CPUS)}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="topcoat-bench-") as directory:
        bench = Bench(Path(directory))
        try:
            guests = {cpu: bench.boot(f"cpu{number}", cpu) for number, cpu in enumerate(options.cpus)}
            booted = {cpu: spent(guest) for cpu, guest in guests.items()}
            rates: dict[str, list[float]] = {cpu: [] for cpu in guests}
            for number in range(options.rounds):
                for cpu, guest in guests.items():
                    rates[cpu].append(bench.rate(guest, options.runs))
                print(f"round {number + 1}: " + ", ".join(f"{cpu} {rates[cpu][-1]:.0f}" for cpu in rates), flush=True)
        finally:
            bench.run("topcoat", "stop", "--all")
    print(f"{FUZZER}, executions per second of QEMU's processor time; seconds of it for the boot")
    for cpu, found in rates.items():
        span = f"(min {min(found):.0f}, max {max(found):.0f})"
        print(f"{cpu:<24} median {statistics.median(found):.0f} {span}  boot {booted[cpu]:.2f} s")
    return 0


def spent(guest: Instance) -> float:
    """Seconds of processor time that the guest's QEMU has used so far."""
    pid = guest.require_live().process.pid
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


class Bench:
    """A store with one image for all guests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {**os.environ, "TOPCOAT_ROOT": str(directory / "out")}
        for name in ("FUCHSIA_DIR", "FUCHSIA_RESOURCES_DIR", "LUIGI_CONFIG_PATH"):
            self.environment.pop(name, None)

    def run(self, *words: str) -> None:
        """Run one of Topcoat's commands."""
        command = [str(BIN / words[0]), *words[1:]]
        subprocess.run(command, cwd=self.directory, env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def boot(self, name: str, cpu: str) -> Instance:
        """A guest with that CPU."""
        (self.directory / "luigi.cfg").write_text(f"[qemu]\naccel = tcg\ncpu = {cpu}\n")
        self.run("luigi", "--module", "tasks", "BootInstance", "--name", name)
        return Instance.named(Store(self.directory / "out"), name)

    def rate(self, guest: Instance, runs: int) -> float:
        """Executions of the fuzzer in a second of QEMU's processor time."""
        words = [f"/data/fuzz/{FUZZER}/pkg/{Path(FUZZER).name}", "-seed=7", f"-runs={runs}"]
        before = spent(guest)
        self.run("topcoat", "ssh", guest.name, "--", f"{shlex.join(words)} 2>&1 | tail -n 1")
        return runs / (spent(guest) - before)


if __name__ == "__main__":
    sys.exit(main())
