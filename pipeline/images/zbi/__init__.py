"""ZBI, Fuchsia's boot image: reading it, checking it and putting it together.

Format: a container of items, each with a 32-byte header, padded to 8 bytes. The item BOOTFS holds files, either raw or
as one LZ4 or zstd frame. Source: Fuchsia, sdk/lib/zbi-format. As a command, this package takes the arguments of
Fuchsia's own `zbi`::

    python -m pipeline.images.zbi -o OUT IN... [--replace] -e PATH=FILE...
    python -m pipeline.images.zbi --list [-v] IN
"""

from pipeline.images.zbi.inspect import inspect
from pipeline.images.zbi.item_types import KERNELS
from pipeline.images.zbi.item_types import name_of as item_name
from pipeline.images.zbi.program import main
from pipeline.images.zbi.tiny import write_tiny

__all__ = ["KERNELS", "inspect", "item_name", "main", "write_tiny"]
