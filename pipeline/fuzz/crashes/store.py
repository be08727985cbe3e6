"""The crashes of all campaigns, on the disk: a directory for each bucket of a fuzzer, and in it one for each crash.

::

    crashes/PACKAGE/FUZZER/builds.json     the builds of the fuzzer, in the order in which they were first seen
    crashes/PACKAGE/FUZZER/heap-buffer-overflow-parse_record-3f2a91c04d1e/
        bucket.json     how often it was seen, when first and last, with which builds, and in which campaigns
        1/  input  output.txt  serial.txt  crash.json
        2/  …
    crashes/.files/DIGEST                  see pipeline.fuzz.crashes.target_files

A crash appears whole or not at all, and bucket.json is written last. A process that is killed in between leaves a crash
that is not counted yet; the next one counts it: `last` in bucket.json is the number of the last crash that was counted.
Crashes that are no longer kept are removed after that, and numbers are never used again.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline.errors import TopcoatError
from pipeline.fuzz.crashes import crash as crashes
from pipeline.fuzz.crashes import rules, verdicts
from pipeline.fuzz.crashes.bucket import Bucket, KeptInput
from pipeline.fuzz.crashes.builds import KnownBuild, KnownBuilds
from pipeline.fuzz.crashes.crash import Crash, CrashFacts, KeptCrash, State, StoredCrash, clean
from pipeline.fuzz.crashes.keeping import Room, chosen, size_of
from pipeline.fuzz.crashes.report import UNKNOWN
from pipeline.fuzz.crashes.target_files import NAME as FILES
from pipeline.fuzz.crashes.target_files import TargetFiles
from pipeline.fuzz.naming import directory_of, fuzzers_below
from pipeline.host.deadline import utc_now
from pipeline.host.faults import host_faults
from pipeline.host.locks import locked
from pipeline.host.trust import make_private
from pipeline.store.publish import publish_json, sync_one, target_of_remains
from pipeline.text import goglob

log = logging.getLogger("topcoat")

KEPT = 10
"""How many crashes of a bucket are kept; further ones are only counted. See pipeline.fuzz.crashes.keeping."""

MOST_BUCKETS = 200
"""How many buckets one fuzzer can make; crashes that would make more are only counted, in the bucket OTHERS.

The limit is for each fuzzer: a guest can make causes up, and must not hide what another fuzzer finds.
"""

MOST_BYTES = 1 << 30
"""The most bytes of all files of all crashes. What would exceed it is only counted, except a bucket's first crash."""

OTHERS = "others"

OwnFiles = Callable[[str, str], Mapping[str, Path]]
"""The target's own files of a fuzzer and a build: by their paths in the guest, those of the host; {} if not known."""


def is_slug(text: str) -> bool:
    """Whether a bucket can have this name."""
    return bool(_SLUG.fullmatch(text))


def no_files(fuzzer: str, build: str) -> Mapping[str, Path]:
    """Say of every fuzzer that its files are not known."""
    return {}


_LOCK_LIMIT = 300.0
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_SLUG = re.compile(r"[a-z0-9_][a-z0-9_-]{0,99}")
_BUCKET, _BUILDS = "bucket.json", "builds.json"
_LOST = CrashFacts("", "", "", 0, 0, "", 0, (), {}, "", "", 0, (), "", None)


