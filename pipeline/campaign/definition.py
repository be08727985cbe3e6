"""What a campaign does: which fuzzers run, for how long, and with what. docs/campaign.md tells how it is written."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.corpus.files import files_below
from pipeline.digests import digest
from pipeline.faults import host_faults
from pipeline.settings import Allocation

SCHEMA = 1
"""Of `Definition.encode`. Tests hold a frozen sample."""


@dataclass(frozen=True)
class Budget:
    """How much one fuzzer runs in all: seconds, or runs of its function. One of them is None."""

    seconds: int | None = None
    runs: int | None = None

    def encode(self) -> dict[str, int]:
        """For JSON: the one that counts."""
        return {name: value for name, value in (("seconds", self.seconds), ("runs", self.runs)) if value is not None}


@dataclass(frozen=True)
class FuzzerPlan:
    """What a campaign does with one fuzzer."""

    name: str
    """Its full name, PACKAGE/NAME."""
    budget: Budget
    slice: int
    """Seconds of one slice; at least 1, and not more than the budget has."""
    options: tuple[tuple[str, str], ...] = ()
    """libFuzzer's options and their values, as libFuzzer takes them, sorted. None of them is one that Topcoat sets."""
    dictionary: Path | None = None
    """Absolute."""
    seeds: tuple[Path, ...] = ()
    """Directories and files; absolute."""
    environment: tuple[tuple[str, str], ...] = ()
    """Variables and their values, sorted, which it has besides those that pipeline.fuzzer.sanitizers gives to all."""

    @property
    def slices(self) -> int | None:
        """How many slices the budget comes to, the last of which may be shorter; None for a budget of runs."""
        return None if self.budget.seconds is None else math.ceil(self.budget.seconds / self.slice)

    def seed_paths(self) -> tuple[Path, ...]:
        """All that is named as seed, or lies below what is, but directories; sorted. See pipeline.corpus.files.

        Also what is no file, and cannot be imported: somebody must tell of it. Raises StoreError.
        """
        with host_faults(f"the seeds of {self.name} cannot be listed", "file"):
            below = {path for seed in self.seeds if seed.is_dir() for path in files_below(seed)}
            return tuple(sorted(below.union(seed for seed in self.seeds if not seed.is_dir())))

    def seed_files(self) -> tuple[Path, ...]:
        """Those that are regular files, or links to some; and what was named itself, whatever it is by now."""
        return tuple(path for path in self.seed_paths() if path.is_file() or path in self.seeds)

    def digest(self) -> str:
        """Of all that the results of a slice depend on and the campaign can change: a ledger records it.

        It covers options and environment, and the contents of the dictionary and of all seeds; no name or path, and
        neither budget nor slice, so a campaign that is prolonged goes on. Raises StoreError if a file cannot be read.
        """
        from blake3 import blake3

        files = self.seed_files()
        with host_faults(f"the dictionary and seeds of {self.name} cannot be read", "file"):
            facts: dict[str, object] = {
                "options": dict(self.options),
                "dictionary": digest(self.dictionary) if self.dictionary else None,
                "seeds": sorted({digest(file) for file in files}),
            }
        if self.environment:  # digests of before there was any still hold
            facts["environment"] = dict(self.environment)
        return f"b3:{blake3(json.dumps(facts, sort_keys=True).encode()).hexdigest()}"

    def encode(self) -> dict[str, object]:
        """For JSON, with the digest. Raises StoreError if a file cannot be read."""
        return {
            "budget": self.budget.encode(),
            "dictionary": str(self.dictionary) if self.dictionary else None,
            "digest": self.digest(),
            "environment": dict(self.environment),
            "name": self.name,
            "options": dict(self.options),
            "seeds": [str(seed) for seed in self.seeds],
            "slice": self.slice,
        }

    @classmethod
    def decode(cls, data: Mapping[str, Any]) -> "FuzzerPlan":
        """What `encode` has written, but for the digest. Raises KeyError, TypeError or AttributeError."""
        return cls(
            name=data["name"],
            budget=Budget(**data["budget"]),
            slice=data["slice"],
            options=tuple(sorted(data["options"].items())),
            dictionary=Path(data["dictionary"]) if data["dictionary"] else None,
            seeds=tuple(map(Path, data["seeds"])),
            environment=tuple(sorted(data.get("environment", {}).items())),
        )


@dataclass(frozen=True)
class Definition:
    """A campaign, for the fuzzers of one build."""

    name: str
    """Fit to be the name of a directory."""
    seed: int
    """From 1 on; the seeds of all slices are made from it."""
    allocation: Allocation
    fuzzers: tuple[FuzzerPlan, ...]
    """At least one, sorted by name, each once."""

    @classmethod
    def decode(cls, data: Mapping[str, Any]) -> "Definition":
        """What `encode` has written. Raises ValueError."""
        try:
            plans = tuple(map(FuzzerPlan.decode, data["fuzzers"]))
            return cls(data["name"], data["seed"], data["allocation"], plans)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a field of the definition is missing or wrong: {error}") from error

    def encode(self) -> dict[str, object]:
        """For JSON, with sorted keys. Raises StoreError if a dictionary or a seed cannot be read."""
        return {
            "allocation": self.allocation,
            "fuzzers": [plan.encode() for plan in self.fuzzers],
            "name": self.name,
            "schema": SCHEMA,
            "seed": self.seed,
        }
