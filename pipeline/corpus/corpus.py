"""The corpus of one fuzzer. What `add` has returned for stays, but for what a merge replaces or quarantine takes."""

import logging
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.corpus.files import content_of, files_below, followed, has_own_name, is_name, name_of, sizes_in
from pipeline.corpus.intake import Added, Intake, Limits
from pipeline.corpus.manifest import Coverage, Manifest, Merge, Unit
from pipeline.corpus.quarantine import Quarantine
from pipeline.deadline import utc_now
from pipeline.errors import StoreError, UsageError
from pipeline.faults import host_faults
from pipeline.publish import locked, publish_json, remove, sync_one

log = logging.getLogger("topcoat")

LOCK_LIMIT = 600.0
"""Seconds to wait for another process that writes the same corpus: a whole one on a slow disk."""

_FUZZER = re.compile(r"[\w+-][\w.+-]*/[\w+-][\w.+-]*", re.ASCII)


@dataclass(frozen=True)
class Corpus:
    """The corpus of one fuzzer, in its directory in the store.

    Any number of processes and threads may use it. Who reads waits for nobody; who writes waits for the others, at
    most LOCK_LIMIT seconds, and then raises InstanceBusy. All methods raise StoreError if the store cannot be read or
    written, or what it says cannot be understood.
    """

    fuzzer: str
    directory: Path
    limits: Limits

    @classmethod
    def of(cls, store: Path, fuzzer: str, limits: Limits | None = None) -> "Corpus":
        """That of the fuzzer with this full name, PACKAGE/FUZZER. Raises UsageError if no fuzzer can have it."""
        if not _FUZZER.fullmatch(fuzzer):
            raise UsageError(f"{fuzzer!r} cannot be the name of a fuzzer", hint="a full name is PACKAGE/FUZZER")
        return cls(fuzzer, store / "corpora" / fuzzer, limits or Limits())

    def manifest(self) -> Manifest:
        """What it consists of at this moment. A manifest that is gone is made anew from the units, with a warning."""
        found = self._read()
        if found is not None:
            return found
        with host_faults(f"reading the corpus of {self.fuzzer}"):
            if not self._units.is_dir() or not sizes_in(self._units):
                return Manifest({})
        with self._opened() as recovered:
            return recovered

    def units(self) -> Mapping[str, Unit]:
        """Its units by name."""
        return self.manifest().units

    @property
    def total_bytes(self) -> int:
        """Content of all its units."""
        return self.manifest().total_bytes

    def path(self, name: str) -> Path:
        """Where the content of a unit lies, as long as it is in the corpus. Raises UsageError for what is no name."""
        if not is_name(name):
            raise UsageError(f"{name[:80]!r} is not the name of a unit", hint="a unit is named by 40 hex digits")
        return self._units / name

    def lacking(self, names: Collection[str]) -> list[Path]:
        """The units that a directory with these names in it lacks, to be sent under their own names.

        A merge that ends meanwhile can make any of them go away.
        """
        there = set(names)
        lacking = [self.path(name) for name in self.units() if name not in there]
        return [path for path in lacking if path.is_file()]

    def quarantined(self) -> Mapping[str, str]:
        """The names of the units in quarantine, and why each is there."""
        with host_faults(f"reading the corpus of {self.fuzzer}"):
            return self._quarantine.reasons()

    def add(self, contents: Iterable[Path | bytes], source: str, without: Collection[str] = ()) -> Added:
        """Add content, or that of regular files. All that is `new` is in the corpus and on the disk, for good.

        Files are copied: what is stored is what was hashed, whoever goes on writing to them. Their names count for
        one thing only: see Added.torn. Content is read one by one, so `contents` can be larger than memory. That of
        units with the names `without` is passed over, and not counted.
        """
        with self._opened() as old:
            intake = self._intake(old.units, old)
            added = intake.take(contents, source, without)
            if added.new:
                self._publish(replace(old, units=intake.units))
        return added

    def judge(self, contents: Iterable[Path | bytes], without: Collection[str] = ()) -> Added:
        """What `add` would say of it now; but units with the names `without` that are there count as known.

        Nothing changes, and nobody is waited for.
        """
        now = self._read() or Manifest({})
        with host_faults(f"reading what may come into the corpus of {self.fuzzer}", "file"):
            return self._intake(now.units, now).judge(contents, set(without) - now.units.keys())

    @property
    def is_new(self) -> bool:
        """Whether nothing has come into it yet, or all of it is gone: a merge leaves something."""
        now = self._read()
        with host_faults(f"reading the corpus of {self.fuzzer}"):
            there = now.units if now else self._units.is_dir() and sizes_in(self._units)
        return not there and not self.quarantined()

    def quarantine(self, unit: bytes | str, reason: str) -> bool:
        """Take a unit, by content or by name, out of the corpus for good; `add` will not take it again.

        Returns whether it is in quarantine now. It is not if there is no unit of that name, or the content is larger
        than a unit can be.
        """
        name = unit if isinstance(unit, str) else name_of(unit)
        with self._opened() as old:
            if name in self._quarantine.names():
                return True
            content = unit if isinstance(unit, bytes) else self._content(old, name)
            if content is None or len(content) > self.limits.unit_size:
                return False
            source = old.units[name].source if name in old.units else ""
            self._quarantine.put(name, content, reason, source)
            self._tidy(old)
        return True

    def replace(
        self,
        given: Collection[str],
        kept: Collection[str],
        new: Iterable[Path | bytes],
        *,
        before: Coverage,
        after: Coverage,
        tolerance: float,
        source: str,
    ) -> bool:
        """Put the result of a merge in the place of the units that it was `given`: those `kept` of them, and `new`.

        What has been added since the merge began stays. `tolerance` is the part of the coverage `before` that `after`
        may lack. The result is refused, with a warning, if it covers less, if nothing was measured, or if any of it is
        not to be had: then nothing changes. Returns whether it was taken.
        """
        if not 0 <= tolerance < 1:
            raise UsageError(f"{tolerance} is no tolerance", hint="it is a part: at least 0, less than 1")
        try:
            _check(before, after, tolerance)
            with self._opened() as old:
                units = self._merged(old, set(given), set(kept), new, source)
                merge = Merge(utc_now(), len(old.units), len(units), before, after)
                now = replace(old, units=units, merges=old.merges + 1, last_merge=merge)
                self._publish(now)
                self._tidy(now)
        except _NotTaken as reason:
            log.warning("a merge of the corpus of %s is not taken: %s", self.fuzzer, reason)
            return False
        return True

    def count_value_profile(self, bits: int) -> None:
        """Remember that who brings units counts as covered what these bits of libFuzzer's use_value_profile say.

        A merge that does not count it would drop such units, as if they covered nothing.
        """
        if bits & ~self.manifest().value_profile:
            with self._opened() as old:
                self._publish(replace(old, value_profile=old.value_profile | bits))

    def import_directory(self, directory: Path, source: str) -> Added:
        """Add the files in a directory and below, but for hidden directories, as libFuzzer reads one.

        A link to a file counts as that file. What a merge has dropped, or was imported before, comes back: whoever asks
        for it gets it.
        """
        with host_faults("reading what is to be imported"):
            files = list(map(followed, files_below(directory)))
        return self.add(files, source)

    def export_directory(self, directory: Path) -> int:
        """Copy all units into a directory, which is made. Returns how many were not there.

        Raises UsageError if something else has the name of a unit there; it is never overwritten.
        """
        with host_faults("exporting a corpus", "file"):
            directory.mkdir(parents=True, exist_ok=True)
        if not self.units():
            return 0
        with self._opened() as now, host_faults("exporting a corpus", "file"):
            absent = [name for name in now.units if not _is_there(directory / name, now.units[name])]
            with tempfile.TemporaryDirectory(prefix=".export-", dir=directory) as work:
                for name in absent:
                    made = Path(work, name)
                    made.write_bytes((self._units / name).read_bytes())
                    made.rename(directory / name)
            return len(absent)

    def recover(self) -> int:
        """Make the manifest anew from the units, each of which is compared with its name. Returns how many there are.

        What a manifest that can be understood says of them is kept.
        """
        with self._locked():
            try:
                known = self._read() or Manifest({})
            except StoreError as error:
                log.warning("%s", error)
                known = Manifest({})
            return len(self._recover(known).units)

    @property
    def _units(self) -> Path:
        return self.directory / "units"

    @property
    def _quarantine(self) -> Quarantine:
        return Quarantine(self.directory / "quarantine")

    @property
    def _file(self) -> Path:
        return self.directory / "manifest.json"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(self._file, LOCK_LIMIT), host_faults(f"writing the corpus of {self.fuzzer}"):
            self._make_directories()
            yield

    @contextmanager
    def _opened(self) -> Iterator[Manifest]:
        """Nobody else writes during the body. The manifest is true, and all else that is there is listed in it."""
        with self._locked():
            found = self._read()
            if found is None:
                yield self._begin()
            else:
                yield self._tidy(found)

    def _read(self) -> Manifest | None:
        """What the manifest says; None if there is none."""
        try:
            with host_faults(f"reading the corpus of {self.fuzzer}"):
                return Manifest.decode(self._file.read_bytes())
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        except ValueError as error:
            raise StoreError(
                f"the corpus of {self.fuzzer} cannot be understood: {self._file}: {error}",
                hint="was it written by another version? if not, move that file away: it is made anew from the units",
            ) from error

    def _make_directories(self) -> None:
        quarantine = self.directory / "quarantine"
        if self._units.is_dir() and quarantine.is_dir():
            return
        self._units.mkdir(exist_ok=True)
        quarantine.mkdir(exist_ok=True)
        for directory in (self.directory, *list(self.directory.parents)[:3]):
            sync_one(directory)

    def _begin(self) -> Manifest:
        """There is no manifest: the corpus is new, or has lost it. It has one before it has its first unit."""
        if sizes_in(self._units):
            recovered = self._recover(Manifest({}))
            log.warning("the corpus of %s had no manifest; units found: %d", self.fuzzer, len(recovered.units))
            return recovered
        self._publish(empty := Manifest({}))
        return empty

    def _recover(self, known: Manifest) -> Manifest:
        self._quarantine.sweep()
        now, quarantined, units = utc_now(), self._quarantine.names(), {}
        for name, size in sorted(sizes_in(self._units).items()):
            if size is not None and name not in quarantined and has_own_name(self._units / name):
                before = known.units.get(name, Unit(name, size, now, "recovered"))
                units[name] = before._replace(bytes=size)
        recovered = replace(known, units=units)
        self._publish(recovered)
        return self._tidy(recovered)

    def _tidy(self, manifest: Manifest) -> Manifest:
        """Take from the manifest what is gone or in quarantine, then remove all files that it does not list."""
        self._quarantine.sweep()
        quarantined, sizes = self._quarantine.names(), sizes_in(self._units)
        listed = {name: unit for name, unit in manifest.units.items() if name not in quarantined}
        sound = {name: unit for name, unit in listed.items() if sizes.get(name) == unit.bytes}
        if len(sound) < len(listed):
            one = min(listed.keys() - sound.keys())
            log.warning("units lost from the corpus of %s: %d, such as %s", self.fuzzer, len(listed) - len(sound), one)
        if len(sound) < len(manifest.units):
            manifest = replace(manifest, units=sound)
            self._publish(manifest)
        remove(*(self._units / name for name in sizes if name not in sound))
        return manifest

    def _publish(self, manifest: Manifest) -> None:
        publish_json(self._file, manifest.encode())

    def _intake(self, units: Mapping[str, Unit], old: Manifest) -> Intake:
        quarantined = self._quarantine.names()
        return Intake(self._units, self.limits, units=units, stored=old.units, quarantined=quarantined)

    def _content(self, manifest: Manifest, name: str) -> bytes | None:
        unit = manifest.units.get(name)
        return None if unit is None else content_of(self._units / name, unit.bytes)

    def _merged(
        self, old: Manifest, given: set[str], kept: set[str], new: Iterable[Path | bytes], source: str
    ) -> Mapping[str, Unit]:
        """The units after a merge. All their files are on the disk."""
        stay = {name: unit for name, unit in old.units.items() if name not in given or name in kept}
        if gone := kept - stay.keys():
            raise _NotTaken(f"units that it keeps are not in the corpus: {len(gone)}")
        intake = self._intake(stay, old)
        added = intake.take(new, source)
        if added.left_out:
            self._tidy(old)
            raise _NotTaken(f"not all that it made is to be had: {added}")
        if not (kept or added.new or added.known):
            raise _NotTaken("it keeps nothing")
        return intake.units


class _NotTaken(Exception):
    """The result of a merge is not taken; `str` says why, in one clause."""


def _check(before: Coverage, after: Coverage, tolerance: float) -> None:
    if before.features <= 0:
        raise _NotTaken("nothing was measured")
    if not after.suffices(before, tolerance):
        raise _NotTaken(f"it covers less: {after} after {before}")


def _is_there(path: Path, unit: Unit) -> bool:
    """Whether the file is the unit's; False if nothing is there. Raises UsageError if something else is."""
    if not os.path.lexists(path):
        return False
    content = content_of(path, unit.bytes + 1)
    if content is None or name_of(content) != unit.name:
        raise UsageError(f"{path} is there, and is not the unit", hint="move it away, or export to another directory")
    return True
