"""`topcoat open`: a guest goes on as it was when a fuzzer had crashed in it."""

import argparse
import json
import os
import re
import shlex
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.host.faults import entries
from pipeline.host.stdio import only_telling
from pipeline.settings import Settings
from pipeline.text.printable import columns, one_line
from pipeline.text.quantity import readable_size
from pipeline.vm.instance import Instance

if TYPE_CHECKING:
    from pipeline.vm.capsule import Capsule, CapsuleFacts
    from pipeline.vm.qemu.opening import ProcessLook

_LONGEST_NAME = 63
_MOST_TOLD = 5
_CODE = re.compile(r"[0-9a-f-]+ ..x")  # in /proc/PID/maps: what can be executed
_SYMBOLS = "luigi --module tasks TargetsImage makes those of the targets as they are now"
_RESERVED = re.compile(r"pool-\d+|template-.*")  # pipeline/vm/slot.py, pipeline/vm/qemu/saving.py


def open_crash(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat open`: open the capsule of a crash, and tell of the process that has crashed, or have gdb do that.

    Without a crash, list the capsules of the store.
    """
    from pipeline.builds.build import load
    from pipeline.ssh.connector import Connector
    from pipeline.vm import debugger
    from pipeline.vm.capsule import Capsule
    from pipeline.vm.qemu import opening

    _require_sense(options)
    if options.crash is None:
        return _list(chosen, options)
    programs = debugger.programs() if options.gdb else None
    capsule = Capsule(_find(chosen, options.crash))
    name = options.name or _name_for(capsule.directory)
    instance, build = Instance.named(chosen.store, name), load(chosen)
    handle = opening.open_capsule(chosen, build, instance, capsule)
    pid = capsule.facts.crashed.pid
    with closing(Connector(handle.ssh, chosen.boot.timeouts(handle.accelerator))) as connector:
        look = opening.look(connector, pid)
        if programs and not look.program:
            raise UsageError(f"process {pid} has ended in {name}: there is nothing to debug", hint=_anew(name, capsule))
        gdbserver = debugger.bring(connector, programs.gdbserver) if programs else ""
    with only_telling():
        if options.json:
            print(json.dumps(_encoded(name, capsule.facts, look), indent=2, sort_keys=True))
        else:
            print(*_told(name, capsule, look), sep="\n")
        sys.stdout.flush()
    if programs:
        if not any(path.is_dir() for path in build.build_ids):
            print(f"note: gdb will tell no lines: the symbols are not there; {_SYMBOLS}", file=sys.stderr)
        argv = debugger.command(programs.gdb, name, pid, gdbserver, build.build_ids, options.for_gdb)
        debugger.become(argv, chosen.store.root)
    return 0


def _require_sense(options: argparse.Namespace) -> None:
    if options.for_gdb and not options.gdb:
        raise UsageError("what stands after -- is for gdb", hint="add --gdb before it: topcoat open CRASH --gdb -- …")
    if options.gdb and options.json:
        raise UsageError("--gdb and --json do not go together", hint="leave one of them out")
    if options.crash is None and (options.gdb or options.name):
        raise UsageError("say which crash to open", hint="topcoat open lists all that have a capsule")
    if options.name and _RESERVED.fullmatch(options.name):
        raise UsageError(
            f"{one_line(options.name)} is the name of a guest that Topcoat makes and ends by itself",
            hint="give another one, or leave --name out",
        )


def _encoded(name: str, facts: "CapsuleFacts", look: "ProcessLook") -> dict[str, object]:
    crashed = {"fuzzer": facts.crashed.fuzzer, "pid": facts.crashed.pid, "saved": facts.saved}
    return {"schema": 1, "instance": name, **crashed, "program": look.program or None, "maps": look.maps}


def _told(name: str, capsule: "Capsule", look: "ProcessLook") -> list[str]:
    """What people are told of an opened capsule."""
    facts, pid = capsule.facts, capsule.facts.crashed.pid
    crashed = one_line(facts.crashed.fuzzer)
    lines = [f"{name} is running, from the guest as it was at {one_line(facts.saved)}, when {crashed} had crashed"]
    if not look.program:
        return [*lines, f"process {pid} has ended in it; {_anew(name, capsule)}"]
    named = "" if name == _name_for(capsule.directory) else f" --name {name}"
    return [
        *lines,
        f"process {pid} is stopped where the sanitizer had reported: {look.program}; its code is at",
        *(f"  {line}" for line in look.maps if _CODE.match(line)),
        f"map of its memory   topcoat ssh {name} -- cat /proc/{pid}/maps",
        f"enter the guest     topcoat ssh {name}",
        f"debug the process   topcoat open {_shown(capsule)}{named} --gdb",
        f"end the guest       topcoat stop {name}; the capsule stays as it is",
    ]


def _anew(name: str, capsule: "Capsule") -> str:
    return f"to have it again: topcoat stop {name}, then topcoat open {_shown(capsule)} --name {name}"


def _shown(capsule: "Capsule") -> str:
    """What a shell is given for a capsule: the directory of its crash, if that is where it lies."""
    from pipeline.campaign.result import from_here
    from pipeline.vm.capsule import NAME

    place = capsule.directory
    return shlex.quote(from_here(place.parent if place.name == NAME else place))


def _list(chosen: Settings, options: argparse.Namespace) -> int:
    """List the capsules of the store."""
    from pipeline.campaign.result import from_here
    from pipeline.vm.capsule import FACTS, CapsuleFacts

    found, rows = [], [("fuzzer", "saved", "size", "crash")]
    for place in _all(chosen):
        try:
            facts = CapsuleFacts.decode((place / FACTS).read_bytes())
        except (OSError, ValueError) as error:
            print(f"warning: {one_line(str(place))} cannot be read: {one_line(str(error))}", file=sys.stderr)
            continue
        size = sum(one.bytes for one in facts.files.values())
        fuzzer, saved, crash = one_line(facts.crashed.fuzzer), one_line(facts.saved), str(place.parent)
        found.append({"crash": crash, "fuzzer": fuzzer, "saved": saved, "bytes": size, "qemu": one_line(facts.qemu)})
        rows.append((fuzzer, saved, readable_size(size), shlex.quote(from_here(place.parent))))
    if options.json:
        print(json.dumps({"schema": 1, "capsules": found}, indent=2, sort_keys=True))
    elif found:
        print(*columns(rows, texts=4), sep="\n")
    else:
        print(f"no crash in {chosen.store.root} has a capsule; {_MADE_BY}", file=sys.stderr)
    return 0


_MADE_BY = "campaigns make them with --capsule first; see docs/capsules.md"


def _all(chosen: Settings) -> list[Path]:
    from pipeline.fuzz.crashes.store import CrashStore
    from pipeline.vm.capsule import FACTS, NAME

    store = CrashStore(chosen.store.root)
    # Listed one by one: for a glob, what cannot be read is not there
    buckets = [store.directory(fuzzer, slug) for fuzzer in store.fuzzers() for slug in store.slugs(fuzzer)]
    buckets += [bucket for one in entries(chosen.store.campaigns) for bucket in entries(one / "crashes")]
    return [file.parent for bucket in buckets for file in sorted(bucket.glob(f"*/{NAME}/{FACTS}"))]


def _names(chosen: Settings, place: Path) -> tuple[str, str]:
    """The names by which the capsule in this directory can be called: those of its bucket and its campaign."""
    from pipeline.fuzz.crashes.crash import KeptCrash

    crash = place.parent
    if place.is_relative_to(chosen.store.campaigns):  # an older version of Topcoat has made it
        return crash.parent.name, place.relative_to(chosen.store.campaigns).parts[0]
    with suppress(OSError, ValueError):
        return crash.parent.name, KeptCrash.at(crash).facts.campaign
    return crash.parent.name, ""


def _find(chosen: Settings, word: str) -> Path:
    """The directory of the capsule that is meant: by a path to it, its crash or its bucket, or a name.

    The name is that of its bucket, or of its campaign.
    """
    from pipeline.vm.capsule import found_in

    path = Path(os.path.abspath(word))
    named = [place for place in _all(chosen) if word in _names(chosen, place)]
    found = found_in(path) or named
    if len({place.parents[1] for place in found}) > 1:
        crashes = [str(one.parent) for one in found]
        raise UsageError(f"there are several capsules of {one_line(word)}", hint=f"say which: {_some(crashes)}")
    if found:
        return found[0]
    if not path.exists():
        raise UsageError(
            f"no capsule is in {one_line(word)}: there is no such path, bucket or campaign", hint=_known(chosen)
        )
    raise UsageError(f"no capsule is in {one_line(word)}", hint=_known(chosen))


def _known(chosen: Settings) -> str:
    known = [str(place.parent) for place in _all(chosen)]
    if known:
        return f"there are: {_some(known)}"
    return f"none is in {chosen.store.root} either, is that the right store? {_MADE_BY}"


def _some(paths: list[str]) -> str:
    return f"{', '.join(paths[:_MOST_TOLD])}{' …; topcoat open lists all' if len(paths) > _MOST_TOLD else ''}"


def _name_for(place: Path) -> str:
    """The name of the instance, unless another is given: those of the bucket and the crash, as far as they fit."""
    from pipeline.vm.capsule import NAME

    crash = place.parent if place.name == NAME else place
    name = re.sub(r"[^A-Za-z0-9._-]", "-", f"{crash.parent.name}-{crash.name}")
    return name[-_LONGEST_NAME:].lstrip("._-")
