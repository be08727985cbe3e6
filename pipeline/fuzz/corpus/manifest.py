"""The manifest: which units a corpus consists of, and where they came from.

::

    {"merges": {"count": 1, "last": {"after": {"edges": 20, "features": 31}, "at": "2026-11-25T14:00:00Z",
                                     "before": {"edges": 20, "features": 31}, "units_after": 2, "units_before": 9}},
     "schema": 1,
     "units": {"<SHA-1>": {"added": "2026-11-25T13:00:00Z", "bytes": 3, "source": "seed"}}}

`last` is null before the first merge. A corpus with units of campaigns that use value profiles has one more key, such
as `"value_profile": 1`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

from pipeline.fuzz.corpus.files import is_name
from pipeline.store import document

SCHEMA = 1
"""The version of the manifest's format. Tests hold a frozen sample of it."""


class Unit(NamedTuple):
    """One input of the fuzzer. A corpus can have ten thousands of them."""

    name: str
    """The SHA-1 of its content, in hexadecimal digits."""
    bytes: int
    """The size of its content."""
    added: str
    """When it came into the corpus, in UTC; for people."""
    source: str
    """Where it came from: `seed`, `import`, `recovered`, `<fuzzer>#<slice>.<attempt>`."""


@dataclass(frozen=True)
class Coverage:
    """What a corpus covers, as libFuzzer counts it."""

    edges: int
    features: int

    def suffices(self, before: "Coverage", tolerance: float) -> bool:
        """Whether it lacks no more than the part `tolerance`, 0 to 1, of the edges and of the features of `before`."""
        least = 1 - tolerance
        return self.edges >= before.edges * least and self.features >= before.features * least


@dataclass(frozen=True)
class MergeRecord:
    """What a merge has changed."""

    at: str
    """When its result was taken, in UTC."""
    units_before: int
    """How many units the corpus had before it."""
    units_after: int
    """How many units the corpus had after it."""
    before: Coverage
    after: Coverage


@dataclass(frozen=True)
class Manifest:
    """What a corpus consists of: its units, and what merges have done to them."""

    units: Mapping[str, Unit]
    """The units, by name."""
    merges: int = 0
    """How many merges have replaced units."""
    last_merge: MergeRecord | None = None
    value_profile: int = 0
    """The bits of libFuzzer's use_value_profile with which fuzzers ran that brought units; merges must count it too."""

    @property
    def total_bytes(self) -> int:
        """The bytes of content of all units."""
        return sum(unit.bytes for unit in self.units.values())

    def encode(self) -> dict[str, object]:
        """Return the manifest as JSON."""
        units = {
            unit.name: {"added": unit.added, "bytes": unit.bytes, "source": unit.source} for unit in self.units.values()
        }
        last = None if self.last_merge is None else asdict(self.last_merge)
        counted = {"value_profile": self.value_profile} if self.value_profile else {}
        return {"schema": SCHEMA, "units": units, "merges": {"count": self.merges, "last": last}} | counted

    @classmethod
    def decode(cls, data: bytes) -> "Manifest":
        """Read a manifest that `encode` has made. Raises ValueError, which says in one clause what is wrong."""
        found = document.decode(data, _ManifestFile, SCHEMA)
        for name, facts in found.units.items():
            if not is_name(name) or facts.bytes < 0:
                raise ValueError(f"it lists what can be no unit: {name[:80]!r}")
        units = {name: Unit(name, facts.bytes, facts.added, facts.source) for name, facts in found.units.items()}
        return cls(units, found.merges.count, found.merges.last, found.value_profile)


@dataclass(frozen=True)
class _UnitFacts:
    bytes: int
    added: str
    source: str


@dataclass(frozen=True)
class _Merges:
    count: int
    last: MergeRecord | None


@dataclass(frozen=True)
class _ManifestFile:
    units: Mapping[str, _UnitFacts]
    merges: _Merges
    value_profile: int = 0
