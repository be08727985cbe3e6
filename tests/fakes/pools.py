"""Pools with scripted guests."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.errors import StopError
from pipeline.host.deadline import Deadline
from pipeline.host.process import Process
from pipeline.settings import Fresh, Settings
from pipeline.vm.instance import Instance
from pipeline.vm.lease import Lease
from pipeline.vm.pool import Pool
from pipeline.vm.qemu.stopping import stop
from pipeline.vm.slot import Slot
from tests.conftest import qemus_of
from tests.fakes.guests import FakeGuests
from tests.waiting import SOON, eventually

PLENTY = 1 << 40
ROOT = Path(__file__).parents[2]


def settings_for(root: Path, size: int = 1, fresh: Fresh = "on_crash", attempts: int = 1) -> Settings:
    found = settings.load({"TOPCOAT_ROOT": str(root)}, Path("/"))
    return replace(found, pool=settings.PoolSettings(size, fresh), boot=replace(found.boot, attempts=attempts))


class World:
    """A store, the guests that are booted in it, and the pools that use it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.guests = FakeGuests()
        self.opened: list[Pool] = []

    def pool(self, size: int = 1, fresh: Fresh = "on_crash", attempts: int = 1, available: int = PLENTY) -> Pool:
        """Another one, as another process would have."""
        found = settings_for(self.root, size, fresh, attempts)
        self.opened.append(Pool(found, self.guests, available=lambda: available))
        return self.opened[-1]

    def slot(self, number: int = 0) -> Slot:
        return Slot(settings.Store(self.root), number)

    def state(self, number: int = 0) -> str:
        use = self.slot(number).use()
        return use.state if use else "none"

    def running(self) -> list[Process]:
        return qemus_of(self.root)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "out")
    yield made
    for pool in made.opened:
        pool.close()
    for instance in Instance.all(settings.Store(made.root)):
        stop(instance, 10)


def soon() -> Deadline:
    return Deadline(SOON)


def use(pool: Pool) -> Lease:
    """Lease a guest and give it back."""
    with pool.lease(soon()) as lease:
        return lease


def whys(pool: Pool) -> list[str]:
    return [boot.why for boot in pool.boots]


@contextmanager
def threads(count: int, work: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Run `work` in so many threads beside the body. What they raised is there after it."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  the test looks at it
            raised.append(error)

    made = [threading.Thread(target=run) for _ in range(count)]
    for thread in made:
        thread.start()
    yield raised
    for thread in made:
        thread.join(SOON)
        assert not thread.is_alive()


def waiting(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    """Return when somebody waits for a guest."""
    eventually(lambda: "waiting for a guest of the pool" in caplog.text)


def killed_owner(world: World, after: str = "os.kill(os.getpid(), 9)") -> tuple[int, str]:
    """A process that is killed while it has a lease, or `after` that. Returns its pid and the guest's boot id."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom pipeline.host.deadline import Deadline\n"
        "from tests.fakes.guests import FakeGuests\nfrom tests.fakes.pools import Pool, settings_for\n"
        "pool = Pool(settings_for(Path(sys.argv[1])), FakeGuests(), available=lambda: 1 << 40)\n"
        f"with pool.lease(Deadline({SOON})) as lease:\n"
        "    print(os.getpid(), lease.handle.boot_id, flush=True)\n"
        f"    {after}\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, world.root], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid, boot_id = done.stdout.decode().split()
    return int(pid), boot_id


def survives(*_: object) -> None:
    raise StopError("QEMU survived SIGKILL", hint="wait")
