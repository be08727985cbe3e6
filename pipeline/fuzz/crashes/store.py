"""The crashes of a campaign, on the disk: a directory for each bucket, and in it one for each crash that is kept.

::

    crashes/heap-buffer-overflow-parse_record-3f2a91c04d1e/
        group.json      how often the bucket was seen, when first and last, and by which fuzzers
        1/  input  output.txt  serial.txt  crash.json
        2/  …

A crash appears whole or not at all, and group.json is written last. A process that is killed in between leaves a crash
that is not counted yet; the next one counts it: `last` in group.json is the number of the last crash that was counted.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.fuzz.crashes import report as reports
from pipeline.fuzz.crashes.report import CrashReport
from pipeline.host.deadline import utc_now
from pipeline.host.faults import host_faults
from pipeline.host.locks import locked
from pipeline.host.trust import make_private
from pipeline.store import document
from pipeline.store.publish import publish, publish_json, sync_one, target_of_remains
from pipeline.text.printable import one_line, printable
from pipeline.text.quantity import readable_size

log = logging.getLogger("topcoat")

SCHEMA = 1
"""The version of group.json's and crash.json's format. Tests hold frozen samples of it."""

KEPT = 10
"""How many crashes of a bucket are kept; further ones are only counted."""

MOST_BUCKETS = 200
"""How many buckets one fuzzer can make; crashes that would make more are only counted, in the bucket OTHERS.

The limit is for each fuzzer: a guest can make causes up, and must not hide what another fuzzer finds.
"""

MOST_BYTES = 1 << 30
"""The most bytes of all files of all crashes. What would exceed it is only counted, except a bucket's first crash."""

OTHERS = "others"

FILES = ("input", "output.txt", "serial.txt", "crash.json")
"""The files of a crash."""

OUTPUT_LIMIT = 1 << 18
"""The most bytes of a run's output that are kept in output.txt: half from its beginning, half from its end."""

SERIAL_LIMIT = 1 << 16
"""The most bytes of the guest's console that are kept in serial.txt, from its end."""

_MOST_FUZZERS = 100
_LONGEST_TEXT = 1000
_LOCK_LIMIT = 300.0
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_UNKNOWN = CrashReport("unknown")


@dataclass(frozen=True)
class Crash:
    """A crash, as it is given to the store. Nothing in it needs to be fit to print."""

    fuzzer: str
    slice: int
    attempt: int
    boot_id: str
    """The id of the guest's boot."""
    seed: int
    options: tuple[str, ...]
    """The options with which the fuzzer ran."""
    builds: Mapping[str, str]
    """The digests of what ran, by what it is."""
    artifact: str
    """The name of the artifact's file in the guest."""
    input: bytes
    output: bytes
    """The output of the run."""
    serial: bytes
    """What the guest wrote to its console, or the end of it."""
    report: CrashReport | None
    """What the output told of the crash; None if nothing."""


@dataclass(frozen=True)
class Bucket:
    """The crashes that are the same, as group.json counts them."""

    slug: str
    """The name of the bucket's directory."""
    kind: str
    frames: tuple[str, ...]
    """What tells it from other buckets: the target's message, if there is one, and the names of functions."""
    first_seen: str
    last_seen: str
    count: int
    """How many crashes were seen, kept or not."""
    fuzzers: tuple[str, ...]
    """The full names of the fuzzers that have found it, sorted; if there are very many, only some."""
    last: int = 0
    """The number of the last crash that is kept and counted."""


@dataclass(frozen=True)
class StoredCrash:
    """What has become of a crash that was added."""

    bucket: str
    """The slug of its bucket."""
    new: bool
    """Whether the bucket is new."""
    directory: Path | None
    """Where the crash is kept, or one with the same input was already; None if it was only counted."""
    same: bool
    """Whether the bucket already had a crash with the same input."""


