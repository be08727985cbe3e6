"""What a fuzzer does that crashes again and again: in a campaign, in a bare loop in the guest, and in a version before.

The bare loop is the limit: it starts the fuzzer again in the guest's shell, and nobody looks at what it says. All sides
run one fuzzer for the same time in a guest of their own, by turns, with the same first seed.

    python -m bench.crash_restarts [--seconds 30] [--rounds 3] [--before COMMIT]
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.measures import machine
from pipeline.builds.build import load as load_build
from pipeline.fuzz.targets import FuzzTargets
from pipeline.settings import load as load_settings

BIN = Path(sys.executable).parent
PROJECT = Path(__file__).parents[1]
FUZZERS = ("overflow_fuzzer", "crash_fuzzer", "maze_fuzzer", "parser_fuzzer")
RATIO, GAPS = 0.9, 0.02
_LUIGI = "from pipeline.cli.luigi_command import main; main()"
_COUNTED = re.compile(r"^(\d+) (\d+)$", re.MULTILINE)
_LOOP = """cd /data/fuzz/{name}; rm -rf tmp/bare; mkdir -p tmp/bare; : >tmp/said
export ASAN_OPTIONS=symbolize=0 UBSAN_OPTIONS=symbolize=0
now() {{ read -r now _ </proc/uptime; now=${{now%.*}}${{now#*.}}; }}
now; end=$((now + {seconds} * 100)) run=0
while [ $now -lt $end ]; do
  pkg/{short} {options} -seed=$(({seed} + run)) -max_total_time=$(((end - now + 99) / 100)) -artifact_prefix=tmp/ \\
    tmp/bare {seeds} 2>>tmp/said >/dev/null
  run=$((run + 1)); now
done
n=0; while read -r word count; do [ "$word" = stat::number_of_executed_units: ] && n=$((n + count)); done <tmp/said
echo "$run $n" """


@dataclass(frozen=True)
class Done:
    """What one side did in one round."""

    runs: int
    executions: int
    gaps: float = 0.0
    """The part of the time that was between runs."""


def main() -> int:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description="What crashes cost.")
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", help="a commit to compare with")
    options = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(prefix="topcoat-bench-") as directory:
        root = Path(directory)
        sides = {"campaign": PROJECT}
        if options.before:
            git("worktree", "add", "--detach", str(root / "before"), options.before)
            sides["before"] = root / "before"
        try:
            compare(root, sides, options.seconds, options.rounds)
        finally:
            topcoat(root, "stop", "--all")
            if options.before:
                git("worktree", "remove", "--force", str(root / "before"))
    return 0


def compare(root: Path, sides: dict[str, Path], seconds: int, rounds: int) -> None:
    """Run all sides by turns, and print the medians of each fuzzer."""
    luigi(root, PROJECT, "BootInstance", "--name", "bare")
    for side, place in sides.items():
        campaign(root, side, place, FUZZERS[0], 0, 2)  # makes all that is to be made
    for fuzzer in FUZZERS:
        done: dict[str, list[Done]] = defaultdict(list)
        for number in range(1, rounds + 1):
            for side, place in sides.items():
                one, seed, options = campaign(root, side, place, fuzzer, number, seconds)
                done[side].append(one)
            done["bare loop"].append(bare(root, fuzzer, seed, options, seconds))
        tell(fuzzer, done)


def tell(fuzzer: str, done: dict[str, list[Done]]) -> None:
    """Print what each side did, and the ratios to the bare loop."""
    limit = median(one.executions for one in done["bare loop"])
    for side, ones in done.items():
        executions = median(one.executions for one in ones)
        text = f"{fuzzer:16} {side:10} {executions:12,.0f} executions, {median(one.runs for one in ones):5.0f} runs"
        if side != "bare loop":
            gaps = median(one.gaps for one in ones)
            text += (
                f"  {executions / limit:.2f} of the bare loop (at least {RATIO}), gaps {gaps:.1%} (under {GAPS:.0%})"
            )
        print(text, flush=True)


def campaign(root: Path, side: str, place: Path, fuzzer: str, number: int, seconds: int) -> tuple[Done, int, list[str]]:
    """What one slice of a campaign did, its first seed, and its other options."""
    name = f"{fuzzer}-{number}"
    words = ["--name", name, "--fuzzers", f"example-fuzzers/{fuzzer}", "--seed", str(number + 1)]
    words += ["--budget", str(seconds), "--slice-length", str(seconds), "--workers", "1"]
    luigi(root / side, place, "FuzzCampaign", *words)
    ledger = root / side / "campaigns" / name / "ledger.jsonl"
    entries = [json.loads(line) for line in ledger.read_bytes().splitlines()]
    ended = [one for one in entries if one["kind"] == "ended"]
    started = next(one for one in entries if one["kind"] == "started")
    own = ("-seed=", "-max_total_time=")
    options = [word for word in started["arguments"] if word.startswith("-") and not word.startswith(own)]
    fuzzed = sum(one["seconds"] for one in ended)
    gaps = sum(one["besides"] for one in ended[1:-1])
    return Done(len(ended), sum(one["executions"] for one in ended), gaps / fuzzed), started["seed"], options


def bare(root: Path, fuzzer: str, seed: int, options: list[str], seconds: int) -> Done:
    """What the loop in the guest's shell did, with the same options, and what the fuzzer was built with."""
    name = f"example-fuzzers/{fuzzer}"
    listed = FuzzTargets.of(load_build(load_settings(os.environ | {"TOPCOAT_ROOT": str(root)}))).find(name).listed
    assert listed
    words = [*options, *([f"-dict={listed.dictionary}"] if listed.dictionary else [])]
    what = {"options": shlex.join(words), "seeds": listed.seeds or ""}
    line = _LOOP.format(name=name, short=fuzzer, seconds=seconds, seed=seed, **what)
    match = _COUNTED.search(topcoat(root, "ssh", "bare", "--", line))
    assert match
    return Done(int(match[1]), int(match[2]))


def luigi(store: Path, place: Path, *words: str) -> None:
    """Run a task of the version that lies in `place`."""
    environment = os.environ | {"TOPCOAT_ROOT": str(store), "PYTHONPATH": str(place)}
    argv = [sys.executable, "-c", _LUIGI, "--module", "tasks", *words]
    done = subprocess.run(argv, env=environment, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def topcoat(store: Path, *words: str) -> str:
    """The output of a command of this version."""
    environment = os.environ | {"TOPCOAT_ROOT": str(store)}
    return subprocess.run(
        [BIN / "topcoat", *words], env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def git(*words: str) -> None:
    """Run git in this repository."""
    subprocess.run(["git", *words], cwd=PROJECT, check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
