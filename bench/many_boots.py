"""Many real boots of the Linux guest, half of them on a busy host: is any failure unexplained, is anything left?

Each boot is the whole command, `luigi --module tasks BootInstance`, then a command over SSH, then `topcoat stop`. In
between, some boots are killed with SIGKILL at a random moment and left to the keeper and `topcoat gc`. At the end the
host is looked at: processes, sockets, files. Ends with 1 if anything is left or a boot failed.

    python -m bench.many_boots [--boots 200] [--killed 20] [--seed 1]
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.left import LOGS, processes
from pipeline.settings import Store
from pipeline.vm.instance import Instance

BIN = Path(sys.executable).parent
LIMIT = 300.0


def main() -> int:
    """Boot, kill, look, and print what came of it."""
    parser = argparse.ArgumentParser(description="Boot the Linux guest many times, on a quiet and on a busy host.")
    parser.add_argument("--boots", type=int, default=200)
    parser.add_argument("--killed", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        many = Many(Path(directory))
        many.boot()
        results = {}
        for name, host in (("quiet", quiet), ("busy", busy)):
            with host():
                results[name] = [many.boot() for _ in range(options.boots // 2)]
            tell(name, results[name])
        left = many.left()
        killed = many.kill(random.Random(options.seed), options.killed)
        print(f"killed: {options.killed} boots at random moments, {killed}", flush=True)
        left += many.left()
    for what in left:
        print(f"left: {what}")
    failed = [verdict for found in results.values() for _, verdict in found if verdict != "ready"]
    print(f"{len(failed)} boots failed, {len(left)} things are left")
    return 1 if failed or left else 0


@contextmanager
def quiet() -> Iterator[None]:
    """The host as it is."""
    yield


@contextmanager
def busy() -> Iterator[None]:
    """All cores busy with something else."""
    spinning = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def tell(name: str, results: list[tuple[float, str]]) -> None:
    """One line on a series of boots."""
    seconds = sorted(took for took, _ in results)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in Counter(verdict for _, verdict in results).items())
    middle, slow = statistics.median(seconds), seconds[int(len(seconds) * 0.99) - 1]
    print(f"{name:<6} n={len(results)}: {verdicts}; ready after {middle:.2f} s (p99 {slow:.2f} s)", flush=True)


class Many:
    """A store, and boots in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {**os.environ, "TOPCOAT_ROOT": str(directory / "out")}
        for name in ("FUCHSIA_DIR", "FUCHSIA_RESOURCES_DIR", "LUIGI_CONFIG_PATH", "PYTHONDONTWRITEBYTECODE"):
            self.environment.pop(name, None)
        self.instance = Instance.named(Store(directory / "out"), "i0")

    def start(self, *words: str) -> "subprocess.Popen[bytes]":
        """One of Topcoat's commands."""
        command = [str(BIN / words[0]), *words[1:]]
        return subprocess.Popen(
            command, cwd=self.directory, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self, *words: str) -> tuple[int, str]:
        """Run it to its end: exit code and all that it said."""
        with self.start(*words) as process:
            stdout, stderr = process.communicate(timeout=LIMIT)
        return process.returncode, (stdout + stderr).decode()

    def boot(self) -> tuple[float, str]:
        """Boot and stop. Returns the seconds until ready, and "ready" or why not."""
        began = time.monotonic()
        status, said = self.run("luigi", "--module", "tasks", "BootInstance")
        seconds = time.monotonic() - began
        if status != 0:
            print(said, flush=True)
            return seconds, self.verdict()
        status, said = self.run("topcoat", "ssh", "i0", "--", "cat /etc/boot_id")
        handle = self.instance.live_handle()
        right = status == 0 and handle is not None and said.strip() == handle.boot_id
        status, said = self.run("topcoat", "stop", "i0")
        return seconds, "ready" if right and status == 0 and said == "i0: stopped\n" else f"not right: {said}"

    def verdict(self) -> str:
        """The cause that the timeline names."""
        last = json.loads(self.instance.timeline.read_text().splitlines()[-1])
        return str(last.get("cause", "no verdict"))

    def kill(self, chance: random.Random, times: int) -> str:
        """SIGKILL boots at random moments; the next one, or gc, finds what each has left. Returns what gc reclaimed."""
        reclaimed: Counter[str] = Counter()
        for number in range(times):
            with self.start("luigi", "--module", "tasks", "BootInstance") as process:
                try:
                    process.communicate(timeout=chance.uniform(0.1, 3.0))
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.communicate()
            if number % 2:
                _, said = self.run("topcoat", "gc", "--yes", "--json")
                reclaimed.update(row["kind"] for row in json.loads(said)["items"] if row["reclaimed"])
        self.run("topcoat", "stop", "--all")
        self.run("topcoat", "gc", "--yes")
        return ", ".join(f"{count} {kind}" for kind, count in sorted(reclaimed.items())) or "nothing"

    def left(self) -> list[str]:
        """What is still there that should not be."""
        files = [path for path in (self.directory / "out").rglob("*") if not path.is_dir() and path.suffix != ".lock"]
        remains = [str(path) for path in files if ".tmp" in str(path)]
        others = [str(path) for path in files if path.parent == self.instance.directory]
        kept = [path for path in others if not Path(path).name.startswith(LOGS)]
        return processes(self.directory / "out") + remains + kept


if __name__ == "__main__":
    sys.exit(main())
