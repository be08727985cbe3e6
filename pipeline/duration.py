"""Times, as people write them."""

import re

from pipeline.errors import UsageError

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str, least: float = 0.0) -> float:
    """Seconds, or with a suffix s, m, h or d; at least `least`, and never 0. Raises UsageError ("Bad time: X")."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd]?)", text.strip(), re.ASCII)
    if match is None:
        raise UsageError(f"Bad time: {text}", hint="write seconds, or a number with s, m, h or d, such as 10m")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds == 0 or seconds < least:
        raise UsageError(f"Bad time: {text}", hint=f"write {f'at least {least:g}' if least else 'more than 0'} seconds")
    return seconds


def readable_duration(seconds: float) -> str:
    """For people: "0.4 s", "12 s", "3m05s", "2h07m"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"
