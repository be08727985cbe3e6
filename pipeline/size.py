"""Sizes, as people write them."""

import re

from pipeline.errors import UsageError


def parse_size(text: str) -> int:
    """Bytes, or with a suffix K, M or G (either case) powers of 1024. Raises UsageError ("Bad size: X")."""
    match = re.fullmatch(r"([0-9]{1,19})([KkMmGg]?)", text)
    size = int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()] if match else 0
    if size == 0:
        raise UsageError(f"Bad size: {text}", hint="write bytes, or a number with K, M or G, such as 3G")
    return size


def readable(size: int) -> str:
    """Bytes for people: "12 KiB", "3.0 GiB"."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.1f} {unit}" if value < 10 and unit in ("GiB", "TiB") else f"{value:.0f} {unit}"
