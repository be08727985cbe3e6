"""The headers that a target's sources include, as the compiler tells them, kept in a small JSON file.

::

    {"schema": 1, "headers": ["shared.h", "../more/types.h"]}

The names are relative to the directory of the targets. A header that is included but does not exist is listed too, so
that it is noticed when it comes. Those of the sysroot are not listed.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.builds.linux.compiler import Compiler, unpack
from pipeline.builds.targets.compiling import Variant, words
from pipeline.builds.targets.sources import SourceTarget
from pipeline.store import document
from pipeline.store.publish import publish, write_new

SCHEMA = 1
"""The schema of the file. Tests hold a frozen sample."""


def find(
    directory: Path,
    target: SourceTarget,
    compiler: Compiler,
    sysroot: Path,
    listing: Path,
    *,
    timeout: float,
    variant: Variant = "fuzz",
) -> None:
    """Ask the compiler what the target's sources include, and write that to the file `listing`.

    A source that does not compile is no error here. `timeout` is in seconds, for each run of the compiler. Raises
    StoreError or ToolError.
    """
    with publish(listing) as made:
        root, found = unpack(sysroot, made.parent / "root"), set()
        for number, source in enumerate(target.sources):
            rule = made.parent / f"{number}.d"
            asked = (*words(target, variant), source)
            told = compiler.dependencies(*asked, directory=directory, rule=rule, root=root, timeout=timeout)
            found |= {os.path.relpath(directory / name, directory) for name in prerequisites(told)} - {source}
        data = {"schema": SCHEMA, "headers": sorted(found)}
        # A path need not be UTF-8: as an escape of JSON each byte comes back as it was
        write_new(made, (json.dumps(data, indent=2, sort_keys=True) + "\n").encode())


@dataclass(frozen=True)
class _Listing:
    headers: tuple[str, ...]


def known(directory: Path, listing: Path) -> Mapping[str, Path]:
    """The listed headers that exist, by their names in the list; none if the list is missing or cannot be read."""
    with suppress(OSError, ValueError):
        names = document.decode(listing.read_bytes(), _Listing, SCHEMA).headers
        return {name: directory / name for name in names if (directory / name).is_file()}
    return {}


def prerequisites(rule: str) -> Iterator[str]:
    """The names after the colon of a rule of make, as compilers write it: with blanks, # and $ escaped."""
    _, _, behind = rule.replace("\\\n", " ").partition(": ")
    for word in re.findall(r"(?:\\[ #]|\$\$|\S)+", behind):
        yield re.sub(r"\\([ #])|\$(\$)", lambda found: found[1] or found[2], word)
