"""One fuzzer in one guest: all that a campaign does there."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pipeline import goglob
from pipeline.faults import host_faults
from pipeline.fuzzer import Fuzzer
from pipeline.process import Process
from pipeline.scratch import scratch
from pipeline.ssh import Connector
from pipeline.symbolize import Writer

CORPUS = "data/corpus"
"""The directory of the corpus, as the fuzzer knows it: it is read from there, and new units come there."""

DICTIONARY = "data/dictionary"
"""The file of the dictionary."""

PACKAGE = "pkg"
"""The directory of what the fuzzer was built with: seeds in `corpus`, and a dictionary that is named like it."""

MERGED = "data/merged"
"""The directory for the result of a merge."""


REMOVE_LIMIT = 60.0
"""Seconds that it may take to delete a file in a guest that is busy."""


class Site(Protocol):
    """A fuzzer in a guest that runs. Several threads may use it.

    Everything that needs the guest raises ConnectError or CommandError if it does not answer.
    """

    def prepare(self) -> None:
        """End what runs of the fuzzer and delete its data. Once in each boot, before anything else."""

    def stop(self) -> None:
        """End what runs of the fuzzer; its data stay. Another thread's `run` then returns or raises soon."""

    def push(self, files: Mapping[str, Path], directory: str) -> None:
        """Copy these files into a directory of the fuzzer's, under these names, as one stream; it is made if needed."""

    def sizes(self, directory: str) -> dict[str, int]:
        """The files in a directory of the fuzzer's: names and sizes, as the guest says."""

    def fetch(self, directory: str, names: Collection[str], into: Path) -> None:
        """Copy the files with these names into a directory of the host that has none yet, but for those that are gone.

        A fuzzer replaces its units all the time, so nobody is told of these.
        """

    def remove(self, directory: str, names: Collection[str]) -> None:
        """Delete these files, where they are, from a directory of the fuzzer's."""

    def run(self, words: Sequence[str], output: Writer, limit: float, found: Callable[[str], object]) -> None:
        """Run the fuzzer, see pipeline.fuzzer.Fuzzer.run. `found` gets the path in the guest of each artifact."""

    def shortage(self) -> str:
        """What the guest's disk has left, if that is too little to keep what is found; empty if not, or if unknown."""

    def alive(self) -> bool:
        """Whether the guest's QEMU runs, which does not mean that the guest answers."""


class OverSsh:
    """A fuzzer of a real guest, whose QEMU is `process`."""

    def __init__(self, fuzzer: Fuzzer, connector: Connector, process: Process) -> None:
        self._process = process
        self._fuzzer = fuzzer
        self._connector = connector

    def prepare(self) -> None:
        """See Site."""
        self._fuzzer.prepare(self._connector)

    def stop(self) -> None:
        """See Site."""
        self._fuzzer.style.stop(self._connector)

    def push(self, files: Mapping[str, Path], directory: str) -> None:
        """See Site."""
        with scratch("push") as stage:
            with host_faults("gathering what a guest is to get", "temporary"):
                for name, file in files.items():
                    (stage / name).symlink_to(file.absolute())  # links to files arrive as files
            self._fuzzer.put(self._connector, f"{goglob.literal(str(stage))}/", directory)

    def sizes(self, directory: str) -> dict[str, int]:
        """See Site."""
        return self._connector.sizes(self._fuzzer.absolute(directory))

    def fetch(self, directory: str, names: Collection[str], into: Path) -> None:
        """See Site."""
        self._connector.fetch(self._fuzzer.absolute(directory), names, into)

    def remove(self, directory: str, names: Collection[str]) -> None:
        """See Site."""
        where = self._fuzzer.absolute(directory)
        for name in names:  # one at a time: it is one, as a rule
            self._connector.command("rm", "-f", f"{where}/{name}").run(REMOVE_LIMIT)

    def run(self, words: Sequence[str], output: Writer, limit: float, found: Callable[[str], object]) -> None:
        """See Site."""
        self._fuzzer.run(self._connector, words, output, limit=limit, found=found)

    def shortage(self) -> str:
        """See Site."""
        return self._fuzzer.style.shortage(self._connector)

    def alive(self) -> bool:
        """See Site."""
        return self._process.alive
