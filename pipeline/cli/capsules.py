"""`topcoat open`: a guest goes on as it was when a fuzzer had crashed in it."""

import argparse
import json
import re
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.host.stdio import only_telling
from pipeline.settings import Settings
from pipeline.text.printable import one_line
from pipeline.vm.capsule import NAME, Capsule, found_in
from pipeline.vm.instance import Instance

if TYPE_CHECKING:
    from pipeline.vm.qemu.opening import ProcessLook

_LONGEST_NAME = 63
_MOST_TOLD = 5
_CODE = re.compile(r"[0-9a-f-]+ ..x")  # in /proc/PID/maps: what can be executed


def open_crash(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat open`: open the capsule of a crash, and tell of the process that has crashed, or have gdb do that."""
    from pipeline.builds.build import load
    from pipeline.ssh.connector import Connector
    from pipeline.vm import debugger
    from pipeline.vm.qemu import opening

    words = options.for_gdb
    if (words and not options.gdb) or (options.gdb and options.json):
        raise UsageError("words after -- are for gdb, and --json is not", hint="topcoat open CRASH --gdb -- WORDS")
    programs = debugger.programs() if options.gdb else None
    crash = _crash(chosen, options.crash)
    build, capsule = load(chosen), Capsule(crash / NAME)
    instance = Instance.named(chosen.store, options.name or _name_for(crash))
    handle = opening.open_capsule(chosen, build, instance, capsule)
    pid = capsule.facts.crashed.pid
    with closing(Connector(handle.ssh, chosen.boot.timeouts(handle.accelerator))) as connector:
        look = opening.look(connector, pid)
        gdbserver = debugger.bring(connector, programs.gdbserver) if programs else ""
    with only_telling():
        facts = capsule.facts
        if options.json:
            encoded = {"instance": instance.name, "fuzzer": facts.crashed.fuzzer, "pid": pid, "saved": facts.saved}
            told = {"schema": 1, **encoded, "program": look.program or None, "maps": look.maps}
            print(json.dumps(told, indent=2, sort_keys=True))
        else:
            print(*_told(capsule, instance.name, look, crash), sep="\n")
        sys.stdout.flush()
    if programs:
        argv = debugger.command(programs.gdb, instance.name, pid, gdbserver, build.build_ids, words)
        debugger.become(argv, chosen.store.root)
    return 0


def _told(capsule: Capsule, name: str, look: "ProcessLook", crash: Path) -> list[str]:
    """What people are told of an opened capsule."""
    from pipeline.campaign.result import from_here

    crashed, pid = one_line(capsule.facts.crashed.fuzzer), capsule.facts.crashed.pid
    lines = [f"{name} is running: the guest as it was at {capsule.facts.saved}, when {crashed} had crashed"]
    if look.program:
        lines += [f"process {pid} sleeps in the sanitizer: {look.program}; its code is at"]
        lines += [f"  {line}" for line in look.maps if _CODE.match(line)]
        lines += [f"all of its memory   topcoat ssh {name} -- cat /proc/{pid}/maps"]
    else:
        lines += [f"process {pid} is not there any more"]
    return [
        *lines,
        f"enter the guest     topcoat ssh {name}",
        f"debug the process   topcoat open {from_here(crash)} --gdb",
        f"end the guest       topcoat stop {name}; the capsule stays as it is",
    ]


def _crash(chosen: Settings, word: str) -> Path:
    """The directory of the crash that is meant: a path to it, its bucket or its capsule, or its bucket's name."""
    path, root = Path(word), chosen.store.campaigns
    places = [path, path.parent] if path.name == NAME else [path]
    places += [bucket for bucket in root.glob("*/crashes/*") if bucket.name == word]
    crashes = sorted({crash.absolute() for place in places for crash in found_in(place)})
    if len({crash.parent for crash in crashes}) > 1:
        raise UsageError(
            f"several campaigns have a capsule of {one_line(word)}",
            hint=f"say which: {', '.join(map(str, crashes[:_MOST_TOLD]))}",
        )
    if crashes:
        return crashes[0]
    known = [str(crash) for bucket in sorted(root.glob("*/crashes/*")) for crash in found_in(bucket)]
    raise UsageError(
        f"no capsule is in {one_line(word)}",
        hint=f"there are: {', '.join(known[:_MOST_TOLD])}"
        if known
        else "campaigns make them: [campaign] capsule = first; see docs/capsules.md",
    )


def _name_for(crash: Path) -> str:
    """The name of the instance, unless another is given: that of the bucket and the crash, as far as it fits."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", f"{crash.parent.name}-{crash.name}")
    return name[-_LONGEST_NAME:].lstrip("._-")
