"""All that is known of a bucket: itself, its crashes that are kept, its builds, what verdicts say, and its links."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.fuzz.crashes import rules, verdicts
from pipeline.fuzz.crashes.bucket import Bucket
from pipeline.fuzz.crashes.builds import KnownBuilds
from pipeline.fuzz.crashes.crash import KeptCrash
from pipeline.fuzz.crashes.links import Link, links
from pipeline.fuzz.crashes.report import UNKNOWN
from pipeline.fuzz.crashes.rules import Decision
from pipeline.fuzz.crashes.store import CrashStore
from pipeline.fuzz.crashes.verdicts import CrashVerdict


@dataclass(frozen=True)
class KnownBucket:
    """All that is known of a bucket."""

    bucket: Bucket
    directory: Path
    crashes: tuple[KeptCrash, ...]
    """Those that are kept, by number."""
    builds: KnownBuilds
    """All builds of the fuzzer."""
    verdicts: tuple[CrashVerdict, ...]
    """The verdicts on builds, in the order of these."""
    links: tuple[Link, ...] = ()
    """The links to other buckets of the fuzzer that are probably the same."""

    @property
    def shown(self) -> KeptCrash | None:
        """The crash that stands for all: the one with the smallest input; None if none is kept."""
        return min(self.crashes, key=lambda crash: (crash.facts.size, crash.number), default=None)

    @cached_property
    def decision(self) -> Decision | None:
        """What the rule says of the crash that is shown; None if there is none."""
        return rules.decide(self.shown.facts.report or UNKNOWN, self.bucket.fuzzer) if self.shown else None

    @property
    def place(self) -> tuple[str, int]:
        """File and line of the first frame that decides and tells its file; nothing and 0 if none does."""
        telling = self.decision.telling if self.decision else ()
        return next(((frame.file, frame.line) for frame in telling if frame.file), ("", 0))

    @property
    def place_in_short(self) -> str:
        """The place as FILE:LINE, without the file's directory; empty if it is not known."""
        file, line = self.place
        return file.rpartition("/")[2] + (f":{line}" if line else "")

    @cached_property
    def words(self) -> Mapping[str, str]:
        """What the verdicts say of the builds, by their digests."""
        return verdicts.words(self.verdicts, self.bucket.times)

    @property
    def last_verdict(self) -> CrashVerdict | None:
        """The verdict for the last of the builds for which there is one."""
        return self.verdicts[-1] if self.verdicts else None

    @property
    def alike(self) -> Mapping[str, Sequence[str]]:
        """The reasons why it is probably the same as other buckets, by their slugs."""
        slug = self.bucket.slug
        return {next(one for one in link.buckets if one != slug): link.why for link in self.links}

    def encode(self) -> dict[str, Any]:
        """What is known as values for JSON, without single crashes."""
        whole, (file, line), last = asdict(self.bucket), self.place, self.last_verdict
        return {name: whole[name] for name in whole if name not in ("kept", "last")} | {
            "title": self.bucket.title,
            "directory": str(self.directory),
            "file": file or None,
            "line": line or None,
            "size": self.shown.facts.size if self.shown else None,
            "kept": len(self.crashes),
            "reproduced": {"same": last.same, "tries": last.tries, "build": last.build} if last else None,
            "verdicts": {
                one.build: {"build": one.build, "word": self.words[one.build], "same": one.same, "tries": one.tries}
                for one in self.verdicts
            },
            "probably_same": [{"bucket": slug, "why": list(why)} for slug, why in self.alike.items()],
        }


def look(store: CrashStore, bucket: Bucket) -> KnownBucket:
    """Read all that is known of a bucket. Raises StoreError."""
    return look_all(store, [bucket])[0]


def look_all(store: CrashStore, buckets: Sequence[Bucket]) -> list[KnownBucket]:
    """Read all that is known of several buckets, in their order. Raises StoreError."""
    found = {fuzzer: _links(store, fuzzer) for fuzzer in dict.fromkeys(one.fuzzer for one in buckets)}
    return [_look(store, one, [link for link in found[one.fuzzer] if one.slug in link.buckets]) for one in buckets]


def _look(store: CrashStore, bucket: Bucket, alike: Sequence[Link]) -> KnownBucket:
    builds = store.builds(bucket.fuzzer)
    told = tuple(_verdicts(store, bucket, builds))
    place = store.directory(bucket.fuzzer, bucket.slug)
    return KnownBucket(bucket, place, tuple(store.crashes(bucket)), builds, told, tuple(alike))


def _verdicts(store: CrashStore, bucket: Bucket, builds: KnownBuilds) -> list[CrashVerdict]:
    """The verdicts in the order of the builds; those of unknown builds come first, as they may be of any time."""
    order = [one.digest for one in builds.builds]
    told = verdicts.read_all(store.directory(bucket.fuzzer, bucket.slug), order)
    return sorted(told, key=lambda one: one.build in order)


def _links(store: CrashStore, fuzzer: str) -> Sequence[Link]:
    """The links among all buckets of a fuzzer."""
    builds = store.builds(fuzzer)
    shown: dict[str, dict[str, int]] = {}
    found = [one for slug in store.slugs(fuzzer) if (one := store.bucket(fuzzer, slug))]
    for bucket in found:
        counts = shown.setdefault(bucket.slug, {})
        for told in _verdicts(store, bucket, builds):
            for slug, number in {bucket.slug: told.same, **told.others}.items():
                counts[slug] = counts.get(slug, 0) + number
    return links(found, shown)
