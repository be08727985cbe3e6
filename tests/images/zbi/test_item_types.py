"""Types of items by name and number."""

import pytest

from pipeline.errors import UsageError
from pipeline.images.zbi import item_types
from tests.images import zbis


@pytest.mark.parametrize(
    ("text", "number"),
    [("CMDLINE", zbis.CMDLINE), ("cmdline", zbis.CMDLINE), ("Bootfs", zbis.BOOTFS), ("STORAGE_BOOTFS", zbis.BOOTFS),
     ("RAMDISK", zbis.RAMDISK), ("KERNEL", 0x5254534B), ("kernel_x64", zbis.KERNEL_X64), ("entropy", 0x444E4152),
     ("SECURE_ENTROPY", 0x444E4152), ("4c444d43", zbis.CMDLINE), ("0x4C444D43", zbis.CMDLINE), ("0", 0),
     ("ffffffff", 0xFFFFFFFF), ("container", zbis.CONTAINER)],
)  # fmt: skip
def test_types(text: str, number: int) -> None:
    assert item_types.parse(text) == number


@pytest.mark.parametrize("text", ["", "x", "-1", "+1", " 1", "1_0", "100000000", "0x", "cmd line", "٣"])
def test_what_is_no_type(text: str) -> None:
    with pytest.raises(UsageError, match="unrecognized type: ") as caught:
        item_types.parse(text)
    assert "CMDLINE" in caught.value.hint


def test_every_name_is_a_type_of_its_own() -> None:
    assert {item_types.parse(name): name for name in item_types.NAMES.values()} == item_types.NAMES


def test_an_unknown_type_is_shown_as_a_number() -> None:
    assert item_types.name_of(0xABC) == "UNKNOWN (type=00000abc)"
    assert item_types.name_of(zbis.BOOTFS) == "BOOTFS"


@pytest.mark.parametrize(
    ("number", "kernel"),
    [(zbis.KERNEL_X64, True), (zbis.KERNEL_ARM64, True), (0x564E524B, True), (0x5254534B, False), (0x5652444B, False)],
)
def test_kernels(number: int, kernel: bool) -> None:
    assert item_types.is_kernel(number) is kernel
    assert (number in item_types.KERNELS.values()) is kernel
