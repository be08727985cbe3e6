"""The header block and the geometry of disks."""

import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ImageDamaged, ImageError, ImageTooLarge, WrongFormat
from pipeline.images.fvm import BLOCK, FvmHeader
from pipeline.images.fvm.header import smallest_disk
from tests.images.fvm.volumes import GIB, SLICE, SLICE_SIZES, make, put, read

IMAGE = make({"data": b"x"})


@pytest.mark.parametrize(
    ("size", "slice_size", "slices", "table", "partition_size"),
    [
        (8 << 20, 32 << 10, 251, 8192, 8388608),
        (64 << 20, 32 << 10, 2042, 24576, 67108864),
        (3 * GIB, 32 << 10, 98251, 794624, 3221225472),
        (3 * GIB, 1 << 20, 3071, 32768, 3220389888),
    ],
    ids=["8M of 32K", "64M of 32K", "3G of 32K", "3G of 1M"],
)
def test_geometry_of_a_disk(size: int, slice_size: int, slices: int, table: int, partition_size: int) -> None:
    header = FvmHeader.for_disk(size, slice_size)
    assert (header.slices, header.allocation_table_size, header.partition_size) == (slices, table, partition_size)


@given(SLICE_SIZES, st.integers(0, 1 << 32))
def test_a_disk_holds_its_tables_and_slices_and_no_more_would_fit(slice_size: int, more: int) -> None:
    size = smallest_disk(1, slice_size) + more
    header = FvmHeader.for_disk(size, slice_size)
    assert (
        header.partition_size == header.slice_offset(header.slices + 1) <= size < header.slice_offset(header.slices + 2)
    )
    assert header.allocation_table_size >= 8 * (header.slices + 1)
    assert FvmHeader.decode(header.encode()) == header


@given(SLICE_SIZES, st.integers(1, 1 << 20))
def test_the_smallest_disk_holds_so_many_slices_and_a_smaller_one_does_not(slice_size: int, slices: int) -> None:
    size = smallest_disk(slices, slice_size)
    assert FvmHeader.for_disk(size, slice_size).slices >= slices
    if slices > 1:
        assert FvmHeader.for_disk(size - 1, slice_size).slices < slices


@pytest.mark.parametrize(
    ("size", "slice_size", "error", "problem"),
    [
        (100000, SLICE, ImageError, "^100000 bytes are too few for an FVM with slices of 32768$"),
        (0, SLICE, ImageError, "^0 bytes are too few"),
        (GIB, 8193, ImageError, "^slices of 8193 bytes, expected a multiple of 8192$"),
        (GIB, 0, ImageError, "^slices of 0 bytes, expected a multiple of 8192$"),
        (GIB, -8192, ImageError, "^slices of -8192 bytes"),
        (SLICE << 24, SLICE, ImageTooLarge, "^549755813888 bytes are too many for an FVM with slices of 32768$"),
        (2**63, 2**40, ImageTooLarge, "^9223372036854775808 bytes are too many"),
    ],
)
def test_a_disk_that_cannot_be_is_refused(size: int, slice_size: int, error: type[ImageError], problem: str) -> None:
    with pytest.raises(error, match=problem) as caught:
        FvmHeader.for_disk(size, slice_size)
    assert caught.value.hint


def u64(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


@pytest.mark.parametrize(
    ("place", "value", "error", "problem"),
    [
        (0, b"FVM SPRS", WrongFormat, "at byte 0x0: this is a sparse FVM, expected a raw one"),
        (0, b"EFI PART", WrongFormat, ("at byte 0x0: FVM magic mismatch: 45 46 49 20 50 41 52 54, "
                                      "expected 46 56 4d 20 50 41 52 54")),
        (8, u64(2), WrongFormat, "at byte 0x8: FVM version 2, expected at most 1"),
        (16, u64(0), ImageDamaged, "at byte 0x10: 0 slices, expected 1 to 2147483648"),
        (16, u64(2**31 + 1), ImageDamaged, "at byte 0x10: 2147483649 slices, expected 1 to 2147483648"),
        (16, u64(1024), ImageDamaged, ("at byte 0x30: an allocation table of 8192 bytes, "
                                      "expected a multiple of 8192, at least 8200 for 1024 slices")),
        (24, u64(0), ImageDamaged, "at byte 0x18: slices of 0 bytes, expected a multiple of 8192"),
        (24, u64(8193), ImageDamaged, "at byte 0x18: slices of 8193 bytes, expected a multiple of 8192"),
        (32, u64(196607), ImageDamaged, ("at byte 0x20: the slices do not fit in the volume: it has 196607 bytes, "
                                        "expected at least 196608")),
        (16, u64(1023, 2**63 - 8192), ImageDamaged, ("at byte 0x20: the slices do not fit in the volume: it has 196608 "
                                                    f"bytes, expected at least {163840 + 1023 * (2**63 - 8192)}")),
        (32, u64(2**63), ImageDamaged, f"at byte 0x20: a volume of {2**63} bytes, expected at most {2**63 - 1}"),
        (40, u64(65535), ImageDamaged, "at byte 0x28: a partition table of 65535 bytes, expected 65536"),
        (48, u64(8191), ImageDamaged, "at byte 0x30: an allocation table of 8191 bytes"),
        (48, u64((128 << 20) + 8192), ImageTooLarge, ("at byte 0x30: an allocation table of 134225920 bytes, "
                                                     "expected at most 134217728")),
        (48, u64(2**63), ImageTooLarge, f"at byte 0x30: an allocation table of {2**63} bytes"),
    ],
    ids=["sparse", "magic", "version", "no slices", "many slices", "short table", "slice 0", "odd slice", "small",
         "overflow", "huge volume", "partition table", "odd table", "large table", "huge table"],
)  # fmt: skip
def test_a_header_that_makes_no_sense_is_refused(
    place: int, value: bytes, error: type[ImageError], problem: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(problem)}") as caught:
        read(put(IMAGE, place, value))
    assert type(caught.value) is error
    assert caught.value.hint


def test_a_sparse_image_has_a_way_out() -> None:
    with pytest.raises(WrongFormat) as caught:
        read(put(IMAGE, 0, b"FVM SPRS"))
    assert "fvm OUT.blk decompress --sparse FILE" in caught.value.hint


@pytest.mark.parametrize(
    ("image", "error", "problem"),
    [
        (b"", WrongFormat, "at byte 0x0: FVM magic mismatch: the file ends here, expected 46 56 4d 20 50 41 52 54"),
        (b"FVM", WrongFormat, "at byte 0x0: FVM magic mismatch: 46 56 4d, expected 46 56 4d 20 50 41 52 54"),
        (IMAGE[:8191], ImageDamaged, "at byte 0x1fff: the header is cut off, expected 8192 bytes of it"),
        (b"\x04\x22\x4d\x18" * 4096, WrongFormat, "at byte 0x0: FVM magic mismatch: 04 22 4d 18"),
        (b"\x3a\xff\x26\xed" * 4096, WrongFormat, "at byte 0x0: FVM magic mismatch: 3a ff 26 ed"),
    ],
    ids=["empty", "three bytes", "cut", "LZ4", "Android sparse"],
)
def test_what_is_no_whole_header_is_refused(image: bytes, error: type[ImageError], problem: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(problem)}"):
        read(image)


def test_a_header_is_a_block() -> None:
    assert len(FvmHeader.for_disk(GIB, SLICE).encode()) == BLOCK
