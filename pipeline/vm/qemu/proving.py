"""The proof that clones of a template are sound: what is looked at in two of them before the template counts.

A template that was saved on an overloaded host can have a wrong idea of how fast its clock runs, and then so have all
of its clones; nothing else would tell. What two clones have in common, others would have too.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.builds.linux import BOOT_ID
from pipeline.errors import CloneUnsound
from pipeline.store.freshness import Proof
from pipeline.text.printable import printable
from pipeline.vm.launcher import GuestShell

_LIMIT = 30.0  # seconds for one command
_SPAN = 1.0  # seconds over which the clocks of guest and host are compared
_DRIFT = 0.1  # the share of the span by which they may differ, and the seconds, as uptime has hundredths only
_SKEW = 2.0  # seconds by which the time of day may differ

_LOOK = (
    f"cat {BOOT_ID}; cut -d' ' -f1 /proc/uptime; date +%s; head -c 32 /dev/urandom | md5sum | cut -d' ' -f1;"
    "cat /proc/sys/kernel/random/uuid"
)
# Into a file in memory and out of it, then to the middle of the disk and back from there
_KEEP = (
    "set -e; echo {0} >/tmp/kept; cat /tmp/kept; middle=$(($(cat /sys/block/vda/size) / 2));"
    "dd if=/tmp/kept of=/dev/vda bs=512 seek=$middle conv=fsync 2>/dev/null;"
    "echo 3 >/proc/sys/vm/drop_caches;"
    "dd if=/dev/vda bs=512 skip=$middle count=1 2>/dev/null | head -n 1"
)


@dataclass(frozen=True)
class _Look:
    """What a clone has said of itself, between two moments of the host's monotonic clock."""

    before: float
    after: float
    boot_id: str
    uptime: float
    date: float
    randoms: tuple[str, str]


def prove(shells: Sequence[GuestShell], boot_ids: Sequence[str]) -> Proof:
    """Look at Linux guests that are clones of one template, with these boot ids. Raises CloneUnsound or CommandError.

    Returns what was found, for the template's record.
    """
    began = [_look(shell) for shell in shells]
    for shell, look, boot_id in zip(shells, began, boot_ids, strict=True):
        if look.boot_id != boot_id:
            raise unsound(f"a clone says that its boot id is {look.boot_id}, not {boot_id}")
        _require_memory_and_disk(shell, boot_id)
    time.sleep(max(0.0, began[-1].after + _SPAN - time.monotonic()))  # the span itself, nothing is waited for
    ended = [_look(shell) for shell in shells]
    for first, last in zip(began, ended, strict=True):
        _require_clock(first, last)
    randoms = [random for look in (*began, *ended) for random in look.randoms]
    if len(set(randoms)) < len(randoms):
        raise unsound("clones have the same random numbers")
    seconds = min(last.after - first.before for first, last in zip(began, ended, strict=True))
    return {"clones": len(shells), "random numbers": len(randoms), "milliseconds compared": round(1000 * seconds)}


def unsound(message: str, *, detail: str = "") -> CloneUnsound:
    """Make the error for a clone, or for a guest that is to be saved, that is not as it should be."""
    hint = "is the host overloaded? luigi --module tasks BootTemplate tries again; [boot] warm = never does without"
    return CloneUnsound(message, hint=hint, stage="proof", detail=detail, cause="clone unsound")


def _look(shell: GuestShell) -> _Look:
    before = time.monotonic()
    words = _said(shell, _LOOK).split()
    after = time.monotonic()
    if len(words) != 5 or not re.fullmatch(r"[0-9.]+ [0-9]+", " ".join(words[1:3])):
        raise unsound(f"a clone does not tell of itself: {printable(' '.join(words).encode())[:200]!r}")
    boot_id, uptime, date, *randoms = words
    if not -_SKEW <= time.time() - float(date) <= _SKEW + after - before + 1:
        raise unsound(f"the time of day of a clone is {date}, that of the host {time.time():.0f}")
    return _Look(before, after, boot_id, float(uptime), float(date), (randoms[0], randoms[1]))


def _require_clock(first: _Look, last: _Look) -> None:
    """The guest was asked for its uptime at some moment between `before` and `after`, so its span has two bounds."""
    guest = last.uptime - first.uptime
    least, most = last.before - first.after, last.after - first.before
    if not least * (1 - _DRIFT) - _DRIFT <= guest <= most * (1 + _DRIFT) + _DRIFT:
        raise unsound(
            f"the clock of a clone is wrong: {guest:.2f} s passed in it while {least:.2f} to {most:.2f} s passed here"
        )


def _require_memory_and_disk(shell: GuestShell, boot_id: str) -> None:
    said = _said(shell, _KEEP.format(boot_id)).split()
    if said != [boot_id, boot_id]:
        raise unsound(f"a clone does not keep what is written to its memory and disk: {said}")


def _said(shell: GuestShell, command: str) -> str:
    result = shell.run(command, _LIMIT)
    if result.status:
        raise unsound(f"a command failed in a clone with status {result.status}", detail=printable(result.stderr))
    return printable(result.stdout)
