"""Sizes and durations as people write them, such as 3G or 10m: how to read and to print them."""

import re

from pipeline.errors import UsageError

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_size(text: str) -> int:
    """Parse a size into bytes. A suffix K, M or G, in either case, means powers of 1024.

    Raises UsageError ("Bad size: X"), also for 0.
    """
    match = re.fullmatch(r"([0-9]{1,19})([KkMmGg]?)", text)
    size = int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()] if match else 0
    if size == 0:
        raise UsageError(f"Bad size: {text}", hint="write bytes, or a number with K, M or G, such as 3G")
    return size


def readable_size(size: int) -> str:
    """Format a number of bytes for people: "12 KiB", "3.0 GiB"."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.1f} {unit}" if value < 10 and unit in ("GiB", "TiB") else f"{value:.0f} {unit}"


def counted(number: int, noun: str) -> str:
    """A number of things, such as `1 byte` or `1,024 bytes`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def parse_duration(text: str, least: float = 0.0) -> float:
    """Parse a duration into seconds. A suffix s, m, h or d is the unit; without one it is seconds.

    Raises UsageError ("Bad time: X"), also for 0 and for less than `least` seconds.
    """
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd]?)", text.strip(), re.ASCII)
    if match is None:
        raise UsageError(f"Bad time: {text}", hint="write seconds, or a number with s, m, h or d, such as 10m")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds == 0 or seconds < least:
        raise UsageError(f"Bad time: {text}", hint=f"write {f'at least {least:g}' if least else 'more than 0'} seconds")
    return seconds


def readable_duration(seconds: float) -> str:
    """Format a number of seconds for people: "0.4 s", "12 s", "3m05s", "2h07m"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"
