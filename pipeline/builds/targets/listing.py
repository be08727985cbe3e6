"""targets.json: what is on the disk with targets, and what was left out, as the image's maker has found it."""

import errno
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.errors import MissingResource, ResourceDamaged
from pipeline.store import document

SCHEMA = 1
"""The schema of the list. Tests hold a frozen sample."""


@dataclass(frozen=True)
class ListedTarget:
    """One target on the disk. All paths are absolute ones in the guest."""

    package: str
    name: str
    digest: str
    """A digest of all that decides how the target behaves: what it is made of, and what lies beside it."""
    program: str
    dictionary: str | None = None
    seeds: str | None = None
    """The directory with its seeds."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """Flags of libFuzzer that its NAME.options sets."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that its NAME.options sets."""
    sanitizers: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    """What was passed over of its options, its dictionary and its seeds, one sentence each."""

    @property
    def full_name(self) -> str:
        """The name by which users call it: PACKAGE/NAME."""
        return f"{self.package}/{self.name}"


@dataclass(frozen=True)
class ListedOmission:
    """Something that is no target, although it seems to be meant as one."""

    package: str
    path: str
    """Its path, relative to the directory of the targets; of one that is compiled also its name. Fit to print."""
    name: str
    """The name that the target would have."""
    reason: str
    hint: str

    @property
    def full_name(self) -> str:
        """The name that users would call it by: PACKAGE/NAME."""
        return f"{self.package}/{self.name}"


@dataclass(frozen=True)
class TargetsListing:
    """The list: targets sorted by full name, and what was left out."""

    targets: tuple[ListedTarget, ...]
    left_out: tuple[ListedOmission, ...] = ()

    def warnings(self) -> list[str]:
        """A line for each thing that somebody should know: what was left out, and what was passed over."""
        return [
            *(f"{one.package}: {one.path} is left out: {one.reason}; {one.hint}" for one in self.left_out),
            *(f"{one.full_name}: {problem}" for one in self.targets for problem in one.problems),
        ]

    def encode(self) -> dict[str, object]:
        """The list as data for JSON, with the schema."""
        return {"schema": SCHEMA, **asdict(self)}


def read(path: Path) -> TargetsListing:
    """Read the list. Raises MissingResource if it was not made yet, and ResourceDamaged if it cannot be understood."""
    again = "make it: luigi --module tasks TargetsImage"
    try:
        return document.decode(path.read_bytes(), TargetsListing, SCHEMA)
    except OSError as error:
        said = os.strerror(error.errno or errno.EIO)
        raise MissingResource(f"the list of the guest's targets is not there: {path}: {said}", hint=again) from error
    except ValueError as error:
        raise ResourceDamaged(f"{path}: {error}", hint=f"delete it, and {again}") from error
