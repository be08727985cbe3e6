"""Is triage right about the planted bugs? Verdicts, minimisations and buckets, in real guests; nothing is compared.

Verdicts: each planted input that crashes is run again ten times. Minimisations: planted inputs with noise around them,
each from a seed of its own, are made smaller; what is left must still crash in its bucket and in the function of its
bug, which the bucket's rule need not look at. Campaigns: each begins with nothing and has a seed of its own; each bug
that it finds must make one bucket. Ends with 1 if anything is less than it must be.

    python -m bench.triage [--tries 10] [--minimisations 100] [--runs 3000] [--campaigns 0] [--budget 60] [--limit 7200]
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from bench.left import processes
from bench.measures import machine
from pipeline.builds.demo.planted import PLANTED, Planted
from pipeline.campaign.minimising import Smaller, smaller
from pipeline.campaign.triage import CrashInput, GuestsWith, Question, pooled, triage
from pipeline.campaign.trying import BATCH, Conditions, Tries
from pipeline.fuzz.crashes import report as reports
from pipeline.fuzz.crashes import rules
from pipeline.fuzz.crashes.bucket import Bucket
from pipeline.fuzz.crashes.minimise import Limits
from pipeline.fuzz.crashes.store import CrashStore
from pipeline.fuzz.crashes.verdicts import CrashVerdict
from pipeline.host.deadline import Deadline

BIN = Path(sys.executable).parent
SAME = 0.95
PACKAGE = "example-fuzzers"
BUILD = "b3:bench"
HARMLESS = (b"S\x01\x03", b"T\x05short", b"x\x04oise", b"A\x03\x02\x01\x01")
"""Records of parser_fuzzer's format in which there is no bug."""

Lend = Callable[[str], AbstractContextManager[GuestsWith]]
"""Lends guests for a fuzzer."""


def main() -> int:
    """Measure, and print what came of it."""
    parser = argparse.ArgumentParser(description="Is triage right about the planted bugs?")
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--minimisations", type=int, default=100)
    parser.add_argument("--runs", type=int, default=Limits.runs, help="of one minimisation, at most")
    parser.add_argument("--campaigns", type=int, default=0)
    parser.add_argument("--budget", type=int, default=60, help="seconds of each fuzzer in a campaign")
    parser.add_argument("--limit", type=float, default=7200.0, help="seconds after which nothing new is begun")
    parser.add_argument("--parts", type=Path, help="a store from which the parts of the guest are copied")
    options = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(prefix="topcoat-bench-", dir=os.environ.get("TMPDIR", "/var/tmp")) as directory:
        root = Path(directory) / "out"
        if options.parts:
            subprocess.run(["cp", "-a", "--sparse=always", options.parts, root], check=True)
        os.environ["TOPCOAT_ROOT"] = str(root)
        try:
            luigi("BootTemplate")
            right = measure(root, options, Deadline(options.limit))
        finally:
            subprocess.run([BIN / "topcoat", "stop", "--all"], check=True)
        left = processes(root)
    for what in left:
        print(f"left: {what}")
    return 0 if right and not left else 1


def measure(root: Path, options: argparse.Namespace, deadline: Deadline) -> bool:
    """Whether all is as it must be."""
    lend = lender()
    buckets = dict(verdicts(lend, options.tries))
    same = sum(one.right for one in buckets.values())
    print(f"verdicts: same bucket {same} of {len(buckets)} (at least {SAME:.0%})", flush=True)
    crashing = {bug: one.slug for bug, one in buckets.items() if one.right}
    stayed = minimisations(lend, crashing, options, deadline)
    found = [campaign(root, number, options.budget, deadline) for number in range(1, options.campaigns + 1)]
    return same > 0 and same >= SAME * len(buckets) and stayed and all(found)


def lender() -> Lend:
    """What lends guests of the store."""
    from tasks.boot import key_of_boot, template_of_pool
    from tasks.engine.context import context

    here = context()

    def lend(fuzzer: str) -> AbstractContextManager[GuestsWith]:
        key = partial(key_of_boot, here.digests)
        return pooled(here.settings, here.build, key, template_of_pool(), fuzzer, "bench")

    return lend


