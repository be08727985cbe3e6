"""Many leases of clones, by several processes at once: does any fail, has any guest two owners, is anything left?

Each process opens the pool of one store and leases one guest after the other: in each it reads the boot id over SSH,
and looks for a file that only it leaves in its guest. At the end the store and the host are looked at. Ends with 1 if
anything is wrong.

    python -m bench.many_leases [--leases 500] [--processes 4] [--size 2]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from bench.left import LOGS, processes
from pipeline import settings
from pipeline.builds import build
from pipeline.host.deadline import Deadline
from pipeline.settings import PoolSettings
from pipeline.ssh.connector import Connector
from pipeline.store.freshness import Key
from pipeline.vm.pool import Pool
from pipeline.vm.qemu.pooled import QemuGuests
from pipeline.vm.template import PublishedTemplate, Template

BIN = Path(sys.executable).parent
_LIMIT = 300.0  # seconds for one lease: others may have all guests


def main() -> int:
    """Lease, look, and print what came of it."""
    parser = argparse.ArgumentParser(description="Lease clones of a saved guest many times, by several processes.")
    parser.add_argument("--leases", type=int, default=500)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--size", type=int, default=2)
    parser.add_argument("--store", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.store is not None:
        return work(options.store, options.leases, options.size)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as directory:
        root = Path(directory) / "out"
        environment = {**os.environ, "TOPCOAT_ROOT": str(root)}
        made = [str(BIN / "luigi"), "--module", "tasks", "BootTemplate"]
        subprocess.run(made, cwd=directory, env=environment, check=True, stderr=subprocess.DEVNULL)
        share = ("--leases", str(options.leases // options.processes), "--size", str(options.size))
        words = [sys.executable, "-m", "bench.many_leases", "--store", str(root), *share]
        began = time.monotonic()
        workers = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(options.processes)]
        said = [worker.communicate()[0] for worker in workers]
        took = time.monotonic() - began
        leases = [json.loads(line) for text in said for line in text.splitlines()]
        files = [path for path in (root / "instances").rglob("*") if not path.is_dir() and path.suffix != ".lock"]
        left = processes(root) + [str(path) for path in files if not path.name.startswith(LOGS)]
    failed = [worker.returncode for worker in workers if worker.returncode]
    owners = len({lease["boot_id"] for lease in leases})
    seconds = sorted(lease["seconds"] for lease in leases)
    print(
        f"{len(leases)} leases by {options.processes} processes, {options.size} guests at once, in {took:.0f} s: "
        f"{owners} guests, {sum(lease['used'] for lease in leases)} used before; "
        f"waited {statistics.median(seconds):.2f} s (worst {seconds[-1]:.2f} s); "
        f"{len(failed)} processes failed, {len(left)} things are left"
    )
    for what in left:
        print(f"left: {what}")
    wrong = failed or left or owners != len(leases) or any(lease["used"] for lease in leases)
    return 1 if wrong else 0


def work(root: Path, leases: int, size: int) -> int:
    """One process: a line of JSON for each lease."""
    found = settings.load({"TOPCOAT_ROOT": str(root)}, Path("/"))
    found = replace(found, pool=PoolSettings(size, "auto", 1))
    demo, made_of = build.load(found, {}), Key("bench", 1, {}, {}, {})
    templates = PublishedTemplate(Template(found.store.template(demo.name)), lambda: None)
    with closing(Pool(found, QemuGuests(found, demo, "ssh", lambda: made_of, templates))) as pool:
        for _ in range(leases):
            began = time.monotonic()
            with pool.lease(Deadline(_LIMIT)) as lease:
                seconds = time.monotonic() - began
                with closing(Connector(lease.handle.ssh, found.boot.timeouts("tcg"))) as guest:
                    said = guest.run("cat /etc/boot_id; ls /tmp/used; touch /tmp/used", 60).stdout.decode().split()
                if said[0] != lease.handle.boot_id:
                    raise AssertionError(f"{said[0]} answers, not {lease.handle.boot_id}")
                print(json.dumps({"boot_id": said[0], "used": len(said) > 1, "seconds": seconds}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