class CrashStore:
    """The crashes of a store. Any number of threads and processes may use it.

    Reading waits for nobody; writing waits for whoever writes crashes of the same fuzzer. Everything raises StoreError
    if the disk cannot be read or written, and UsageError for a text that cannot be the full name of a fuzzer.
    """

    def __init__(
        self,
        store: Path,
        *,
        kept: int = KEPT,
        buckets: int = MOST_BUCKETS,
        size: int = MOST_BYTES,
        now: Callable[[], str] = utc_now,
        own_files: OwnFiles = no_files,
    ) -> None:
        """Make the store of crashes below a store's directory; on the disk nothing is made or removed yet.

        It keeps at most `kept` crashes of a bucket, `buckets` buckets of a fuzzer, and about `size` bytes in all.
        """
        self.root = store / "crashes"
        """The directory of all crashes."""
        self.files = TargetFiles(self.root / FILES)
        """The targets' own files."""
        self._kept, self._most_buckets, self._now, self._own_files = kept, buckets, now, own_files
        self._room = Room(self.root, size)
        self._swept: set[str] = set()
        """The fuzzers of which the remains of killed processes have been removed."""

    def directory(self, fuzzer: str, slug: str = "") -> Path:
        """The directory of a fuzzer's crashes, or of one bucket of it. It need not exist."""
        return directory_of(self.root, fuzzer) / slug

    def lock(self, fuzzer: str) -> Path:
        """The path whose lock is held by whoever changes anything of a fuzzer's crashes."""
        return self.directory(fuzzer) / _BUILDS

    def add(self, crash: Crash) -> StoredCrash:
        """Keep a crash, or only count it. On return that is on the disk.

        Raises InstanceBusy if another process keeps the fuzzer's crashes locked for minutes.
        """
        with self._writing(crash.fuzzer, "storing a crash"):
            slug, facts = self._slug(crash), crashes.facts_of(crash, self._now())
            old, place = self._read(crash.fuzzer, slug), self.directory(crash.fuzzer, slug)
            kept = old.kept if old else {}
            same = next((number for number, one in kept.items() if one.sha256 == facts.sha256), "")
            state = self._state(old, facts)
            bucket = _counted(old, crash.fuzzer, slug, facts)
            self._note(old, bucket, facts.build)
            number = "" if same or slug == OTHERS else self._next(old, facts)
            if number:
                self._make(place)
                crashes.keep(place / number, crash, facts)
                self._room.take(size_of(place / number))
                bucket = _with(bucket, number, facts)
            self._write(bucket)
            return StoredCrash(slug, state, place / (same or number) if same or number else None, bool(same))

    def count(self, fuzzer: str, slug: str, build: str, campaign: str, n: int = 1) -> None:
        """Count `n` more crashes of a bucket, of which nothing is kept. On return that is on the disk.

        If the fuzzer has no such bucket any more, they are counted in OTHERS.
        """
        with self._writing(fuzzer, "counting crashes"):
            facts = replace(_LOST, seen=self._now(), build=clean(build), campaign=clean(campaign))
            old = self.bucket(fuzzer, slug)
            slug = slug if old else OTHERS
            old = old or self._read(fuzzer, OTHERS)
            bucket = _counted(old, fuzzer, slug, facts, n)
            self._note(old, bucket, facts.build)
            self._write(bucket)

    def note_build(self, fuzzer: str, build: str) -> None:
        """Remember that this build of the fuzzer was seen now, so that it is known which build came after which.

        Of a fuzzer without crashes nothing needs to be known.
        """
        if self.directory(fuzzer).is_dir() and self.builds(fuzzer).find(clean(build)) is None:
            with self._writing(fuzzer, "noting a build"):
                known = self.builds(fuzzer)
                if known.find(clean(build)) is None:
                    self._publish(fuzzer, known.with_build(KnownBuild(clean(build), self._now())))

    def builds(self, fuzzer: str) -> KnownBuilds:
        """Read which builds of a fuzzer were seen, in the order in which they were first seen."""
        path = self.directory(fuzzer) / _BUILDS
        with host_faults("reading the builds of a fuzzer"):
            try:
                return KnownBuilds.decode(path.read_bytes())
            except FileNotFoundError:
                return KnownBuilds()
            except ValueError as error:
                log.warning("it counts as not written: %s cannot be understood: %s", path, error)
                return KnownBuilds()

    def fuzzers(self) -> list[str]:
        """The full names of all fuzzers that have crashes, sorted."""
        return [fuzzer for fuzzer in fuzzers_below(self.root) if self.slugs(fuzzer)]

    def needed(self) -> set[str]:
        """The digests of the targets' own files that belong to builds with which any bucket was seen."""
        needed = set[str]()
        for fuzzer in self.fuzzers():
            seen = {build for slug in self.slugs(fuzzer) if (one := self.bucket(fuzzer, slug)) for build in one.builds}
            needed.update(*(build.files.values() for build in self.builds(fuzzer).builds if build.digest in seen))
        return needed

    def buckets(self, patterns: Sequence[str] = ()) -> list[Bucket]:
        """Read all buckets, or those that match a pattern, in the order in which they were first seen.

        A pattern (pipeline.text.goglob) matches the fuzzer's full name, the bucket's slug, or FUZZER/SLUG. Raises
        UsageError for one that is malformed.
        """
        wanted = [goglob.compiled(pattern) for pattern in patterns]
        with host_faults("reading the crashes"):
            found = [
                self._read(fuzzer, slug)
                for fuzzer in self.fuzzers()
                for slug in self.slugs(fuzzer)
                if not wanted or any(one.match(name) for one in wanted for name in (fuzzer, slug, f"{fuzzer}/{slug}"))
            ]
        return sorted(filter(None, found), key=lambda bucket: (bucket.first_seen, bucket.fuzzer, bucket.slug))

    def bucket(self, fuzzer: str, slug: str) -> Bucket | None:
        """Read a bucket; None if there is none of this slug."""
        with host_faults("reading the crashes"):
            return self._read(fuzzer, slug) if is_slug(slug) else None

    def crashes(self, bucket: Bucket) -> list[KeptCrash]:
        """Read the crashes of a bucket that are kept, by number. One that cannot be understood is left out."""
        found, place = [], self.directory(bucket.fuzzer, bucket.slug)
        with host_faults("reading the crashes"):
            for number in _numbers(place):
                try:
                    found.append(KeptCrash.at(place / number))
                except FileNotFoundError:
                    pass  # it has just been removed
                except ValueError as error:
                    log.warning("%s is left out: crash.json cannot be understood: %s", place / number, error)
        return found

    def slugs(self, fuzzer: str) -> list[str]:
        """The names of a fuzzer's buckets, sorted; one that is being made may have no crash yet."""
        with host_faults("reading the crashes"):
            try:
                with os.scandir(self.directory(fuzzer)) as found:
                    directories = [one.name for one in found if one.is_dir(follow_symlinks=False)]
                    return sorted(filter(is_slug, directories))
            except FileNotFoundError:
                return []

    def _read(self, fuzzer: str, slug: str) -> Bucket | None:
        """Read a bucket, and count the crashes that nobody has counted yet. None if it has no crashes.

        Of a bucket whose bucket.json is lost, only what is kept is counted.
        """
        place, bucket = self.directory(fuzzer, slug), None
        try:
            bucket = Bucket.decode((place / _BUCKET).read_bytes(), fuzzer, slug)
        except FileNotFoundError:
            pass
        except ValueError as error:
            log.warning("it is counted anew: %s cannot be understood: %s", place / _BUCKET, error)
        there = _numbers(place)
        for number in there:
            if bucket is None or int(number) > bucket.last or number not in bucket.kept:
                facts = _facts(place / number)
                if facts is not None and (bucket is None or int(number) > bucket.last):
                    bucket = _counted(bucket, fuzzer, slug, facts)
                if facts is not None and bucket is not None:
                    bucket = _with(bucket, number, facts)
        kept = bucket.kept if bucket else {}
        return bucket and replace(bucket, kept={number: kept[number] for number in there if number in kept})

    # Writing; what follows is called by whoever holds the lock

    @contextmanager
    def _writing(self, fuzzer: str, doing: str) -> Iterator[None]:
        """Hold the lock of a fuzzer's crashes. The first time, what killed processes have left of them is removed."""
        with host_faults(doing):
            place = self.directory(fuzzer)
            if not place.is_dir():
                make_private(place)
                for directory in (self.root.parent, self.root, place.parent):
                    sync_one(directory)
            with locked(self.lock(fuzzer), _LOCK_LIMIT):
                if fuzzer not in self._swept:
                    for slug in self.slugs(fuzzer):
                        _sweep(place / slug)
                    self._swept.add(fuzzer)
                yield

    def _slug(self, crash: Crash) -> str:
        """The slug of the bucket that the crash is counted in."""
        slug = rules.slug(crash.report or UNKNOWN, crash.fuzzer)
        made = set(self.slugs(crash.fuzzer))
        return slug if slug in made or len(made - {OTHERS}) < self._most_buckets else OTHERS

    def _next(self, old: Bucket | None, facts: CrashFacts) -> str:
        """The number for a crash that is to be kept; empty if it is not. The first one of a bucket always is."""
        if old is None:
            return "1"
        number = max([old.last, *map(int, old.kept)]) + 1
        if not old.kept:
            return str(number)
        inputs = {int(one): kept for one, kept in old.kept.items()} | {number: _input(facts)}
        most = facts.size + crashes.OUTPUT_LIMIT + crashes.SERIAL_LIMIT
        return str(number) if number in chosen(inputs, self._kept) and self._room.fits(most) else ""

    def _state(self, old: Bucket | None, facts: CrashFacts) -> State:
        if old is None:
            return "new"
        builds = self.builds(old.fuzzer)
        told = verdicts.read_all(self.directory(old.fuzzer, old.slug), [one.digest for one in builds.builds])
        words = verdicts.words(told, old.times)
        return "back" if verdicts.fixed_before(builds.before(facts.build), old.builds, words) else "known"

    def _note(self, old: Bucket | None, bucket: Bucket, build: str) -> None:
        """See that builds.json has the build, and what files it is made of, before the bucket names it."""
        if not build or (old and build in old.builds):
            return
        known = self.builds(bucket.fuzzer)
        found = known.find(build)
        if found and found.files and self.files.has(found.files.values()):
            return
        found = found or KnownBuild(build, bucket.last_seen)
        with self._files(bucket.fuzzer, build) as files:
            self._publish(bucket.fuzzer, known.with_build(replace(found, files=files)))

    @contextmanager
    def _files(self, fuzzer: str, build: str) -> Iterator[Mapping[str, str]]:
        """Keep the target's own files, which nobody removes during the body. Why they cannot be kept is only logged."""
        with ExitStack() as stack:
            files: Mapping[str, str] = {}
            try:
                with host_faults("keeping a target's own files"):
                    if own := self._own_files(fuzzer, build):
                        stack.enter_context(locked(self.files.directory, _LOCK_LIMIT))
                        files = self.files.keep(own)
            except TopcoatError as error:  # the crash is worth more than they are
                log.warning("%s: its files are not kept for later: %s", fuzzer, error.explain())
            yield files

    def _publish(self, fuzzer: str, builds: KnownBuilds) -> None:
        publish_json(self.directory(fuzzer) / _BUILDS, builds.encode())

    def _write(self, bucket: Bucket) -> None:
        """Write the bucket, and then remove the crashes that are no longer kept."""
        place = self._make(self.directory(bucket.fuzzer, bucket.slug))
        wanted = chosen({int(number): one for number, one in bucket.kept.items()}, self._kept)
        gone = [number for number in bucket.kept if int(number) not in wanted and _is_plain(place / number)]
        kept = {number: one for number, one in bucket.kept.items() if number not in gone}
        publish_json(place / _BUCKET, replace(bucket, kept=kept).encode())
        for number in gone:
            self._room.take(-size_of(place / number))
            _remove(place / number)

    def _make(self, place: Path) -> Path:
        if not place.is_dir():
            make_private(place)
            sync_one(place.parent)
        return place


