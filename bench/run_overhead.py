"""Executions per second of a fuzzer by `undercoat run_fuzzer`, against the same one started by hand over SSH.

Both run in the same guest, in turn, with the same seed and for the same time; libFuzzer itself counts. Whatever comes
in between (scanning and rewriting the output, symbols, the SSH window) could only slow a fuzzer down that waits for it,
so a noisy one is compared too.

    python -m bench.run_overhead [--rounds 5] [--seconds 10]
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

BIN = Path(sys.executable).parent
FUZZERS = ("example-fuzzers/noop_fuzzer", "example-fuzzers/noisy_fuzzer")
TARGET = 0.97
_SEED = 7
_UNITS = re.compile(rb"^stat::number_of_executed_units: (\d+)", re.MULTILINE)


def main() -> int:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description="Compare executions per second.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="topcoat-bench-") as directory:
        os.environ |= {"TOPCOAT_ROOT": f"{directory}/out", "TMPDIR": directory}
        handle = undercoat("start_instance").decode().strip()
        try:
            for fuzzer in FUZZERS:
                undercoat("prepare_fuzzer", "-handle", handle, "-fuzzer", fuzzer)
                compare(fuzzer, handle, options.rounds, options.seconds)
        finally:
            undercoat("stop_instance", "-handle", handle)
    return 0


def compare(fuzzer: str, handle: str, rounds: int, seconds: int) -> None:
    """Print the medians of both sides and their ratio."""
    words = [f"-seed={_SEED}", f"-max_total_time={seconds}", "-print_final_stats=1"]
    sides: dict[str, Callable[[], bytes]] = {
        "run_fuzzer": lambda: undercoat("run_fuzzer", "-handle", handle, "-fuzzer", fuzzer, "--", *words),
        "by hand": lambda: by_hand(fuzzer, words),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            rates[name].append(executed(side()) / seconds)
        print(
            f"{fuzzer} round {number + 1}: " + ", ".join(f"{name} {rates[name][-1]:.0f}/s" for name in sides),
            flush=True,
        )
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio = medians["run_fuzzer"] / medians["by hand"]
    print(f"{fuzzer}: {ratio:.3f} (at least {TARGET})  " + ", ".join(f"{name} {medians[name]:.0f}/s" for name in sides))


def undercoat(*words: str) -> bytes:
    """Call the program as ClusterFuzz does."""
    return subprocess.run(
        [BIN / "undercoat", *words], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ).stdout


def by_hand(fuzzer: str, words: list[str]) -> bytes:
    """The program itself in the guest, as somebody would start it who has logged in."""
    (instance,) = (Path(os.environ["TOPCOAT_ROOT"]) / "instances").glob("undercoat-*[0-9a-f]")
    line = (
        f"cd /data/fuzz/{fuzzer} && ASAN_OPTIONS=symbolize=0 pkg/{Path(fuzzer).name} {' '.join(words)} 2>&1 >/dev/null"
    )
    command = [str(BIN / "topcoat"), "ssh", instance.name, "--", line]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout


def executed(output: bytes) -> int:
    """How often the fuzzer has run its target."""
    match = _UNITS.search(output)
    assert match, output[-500:]
    return int(match[1])


if __name__ == "__main__":
    sys.exit(main())
