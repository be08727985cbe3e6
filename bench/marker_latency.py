"""How long after the guest has written its marker does a boot notice it: Topcoat against polling the log each 100 ms.

Both watch the same boots of the real Linux guest in the real QEMU. Topcoat's side is its own boot, in this process, at
the moment when it reaches the stage "marker". The other side is what `undercoat` does: read the serial log, and at its
end sleep for 100 ms. When the marker was written is told by a third process, which inotify(7) wakes at each write to
the log: it is late by 0.1 to 0.3 ms, and QEMU writes to the log just after the socket that Topcoat listens to, so
Topcoat may come out a little too good, even negative. All use CLOCK_MONOTONIC, which processes share.

    python -m bench.marker_latency [--rounds 20]
"""

import argparse
import ctypes
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline import settings
from pipeline.builds import build
from pipeline.vm.instance import Instance
from pipeline.vm.qemu.launcher import QemuLauncher
from pipeline.vm.qemu.serial import MARKER
from pipeline.vm.timeline import Timeline

BIN = Path(sys.executable).parent
LIMIT = 120.0
_POLL = 0.1  # undercoat's
_IN_MODIFY = 0x2  # linux/inotify.h


def main() -> int:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description="Compare how soon the marker is seen.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--observe", choices=("inotify", "poll"), help=argparse.SUPPRESS)
    parser.add_argument("log", nargs="?", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.observe:
        print(observe(options.log, by_inotify(options.log) if options.observe == "inotify" else by_polling))
        return 0
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        prepare(Path(directory))
        for number in range(options.rounds):
            written, seen, polled = one_boot()
            ours.append((seen - written) * 1000)
            theirs.append((polled - written) * 1000)
            print(f"round {number + 1}: topcoat {ours[-1]:.2f} ms, polling {theirs[-1]:.2f} ms", flush=True)
    tell("topcoat", ours)
    tell("polling each 100 ms", theirs)
    print(f"{'ratio of the medians':<20} {statistics.median(ours) / statistics.median(theirs):.3f}")
    return 0


def tell(name: str, milliseconds: list[float]) -> None:
    """One side in one line."""
    late = sorted(milliseconds)
    p90 = late[max(0, int(len(late) * 0.9) - 1)]
    print(f"{name:<20} median {statistics.median(late):.2f} ms, p90 {p90:.2f}, max {late[-1]:.2f} (n={len(late)})")


def prepare(directory: Path) -> None:
    """Make the images, in a store of our own, in which this process works from here on."""
    for name in ("FUCHSIA_DIR", "FUCHSIA_RESOURCES_DIR", "LUIGI_CONFIG_PATH"):
        os.environ.pop(name, None)
    os.environ["TOPCOAT_ROOT"] = str(directory / "out")
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    os.chdir(directory)
    for task in ("InitrdWithKey", "ExtendedBlk", "DemoKernel"):
        subprocess.run([BIN / "luigi", "--module", "tasks", task], check=True, stderr=subprocess.DEVNULL)


def one_boot() -> tuple[float, float, float]:
    """When the marker was written, seen by the boot, and seen by polling."""
    found = settings.load()
    instance = Instance.named(found.store, "i0")
    reached = Timeline.reached
    seen: list[float] = []
    observers: list[subprocess.Popen[str]] = []

    def noted(timeline: Timeline, event: str, **facts: str) -> None:
        if event == "marker":
            seen.append(time.monotonic())
        reached(timeline, event, **facts)
        if event == "port":  # QEMU has opened the log, and the guest is far from its marker
            observers.extend(start_observer(how, instance.serial_log) for how in ("inotify", "poll"))

    launcher = QemuLauncher(found, build.load(found), instance, "marker")
    setattr(Timeline, "reached", noted)  # noqa: B010  mypy forbids the assignment
    try:
        launcher.start().close()
        written, polled = (float(observer.communicate(timeout=LIMIT)[0]) for observer in observers)
    finally:
        setattr(Timeline, "reached", reached)  # noqa: B010
        launcher.kill()
    return written, seen[0], polled


def start_observer(how: str, log: Path) -> "subprocess.Popen[str]":
    """A process that prints when it has seen the marker in the log."""
    words = [sys.executable, "-m", "bench.marker_latency", "--observe", how, str(log)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def observe(log: Path, wait: Callable[[], object]) -> float:
    """Read the log to its end, `wait`, and again, until the marker was in it. Returns the moment."""
    said, end = b"", time.monotonic() + LIMIT
    with log.open("rb") as stream:
        while True:
            said += stream.read()
            if MARKER in said:
                return time.monotonic()
            assert time.monotonic() < end, "the marker did not come"
            wait()


def by_polling() -> None:
    """The original's way."""
    time.sleep(_POLL)


def by_inotify(log: Path) -> Callable[[], object]:
    """A wait that each write to the log ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_CLOEXEC)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    watched = libc.inotify_add_watch(descriptor, os.fsencode(log), _IN_MODIFY)
    assert watched >= 0, os.strerror(ctypes.get_errno())
    return lambda: os.read(descriptor, 100 * struct.calcsize("iIII"))


if __name__ == "__main__":
    sys.exit(main())
