"""Full names of fuzzers, PACKAGE/FUZZER, as paths in the store: no name leads out of the directory meant for it."""

import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.host.faults import entries
from pipeline.text.printable import one_line

_FUZZER = re.compile(r"[\w+-][\w.+-]*/[\w+-][\w.+-]*", re.ASCII)


def directory_of(root: Path, fuzzer: str) -> Path:
    """The directory of a fuzzer below `root`. Raises UsageError if no fuzzer can have this full name."""
    if not _FUZZER.fullmatch(fuzzer):
        raise UsageError(
            f"{one_line(repr(fuzzer))} cannot be the name of a fuzzer", hint="a full name is PACKAGE/FUZZER"
        )
    return root / fuzzer


def fuzzers_below(root: Path) -> Iterator[str]:
    """The full names of all fuzzers that have a directory below `root`, sorted by package. Raises StoreError."""
    for package in entries(root):
        for path in entries(package) if package.is_dir() else ():
            if path.is_dir() and _FUZZER.fullmatch(name := f"{package.name}/{path.name}"):
                yield name
