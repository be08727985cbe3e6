"""Where the targets of a build are, and what is made of them."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.settings import Store

MOUNTED = PurePosixPath("/targets")
"""The directory of the guest at which the disk with targets is mounted."""

IMAGE_FILES = MOUNTED / "files"
"""The directory of the guest with the directories of all packages."""

OWN_PACKAGE = "example-fuzzers"
"""The package of Topcoat's own targets: Fuchsia's name for fuzzers that are there to be tried out."""


def compiled(store: Store, package: str, variant: str = "fuzz") -> Path:
    """The path of the directory of what was compiled from a package's sources, in one variant."""
    return store.targets / package / ("compiled" if variant == "fuzz" else variant)


@dataclass(frozen=True)
class TargetsPlaces:
    """The places of all that is known of the targets of one build, whether it exists or not."""

    package: str
    """The first part of the targets' full names, PACKAGE/NAME."""
    source: Path
    """The absolute path of the directory with the targets as their user built them, or their sources."""
    store: Store
    build: str
    """The name of the build."""

    @property
    def compiled(self) -> Path:
        """The path of the directory of what was compiled from the package's sources."""
        return compiled(self.store, self.package)

    @property
    def image(self) -> Path:
        """The path of the read-only file system that the guests mount."""
        return self.store.images(self.build) / "targets.squashfs"

    @property
    def made(self) -> Path:
        """The path of the directory with what the host keeps of the targets in the image."""
        return self.store.images(self.build) / "targets"

    @property
    def listing(self) -> Path:
        """The path of the list of what is in the image, and of what was left out."""
        return self.made / "targets.json"

    @property
    def files(self) -> Path:
        """The path of the directory with programs and libraries as they were built, by package and relative path."""
        return self.made / "files"

    @property
    def build_ids(self) -> Path:
        """The path of the directory in which symbolizers look for programs by their build ids."""
        return self.made / ".build-id"
