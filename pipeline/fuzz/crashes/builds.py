"""The builds of one fuzzer, in the order in which they were first seen: its builds.json."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.store import document

SCHEMA = 1
"""The version of builds.json's format. Tests hold a frozen sample of it."""

MOST_BUILDS = 1000
"""How many builds of a fuzzer are remembered: the last ones."""


@dataclass(frozen=True)
class KnownBuild:
    """A build of a fuzzer."""

    digest: str
    first_seen: str
    """When it was first seen, in UTC."""
    files: Mapping[str, str] = field(default_factory=dict)
    """The digests of the target's own files that are kept, by their paths in the guest; none if they cannot be had."""


@dataclass(frozen=True)
class KnownBuilds:
    """The builds of a fuzzer, the first one first."""

    builds: tuple[KnownBuild, ...] = ()

    def find(self, digest: str) -> KnownBuild | None:
        """The build with this digest."""
        return next((one for one in self.builds if one.digest == digest), None)

    def before(self, digest: str) -> tuple[str, ...]:
        """The digests of the builds that were seen before this one, the last one first; all if it is not known."""
        known = [one.digest for one in self.builds]
        return tuple(reversed(known[: known.index(digest)] if digest in known else known))

    def with_build(self, build: KnownBuild) -> "KnownBuilds":
        """The same with this build, in its old place if it is known."""
        if self.find(build.digest) is None:
            return KnownBuilds((*self.builds, build)[-MOST_BUILDS:])
        return KnownBuilds(tuple(build if one.digest == build.digest else one for one in self.builds))

    def encode(self) -> dict[str, Any]:
        """The content of builds.json."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def decode(cls, text: bytes) -> "KnownBuilds":
        """The builds in the content of builds.json. Raises ValueError if they are none of this schema."""
        return document.decode(text, cls, SCHEMA)
