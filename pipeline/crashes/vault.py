"""The crashes of a campaign, on the disk: a directory for each group, and in it one for each crash that is kept.

::

    crashes/heap-buffer-overflow-parse_record-3f2a91c04d1e/
        group.json      how often it was seen, first and last, and by which fuzzers
        1/  input  output.txt  serial.txt  crash.json
        2/  …

A crash appears whole or not at all, and group.json is written last. Whoever is killed in between leaves a crash that
is not counted, which the next one counts: `last` in group.json is the number of the last crash that is.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.crashes import report as reports
from pipeline.crashes.report import CrashReport
from pipeline.deadline import utc_now
from pipeline.faults import host_faults
from pipeline.publish import locked, make_private, publish, publish_json, sync_one, target_of_remains
from pipeline.size import readable
from pipeline.text import one_line, printable

log = logging.getLogger("topcoat")

SCHEMA = 1
"""Of group.json and crash.json. Tests hold frozen samples."""

KEPT = 10
"""Crashes that are kept of a group; further ones are only counted."""

MOST_GROUPS = 200
"""Groups that one fuzzer can make; crashes that would make more are only counted, in the group OTHERS.

Each fuzzer has its own: a guest can make causes up, and must not hide what another fuzzer finds.
"""

MOST_BYTES = 1 << 30
"""Of all files of all crashes. What would come to more is only counted, but for the first crash of a group."""

OTHERS = "others"

OUTPUT_LIMIT = 1 << 18
"""Bytes of output.txt: of longer output the first and the last half of it."""

SERIAL_LIMIT = 1 << 16
"""Bytes of serial.txt: the end."""

_MOST_FUZZERS = 100
_LONGEST_TEXT = 1000
_LOCK_LIMIT = 300.0
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_UNKNOWN = CrashReport("unknown")


@dataclass(frozen=True)
class Crash:
    """What is stored of a crash. Nothing in it needs to be fit to print."""

    fuzzer: str
    slice: int
    attempt: int
    boot_id: str
    """Of the guest."""
    seed: int
    options: tuple[str, ...]
    """With which the fuzzer ran."""
    builds: Mapping[str, str]
    """Digests of what ran, by what it is."""
    artifact: str
    """The file's name in the guest."""
    input: bytes
    output: bytes
    """Of the run."""
    serial: bytes
    """The guest's console, or the end of it."""
    report: CrashReport | None


@dataclass(frozen=True)
class Group:
    """Crashes that are the same."""

    slug: str
    """The name of its directory."""
    kind: str
    frames: tuple[str, ...]
    """What the target said, if it said something, and the names of the functions: by them it is told from others."""
    first_seen: str
    last_seen: str
    count: int
    fuzzers: tuple[str, ...]
    """That have found it, in the order of their names; of very many only some."""
    last: int = 0
    """The number of the last crash that is kept and counted."""


@dataclass(frozen=True)
class Stored:
    """What has become of a crash."""

    group: str
    """The slug."""
    new: bool
    """Whether the group is."""
    directory: Path | None
    """Where it is kept, or the same input already was; None if it was only counted."""
    same: bool
    """Whether the same input was in the group already."""


