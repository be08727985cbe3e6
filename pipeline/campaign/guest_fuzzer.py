"""All that a campaign does with one fuzzer in one guest."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.fuzz.batch import Batch
from pipeline.fuzz.fuzzer import Fuzzer
from pipeline.fuzz.loop import Runs
from pipeline.fuzz.repetition import Repetition
from pipeline.fuzz.symbolizer import Writer
from pipeline.host.faults import host_faults
from pipeline.host.process import Process
from pipeline.ssh.connector import Connector
from pipeline.store.publish import scratch
from pipeline.text import goglob

CORPUS = "data/corpus"
"""The corpus directory, as the fuzzer knows it: units are read from there, and new ones are written there."""

DICTIONARY = "data/dictionary"
"""The file of the campaign's dictionary, as the fuzzer knows it."""

PACKAGE = "pkg"
"""The directory of what the fuzzer was built with: seeds in `corpus`, and a dictionary with the fuzzer's name."""

MERGED = "data/merged"
"""The directory for the result of a merge."""


REMOVE_LIMIT = 60.0
"""Seconds that deleting files may take in a busy guest."""

_AT_ONCE = 20  # names in one command line, of which dropbear takes 9,000 bytes


@dataclass(frozen=True)
class BuiltWith:
    """What a fuzzer was built with: paths, as the fuzzer knows them, or None for what it was built without."""

    dictionary: str | None
    seeds: str | None


class GuestFuzzer(Protocol):
    """A fuzzer in a running guest. Several threads may use it at once.

    Whatever needs the guest raises ConnectError or CommandError if the guest does not answer.
    """

    def prepare(self) -> None:
        """End all runs of the fuzzer and delete its data. To be called once in each boot, before anything else."""

    def stop(self) -> None:
        """End all runs of the fuzzer; its data stay. A `run` in another thread then returns or raises soon."""

    def push(self, files: Mapping[str, Path], directory: str) -> None:
        """Copy files, in one stream, into a directory of the fuzzer, which is made if needed.

        `files` has their paths on the host by the names that they get.
        """

    def sizes(self, directory: str) -> dict[str, int]:
        """The files in a directory of the fuzzer, as the guest claims: sizes in bytes, by name."""

    def fetch(self, directory: str, names: Collection[str], into: Path) -> None:
        """Copy the files with these names into a directory of the host that has none of them yet.

        Files that are gone are left out silently: a fuzzer replaces its units all the time.
        """

    def remove(self, directory: str, names: Collection[str]) -> None:
        """Delete the files with these names from a directory of the fuzzer, as far as they are there."""

    def run(self, words: Sequence[str], output: Writer, limit: float) -> None:
        """Run the fuzzer: see pipeline.fuzz.fuzzer.Fuzzer.run."""

    def repeat(
        self, words: Sequence[str], repetition: Repetition, runs: Runs, limit: float, *, lasting: bool = False
    ) -> None:
        """Run the fuzzer again and again: see pipeline.fuzz.fuzzer.Fuzzer.repeat.

        With `lasting`, a process that a sanitizer would end sleeps instead, until `stop` ends it.
        """

    def run_each(self, words: Sequence[str], batch: Batch, runs: Runs) -> None:
        """Run the fuzzer once on each of many inputs: see pipeline.fuzz.fuzzer.Fuzzer.run_each."""

    def built_with(self) -> "BuiltWith | None":
        """The dictionary and the seeds that the fuzzer was built with; None if only the guest knows."""

    def shortage(self) -> str:
        """What is left on the guest's disk, if too little to keep what is found; empty if it is enough or unknown."""

    def alive(self) -> bool:
        """Whether the guest's QEMU runs; the guest need not answer."""


class OverSsh:
    """A fuzzer in a real guest, reached over SSH; `process` is the guest's QEMU."""

    def __init__(self, fuzzer: Fuzzer, connector: Connector, process: Process) -> None:
        self._process = process
        self._fuzzer = fuzzer
        self._connector = connector

    def prepare(self) -> None:
        """See GuestFuzzer.prepare."""
        self._fuzzer.prepare(self._connector)

    def stop(self) -> None:
        """See GuestFuzzer.stop."""
        self._fuzzer.style.stop(self._connector)

    def push(self, files: Mapping[str, Path], directory: str) -> None:
        """See GuestFuzzer.push."""
        with scratch("push") as stage:
            with host_faults("gathering what a guest is to get", "temporary"):
                for name, file in files.items():
                    (stage / name).symlink_to(file.absolute())  # links to files arrive as files
            self._fuzzer.put(self._connector, f"{goglob.literal(str(stage))}/", directory)

    def sizes(self, directory: str) -> dict[str, int]:
        """See GuestFuzzer.sizes."""
        return self._connector.sizes(self._fuzzer.absolute(directory))

    def fetch(self, directory: str, names: Collection[str], into: Path) -> None:
        """See GuestFuzzer.fetch."""
        self._connector.fetch(self._fuzzer.absolute(directory), names, into)

    def remove(self, directory: str, names: Collection[str]) -> None:
        """See GuestFuzzer.remove."""
        where = self._fuzzer.absolute(directory)
        paths = [f"{where}/{name}" for name in names]
        for start in range(0, len(paths), _AT_ONCE):
            self._connector.command("rm", "-f", *paths[start : start + _AT_ONCE]).run(REMOVE_LIMIT)

    def run(self, words: Sequence[str], output: Writer, limit: float) -> None:
        """See GuestFuzzer.run."""
        self._fuzzer.run(self._connector, words, output, limit=limit)

    def repeat(
        self, words: Sequence[str], repetition: Repetition, runs: Runs, limit: float, *, lasting: bool = False
    ) -> None:
        """See GuestFuzzer.repeat."""
        fuzzer = self._fuzzer.lasting() if lasting else self._fuzzer
        fuzzer.repeat(self._connector, words, repetition, runs, limit)

    def run_each(self, words: Sequence[str], batch: Batch, runs: Runs) -> None:
        """See GuestFuzzer.run_each."""
        self._fuzzer.run_each(self._connector, words, batch, runs)

    def built_with(self) -> "BuiltWith | None":
        """See GuestFuzzer.built_with."""
        listed = self._fuzzer.target.listed
        return BuiltWith(listed.dictionary, listed.seeds) if listed else None

    def shortage(self) -> str:
        """See GuestFuzzer.shortage."""
        return self._fuzzer.style.shortage(self._connector)

    def alive(self) -> bool:
        """See GuestFuzzer.alive."""
        return self._process.alive
