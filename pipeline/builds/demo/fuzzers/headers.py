"""The headers that the demo guest's fuzzers include, as the compiler tells them, kept in a small JSON file.

::

    {"schema": 1, "headers": ["shared.h", "../more/types.h"]}

The names are relative to the sources. A header that is included but does not exist is listed too, so that it is noticed
when it comes. Those of the sysroot are not listed.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.builds.demo.compiler import Compiler, unpack
from pipeline.builds.demo.fuzzers import OPTIONS, all_in
from pipeline.store import document
from pipeline.store.publish import publish, write_new

SCHEMA = 1
"""The schema of the file. Tests hold a frozen sample."""


def find(sources: Path, compiler: Compiler, sysroot: Path, listing: Path, *, timeout: float) -> None:
    """Ask the compiler what all fuzzers in `sources` include, and write that to the file `listing`.

    A source that does not compile is no error here. `timeout` is in seconds, for each run of the compiler. Raises
    StoreError or ToolError.
    """
    with publish(listing) as made:
        root, found = unpack(sysroot, made.parent / "root"), set()
        for source in (sources / OPTIONS, *(fuzzer.source for fuzzer in all_in(sources))):
            rule = compiler.dependencies(source, made.parent / f"{source.name}.d", root, timeout=timeout)
            found |= {os.path.relpath(sources / name, sources) for name in prerequisites(rule)} - {source.name}
        data = {"schema": SCHEMA, "headers": sorted(found)}
        # A path need not be UTF-8: as an escape of JSON each byte comes back as it was
        write_new(made, (json.dumps(data, indent=2, sort_keys=True) + "\n").encode())


@dataclass(frozen=True)
class _Listing:
    headers: tuple[str, ...]


def known(sources: Path, listing: Path) -> Mapping[str, Path]:
    """The listed headers that exist, by their names in the list; none if the list is missing or cannot be read."""
    with suppress(OSError, ValueError):
        names = document.decode(listing.read_bytes(), _Listing, SCHEMA).headers
        return {name: sources / name for name in names if (sources / name).is_file()}
    return {}


def prerequisites(rule: str) -> Iterator[str]:
    """The names after the colon of a rule of make, as compilers write it: with blanks, # and $ escaped."""
    _, _, behind = rule.replace("\\\n", " ").partition(": ")
    for word in re.findall(r"(?:\\[ #]|\$\$|\S)+", behind):
        yield re.sub(r"\\([ #])|\$(\$)", lambda found: found[1] or found[2], word)