def name_of(bug: Planted) -> str:
    """The full name of the fuzzer."""
    return f"{PACKAGE}/{bug.fuzzer}"


def options_of(bug: Planted) -> dict[str, str]:
    """libFuzzer's options. On a busy host a run that does not hang may take long."""
    return {"rss_limit_mb": "300", "timeout": "1" if "timeout" in bug.report else "25"}


def question(bug: Planted, slug: str, tries: int) -> Question:
    """What is asked of a planted bug's bucket."""
    bucket = Bucket(name_of(bug), slug, "", (bug.function,), rules.DEFAULT.versioned, "", "", 1)
    return Question(bucket, BUILD, 1, tries)


@dataclass(frozen=True)
class Judged:
    """The bucket of a planted bug, and whether its verdict is right."""

    slug: str
    right: bool


def verdicts(lend: Lend, tries: int) -> Iterator[tuple[Planted, Judged]]:
    """Run each planted input once for its bucket, and then again for a verdict. Those that do not crash are told."""
    for bug in PLANTED:
        conditions = Conditions(name_of(bug), options_of(bug))
        with lend(conditions.fuzzer) as guests_with:
            with Tries(guests_with({}), conditions) as guests:
                (first,) = guests.each([bug.input])
            if first.outcome != "bucket":
                print(f"{bug.fuzzer:22} {bug.function:18} not reproducible: {first.outcome} {first.why}", flush=True)
                continue
            began = time.monotonic()
            asked = question(bug, first.slug, tries)
            verdict = triage(asked, [CrashInput(bug.input, conditions.options)], guests_with).verdict
        seconds = time.monotonic() - began
        text = f"{verdict.outcome}: {verdict.same} of {verdict.tries} in {seconds:.1f} s  {first.slug}"
        print(f"{bug.fuzzer:22} {bug.function:18} {text}", flush=True)
        yield bug, Judged(first.slug, verdict.outcome == "same bucket")


# Minimisations


@dataclass(frozen=True)
class Made:
    """One minimisation."""

    smaller: Smaller
    stayed: bool
    seconds: float


def noisy(bug: Planted, dice: random.Random) -> bytes:
    """The input of the bug with noise around it, so that it still reaches the bug first."""
    # A run that hangs takes seconds: little of it is to be tried
    behind = dice.randbytes(dice.randint(1, 3) if "timeout" in bug.report else dice.randint(4, 40))
    if bug.fuzzer != "parser_fuzzer":
        return bug.input + behind
    return bug.input[:2] + b"".join(dice.choices(HARMLESS, k=dice.randint(0, 4))) + bug.input[2:] + behind


def minimisations(lend: Lend, slugs: Mapping[Planted, str], options: argparse.Namespace, deadline: Deadline) -> bool:
    """Make noisy inputs smaller, the bugs by turns. Whether all were made, and have stayed in their buckets."""
    bugs, made = list(slugs), defaultdict[Planted, list[Made]](list)
    limits = Limits(runs=options.runs, batch=BATCH, confirm=options.tries)
    for number in range(options.minimisations if bugs else 0):
        if deadline.expired:
            print(f"minimisations: only {number} of {options.minimisations} within {deadline.seconds:.0f} s")
            break
        bug = bugs[number % len(bugs)]
        with lend(name_of(bug)) as guests_with:
            made[bug].append(minimised(question(bug, slugs[bug], options.tries), bug, number, guests_with, limits))
        facts = made[bug][-1].smaller.facts
        text = f"{facts.original.size} -> {facts.result.size} bytes, {facts.tried} runs, {facts.why}"
        print(f"{number + 1}: {bug.function}: {text}", file=sys.stderr, flush=True)
    for bug, ones in made.items():
        tell(bug, ones)
    everything = [one for ones in made.values() for one in ones]
    stayed = sum(one.stayed for one in everything)
    if everything:
        print(f"minimisations: {stayed} of {len(everything)} stayed in their bucket (all must)", flush=True)
    return bool(stayed == options.minimisations)


