"""Which headers the demo guest's fuzzers include: asked of the compiler, and kept in a small file beside them.

::

    {"schema": 1, "headers": ["shared.h", "../more/types.h"]}

Relative to the sources. A header that is asked for and not there is in it too, so that its coming is noticed. Those of
the sysroot are not.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from pipeline.demo.compiler import Compiler, unpack
from pipeline.demo.fuzzers import OPTIONS, all_in
from pipeline.publish import publish, write_new

SCHEMA = 1
"""Tests hold a frozen sample."""


def find(sources: Path, compiler: Compiler, sysroot: Path, listing: Path, *, timeout: float) -> None:
    """Ask the compiler what all fuzzers in `sources` include, and write the file `listing`.

    A source that does not compile is no error here. Raises StoreError or ToolError.
    """
    with publish(listing) as made:
        root, found = unpack(sysroot, made.parent / "root"), set()
        for source in (sources / OPTIONS, *(fuzzer.source for fuzzer in all_in(sources))):
            rule = compiler.dependencies(source, made.parent / f"{source.name}.d", root, timeout=timeout)
            found |= {os.path.relpath(sources / name, sources) for name in prerequisites(rule)} - {source.name}
        data = {"schema": SCHEMA, "headers": sorted(found)}
        # A path need not be UTF-8: as an escape of JSON each byte comes back as it was
        write_new(made, (json.dumps(data, indent=2, sort_keys=True) + "\n").encode())


def known(sources: Path, listing: Path) -> Mapping[str, Path]:
    """The headers that are listed and there, by their names in the list. A list that is not there is empty."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        data = json.loads(listing.read_bytes())
        if data["schema"] == SCHEMA:
            return {name: sources / name for name in map(str, data["headers"]) if (sources / name).is_file()}
    return {}


def prerequisites(rule: str) -> Iterator[str]:
    """The names behind the colon of a rule of make, as compilers write it: blanks, # and $ are escaped."""
    _, _, behind = rule.replace("\\\n", " ").partition(": ")
    for word in re.findall(r"(?:\\[ #]|\$\$|\S)+", behind):
        yield re.sub(r"\\([ #])|\$(\$)", lambda found: found[1] or found[2], word)