class Vault:
    """The crashes below a campaign's directory. Any number of threads and processes may use it.

    Everything raises StoreError if the disk cannot be read or written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        kept: int = KEPT,
        groups: int = MOST_GROUPS,
        size: int = MOST_BYTES,
        now: Callable[[], str] = utc_now,
    ) -> None:
        """Of a group `kept` crashes are kept, of at most so many `groups` of a fuzzer, with about `size` bytes in all.

        Nothing is made or removed yet.
        """
        self.directory = directory
        self._kept, self._most_groups, self._size, self._now = kept, groups, size, now
        self._swept = self._told = False
        self._used = 0
        """Bytes of all that is kept, once it was swept."""

    @property
    def root(self) -> Path:
        """The directory of the groups."""
        return self.directory / "crashes"

    def add(self, crash: Crash) -> Stored:
        """Store a crash, or count it. On return that is on the disk.

        The first call removes what killed processes have left. Raises InstanceBusy if another process keeps the vault
        locked for minutes.
        """
        with locked(self.root, _LOCK_LIMIT), host_faults("storing a crash"):
            self._open()
            slug = self._slug(crash)
            group, facts = self._group(slug), _facts(crash, self._now())
            there = self._with_input(slug, facts["sha256"])
            wanted = there is None and (group is None or self._fits(crash))
            number = self._free_number(slug, group) if wanted else None
            directory = there if number is None else self.root / slug / str(number)
            if number is not None:
                _keep(self.root / slug / str(number), crash, facts)
                self._used += _size_of(self.root / slug / str(number))
            publish_json(self._file(slug), _group_json(_counted(slug, group, facts, number)))
            return Stored(slug, group is None, directory, there is not None)

    def groups(self) -> list[Group]:
        """All of them, those that were seen first first."""
        with host_faults("reading the crashes"):
            groups = filter(None, map(self._group, self._slugs()))
            return sorted(groups, key=lambda group: (group.first_seen, group.slug))

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
        """The slug of the crash's group, whose directory is there then."""
        slug = reports.slug(crash.report or _UNKNOWN, crash.fuzzer)
        if not (self.root / slug).is_dir():
            made = sum(crash.fuzzer in group.fuzzers for group in self.groups())
            slug = OTHERS if made >= self._most_groups else slug
        if not (self.root / slug).is_dir():
            (self.root / slug).mkdir()
            sync_one(self.root)
        return slug

    def _file(self, slug: str) -> Path:
        return self.root / slug / "group.json"

    def _numbers(self, slug: str) -> list[int]:
        """The numbers of the crashes that are kept."""
        return sorted(int(name) for name in os.listdir(self.root / slug) if _NUMBER.fullmatch(name))  # noqa: PTH208

    def _free_number(self, slug: str, group: Group | None) -> int | None:
        """The number for the next crash of a group. None if no more are kept."""
        numbers = self._numbers(slug)
        if slug == OTHERS or len(numbers) >= self._kept:
            return None
        return max([*numbers, group.last if group else 0]) + 1

    def _fits(self, crash: Crash) -> bool:
        """Whether there is room for it. If not, that is told once."""
        most = len(crash.input) + OUTPUT_LIMIT + SERIAL_LIMIT
        if self._used + most <= self._size:
            return True
        if not self._told:
            self._told = True
            log.warning(
                "%s has %s, and no room for more crashes ([campaign] crash_size): further ones are only counted",
                *(self.root, readable(self._used)),
            )
        return False

    def _group(self, slug: str) -> Group | None:
        """The group as it is, with those that nobody has counted yet. None if there are no crashes."""
        group = _group_of(slug, _read(self._file(slug)))
        for number in self._numbers(slug):
            if number > (group.last if group else 0):
                group = _counted(slug, group, _read(self.root / slug / str(number) / "crash.json"), number)
        return group

    def _with_input(self, slug: str, digest: str) -> Path | None:
        """The crash of the group that has this input."""
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
    """Bytes of all files below it."""
    return sum((Path(place) / name).lstat().st_size for place, _, names in os.walk(directory) for name in names)


def _ends(output: bytes) -> bytes:
    missing, half = len(output) - OUTPUT_LIMIT, OUTPUT_LIMIT // 2
    return output if missing <= 0 else output[:half] + b"\n[%d bytes are left out here]\n" % missing + output[-half:]


def _facts(crash: Crash, seen: str) -> dict[str, Any]:
    """The content of crash.json."""
    report = None
    if crash.report is not None:
        report = {name: value for name, value in asdict(crash.report).items() if name != "base64"}
    facts = {name: value for name, value in vars(crash).items() if name not in ("input", "output", "serial")}
    cleaned = _clean(facts | {"report": report, "frames": reports.key_frames(crash.report or _UNKNOWN), "seen": seen})
    return {**cleaned, "schema": SCHEMA, "sha256": sha256(crash.input).hexdigest(), "size": len(crash.input)}


def _clean(value: Any) -> Any:
    """The value with all its text on one line, printable and not too long."""
    if isinstance(value, str):
        return one_line(value, _LONGEST_TEXT)
    if isinstance(value, Mapping):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list | tuple) else value


def _counted(slug: str, group: Group | None, facts: Mapping[str, Any], number: int | None) -> Group:
    """The group, once the crash with these facts is counted too; it has this number if it is kept."""
    seen = str(facts.get("seen") or (group.last_seen if group else ""))
    if group is None and slug == OTHERS:
        group = Group(slug, OTHERS, (), seen, seen, 0, ())
    elif group is None:
        kind = (facts.get("report") or {}).get("kind", _UNKNOWN.kind)
        group = Group(slug, kind, tuple(facts.get("frames", ())), seen, seen, 0, ())
    fuzzers = tuple(sorted({*group.fuzzers, str(facts.get("fuzzer", ""))}))[:_MOST_FUZZERS]
    return replace(group, last_seen=seen, count=group.count + 1, fuzzers=fuzzers, last=number or group.last)


def _group_json(group: Group) -> dict[str, Any]:
    return {"schema": SCHEMA} | {name: value for name, value in asdict(group).items() if name != "slug"}


def _group_of(slug: str, content: Mapping[str, Any]) -> Group | None:
    try:
        frames, fuzzers = tuple(content["frames"]), tuple(content["fuzzers"])
        seen = content["first_seen"], content["last_seen"]
        return Group(slug, content["kind"], frames, *seen, content["count"], fuzzers, content["last"])
    except (KeyError, TypeError):
        return None


def _read(path: Path) -> dict[str, Any]:
    """What a JSON file of ours holds. Nothing if it is not there, or damaged: then crashes are counted anew."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        log.warning("it counts as not written: %s cannot be understood: %s", path, error)
        return {}
    return content if isinstance(content, dict) and content.get("schema") == SCHEMA else {}
