"""What a campaign does: which fuzzers run, for how long, and with what. docs/campaign.md tells how it is written."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.fuzz.corpus.files import files_below
from pipeline.host.faults import host_faults
from pipeline.settings import Allocation
from pipeline.store.digests import digest

SCHEMA = 1
"""The version of what `Definition.encode` writes. Tests hold a frozen sample."""


@dataclass(frozen=True)
class Budget:
    """How much one fuzzer runs in all: either in seconds, or in runs of its function. The other one is None."""

    seconds: int | None = None
    runs: int | None = None

    def encode(self) -> dict[str, int]:
        """The budget as a value for JSON, with only the field that counts."""
        return {name: value for name, value in (("seconds", self.seconds), ("runs", self.runs)) if value is not None}


@dataclass(frozen=True)
class FuzzerPlan:
    """What a campaign does with one fuzzer."""

    name: str
    """Its full name, PACKAGE/NAME."""
    budget: Budget
    slice: int
    """Seconds of one slice: at least 1, and not more than a budget of seconds."""
    options: tuple[tuple[str, str], ...] = ()
    """libFuzzer's options with their values as libFuzzer takes them, sorted; none that Topcoat itself sets."""
    dictionary: Path | None = None
    """The absolute path of a dictionary of the campaign's; None if there is none."""
    seeds: tuple[Path, ...] = ()
    """Absolute paths of directories and files with seeds."""
    environment: tuple[tuple[str, str], ...] = ()
    """Variables and their values, sorted, besides those that pipeline.fuzz.sanitizers gives to all fuzzers."""

    @property
    def slices(self) -> int | None:
        """The number of slices in the budget, the last of which may be shorter; None for a budget of runs."""
        return None if self.budget.seconds is None else math.ceil(self.budget.seconds / self.slice)

    def seed_paths(self) -> tuple[Path, ...]:
        """All paths that are named as seeds or lie below such directories, without directories themselves, sorted.

        Those that are no regular files, and cannot be imported, are among them: the caller must tell of them. See
        pipeline.fuzz.corpus.files. Raises StoreError.
        """
        with host_faults(f"the seeds of {self.name} cannot be listed", "file"):
            below = {path for seed in self.seeds if seed.is_dir() for path in files_below(seed)}
            return tuple(sorted(below.union(seed for seed in self.seeds if not seed.is_dir())))

    def seed_files(self) -> tuple[Path, ...]:
        """The seed paths that are regular files, or links to some, and all that were named themselves."""
        return tuple(path for path in self.seed_paths() if path.is_file() or path in self.seeds)

    def digest(self) -> str:
        """A digest of all that the campaign can change and that affects the results of a slice; a ledger records it.

        It covers options and environment, and the contents of the dictionary and of all seeds. It covers no name or
        path, and neither budget nor slice, so that a campaign goes on when it is prolonged. Raises StoreError if a file
        cannot be read.
        """
        from blake3 import blake3

        files = self.seed_files()
        with host_faults(f"the dictionary and seeds of {self.name} cannot be read", "file"):
            facts: dict[str, object] = {
                "options": dict(self.options),
                "dictionary": digest(self.dictionary) if self.dictionary else None,
                "seeds": sorted({digest(file) for file in files}),
            }
        if self.environment:  # without one, digests from before there were environments still hold
            facts["environment"] = dict(self.environment)
        return f"b3:{blake3(json.dumps(facts, sort_keys=True).encode()).hexdigest()}"

    def encode(self) -> dict[str, object]:
        """The plan as values for JSON, with its digest. Raises StoreError if a file cannot be read."""
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
        """The plan that `encode` has written; the digest is ignored. Raises KeyError, TypeError or AttributeError."""
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
    """What a campaign does, for the fuzzers of one build."""

    name: str
    """The name of the campaign, fit to be the name of a directory."""
    seed: int
    """A whole number, from 1 on, from which the seeds of all attempts are made."""
    allocation: Allocation
    fuzzers: tuple[FuzzerPlan, ...]
    """The plans of its fuzzers: at least one, sorted by name, each name once."""

    @classmethod
    def decode(cls, data: Mapping[str, Any]) -> "Definition":
        """The definition that `encode` has written. Raises ValueError."""
        try:
            plans = tuple(map(FuzzerPlan.decode, data["fuzzers"]))
            return cls(data["name"], data["seed"], data["allocation"], plans)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a field of the definition is missing or wrong: {error}") from error

    def encode(self) -> dict[str, object]:
        """The definition as values for JSON. Raises StoreError if a dictionary or a seed cannot be read."""
        return {
            "allocation": self.allocation,
            "fuzzers": [plan.encode() for plan in self.fuzzers],
            "name": self.name,
            "schema": SCHEMA,
            "seed": self.seed,
        }
