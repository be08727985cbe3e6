"""The smallest image that has all that matters, with which a tool is tried."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.images.zbi import container, item_types
from pipeline.images.zbi.compression import NONE
from pipeline.images.zbi.merge import ZbiMerge


def write_tiny(path: Path, files: Mapping[str, Path]) -> None:
    """Write an image with a dummy kernel for x64, a command line, and an uncompressed BOOTFS with these files."""
    with ZbiMerge() as merge, path.open("w+b", buffering=0) as stream:
        merge.add_item(container.made(item_types.KERNEL_X64, bytes(64)))
        merge.add_item(container.made(item_types.CMDLINE, b"kernel.serial=legacy\0"))
        for name, source in files.items():
            merge.add_file(name, source)
        container.write(stream, merge.outcome(NONE))
