"""A guest with many large fuzz targets against one with few small ones: does their number and size cost anything?

The promise: with 100 targets of 50 MB, in a guest of 1 GB, the disk with targets is made once, boots and clones take at
most 1.2 times as long as without, and the guest's memory stays in bounds. `many` is the Linux guest with grown targets
(bench/grown.py), `few` that of the demo build, whose targets are small; all else is the same, and both go by turns.

Boots and clones are measured as in bench/warm_boot.py, and as a whole command, which also looks whether all images are
fresh. Ends with 1 if any promise is broken, or anything is left running. The disk must have room for five times the
targets: as their user built them; as the host keeps them, in two versions while they are made anew; without debug
information meanwhile; and the images.

    python -m bench.targets [--targets 100] [--megabytes 50] [--rounds 5] [--store STORE] [--directory NEW] [--keep]
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from bench.big_disk import TargetsBench
from bench.left import processes
from bench.measures import machine

_REST = 2 << 30  # bytes: packages, the compiler, two templates
_COPIES = 5.5


def main() -> int:
    """Measure, and print both sides and their ratio."""
    parser = argparse.ArgumentParser(
        description="Compare a guest with many large targets with one with few small ones."
    )
    parser.add_argument("--targets", type=int, default=100)
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", type=Path, help="a store to copy packages and compiler from; else they are fetched")
    parser.add_argument("--directory", type=Path, help="where to work: a directory that is not there yet")
    parser.add_argument("--keep", action="store_true", help="keep that directory")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON, and what happens on stderr")
    options = parser.parse_args()
    with ExitStack() as held:
        place = held.enter_context(_place(options.directory, keep=options.keep))
        if problem := _problem(place, options.targets, options.megabytes):
            print(f"refused: {problem}", file=sys.stderr)
            return 2
        said = sys.stderr if options.json else sys.stdout
        print(machine(), file=said, flush=True)
        bench = TargetsBench(place, options.targets, options.megabytes << 20, said)
        held.callback(bench.stop)
        bench.run(options.rounds, options.store)
        bench.stop()
        left = processes(bench.store)
    bench.promise("nothing is left running", not left)
    if options.json:
        figures = [{**asdict(figure), "ratio": figure.ratio} for figure in bench.figures]
        facts = {"machine": machine(), "targets": options.targets, "megabytes": options.megabytes}
        print(json.dumps({**facts, "rounds": options.rounds, "figures": figures, "promises": bench.promises}, indent=2))
    return 0 if all(bench.promises.values()) else 1


@contextmanager
def _place(wanted: Path | None, *, keep: bool) -> Iterator[Path]:
    """A new directory, which is deleted after the body."""
    if wanted:
        wanted.mkdir(parents=True)
        place = wanted.absolute()
    else:
        place = Path(tempfile.mkdtemp(prefix="topcoat-bench-", dir=os.environ.get("TMPDIR", "/var/tmp")))
    try:
        yield place
    finally:
        if keep:
            print(f"kept: {place}", file=sys.stderr)
        else:
            shutil.rmtree(place)


def _problem(place: Path, targets: int, megabytes: int) -> str:
    """Why this cannot be measured here; "" if it can."""
    if targets < 2 or megabytes < 1:
        return "it takes two targets of 1 MB at least"
    wanted, free = int(_COPIES * targets * megabytes * (1 << 20)) + _REST, shutil.disk_usage(place).free
    if wanted > free:
        return (
            f"{place} has {free >> 20} MiB left, and {wanted >> 20} are needed: "
            "choose another place (--directory), fewer (--targets) or smaller ones (--megabytes)"
        )
    return ""


if __name__ == "__main__":
    sys.exit(main())
