"""The manifest: which units a corpus consists of, and where they came from.

::

    {"merges": {"count": 1, "last": {"after": {"edges": 20, "features": 31}, "at": "2026-11-25T14:00:00Z",
                                     "before": {"edges": 20, "features": 31}, "units_after": 2, "units_before": 9}},
     "schema": 1,
     "units": {"<SHA-1>": {"added": "2026-11-25T13:00:00Z", "bytes": 3, "source": "seed"}}}

`last` is null before the first merge. A corpus into which campaigns with value profiles have brought units has another
key, `"value_profile": 1`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pipeline.corpus.files import is_name

SCHEMA = 1
"""Tests hold a frozen sample."""


class Unit(NamedTuple):
    """One input of the fuzzer. A corpus has ten thousands of them."""

    name: str
    """The SHA-1 of its content."""
    bytes: int
    added: str
    """UTC, for people."""
    source: str
    """Whence it came: `seed`, `import`, `recovered`, `<fuzzer>#<slice>.<attempt>`."""


@dataclass(frozen=True)
class Coverage:
    """What a corpus covers, as libFuzzer counts it."""

    edges: int
    features: int

    def suffices(self, before: "Coverage", tolerance: float) -> bool:
        """Whether it is no less than `before`, but for the part `tolerance` of the edges and of the features."""
        least = 1 - tolerance
        return self.edges >= before.edges * least and self.features >= before.features * least


@dataclass(frozen=True)
class Merge:
    """What a merge has replaced."""

    at: str
    units_before: int
    """Units of the corpus."""
    units_after: int
    before: Coverage
    after: Coverage


@dataclass(frozen=True)
class Manifest:
    """What a corpus consists of."""

    units: Mapping[str, Unit]
    """By name."""
    merges: int = 0
    """How many merges have replaced units."""
    last_merge: Merge | None = None
    value_profile: int = 0
    """What campaigns that bring units count as covered besides edges: the bits of libFuzzer's use_value_profile."""

    @property
    def total_bytes(self) -> int:
        """Content of all units."""
        return sum(unit.bytes for unit in self.units.values())

    def encode(self) -> dict[str, object]:
        """As JSON."""
        units = {
            unit.name: {"added": unit.added, "bytes": unit.bytes, "source": unit.source} for unit in self.units.values()
        }
        last = None if self.last_merge is None else asdict(self.last_merge)
        counted = {"value_profile": self.value_profile} if self.value_profile else {}
        return {"schema": SCHEMA, "units": units, "merges": {"count": self.merges, "last": last}} | counted

    @classmethod
    def decode(cls, data: bytes) -> "Manifest":
        """The reverse. Raises ValueError, which says in one clause what is wrong."""
        try:
            content: Any = json.loads(data)
            if content["schema"] != SCHEMA:
                raise ValueError(f"its schema is {str(content['schema'])[:40]!r}, not {SCHEMA}")
            units = {name: _unit(name, facts) for name, facts in content["units"].items()}
            last = content["merges"]["last"]
            counted = int(content.get("value_profile", 0))
            return cls(units, int(content["merges"]["count"]), None if last is None else _merge(last), counted)
        except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise ValueError(f"it has not the form of a manifest: {type(error).__name__}: {error}") from error


def _unit(name: str, facts: Mapping[str, Any]) -> Unit:
    size, added, source = facts["bytes"], facts["added"], facts["source"]
    if not (is_name(name) and type(size) is int and size >= 0 and type(added) is str and type(source) is str):
        raise ValueError(f"it lists what can be no unit: {name[:80]!r}")
    return Unit(name, size, added, source)


def _merge(facts: Mapping[str, Any]) -> Merge:
    before, after = (Coverage(int(facts[key]["edges"]), int(facts[key]["features"])) for key in ("before", "after"))
    return Merge(str(facts["at"]), int(facts["units_before"]), int(facts["units_after"]), before, after)
