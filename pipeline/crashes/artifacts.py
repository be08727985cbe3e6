"""Artifacts: what libFuzzer's names for them say of their contents, so that nothing else passes for a crash's input.

FuzzerLoop.cpp and FuzzerIO.cpp name them by the kind of the end and the SHA-1 of the unit. A guest whose disk is full
keeps the beginning of a file, or nothing of it, under that name.
"""

import re

from pipeline.corpus.files import name_of
from pipeline.crashes.report import CrashReport

_NAME = re.compile(r"(?:crash|leak|timeout|oom|slow-unit)-([0-9a-f]{40})")


def unit_of(name: str) -> str:
    """The name of the unit that the artifact with this name is; empty if the name does not say it."""
    match = _NAME.fullmatch(name)
    return match[1] if match else ""


def is_crash(name: str) -> bool:
    """Whether the fuzzer has ended with it: libFuzzer writes slow units too, and goes on."""
    return not name.startswith("slow-unit-")


def is_whole(name: str, content: bytes) -> bool:
    """Whether the content can be that of the artifact with this name."""
    return unit_of(name) in ("", name_of(content))


def told(name: str, report: CrashReport | None) -> bytes | None:
    """The content of the artifact as the fuzzer's output tells it; None if it does not."""
    content = report.base64 if report else None
    return content if content is not None and is_whole(name, content) else None