class CrashStore:
    """The crashes below a campaign's directory. Any number of threads and processes may use it.

    Everything raises StoreError if the disk cannot be read or written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        kept: int = KEPT,
        buckets: int = MOST_BUCKETS,
        size: int = MOST_BYTES,
        now: Callable[[], str] = utc_now,
    ) -> None:
        """Make the store of a campaign's directory; on the disk nothing is made or removed yet.

        It keeps at most `kept` crashes of a bucket, `buckets` buckets of a fuzzer, and about `size` bytes in all.
        """
        self.directory = directory
        self._kept, self._most_buckets, self._size, self._now = kept, buckets, size, now
        self._swept = self._told = False
        self._used = 0
        """The bytes of all that is kept; known once the remains of killed processes have been removed."""

    @property
    def root(self) -> Path:
        """The directory of the buckets."""
        return self.directory / "crashes"

    def add(self, crash: Crash) -> StoredCrash:
        """Keep a crash, or only count it. On return that is on the disk.

        The first call removes what killed processes have left. Raises InstanceBusy if another process keeps the store
        locked for minutes.
        """
        with locked(self.root, _LOCK_LIMIT), host_faults("storing a crash"):
            self._open()
            slug = self._slug(crash)
            bucket, facts = self._bucket(slug), _facts(crash, self._now())
            there = self._with_input(slug, facts["sha256"])
            wanted = there is None and (bucket is None or self._fits(crash))
            number = self._free_number(slug, bucket) if wanted else None
            directory = there if number is None else self.root / slug / str(number)
            if number is not None:
                _keep(self.root / slug / str(number), crash, facts)
                self._used += _size_of(self.root / slug / str(number))
            counted = asdict(_counted(slug, bucket, facts, number))
            publish_json(self._file(slug), {"schema": SCHEMA} | {key: counted[key] for key in counted if key != "slug"})
            return StoredCrash(slug, bucket is None, directory, there is not None)

    def buckets(self) -> list[Bucket]:
        """Read all buckets, in the order in which they were first seen."""
        with host_faults("reading the crashes"):
            buckets = filter(None, map(self._bucket, self._slugs()))
            return sorted(buckets, key=lambda bucket: (bucket.first_seen, bucket.slug))

    def _open(self) -> None:
        if not self.root.is_dir():
            make_private(self.root)
            sync_one(self.directory)
        if not self._swept:
            for slug in self._slugs():
                for name in filter(target_of_remains, os.listdir(self.root / slug)):  # noqa: PTH208  names are wanted
                    shutil.rmtree(self.root / slug / name)
            self._used, self._swept = _size_of(self.root), True

    def _slugs(self) -> list[str]:
        try:
            with os.scandir(self.root) as entries:
                return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []

    def _slug(self, crash: Crash) -> str:
        """Return the slug of the crash's bucket, and make its directory if needed."""
        slug = reports.slug(crash.report or _UNKNOWN, crash.fuzzer)
        if not (self.root / slug).is_dir():
            made = sum(crash.fuzzer in bucket.fuzzers for bucket in self.buckets())
            slug = OTHERS if made >= self._most_buckets else slug
        if not (self.root / slug).is_dir():
            (self.root / slug).mkdir()
            sync_one(self.root)
        return slug

    def _file(self, slug: str) -> Path:
        return self.root / slug / "group.json"

    def _numbers(self, slug: str) -> list[int]:
        """Return the numbers of the bucket's crashes that are kept, sorted."""
        return sorted(int(name) for name in os.listdir(self.root / slug) if _NUMBER.fullmatch(name))  # noqa: PTH208

    def _free_number(self, slug: str, bucket: Bucket | None) -> int | None:
        """Return the number for the next crash of a bucket; None if no more are kept."""
        numbers = self._numbers(slug)
        if slug == OTHERS or len(numbers) >= self._kept:
            return None
        return max([*numbers, bucket.last if bucket else 0]) + 1

    def _fits(self, crash: Crash) -> bool:
        """Whether there is room for the crash. The first time that there is none, a warning is logged."""
        most = len(crash.input) + OUTPUT_LIMIT + SERIAL_LIMIT
        if self._used + most <= self._size:
            return True
        if not self._told:
            self._told = True
            log.warning(
                "%s has %s, and no room for more crashes ([campaign] crash_size): further ones are only counted",
                *(self.root, readable_size(self._used)),
            )
        return False

    def _bucket(self, slug: str) -> Bucket | None:
        """Read a bucket, and count the crashes that nobody has counted yet. None if it has no crashes."""
        bucket = None
        with suppress(ValueError):  # it is then counted anew
            bucket = document.convert({**_read(self._file(slug)), "slug": slug}, Bucket)
        for number in self._numbers(slug):
            if number > (bucket.last if bucket else 0):
                bucket = _counted(slug, bucket, _read(self.root / slug / str(number) / "crash.json"), number)
        return bucket

    def _with_input(self, slug: str, digest: str) -> Path | None:
        """Return the directory of the bucket's crash whose input has this SHA-256; None if there is none."""
        for number in self._numbers(slug):
            directory = self.root / slug / str(number)
            if _read(directory / "crash.json").get("sha256") == digest:
                return directory
        return None


