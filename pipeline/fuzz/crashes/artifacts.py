"""Artifacts: what their names say of their contents, so that nothing else passes for the input of a crash.

libFuzzer (FuzzerLoop.cpp, FuzzerIO.cpp) names an artifact by the kind of the finding and the SHA-1 of the unit. A guest
whose disk is full keeps only the beginning of a file under that name, or nothing.
"""

import re

from pipeline.fuzz.corpus.files import name_of
from pipeline.fuzz.crashes.report import CrashReport

_NAME = re.compile(r"(?:crash|leak|timeout|oom|slow-unit)-([0-9a-f]{40})")


def unit_of(name: str) -> str:
    """Return the name, its SHA-1, of the unit in the artifact with this name; empty if the name does not tell it."""
    match = _NAME.fullmatch(name)
    return match[1] if match else ""


def is_crash(name: str) -> bool:
    """Whether the artifact with this name ended the fuzzer: libFuzzer also writes slow units, and goes on."""
    return not name.startswith("slow-unit-")


def is_whole(name: str, content: bytes) -> bool:
    """Whether the content can be that of the artifact with this name: its SHA-1 fits, if the name has one."""
    return unit_of(name) in ("", name_of(content))


def told(name: str, report: CrashReport | None) -> bytes | None:
    """Return the artifact's content as the output told it; None if it told none, or one that does not fit the name."""
    content = report.base64 if report else None
    return content if content is not None and is_whole(name, content) else None
