"""What a campaign costs, in executions per second, at its end and between slices.

The first two are measured with real guests: two fuzzers that find nothing run in two guests, by turns as a campaign
with two workers and by hand, for the same time. The third is measured with scripted guests that need no time at all:
200 fuzzers with 5 slices each.

    python -m bench.campaign [--seconds 120] [--slice 60]
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

BIN = Path(sys.executable).parent
FUZZERS = ("example-fuzzers/noop_fuzzer", "example-fuzzers/noisy_fuzzer")
RATIO, END, OVERHEAD = 0.95, 5.0, 0.060
_UNITS = re.compile(rb"^stat::number_of_executed_units: (\d+)", re.MULTILINE)


def main() -> int:
    """Run the comparisons and print them."""
    parser = argparse.ArgumentParser(description="What a campaign costs.")
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--slice", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    scripted()
    with tempfile.TemporaryDirectory(prefix="topcoat-bench-") as directory:
        os.environ |= {"TOPCOAT_ROOT": f"{directory}/out"}
        for number in range(options.rounds):
            by_hand(1, "warm")  # boots both guests, and makes all that is to be made
            hand = by_hand(options.seconds, "by hand")
            run([BIN / "topcoat", "stop", "--all"])
            compare(hand, campaign(number, options.seconds, options.slice), options.seconds)
    return 0


def compare(hand: dict[str, int], ours: dict[str, int], seconds: int) -> None:
    """Print both sides and their ratio."""
    for fuzzer in FUZZERS:
        ratio = ours[fuzzer] / hand[fuzzer]
        print(
            f"{fuzzer}: {ratio:.3f} (at least {RATIO})  campaign {ours[fuzzer] / seconds:.0f}/s, "
            f"by hand {hand[fuzzer] / seconds:.0f}/s",
            flush=True,
        )


def run(words: list[object]) -> bytes:
    """The output of a command."""
    return subprocess.run(list(map(str, words)), check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout


def by_hand(seconds: int, what: str) -> dict[str, int]:
    """Executions of each fuzzer in a guest of its own, both at the same time."""
    found: dict[str, int] = {}

    def one(number: int, fuzzer: str) -> None:
        run([BIN / "luigi", "--module", "tasks", "BootInstance", "--name", f"hand{number}"])
        barrier.wait(300)
        line = (
            f"cd /data/fuzz/{fuzzer} && mkdir -p tmp/c && ASAN_OPTIONS=symbolize=0 pkg/{Path(fuzzer).name} -seed=1 "
            f"-max_total_time={seconds} -print_final_stats=1 tmp/c 2>&1 >/dev/null"
        )
        said = run([BIN / "topcoat", "ssh", f"hand{number}", "--", line])
        match = _UNITS.search(said)
        assert match, said[-500:]
        found[fuzzer] = int(match[1])

    barrier = threading.Barrier(len(FUZZERS))
    threads = [threading.Thread(target=one, args=both) for both in enumerate(FUZZERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == set(FUZZERS), what
    return found


def campaign(number: int, seconds: int, slice_: int) -> dict[str, int]:
    """Executions of each fuzzer within the first `seconds` of a campaign, and how long its end takes."""
    name = f"bench{number}"
    ledger = Path(os.environ["TOPCOAT_ROOT"]) / "campaigns" / name / "ledger.jsonl"
    words = ["--name", name, "--fuzzers", ",".join(FUZZERS), "--budget", str(seconds), "--slice-length", str(slice_)]
    with subprocess.Popen(
        [BIN / "luigi", "--module", "tasks", "FuzzCampaign", *words, "--workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        began, last = watch(process, ledger)
    assert process.returncode == 0
    end, wall = time.monotonic() - last, last - began
    result = json.loads((ledger.parent / "campaign.json").read_bytes())
    print(f"end of the budgets to the end of the command: {end:.2f} s (under {END:g})")
    print(f"fuzzed for {seconds} s in {wall:.1f} s")
    # By hand that many seconds bring that many executions: so what counts is what came in the time that it took
    return {one["fuzzer"]: int(one["executions"] * seconds / max(wall, seconds)) for one in result["status"]["fuzzers"]}


def watch(process: "subprocess.Popen[bytes]", ledger: Path) -> tuple[float, float]:
    """When the first attempt started, and the last one ended."""
    began, last, known = 0.0, 0.0, 0
    while process.poll() is None:
        try:
            text = ledger.read_bytes()
        except FileNotFoundError:
            text = b""
        started, ended = text.count(b'"kind": "started"'), text.count(b'"kind": "ended"')
        began = began or (time.monotonic() if started else 0.0)
        if ended != known:
            last, known = time.monotonic(), ended
        time.sleep(0.05)
    return began, last


def scripted() -> None:
    """Time for each slice that takes none."""
    from pipeline.campaign.ledger import Subject
    from pipeline.campaign.plan.definition import Budget, Definition, FuzzerPlan
    from pipeline.campaign.runner import Runner
    from pipeline.campaign.subjects import Subjects
    from pipeline.settings import CampaignSettings, Store
    from tests.campaign.scripted import ScriptedGuests, World

    plans = tuple(FuzzerPlan(f"fuzzers/f{number:03}", Budget(50), 10) for number in range(200))
    subjects = Subjects({plan.name: Subject(plan.name, "build", "plan") for plan in plans}, "build")
    with tempfile.TemporaryDirectory(prefix="topcoat-bench-") as directory:
        world = World()
        runner = Runner(
            Definition("bench", 1, "gain", plans),
            subjects,
            ScriptedGuests(world),
            Store(Path(directory)),
            CampaignSettings(canary="off"),
            2,
            clock=world.clock,
        )
        began = time.monotonic()
        runner.run()
        seconds = time.monotonic() - began
    slices = sum(len(one.slices) for one in runner.state.fuzzer_states.values())
    print(
        f"{slices} slices of no time: {1000 * seconds / slices:.1f} ms each (under {1000 * OVERHEAD:.0f})", flush=True
    )


if __name__ == "__main__":
    sys.exit(main())