def _keep(directory: Path, crash: Crash, facts: Mapping[str, Any]) -> None:
    with publish(directory) as made:
        made.mkdir()
        (made / "input").write_bytes(crash.input)
        (made / "output.txt").write_bytes(printable(_ends(crash.output)).encode())
        (made / "serial.txt").write_bytes(printable(crash.serial[-SERIAL_LIMIT:]).encode())
        publish_json(made / "crash.json", facts)


def _size_of(directory: Path) -> int:
    """Return the bytes of the files of all crashes below a directory; what else lies beside them has its own limits."""
    files = ((Path(place) / name) for place, _, names in os.walk(directory) for name in names if name in FILES)
    return sum(file.lstat().st_size for file in files)


def _ends(output: bytes) -> bytes:
    missing, half = len(output) - OUTPUT_LIMIT, OUTPUT_LIMIT // 2
    return output if missing <= 0 else output[:half] + b"\n[%d bytes are left out here]\n" % missing + output[-half:]


def _facts(crash: Crash, seen: str) -> dict[str, Any]:
    """Return the content of crash.json."""
    report = None
    if crash.report is not None:
        report = {name: value for name, value in asdict(crash.report).items() if name != "base64"}
    facts = {name: value for name, value in vars(crash).items() if name not in ("input", "output", "serial")}
    cleaned = _clean(facts | {"report": report, "frames": reports.key_frames(crash.report or _UNKNOWN), "seen": seen})
    return {**cleaned, "schema": SCHEMA, "sha256": sha256(crash.input).hexdigest(), "size": len(crash.input)}


def _clean(value: Any) -> Any:
    """Return the value with each text in it on one line, printable and not too long."""
    if isinstance(value, str):
        return one_line(value, _LONGEST_TEXT)
    if isinstance(value, Mapping):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list | tuple) else value


def _counted(slug: str, bucket: Bucket | None, facts: Mapping[str, Any], number: int | None) -> Bucket:
    """Return the bucket after the crash with these facts is counted; `number` is its own, None if it is not kept."""
    seen = str(facts.get("seen") or (bucket.last_seen if bucket else ""))
    if bucket is None and slug == OTHERS:
        bucket = Bucket(slug, OTHERS, (), seen, seen, 0, ())
    elif bucket is None:
        kind = (facts.get("report") or {}).get("kind", _UNKNOWN.kind)
        bucket = Bucket(slug, kind, tuple(facts.get("frames", ())), seen, seen, 0, ())
    fuzzers = tuple(sorted({*bucket.fuzzers, str(facts.get("fuzzer", ""))}))[:_MOST_FUZZERS]
    return replace(bucket, last_seen=seen, count=bucket.count + 1, fuzzers=fuzzers, last=number or bucket.last)


def _read(path: Path) -> dict[str, Any]:
    """Read group.json or crash.json. Returns {} if it is not there, or damaged: then crashes are counted anew."""
    try:
        return document.content(path.read_bytes(), SCHEMA)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        log.warning("it counts as not written: %s cannot be understood: %s", path, error)
        return {}
