"""The corpus of one fuzzer. Once `add` has returned, its units stay until a merge or the quarantine takes them out.

What a merge took out can be brought back for some time, see pipeline.fuzz.corpus.replaced.
"""

import logging
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import StoreError, UsageError
from pipeline.fuzz.corpus.files import content_of, files_below, followed, has_own_name, is_name, link, name_of, sizes_in
from pipeline.fuzz.corpus.intake import Added, CorpusLimits, Intake
from pipeline.fuzz.corpus.manifest import Coverage, Manifest, MergeRecord, Unit
from pipeline.fuzz.corpus.quarantine import Quarantine
from pipeline.fuzz.corpus.replaced import EARLY, Replaced
from pipeline.fuzz.naming import directory_of, fuzzers_below
from pipeline.host.deadline import utc_now
from pipeline.host.faults import host_faults
from pipeline.host.locks import locked
from pipeline.store.publish import publish_json, remove, sync_one

log = logging.getLogger("topcoat")

LOCK_LIMIT = 600.0
"""Seconds to wait for another process that writes the same corpus: it may write all of it to a slow disk."""


@dataclass(frozen=True)
class Corpus:
    """The corpus of one fuzzer, in its directory in the store.

    Any number of processes and threads may use it. Reading waits for nobody; writing waits for other writers, at most
    LOCK_LIMIT seconds, and then raises InstanceBusy. All methods raise StoreError if the store cannot be read or
    written, or the manifest cannot be understood.
    """

    fuzzer: str
    directory: Path
    limits: CorpusLimits

    @classmethod
    def of(cls, store: Path, fuzzer: str, limits: CorpusLimits | None = None) -> "Corpus":
        """Return the corpus of the fuzzer with this full name, PACKAGE/FUZZER. It need not exist yet.

        Raises UsageError if no fuzzer can have this name.
        """
        return cls(fuzzer, directory_of(store / "corpora", fuzzer), limits or CorpusLimits())

    @classmethod
    def all(cls, store: Path, limits: CorpusLimits | None = None) -> Iterator["Corpus"]:
        """Yield all corpora of the store, in the order of their names. Raises StoreError."""
        for name in fuzzers_below(store / "corpora"):
            yield cls.of(store, name, limits)

    @property
    def file(self) -> Path:
        """The path of the manifest. Whoever writes anything of the corpus holds the lock of this file."""
        return self.directory / "manifest.json"

    def manifest(self) -> Manifest:
        """Return what it consists of at this moment. A lost manifest is made anew from the units, with a warning."""
        found = self._read()
        if found is not None:
            return found
        with host_faults(f"reading the corpus of {self.fuzzer}"):
            if not self._units.is_dir() or not sizes_in(self._units):
                return Manifest({})
        with self._opened() as recovered:
            return recovered

    def units(self) -> Mapping[str, Unit]:
        """Return its units, by name."""
        return self.manifest().units

    @property
    def total_bytes(self) -> int:
        """The bytes of content of all its units."""
        return self.manifest().total_bytes

    def path(self, name: str) -> Path:
        """Return the path of a unit's content, which is there as long as the corpus has the unit.

        Raises UsageError for a text that cannot be the name of a unit.
        """
        if not is_name(name):
            raise UsageError(f"{name[:80]!r} is not the name of a unit", hint="a unit is named by 40 hex digits")
        return self._units / name

    def lacking(self, names: Collection[str]) -> list[Path]:
        """Return the paths of the units that a directory with these names in it lacks.

        A merge that ends meanwhile can remove any of them.
        """
        there = set(names)
        lacking = [self.path(name) for name in self.units() if name not in there]
        return [path for path in lacking if path.is_file()]

    def quarantined(self) -> Mapping[str, str]:
        """Return the names of the units in quarantine, and why each is there."""
        with host_faults(f"reading the corpus of {self.fuzzer}"):
            return self._quarantine.reasons()

    def add(self, contents: Iterable[Path | bytes], source: str, without: Collection[str] = ()) -> Added:
        """Add units: their content, or regular files that hold it. On return all that is `new` is on the disk.

        Files are copied: what is stored is what was hashed, whoever goes on writing to them. Their names count for one
        thing only: see Added.torn. Files are read one by one, so all of `contents` can be larger than memory. `source`
        is noted with each new unit. Units with the names `without` are passed over, and not counted.
        """
        with self._opened() as old:
            intake = self._intake(old.units, old)
            added = intake.take(contents, source, without)
            if added.new:
                self._publish(replace(old, units=intake.units))
        return added

    def judge(self, contents: Iterable[Path | bytes], without: Collection[str] = ()) -> Added:
        """Return what `add` would return now, except that units named by `without` count as known if they are there.

        Nothing changes, and nobody is waited for.
        """
        now = self._read() or Manifest({})
        with host_faults(f"reading what may come into the corpus of {self.fuzzer}", "file"):
            return self._intake(now.units, now).judge(contents, set(without) - now.units.keys())

    @property
    def is_new(self) -> bool:
        """Whether neither it nor its quarantine has units: it is new, or all is gone, for a merge leaves something."""
        now = self._read()
        with host_faults(f"reading the corpus of {self.fuzzer}"):
            there = now.units if now else self._units.is_dir() and sizes_in(self._units)
        return not there and not self.quarantined()

    def quarantine(self, unit: bytes | str, reason: str) -> bool:
        """Put a unit, given by content or by name, into quarantine: out of the corpus, and `add` takes it no more.

        Returns whether it is in quarantine now. It is not if the corpus has no unit of that name, or the content is
        larger than a unit can be.
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
        """Replace the units that a merge was `given` by its result: the names `kept` of them, and `new` content.

        Units that have been added since the merge began stay. `tolerance`, from 0 to less than 1, is the part of the
        coverage `before` that `after` may lack. The result is refused, with a warning, if it covers less, if nothing
        was measured, or if any of it cannot be had: then nothing changes. Returns whether it was taken. Raises
        UsageError for a tolerance that is none.
        """
        if not 0 <= tolerance < 1:
            raise UsageError(f"{tolerance} is no tolerance", hint="it is a part: at least 0, less than 1")
        try:
            _check(before, after, tolerance)
            with self._opened() as old:
                units = self._merged(old, set(given), set(kept), new, source)
                merge = MergeRecord(utc_now(), len(old.units), len(units), before, after)
                now = replace(old, units=units, merges=old.merges + 1, last_merge=merge)
                if gone := {name: unit for name, unit in old.units.items() if name not in units}:
                    self._replaced.keep(replace(now, units=gone), self._units)
                self._publish(now)
                self._tidy(now)
                self._let_come_back(now)
                self._expire()
        except _NotTaken as reason:
            log.warning("a merge of the corpus of %s is not taken: %s", self.fuzzer, reason)
            return False
        return True

    def replaced(self) -> Mapping[Path, Unit]:
        """Return the units that merges took out and that are kept, by their paths; those of the last merge come first.

        Units that are in the corpus again, or in quarantine, are not among them.
        """
        with host_faults(f"reading the corpus of {self.fuzzer}"):
            found = self._replaced.units()
            there = self.manifest().units.keys() | self._quarantine.names() if found else set()
        return {path: unit for path, unit in found.items() if unit.name not in there}

    def restore(self) -> Added:
        """Bring back all units that merges took out and that are kept; the returned count has them as `new`.

        Units in quarantine do not come back. Units beyond the limits do not either, but are kept further on.
        """
        with self._opened() as old:
            self._let_come_back(old)
            kept = self._replaced.units()
            for path, unit in kept.items():
                link(path, self._units / unit.name)
            intake = self._intake(old.units, replace(old, units={unit.name: unit for unit in kept.values()}))
            added = intake.take(kept, "")
            now = replace(old, units=intake.units)
            self._publish(now)
            self._tidy(now)
            self._let_come_back(now)
        return added

    def outdated(self) -> Mapping[Path, str]:
        """Return the directories of merges whose units are not to be kept any longer, and why for each."""
        with host_faults(f"reading the corpus of {self.fuzzer}"):
            return self._replaced.outdated()

    def forget(self, merge: Path) -> None:
        """Delete one of the directories that `outdated` returns. The caller holds the lock of `file`."""
        self._replaced.drop(merge)

    def count_value_profile(self, bits: int) -> None:
        """Remember that units come from fuzzers that ran with these bits of libFuzzer's use_value_profile.

        A merge that does not count value profiles as coverage would drop such units.
        """
        if bits & ~self.manifest().value_profile:
            with self._opened() as old:
                self._publish(replace(old, value_profile=old.value_profile | bits))

    def import_directory(self, directory: Path, source: str) -> Added:
        """Add the files in a directory and below it, except in hidden directories, as libFuzzer reads one.

        A link to a file counts as that file. Units that a merge has dropped come back, even if they were imported
        before.
        """
        with host_faults("reading what is to be imported"):
            files = list(map(followed, files_below(directory)))
        return self.add(files, source)

    def export_directory(self, directory: Path) -> int:
        """Copy all units into a directory, which is made if needed. Returns how many were not there already.

        Raises UsageError if something else has the name of a unit there; nothing is ever overwritten.
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
        """Make the manifest anew from the files whose content fits their names. Returns how many units there are.

        What the old manifest says about them is kept, if it can be understood.
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
        return Quarantine(self.directory / "quarantine", self.limits)

    @property
    def _replaced(self) -> Replaced:
        return Replaced(self.directory / "replaced", self.limits)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(self.file, LOCK_LIMIT), host_faults(f"writing the corpus of {self.fuzzer}"):
            self._make_directories()
            yield

    @contextmanager
    def _opened(self) -> Iterator[Manifest]:
        """Keep others from writing during the body, which gets a manifest that fits the files exactly."""
        with self._locked():
            found = self._read()
            if found is None:
                yield self._begin()
            else:
                yield self._tidy(found)

    def _read(self) -> Manifest | None:
        """Read the manifest; None if there is none. Raises StoreError."""
        try:
            with host_faults(f"reading the corpus of {self.fuzzer}"):
                return Manifest.decode(self.file.read_bytes())
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        except ValueError as error:
            raise StoreError(
                f"the corpus of {self.fuzzer} cannot be understood: {self.file}: {error}",
                hint="was it written by another version? if not, move that file away: it is made anew from the units",
            ) from error

    def _make_directories(self) -> None:
        quarantine = self.directory / "quarantine"
        for directory in (self._units, quarantine, self.directory / "replaced"):
            if directory.is_symlink():  # files in it that the manifest does not list would be deleted
                raise StoreError(
                    f"{directory} is a link, and leads to what may be somebody else's",
                    hint="put the directory itself there; to move a whole corpus, link the one above",
                )
        if self._units.is_dir() and quarantine.is_dir():
            return
        self._units.mkdir(exist_ok=True)
        quarantine.mkdir(exist_ok=True)
        for directory in (self.directory, *list(self.directory.parents)[:3]):
            sync_one(directory)

    def _begin(self) -> Manifest:
        """Make the manifest of a corpus that has none: an empty one if it is new, or one of the units that it has.

        A corpus has a manifest before its first unit, so units without one mean that it was lost.
        """
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
        """Take from the manifest what is gone or in quarantine, then remove all files that it does not list.

        Returns the manifest that fits the files then.
        """
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
        self._replaced.sweep()
        return manifest

    def _let_come_back(self, manifest: Manifest) -> None:
        """Delete from what merges took out all that is in the corpus or in quarantine again. Can take long."""
        self._replaced.let_go(manifest.units.keys() | self._quarantine.names())

    def _expire(self) -> None:
        for merge, why in self._replaced.outdated().items():
            level = logging.WARNING if why == EARLY else logging.INFO
            log.log(level, "units that a merge took out of the corpus of %s go: %s: %s", self.fuzzer, merge, why)
            self.forget(merge)

    def _publish(self, manifest: Manifest) -> None:
        publish_json(self.file, manifest.encode())

    def _intake(self, units: Mapping[str, Unit], old: Manifest) -> Intake:
        quarantined = self._quarantine.names()
        return Intake(self._units, self.limits, units=units, stored=old.units, quarantined=quarantined)

    def _content(self, manifest: Manifest, name: str) -> bytes | None:
        unit = manifest.units.get(name)
        return None if unit is None else content_of(self._units / name, unit.bytes)

    def _merged(
        self, old: Manifest, given: set[str], kept: set[str], new: Iterable[Path | bytes], source: str
    ) -> Mapping[str, Unit]:
        """Return the units after a merge, whose files are all on the disk then. Raises _NotTaken."""
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
    """The result of a merge is not taken; `str()` says why, in one clause."""


def _check(before: Coverage, after: Coverage, tolerance: float) -> None:
    if before.features <= 0:
        raise _NotTaken("nothing was measured")
    if not after.suffices(before, tolerance):
        raise _NotTaken(f"it covers less: {after} after {before}")


def _is_there(path: Path, unit: Unit) -> bool:
    """Whether the unit is at the path; False if nothing is there. Raises UsageError if something else is there."""
    if not os.path.lexists(path):
        return False
    content = content_of(path, unit.bytes + 1)
    if content is None or name_of(content) != unit.name:
        raise UsageError(f"{path} is there, and is not the unit", hint="move it away, or export to another directory")
    return True
