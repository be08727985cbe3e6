"""Whether a guest's kernel has halted: nothing in the guest answers any more, but its QEMU runs on.

Only the serial log tells it. A halted kernel prints nothing more, or what is typed into its panic shell, so the end of
the log is enough, whenever it is looked at. The lines must have the form in which the kernels print them: Zircon's
panic(), platform_halt() and panic shell, Linux's panic() and kernel_halt(). Zircon gives the lines of its processes
their pid, which is never 0, so these cannot pass for the kernel's; who may write to the serial port itself, or to
Linux's log, can forge them. What that costs: the guest is called halted until it has printed more, and is not entered.
It is never stopped for that unasked, but for a guest of a pool, whose next user gets a new one.
"""

import os
import re
from pathlib import Path

from pipeline.text import printable

END = 16 << 10
"""Bytes of the log that are looked at: a panic's trace with all its modules takes less."""

# A panic starts on a line of its own; what comes without one may follow a shell's prompt. [TIME] is Linux's, too.
_KERNEL = r"(?m:^)(?:\$ )?(?:\[ *\d+\.\d+\] (?:0{5}[.:]0{5}> )?)?"
_EOL = r"(?m:$)"
_REASON = r"panic \(caller (?:pc: )?0x[^\n]+|\*\*\* KERNEL PANIC \(caller pc: 0x[^\n]+:\n\*\*\* [^\n]+"

PANIC = (
    rf"{_KERNEL}(?:ZIRCON KERNEL PANIC{_EOL}(?:(?:\n[^\n]*){{1,12}}?\n(?:{_REASON}))?|{_REASON}"
    r"|Kernel panic - not syncing: [^\n]+|---\[ end Kernel panic - not syncing[^\n]*)"
)
"""Finds the panic of a kernel in printable text; the last line of what is found tells most."""

HALT = (
    rf"{_KERNEL}(?:platform_halt suggested_action 0 reason \d+{_EOL}"  # 0 is to halt; others power off or reset
    rf"|(?:HALT|CRASH): (?:starting debug shell|spinning forever)\.\.\. \(reason = \d+\){_EOL}"
    rf"|Halted\s*\Z|entering panic shell loop{_EOL}|reboot: System halted{_EOL})"
)
"""Finds that a kernel has stopped for other reasons, or for reasons that are out of sight."""

_FOUND = tuple(map(re.compile, (PANIC, HALT)))
_PREFIX = re.compile(_KERNEL)
_GREETING = re.compile(r"(?m)welcome to Zircon$")
# A line that Zircon prints for one of its processes
_PROCESS = re.compile(r"(?m)^(?:\$ )?\[\d+\.\d+\] (?!0+[.:])\d+[.:]\d+> ")
_USERSPACE = re.compile(rf"{_PROCESS.pattern}|(?m:^)userboot: |{{{{{{")


def found(text: str) -> str:
    """The line at the end of a log, given as printable text, that tells that the kernel has halted; "" if none does."""
    alive = max((match.end() for sign in (_GREETING, _PROCESS) for match in sign.finditer(text)), default=0)
    match = next((match for pattern in _FOUND if (match := pattern.search(text, alive))), None)
    return _PREFIX.sub("", match[0].rstrip().rpartition("\n")[2]) if match else ""


def only_kernel(text: str) -> bool:
    """Whether a log, given as printable text, has the greeting of a Zircon and nothing that userspace has printed."""
    greetings = list(_GREETING.finditer(text))
    return bool(greetings) and _USERSPACE.search(text, greetings[-1].end()) is None


def found_in_log(log: Path) -> str:
    """The same for a serial log, whether it was rotated or not (see pipeline/qemu/keeper.py); "" if there is none."""
    end, whole = _end_of(log, END)
    if whole:  # first this one: it may be rotated at this moment
        older, whole = _end_of(log.with_name(f"{log.name}.1"), END - len(end))
        end = older + end
    # A line whose beginning is out of sight could be a process's
    return found(printable(end if whole else end.partition(b"\n")[2]))


def _end_of(log: Path, length: int) -> tuple[bytes, bool]:
    """At most so many of its last bytes, and whether that is all of it. A log that cannot be read tells nothing."""
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - length))
            return stream.read(length), size <= length
    except OSError:
        return b"", True