def minimised(asked: Question, bug: Planted, number: int, guests_with: GuestsWith, limits: Limits) -> Made:
    """The minimisation with this number."""
    content = noisy(bug, random.Random(number))
    verdict = CrashVerdict(asked.bucket.fuzzer, asked.bucket.slug, BUILD, asked.rule, 1, asked.tries, ())
    began = time.monotonic()
    found = smaller(asked, CrashInput(content, options_of(bug)), verdict, guests_with, limits=limits)
    seconds = time.monotonic() - began
    report = reports.parse(found.output)
    named = report is not None and bug.function in [frame.function for frame in report.frames]
    confirmed = found.facts.confirmed > 0 or not found.facts.of
    return Made(found, named and confirmed and found.facts.why in ("minimal", "runs", "deadline"), seconds)


def tell(bug: Planted, made: list[Made]) -> None:
    """Print what became of a bug's inputs."""
    facts = [one.smaller.facts for one in made]
    before, after = sorted(one.original.size for one in facts), sorted(one.result.size for one in facts)
    whys = ", ".join(sorted({one.why for one in facts}))
    print(
        f"{bug.fuzzer:22} {bug.function:18} stayed {sum(one.stayed for one in made)} of {len(made)}: "
        f"{before[0]}-{before[-1]} -> {after[0]}-{after[-1]} bytes, {median(one.tried for one in facts):.0f} runs, "
        f"{median(one.seconds for one in made):.1f} s each ({whys}); confirmed {sum(one.confirmed for one in facts)} "
        f"of {sum(one.of for one in facts)}"
    )
    for one in made:
        if not one.stayed:
            print(f"  out of it: {one.smaller.facts.why}, {one.smaller.original!r} -> {one.smaller.content!r}")


# Campaigns


def campaign(root: Path, seed: int, budget: int, deadline: Deadline) -> bool:
    """Run a campaign that begins with nothing. Whether each bug that it found made one bucket, of its own."""
    if deadline.expired:
        print(f"campaign {seed}: not within {deadline.seconds:.0f} s")
        return False
    for place in ("crashes", "corpora", "campaigns"):
        shutil.rmtree(root / place, ignore_errors=True)
    fuzzers = sorted({name_of(bug) for bug in PLANTED})
    words = ["--name", f"seed{seed}", "--fuzzers", ",".join(fuzzers), "--seed", str(seed), "--budget", str(budget)]
    luigi("FuzzCampaign", *words, "--workers", "2", limit=600 + 4 * budget * len(fuzzers))
    found = buckets_of(CrashStore(root))
    split = {bug for bug in PLANTED if sum(bug in bugs for bugs in found.values()) > 1}
    merged = [slug for slug, bugs in found.items() if len(bugs) > 1]
    other = [slug for slug, bugs in found.items() if not bugs]
    bugs = set().union(*found.values())
    print(
        f"campaign {seed}: {len(bugs)} of {len(PLANTED)} bugs in {len(found)} buckets; "
        f"merged {merged or 'none'}, split {[bug.function for bug in split] or 'none'}, other {other or 'none'}",
        flush=True,
    )
    return not split and not merged


def buckets_of(store: CrashStore) -> dict[str, set[Planted]]:
    """Which planted bugs each bucket has, as the functions in the stacks of its crashes tell."""
    found = {}
    for bucket in store.buckets():
        reported = [crash.facts.report for crash in store.crashes(bucket)]
        functions = {frame.function for report in reported if report for frame in report.frames}
        bugs = {bug for bug in PLANTED if name_of(bug) == bucket.fuzzer and bug.function in functions}
        found[f"{bucket.fuzzer}/{bucket.slug}"] = bugs
    return found


def luigi(*words: str, limit: float = 1800.0) -> None:
    """Run a task."""
    argv = [str(BIN / "luigi"), "--module", "tasks", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=limit)
    assert done.returncode == 0, done.stderr[-2000:]


if __name__ == "__main__":
    sys.exit(main())
