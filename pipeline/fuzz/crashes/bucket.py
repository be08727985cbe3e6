"""A bucket: the crashes of one fuzzer that are the same, as its bucket.json counts them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.fuzz.crashes import rules
from pipeline.store import document

SCHEMA = 1
"""The version of bucket.json's format. Tests hold a frozen sample of it."""

MOST_SEEN = 100
"""How many builds and how many campaigns a bucket names; of more, those named that were seen last."""


@dataclass(frozen=True)
class Seen:
    """How often something was seen, and when: in UTC."""

    first_seen: str
    last_seen: str
    count: int


@dataclass(frozen=True)
class KeptInput:
    """An input that is kept."""

    sha256: str
    size: int
    """In bytes."""


@dataclass(frozen=True)
class Bucket:
    """The crashes of one fuzzer that are the same. All text in it is fit to print."""

    fuzzer: str
    """The full name, PACKAGE/FUZZER."""
    slug: str
    """The name of the bucket's directory, which no other bucket of the fuzzer has."""
    kind: str
    frames: tuple[str, ...]
    """What tells it from other buckets: the target's message, if there is one, and the names of functions."""
    rule: str
    """The rule by which they are the same, with its version."""
    first_seen: str
    last_seen: str
    count: int
    """How many crashes were seen, kept or not."""
    builds: Mapping[str, Seen] = field(default_factory=dict)
    """When it was seen with which builds of the fuzzer, by their digests; if there are very many, only the last."""
    campaigns: Mapping[str, Seen] = field(default_factory=dict)
    """When it was seen in which campaigns, by their names; if there are very many, only the last."""
    kept: Mapping[str, KeptInput] = field(default_factory=dict)
    """The inputs that are kept, by the numbers of their crashes."""
    last: int = 0
    """The number of the last crash that is kept and counted."""

    @property
    def title(self) -> str:
        """A line for people, such as `SEGV in parse`."""
        return rules.title(self.kind, self.frames)

    @property
    def smallest(self) -> int | None:
        """The number of the crash with the smallest input; None if none is kept."""
        return min(map(int, self.kept), key=lambda number: (self.kept[str(number)].size, number), default=None)

    @property
    def times(self) -> dict[str, int]:
        """How often it was seen with which builds."""
        return {build: one.count for build, one in self.builds.items()}

    def counted(self, seen: str, build: str, campaign: str, n: int = 1) -> "Bucket":
        """The bucket after `n` more crashes, the last one at the time `seen`."""
        return replace(
            self,
            first_seen=self.first_seen or seen,
            last_seen=seen or self.last_seen,
            count=self.count + n,
            builds=_counted(self.builds, build, seen, n),
            campaigns=_counted(self.campaigns, campaign, seen, n),
        )

    def encode(self) -> dict[str, Any]:
        """The content of bucket.json; its fuzzer and its slug are told by where the file lies."""
        facts = asdict(self)
        return {"schema": SCHEMA} | {name: facts[name] for name in facts if name not in ("fuzzer", "slug")}

    @classmethod
    def decode(cls, text: bytes, fuzzer: str, slug: str) -> "Bucket":
        """The bucket in the content of bucket.json. Raises ValueError if it is none of this schema."""
        return document.convert({**document.content(text, SCHEMA), "fuzzer": fuzzer, "slug": slug}, cls)


def _counted(by_name: Mapping[str, Seen], name: str, seen: str, n: int) -> dict[str, Seen]:
    if not name:
        return dict(by_name)
    old = by_name.get(name)
    new = Seen(old.first_seen if old else seen, seen, (old.count if old else 0) + n)
    kept = sorted((by_name.keys() - {name}), key=lambda one: by_name[one].last_seen)[-(MOST_SEEN - 1) :]
    return {one: by_name[one] for one in kept} | {name: new}