def _numbers(place: Path) -> list[str]:
    """The numbers of the crashes in the directory of a bucket, sorted."""
    try:
        return sorted(filter(_NUMBER.fullmatch, os.listdir(place)), key=int)  # noqa: PTH208  names are wanted
    except FileNotFoundError:
        return []


def _facts(directory: Path) -> CrashFacts | None:
    """What crash.json tells; if it is damaged, the crash counts, and nothing is known of it. None if it is gone."""
    try:
        return KeptCrash.at(directory).facts
    except FileNotFoundError:
        return _LOST if directory.is_dir() else None
    except ValueError as error:
        log.warning("it counts as empty: %s cannot be understood: %s", directory / "crash.json", error)
        return _LOST


def _counted(bucket: Bucket | None, fuzzer: str, slug: str, facts: CrashFacts, n: int = 1) -> Bucket:
    """The bucket after `n` crashes with these facts are counted."""
    if bucket is None:
        kind, frames = (facts.report or UNKNOWN).kind, facts.frames
        kind, frames = (OTHERS, ()) if slug == OTHERS else (kind, frames)
        bucket = Bucket(fuzzer, slug, kind, frames, rules.DEFAULT.versioned, "", "", 0)
    return bucket.counted(facts.seen, facts.build, facts.campaign, n)


def _with(bucket: Bucket, number: str, facts: CrashFacts) -> Bucket:
    """The bucket with a crash that is kept."""
    return replace(bucket, kept={**bucket.kept, number: _input(facts)}, last=max(bucket.last, int(number)))


def _input(facts: CrashFacts) -> KeptInput:
    return KeptInput(facts.sha256, facts.size)


def _is_plain(directory: Path) -> bool:
    """Whether nothing else lies beside the files of the crash, such as a capsule, or one that is being made."""
    return set(os.listdir(directory)) <= set(crashes.FILES)  # noqa: PTH208  names are wanted


def _remove(directory: Path) -> None:
    gone = directory.with_name(f".{directory.name}.removed_.tmp")  # whoever finds it sweeps it
    directory.rename(gone)
    shutil.rmtree(gone)


def _sweep(place: Path) -> None:
    """Remove what killed processes have left in the directory of a bucket, but nothing of others than the store."""
    for name in os.listdir(place):  # noqa: PTH208  names are wanted
        target = target_of_remains(name) or ""
        if target == _BUCKET or _NUMBER.fullmatch(target):
            shutil.rmtree(place / name)
