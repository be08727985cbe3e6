"""The types of items in a ZBI, by number and by name.

Source: Fuchsia, sdk/lib/zbi-format/include/lib/zbi-format/zbi.h.
"""

import re

from pipeline.errors import UsageError

CONTAINER = 0x544F4F42
KERNEL_X64 = 0x4C4E524B
KERNEL_ARM64 = 0x384E524B
KERNEL_RISCV64 = 0x564E524B
DISCARD = 0x50494B53
RAMDISK = 0x4B534452
BOOTFS = 0x42534642
STORAGE_KERNEL = 0x5254534B
CMDLINE = 0x4C444D43

STORAGE = frozenset((RAMDISK, BOOTFS, STORAGE_KERNEL))
"""The types whose payload may be compressed; `extra` is then the size of the decompressed content."""

NAMES = {
    CONTAINER: "CONTAINER",
    KERNEL_X64: "KERNEL_X64",
    KERNEL_ARM64: "KERNEL_ARM64",
    KERNEL_RISCV64: "KERNEL_RISCV64",
    DISCARD: "DISCARD",
    RAMDISK: "RAMDISK",
    BOOTFS: "BOOTFS",
    STORAGE_KERNEL: "KERNEL",
    0x46534642: "BOOTFS_FACTORY",
    CMDLINE: "CMDLINE",
    0x4D4F4F42: "CRASHLOG",
    0x4C4C564E: "NVRAM",
    0x44494C50: "PLATFORM_ID",
    0x4953426D: "DRV_BOARD_INFO",
    0x43505533: "CPU_TOPOLOGY",
    0x434D454D: "MEM_CONFIG",
    0x5652444B: "KERNEL_DRIVER",
    0x50445352: "ACPI_RSDP",
    0x49424D53: "SMBIOS",
    0x53494645: "EFI_SYSTEM_TABLE",
    0x54414D45: "EFI_MEMORY_ATTRIBUTES_TABLE",
    0x42465753: "FRAMEBUFFER",
    0x47524149: "IMAGE_ARGS",
    0x53525642: "BOOT_VERSION",
    0x43414D6D: "DRV_MAC_ADDRESS",
    0x5452506D: "DRV_PARTITION_MAP",
    0x524F426D: "DRV_BOARD_PRIVATE",
    0x42525748: "HW_REBOOT_REASON",
    0x4E4C5253: "SERIAL_NUMBER",
    0x4C465442: "BOOTLOADER_FILE",
    0xD00DFEED: "DEVICETREE",
    0x444E4152: "ENTROPY",
    0x44474244: "DEBUGDATA",
    0x41534956: "RISCV64_ISA_STRTAB",
    0x47464342: "LINUX_BOOTCONFIG",
}
"""The name of each type, as `zbi --type` takes it."""

_NUMBERS = {
    **{name: number for number, name in NAMES.items()},
    "SECURE_ENTROPY": 0x444E4152,
    "STORAGE_RAMDISK": RAMDISK,
    "STORAGE_BOOTFS": BOOTFS,
    "STORAGE_KERNEL": STORAGE_KERNEL,
}

KERNELS = {"x64": KERNEL_X64, "arm64": KERNEL_ARM64, "riscv64": KERNEL_RISCV64}
"""The type of the kernel item that boots, by architecture."""


def name_of(number: int) -> str:
    """The name of a type, or "UNKNOWN (type=HEX)"."""
    return NAMES.get(number, f"UNKNOWN (type={number:08x})")


def parse(text: str) -> int:
    """The number of a type that is given by name, in either case, or in hexadecimal. Raises UsageError."""
    known = _NUMBERS.get(text.upper())
    if known is not None:
        return known
    if not re.fullmatch(r"(0x)?[0-9a-f]{1,8}", text, re.ASCII | re.IGNORECASE):
        raise UsageError(f"unrecognized type: {text}", hint=f"use {', '.join(sorted(NAMES.values()))}, or hexadecimal")
    return int(text, 16)


def is_kernel(number: int) -> bool:
    """Whether a type is that of a kernel, for whatever architecture."""
    return number & 0x00FFFFFF == 0x004E524B
