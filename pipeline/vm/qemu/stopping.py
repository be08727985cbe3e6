"""Ending QEMU for certain, whatever its state, and releasing what its instance holds."""

import logging
import os
import signal
from pathlib import Path
from typing import Literal

from pipeline.errors import StopError
from pipeline.host.deadline import Deadline
from pipeline.host.locks import locked, locked_by_someone
from pipeline.host.pidfile import has_moved, owner_of_pidfile
from pipeline.host.process import Process
from pipeline.store.publish import remove
from pipeline.vm.handle import Handle
from pipeline.vm.instance import Instance
from pipeline.vm.qemu import qmp

log = logging.getLogger("topcoat")

How = Literal["powerdown", "quit", "SIGTERM", "SIGKILL", "not running"]
"""By what a QEMU was ended."""

ENDED: dict[How, str] = {
    "powerdown": "powered itself off",
    "quit": "stopped",
    "SIGTERM": "stopped by SIGTERM; it did not take QEMU's quit command",
    "SIGKILL": "stopped by SIGKILL; it took neither QEMU's quit command nor SIGTERM",
    "not running": "was not running",
}
"""The text for people for each way in which an instance has ended."""

_DYING = 1.0  # seconds; for a QEMU that was killed to end


def stop(instance: Instance, limit: float, booted: Handle | None = None, *, gently: bool = False) -> How:
    """End the instance's QEMU within `limit` seconds and remove all but the logs. Returns how it ended.

    With the handle `booted`, only the QEMU of that boot is ended; otherwise no handle is needed. `gently` presses the
    guest's power button first. Raises InstanceBusy while another process boots the instance, StopError if QEMU
    survives.
    """
    deadline = Deadline(limit)
    with locked(instance.directory, limit / 3):  # the rest of the time is for ending QEMU
        if booted is not None and instance.live_handle() != booted:
            return "not running"
        how = stop_qemu(instance.pidfile, instance.qmp_socket, deadline.remaining, gently=gently)
        remove(*instance.transient)
    return how


def stop_qemu(pidfile: Path, qmp_socket: Path, limit: float, *, gently: bool = False) -> How:
    """End the QEMU of `pidfile`: by QMP, then SIGTERM, then SIGKILL, within `limit` seconds in all.

    `gently` presses the guest's power button first, which gets up to half of the time. A QEMU that has not yet written
    its pidfile, because its starter was killed, is killed too. Returns by what it was ended. Raises StopError if it
    survives, or if the locked pidfile names a process that does not have it open.
    """
    process = owner_of_pidfile(pidfile)
    how = _end(process, pidfile, qmp_socket, limit, gently) if process else "not running"
    for stray in strays(pidfile):
        stray.send(signal.SIGKILL)
        if not stray.wait(_DYING):
            raise _survived(stray)
        how = "SIGKILL" if how == "not running" else how
    if how == "not running" and locked_by_someone(pidfile):
        raise StopError(
            "a QEMU still runs: its pidfile names another process, which does not have that open and is left alone",
            hint=f"see who holds the file, and end that process: fuser -v '{pidfile}'",
        )
    return how


def _end(process: Process, pidfile: Path, qmp_socket: Path, limit: float, gently: bool) -> How:
    deadline = Deadline(limit)
    # Even if every step takes its whole share, some time is left for SIGKILL
    share = limit / (8 if gently else 4)
    steps: list[tuple[How, float]] = [("quit", share), ("SIGTERM", share), ("SIGKILL", limit)]
    for how, patience in [("powerdown", limit / 2 - share), *steps] if gently else steps:
        asked = _ask_to_end(process, how, qmp_socket, deadline.within(share))
        if process.wait(deadline.within(patience if asked else 0)) and not locked_by_someone(pidfile):
            return how
    raise _survived(process)


def _survived(process: Process) -> StopError:
    return StopError(
        f"QEMU (pid {process.pid}) survived SIGKILL",
        hint="it waits for a broken disk or network file system; when that answers again, the process ends",
    )


def _ask_to_end(process: Process, how: How, qmp_socket: Path, limit: float) -> bool:
    """Make the request `how`. Returns whether QEMU has accepted it; a signal counts as accepted."""
    if how in ("SIGTERM", "SIGKILL"):
        process.send(signal.Signals[how])
        return True
    try:
        (qmp.power_down if how == "powerdown" else qmp.quit_qemu)(qmp_socket, limit)
    except qmp.MonitorError as error:
        log.info("QEMU does not take the request to end (%s: %s)", how, error)
        return False
    return True


def strays(pidfile: Path) -> list[Process]:
    """Processes with this pidfile on their command line, also those that have not written it yet.

    A guest whose store was moved while it ran does not count: its pidfile is open at another place. Nor does one in a
    container where another store has the same path.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it has ended meanwhile
            if b"-pidfile" in words and os.fsencode(pidfile) in words and (process := Process.find(int(entry.name))):
                ours = process.shares(pidfile.parent) and not has_moved(process, pidfile)
                found += [process] if ours else []
    return found
