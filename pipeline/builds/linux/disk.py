"""The Linux guest's disk: a real, small FVM image, like the one that a build would bring."""

from pathlib import Path

from pipeline.images import fvm
from pipeline.store.publish import publish

SLICE = 32 * 1024
_DATA = b"This data partition belongs to the Linux guest of Topcoat.\n"


def make(output: Path) -> None:
    """Write the image: one data partition, on a volume just large enough. Raises StoreError."""
    with publish(output) as made, made.open("wb") as stream:
        fvm.create(stream, SLICE, {"data": _DATA})
