"""FVM, the volume manager of Fuchsia's disks: raw images (`fvm.blk`) read, made, extended, checked and compared.

Layout, little-endian: a header block, the partition table and the allocation table; then a second copy (B) of all
three; then the physical slices (pslices, counted from 1). Each entry of the allocation table says of one physical slice
which partition it belongs to, and which slice of that partition (vslice) it is. Either copy may be damaged; of two
valid ones, that with the higher generation counts. Source of the numbers: Fuchsia, src/storage/fvm/format.h; of
`extend`, src/storage/volume_image/fvm. As a command, this package takes the arguments of Fuchsia's own tool::

    python -m pipeline.images.fvm FILE extend --length N[K|M|G] [--length-is-lowerbound] [--resize-image-file-to-fit]
                                              [--in-place]
    python -m pipeline.images.fvm FILE create --slice SIZE [--length SIZE] [--max-disk-size SIZE]
                                              --partition NAME=FILE...
    python -m pipeline.images.fvm FILE check
    python -m pipeline.images.fvm FILE size

It differs from Fuchsia's tool in this: a volume of one slice keeps its allocation, the file keeps its permission bits,
`--resize-image-file-to-fit` takes into account that slices have been moved, and `--in-place` is new.
"""

from pipeline.images.fvm.comparison import first_difference
from pipeline.images.fvm.creation import create
from pipeline.images.fvm.extension import extend, extend_file, extend_in_place
from pipeline.images.fvm.header import BLOCK, MAGIC, SPARSE_MAGIC, FvmHeader
from pipeline.images.fvm.metadata import Copies, Metadata, read, read_copies
from pipeline.images.fvm.program import main
from pipeline.images.fvm.soundness import check, inspect
from pipeline.images.fvm.tables import DATA_TYPE, Extent, Partition

__all__ = [
    "BLOCK",
    "DATA_TYPE",
    "MAGIC",
    "SPARSE_MAGIC",
    "Copies",
    "Extent",
    "FvmHeader",
    "Metadata",
    "Partition",
    "check",
    "create",
    "extend",
    "extend_file",
    "extend_in_place",
    "first_difference",
    "inspect",
    "main",
    "read",
    "read_copies",
]
