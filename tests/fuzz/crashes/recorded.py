"""What fuzzers of the Linux guest, and small programs in C, C++ and Rust, said when they crashed."""

from pathlib import Path

from pipeline.builds.demo.planted import Planted
from pipeline.fuzz.crashes.report import CrashReport, parse

OUTPUTS = Path(__file__).parent / "outputs"
"""Without the tables of shadow bytes, and the lower part of a deep stack."""


def read(name: str) -> CrashReport:
    """Parse one of them, which must tell of a crash."""
    found = parse((OUTPUTS / f"{name}.txt").read_bytes())
    assert found is not None
    return found


def parsed(text: str) -> CrashReport:
    """Parse an output, which must tell of a crash."""
    found = parse(text.encode())
    assert found is not None
    return found


def planted(bug: Planted) -> CrashReport:
    """Parse what the bug's fuzzer said."""
    return read(f"{bug.fuzzer}-{bug.function}")
