"""`topcoat targets`: what is found in the directory of targets, and why other files are no targets."""

import argparse
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pipeline.errors import MissingResource, NotSupported
from pipeline.settings import Settings
from pipeline.text import goglob
from pipeline.text.printable import columns, one_line
from pipeline.text.quantity import readable_size

if TYPE_CHECKING:
    from pipeline.builds.targets.contents import LeftOutTarget, PackageContents
    from pipeline.builds.targets.directory import FoundTarget

SCHEMA = 1
"""The version of the output of `topcoat targets --json`."""

_TITLES = ("target", "engine", "sanitizers", "dictionary", "seeds", "libraries", "size")


@dataclass(frozen=True)
class _Told:
    """One target, as it is told."""

    target: "FoundTarget"
    dictionary: PurePosixPath | None
    libraries: tuple[str, ...]
    problems: tuple[str, ...]


def targets(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat targets`: print what is found. Nothing is made, and no guest is asked.

    Returns the exit code of a missing file if the directory has nothing of the kind.
    """
    wanted = [goglob.compiled(pattern) for pattern in options.patterns]
    contents = _look(chosen)

    def asked_for(name: str) -> bool:
        return not wanted or any(pattern.match(f"{contents.package}/{name}") for pattern in wanted)

    told = [_told(contents, one) for one in contents.targets if asked_for(one.name)]
    left_out = [one for one in contents.left_out if (one.broken or options.all) and asked_for(one.name)]
    if options.json:
        print(json.dumps(_encoded(contents, told, left_out), indent=2, sort_keys=True))
    else:
        print(*_lines(contents, told, left_out, options.patterns), sep="\n")
    return 0 if told or left_out or wanted else MissingResource.exit_code


def _look(chosen: Settings) -> "PackageContents":
    from pipeline.builds import elf
    from pipeline.builds.build import load
    from pipeline.builds.linux.packages import Packages
    from pipeline.builds.targets.contents import of, sources_of
    from pipeline.builds.targets.libraries import read

    build = load(chosen)
    if build.targets is None:
        raise NotSupported(
            f"the {build.kind} build has no directory of targets: it lists its fuzzers itself",
            hint="to look at targets for the Linux guest: TOPCOAT_TARGETS=DIR topcoat targets",
        )
    glibc = Packages(chosen.store.demo / "packages").version("libc6")
    found = of(sources_of(build.targets)[0], elf.read, glibc)
    with suppress(OSError, ValueError):  # what Debian has is known once it was asked
        return found.without(read(chosen.store.targets / found.package / "libraries.json").missing)
    return found


def _told(contents: "PackageContents", target: "FoundTarget") -> _Told:
    """A target with the libraries that it loads besides those that every guest has, and what is passed over of it."""
    from pipeline.builds.linux.initramfs import PROVIDED
    from pipeline.builds.targets.image import dictionary_of
    from pipeline.builds.targets.options import TargetOptions, read
    from pipeline.fuzz.flags import of_target
    from pipeline.fuzz.sanitizers import loses

    found = read(contents.source.directory / target.options) if target.options else TargetOptions()
    _, passed_over = of_target(found.flags)
    words, wrong = dictionary_of(contents, target, found)
    about = target.options.name if target.options else ""
    return _Told(
        target,
        words,
        tuple(name for name in contents.loads.get(target.name, ()) if name not in PROVIDED),
        (*(f"{about}: {problem}" for problem in (*found.problems, *passed_over, *loses(found.environment))), *wrong),
    )


def _lines(
    contents: "PackageContents", told: list[_Told], left_out: "list[LeftOutTarget]", patterns: list[str]
) -> Iterator[str]:
    if told:
        yield from columns([_TITLES, *(_row(contents, one) for one in told)], len(_TITLES) - 1)
    elif patterns:
        shown = " or ".join(map(one_line, patterns))
        yield f"no target has a name like {shown}; full names are meant, such as {contents.package}/*"
    else:
        yield f"no targets in {one_line(str(contents.source.directory))}"
    if any(one.problems for one in told):
        yield from ("", "to note:")
        yield from (f"  {contents.package}/{one.target.name}: {problem}" for one in told for problem in one.problems)
    if left_out:
        yield from ("", "left out:")
        yield from (f"  {one.shown}: {one.reason}{f' ({one.hint})' if one.hint else ''}" for one in left_out)


def _row(contents: "PackageContents", one: _Told) -> tuple[str, ...]:
    target = one.target
    libraries = (f"{one_line(name)} (Debian)" if name in contents.lacking else one_line(name) for name in one.libraries)
    return (
        f"{contents.package}/{target.name}",
        target.elf.engine or "-",
        ",".join(target.elf.sanitizers) or "none",
        one_line(one.dictionary.name) if one.dictionary else "-",
        " ".join(map(_kind_of_seeds, target.seeds)) or "-",
        " ".join(libraries) or "-",
        readable_size(target.bytes),
    )


def _kind_of_seeds(path: PurePosixPath) -> str:
    """The suffix of an archive: the rest of its name is known."""
    from pipeline.builds.targets.entries import SEEDS

    return path.name.rpartition(SEEDS)[2].lstrip(".") or "directory"


def _encoded(contents: "PackageContents", told: list[_Told], left_out: "list[LeftOutTarget]") -> dict[str, object]:
    def path(value: object) -> str | None:
        return str(value) if value else None

    found = [
        {
            "bytes": one.target.bytes,
            "dictionary": path(one.dictionary),
            "engine": one.target.elf.engine,
            "libraries": list(one.libraries),
            "name": f"{contents.package}/{one.target.name}",
            "options": path(one.target.options),
            "problems": list(one.problems),
            "program": str(one.target.program),
            "sanitizers": list(one.target.elf.sanitizers),
            "seeds": [str(each) for each in one.target.seeds],
        }
        for one in told
    ]
    others = [{"broken": one.broken, "hint": one.hint, "path": one.path, "reason": one.reason} for one in left_out]
    directory: Path = contents.source.directory
    lacking = {name: list(users) for name, users in contents.lacking.items()}
    return {
        "schema": SCHEMA, "package": contents.package, "directory": str(directory), "targets": found,
        "left_out": others, "from_debian": lacking,
    }  # fmt: skip
