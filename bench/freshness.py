"""What it costs to find out that there is nothing to do.

    python -m bench.freshness [--rounds N] [--engines DIRECTORY]

First a run without work over the graph of bench/graph.py, by turns: Topcoat (`luigi`), doit, snakemake; seconds of
process time, imports included, and how much of it is only importing the engine. The other engines are installed by
pip into environments of their own below DIRECTORY: luigi imports requests and jsonschema where it finds them, so that
in one environment with snakemake it would be slower than it is. Then `luigi --module tasks BootInstance` while the
Linux guest lives; the check of one sparse image of 3 GiB with a warm cache; and the speed of hashing against BLAKE3's
own way with files.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from bench import graph
from pipeline.store.digest_cache import DigestCache
from pipeline.store.digests import digest

PYTHON = Path(sys.executable)
BIN = PYTHON.parent
PROJECT = Path(__file__).parents[1]
RACY = 2.5
"""Seconds until what was made just now is remembered by its times."""


@dataclass(frozen=True)
class Engine:
    """One of those that are compared: how it is run, and how it is only imported."""

    name: str
    command: list[str]
    imports: list[str]


def main() -> int:
    """Run all and print it."""
    parser = argparse.ArgumentParser(description="Measure runs without work.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", type=Path, default=PROJECT / "out/bench", metavar="DIRECTORY")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}")
    engines = [topcoat(), *others(options.engines)]
    with tempfile.TemporaryDirectory() as directory:
        compare_engines(engines, Path(directory), options.rounds)
        check_instance(Path(directory), options.rounds)
        check_image(Path(directory), options.rounds)
        hash_file(Path(directory), options.rounds)
    return 0


def topcoat() -> Engine:
    """As its users run it."""
    command = [str(BIN / "luigi"), "--module", "bench.graph", "All"]
    return Engine("topcoat", command, [str(PYTHON), "-c", "import luigi.cmdline, tasks"])


def others(directory: Path) -> list[Engine]:
    """doit and snakemake, installed where they are not yet."""
    words = {
        "doit": (["-f", "dodo.py"], "doit.doit_cmd"),
        "snakemake": (["--cores", "2", "--quiet", "all"], "snakemake.cli"),
    }
    found = []
    for name, (arguments, module) in words.items():
        home = directory / name
        if not (home / "bin" / name).exists():
            print(f"installing {name} in {home}")
            subprocess.run([PYTHON, "-m", "venv", "--clear", home], check=True)
            subprocess.run([home / "bin/pip", "install", "--quiet", name], check=True)
        imports = [str(home / "bin/python"), "-c", f"import {module}"]
        found.append(Engine(name, [str(home / "bin" / name), *arguments], imports))
    return found


def compare_engines(engines: list[Engine], directory: Path, rounds: int) -> None:
    """The same graph for all engines, by turns."""
    homes = {engine.name: directory / engine.name for engine in engines}
    for home in homes.values():
        graph.write_sources(home)
    (homes["doit"] / "dodo.py").write_text(graph.DODO)
    (homes["snakemake"] / "Snakefile").write_text(graph.SNAKEFILE)
    for engine in engines:
        process_time(engine.command, homes[engine.name])
    time.sleep(RACY)
    for engine in engines:
        process_time(engine.command, homes[engine.name])
    whole: dict[str, list[float]] = {engine.name: [] for engine in engines}
    imports: dict[str, list[float]] = {engine.name: [] for engine in engines}
    for _ in range(rounds):
        for engine in engines:
            whole[engine.name].append(process_time(engine.command, homes[engine.name]))
            imports[engine.name].append(process_time(engine.imports, homes[engine.name]))
    print(f"\na run without work, {2 * graph.COUNT} artifacts, {5 * graph.COUNT} inputs (process time, n={rounds})")
    print("             median  fastest  only imports   topcoat / it")
    ours = statistics.median(whole["topcoat"])
    for name, values in whole.items():
        middle, only = statistics.median(values), statistics.median(imports[name])
        print(f"  {name:<10} {middle:6.3f} s {min(values):6.3f} s     {only:6.3f} s   {ours / middle:12.2f}")


def environment(directory: Path) -> Mapping[str, str]:
    """What the commands are run with. Python may keep what it has compiled, as pip does for what it installs."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    ours = {"GRAPH_ROOT": str(directory), "TOPCOAT_ROOT": str(directory / "out"), "PYTHONPATH": str(PROJECT)}
    return {**kept, **ours}


def run(command: list[str], directory: Path) -> None:
    """Run a command to its end, or stop here."""
    done = subprocess.run(command, cwd=directory, env=environment(directory), capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{command}: {done.stderr.decode()[-2000:]}")


def process_time(command: list[str], directory: Path) -> float:
    """Run a command; returns the process time of it and its children, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(command, directory)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def timed(work: Callable[[], object], rounds: int) -> list[float]:
    """The wall times of `work`, in seconds."""
    values = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        values.append(time.perf_counter() - began)
    return values


def check_instance(directory: Path, rounds: int) -> None:
    """The main job when there is nothing to do: the Linux guest lives, and all is fresh."""
    boot = [str(BIN / "luigi"), "--module", "tasks", "BootInstance"]
    try:
        run(boot, directory)
        time.sleep(RACY)
        run(boot, directory)
        seconds = timed(lambda: run(boot, directory), 2 * rounds)
    finally:
        run([str(BIN / "topcoat"), "stop", "--all"], directory)
    print(
        f"\nBootInstance, all fresh, the guest alive: {statistics.median(seconds):.3f} s, at best {min(seconds):.3f} s"
    )


def check_image(directory: Path, rounds: int) -> None:
    """One sparse image of 3 GiB with 256 MiB of data."""
    image = directory / "extended-fvm.blk"
    with image.open("wb") as stream:
        for part in range(256):
            stream.seek(part * 12 << 20)
            stream.write(os.urandom(1 << 20))
        stream.truncate(3 << 30)
    digests = DigestCache(None, lambda: time.time_ns() + 10**10)
    cold = statistics.median(timed(lambda: digest(image), 3))
    digests.of(image)
    warm = statistics.median(timed(lambda: digests.of(image), rounds * 100))
    print(f"\none sparse image of 3 GiB, 256 MiB of data: hashed in {cold:.3f} s, checked in {warm * 1e6:.0f} us")
    image.unlink()


def hash_file(directory: Path, rounds: int) -> None:
    """1 GiB of data: ours, and BLAKE3's own file hashing, which maps the file."""
    file = directory / "data"
    with file.open("wb") as stream:
        for _ in range(64):
            stream.write(os.urandom(16 << 20))
        os.fsync(stream.fileno())  # else writing it back would take its share of the cores meanwhile
    ours, theirs = [], []
    for _ in range(2 * rounds):
        ours += timed(lambda: digest(file), 1)
        theirs += timed(lambda: blake3(max_threads=blake3.AUTO).update_mmap(file).digest(), 1)
    mine, its = (1 / statistics.median(values) for values in (ours, theirs))
    print(f"\nhashing 1 GiB in the page cache: {mine:.2f} GiB/s, blake3 itself {its:.2f} GiB/s, ratio {mine / its:.2f}")


if __name__ == "__main__":
    sys.exit(main())
