"""What it costs to find out that there is nothing to do.

    pip install doit snakemake     # the others; without them their rows are left out
    python bench/freshness.py [--rounds N]

First a run without work over the graph of bench/graph.py, by turns: Topcoat (`luigi`), doit, snakemake; seconds of
process time, imports included. Then the check of one sparse image of 3 GiB with a warm cache, and the speed of hashing
against BLAKE3's own way with files.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from bench import graph
from pipeline.digests import Digests, digest

BIN = Path(sys.executable).parent


def main() -> int:
    """Run all and print it."""
    parser = argparse.ArgumentParser(description="Measure runs without work.")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as directory:
        compare_engines(Path(directory), rounds)
        check_image(Path(directory), rounds)
        hash_file(Path(directory), rounds)
    return 0


def compare_engines(directory: Path, rounds: int) -> None:
    """The same graph, three engines."""
    commands = {
        "topcoat": [str(BIN / "luigi"), "--module", "bench.graph", "All"],
        "doit": [str(BIN / "doit"), "-f", "dodo.py"],
        "snakemake": [str(BIN / "snakemake"), "--cores", "2", "--quiet", "all"],
    }
    found = {name: command for name, command in commands.items() if Path(command[0]).exists()}
    for name in found:
        graph.write_sources(directory / name)
    (directory / "doit/dodo.py").write_text(graph.DODO) if "doit" in found else None
    (directory / "snakemake/Snakefile").write_text(graph.SNAKEFILE) if "snakemake" in found else None
    for name, command in found.items():
        run(command, directory / name)
    time.sleep(2.5)  # what was made just now is not remembered yet
    for name, command in found.items():
        run(command, directory / name)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, command in found.items():
            seconds[name].append(run(command, directory / name))
    ours = statistics.median(seconds["topcoat"])
    print(f"\na run without work, {2 * graph.COUNT} artifacts, {5 * graph.COUNT} inputs (process time, n={rounds})")
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"  {name:<10} {middle:6.3f} s   topcoat / {name}: {ours / middle:.2f}")
    for name in commands.keys() - found.keys():
        print(f"  {name:<10} not installed")


def run(command: list[str], directory: Path) -> float:
    """Run a command; returns the process time of it and its children, in seconds."""
    environment = {
        **os.environ,
        "GRAPH_ROOT": str(directory),
        "TOPCOAT_ROOT": str(directory / "out"),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{command}: {done.stderr.decode()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def timed(work: Callable[[], object], rounds: int) -> float:
    """The median of the wall time of `work`, in seconds."""
    values = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        values.append(time.perf_counter() - began)
    return statistics.median(values)


def check_image(directory: Path, rounds: int) -> None:
    """One sparse image of 3 GiB with 256 MiB of data."""
    image = directory / "extended-fvm.blk"
    with image.open("wb") as stream:
        for part in range(256):
            stream.seek(part * 12 << 20)
            stream.write(os.urandom(1 << 20))
        stream.truncate(3 << 30)
    digests = Digests(None, lambda: time.time_ns() + 10**10)
    cold = timed(lambda: digest(image), 3)
    digests.of(image)
    warm = timed(lambda: digests.of(image), rounds * 100)
    print(f"\none sparse image of 3 GiB, 256 MiB of data: hashed in {cold:.3f} s, checked in {warm * 1e6:.0f} us")
    image.unlink()


def hash_file(directory: Path, rounds: int) -> None:
    """1 GiB of data: ours, and BLAKE3's own file hashing."""
    file = directory / "data"
    with file.open("wb") as stream:
        for _ in range(64):
            stream.write(os.urandom(16 << 20))
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(timed(lambda: digest(file), 1))
        theirs.append(timed(lambda: blake3(max_threads=blake3.AUTO).update_mmap(file).digest(), 1))
    mine, its = (1 / statistics.median(values) for values in (ours, theirs))
    print(f"\nhashing 1 GiB in the page cache: {mine:.2f} GiB/s, blake3 itself {its:.2f} GiB/s, ratio {mine / its:.2f}")


if __name__ == "__main__":
    sys.exit(main())
