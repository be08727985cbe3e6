"""A run of a fuzzer whose files are real ones, and what is to be harvested of it."""

import queue
import shutil
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from pipeline.campaign.guests import GuestWorkspace
from pipeline.campaign.harvest import Harvest
from pipeline.errors import CommandError, ConnectError, TopcoatError
from pipeline.fuzz.corpus import Corpus
from pipeline.host.worker import Worker
from tests.campaign.scripted import ScriptedGuest, ScriptedSite, World

NEVER = 3600.0
UNIT_SIZE = 100
DEAD = ConnectError("the guest does not answer", stage="connect", hint="")
REFUSED = CommandError("there is no such file", hint="")


class Directory(ScriptedSite):
    """A fuzzer whose files are real ones."""

    def __init__(self, root: Path) -> None:
        super().__init__(World(), ScriptedGuest(World(), "pool-0", "boot"), "fuzzers/a")
        self.root = root
        self.asked: list[str] = []
        """The names of all files that were to be fetched."""
        self.faults: dict[str, TopcoatError] = {}
        """What fetching a file raises, by its name; listing a directory, by that."""

    def write(self, directory: str, *units: tuple[str, bytes]) -> None:
        (self.root / directory).mkdir(parents=True, exist_ok=True)
        for name, content in units:
            (self.root / directory / name).write_bytes(content)

    def sizes(self, directory: str) -> dict[str, int]:
        self._raise(directory)
        return {path.name: path.stat().st_size for path in sorted((self.root / directory).glob("*"))}

    def fetch(self, directory: str, names: Collection[str], into: Path) -> None:
        for name in names:
            self.asked.append(name)
            self._raise(name)
            if (self.root / directory / name).exists():
                shutil.copy(self.root / directory / name, into / name)

    def _raise(self, name: str) -> None:
        if error := self.faults.get(name):
            raise error


class Bench:
    """One run of a fuzzer, and the corpus that it brings units for."""

    def __init__(self, directory: Path) -> None:
        self.guest_fuzzer = Directory(directory / "guest")
        self.workspace = GuestWorkspace(self.guest_fuzzer)
        self.corpus = Corpus.of(directory / "out", "fuzzers/a")
        self.came = 0

    def harvest(self, every: float = NEVER) -> Harvest:
        def came() -> None:
            self.came += 1

        return Harvest(self.workspace, self.corpus, "fuzzers/a#1.1", every, UNIT_SIZE, came)

    @property
    def contents(self) -> set[bytes]:
        return {self.corpus.path(name).read_bytes() for name in self.corpus.units()}


class Running:
    """A harvest with its thread."""

    def __init__(self, harvest: Harvest) -> None:
        self.harvest = harvest
        self.harvested: queue.Queue[int] = queue.Queue()
        self.failed = threading.Event()
        self.worker: Worker = harvest.start(self.harvested.put, self.failed.set)

    def end(self) -> None:
        self.harvest.end(self.worker)
        assert self.worker.join(0)


def refuse(number: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, "no such luck")

    return fail


def mistaken(*_: object) -> None:
    raise ZeroDivisionError


def raise_once(faults: dict[str, TopcoatError], name: str) -> None:
    if error := faults.pop(name, None):
        raise error
