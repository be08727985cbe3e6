"""Crashes of campaigns of before they had one store: they stay where they are, in the directory of their campaign.

::

    campaigns/NAME/crashes/heap-buffer-overflow-parse_record-3f2a91c04d1e/
        group.json      how often it was seen, when first and last, and by which fuzzers
        1/  input  output.txt  serial.txt  crash.json

Nothing is written there any more.
"""

from dataclasses import dataclass
from pathlib import Path

from pipeline.fuzz.crashes.bucket import Bucket, Seen
from pipeline.host.faults import host_faults
from pipeline.store import document

SCHEMA = 1
"""The version of group.json's format. A test holds a frozen sample of it."""


@dataclass(frozen=True)
class _Group:
    """The content of group.json."""

    kind: str
    frames: tuple[str, ...]
    first_seen: str
    last_seen: str
    count: int
    last: int = 0


def directory(campaign: Path, slug: str) -> Path:
    """Where the crashes of a bucket lie in the directory of their campaign. They need not exist."""
    return campaign / "crashes" / slug


def read(campaign: Path, fuzzer: str, slug: str) -> Bucket | None:
    """Read a bucket in the directory of its campaign; None if there is none, or nothing can be understood of it.

    Raises StoreError.
    """
    with host_faults("reading the crashes"):
        try:
            group = document.decode((directory(campaign, slug) / "group.json").read_bytes(), _Group, SCHEMA)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
    seen = Seen(group.first_seen, group.last_seen, group.count)
    told = (group.kind, group.frames, "", group.first_seen, group.last_seen, group.count)
    return Bucket(fuzzer, slug, *told, campaigns={campaign.name: seen}, last=group.last)
