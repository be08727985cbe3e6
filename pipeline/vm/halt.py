"""Whether a guest's kernel has halted: nothing in the guest answers any more, but its QEMU runs on.

Only the serial log tells. A halted kernel prints nothing more, except what is typed into its panic shell, so the end of
the log is enough, whenever one looks at it. The lines must have the form in which the kernels print them: Zircon's
panic(), platform_halt() and panic shell, Linux's panic() and kernel_halt(). Zircon puts the pid, which is never 0,
before the lines of its processes, so these cannot pass for the kernel's; but whatever may write to the serial port
itself, or to Linux's log, can forge such lines. Then the guest counts as halted until it prints more, and Topcoat does
not log in to it. It is not stopped for that unasked, except a guest of a pool, whose next user gets a new one.
"""

import os
import re
from pathlib import Path

from pipeline.text.printable import printable

END = 16 << 10
"""How many bytes at the end of the log are searched: the trace of a panic with all its modules is shorter."""

# A line of the kernel: at the start of a line or after a shell's prompt, with [TIME] (Linux prints it too) or without
_KERNEL = r"(?m:^)(?:\$ )?(?:\[ *\d+\.\d+\] (?:0{5}[.:]0{5}> )?)?"
_EOL = r"(?m:$)"
_REASON = r"panic \(caller (?:pc: )?0x[^\n]+|\*\*\* KERNEL PANIC \(caller pc: 0x[^\n]+:\n\*\*\* [^\n]+"

PANIC = (
    rf"{_KERNEL}(?:ZIRCON KERNEL PANIC{_EOL}(?:(?:\n[^\n]*){{1,12}}?\n(?:{_REASON}))?|{_REASON}"
    r"|Kernel panic - not syncing: [^\n]+|---\[ end Kernel panic - not syncing[^\n]*)"
)
"""A regular expression for the panic of a kernel in printable text; the last line of a match tells most."""

HALT = (
    rf"{_KERNEL}(?:platform_halt suggested_action 0 reason \d+{_EOL}"  # 0 is to halt; others power off or reset
    rf"|(?:HALT|CRASH): (?:starting debug shell|spinning forever)\.\.\. \(reason = \d+\){_EOL}"
    rf"|Halted\s*\Z|entering panic shell loop{_EOL}|reboot: System halted{_EOL})"
)
"""A regular expression for signs that a kernel has stopped for another reason, or for one that is out of sight."""

_FOUND = tuple(map(re.compile, (PANIC, HALT)))
_PREFIX = re.compile(_KERNEL)
_GREETING = re.compile(r"(?m)welcome to Zircon$")
# A line that Zircon prints for one of its processes
_PROCESS = re.compile(r"(?m)^(?:\$ )?\[\d+\.\d+\] (?!0+[.:])\d+[.:]\d+> ")
_USERSPACE = re.compile(rf"{_PROCESS.pattern}|(?m:^)userboot: |{{{{{{")


def found(text: str) -> str:
    """The line at the end of a log (as printable text) which shows that the kernel has halted; "" if none does."""
    alive = max((match.end() for sign in (_GREETING, _PROCESS) for match in sign.finditer(text)), default=0)
    match = next((match for pattern in _FOUND if (match := pattern.search(text, alive))), None)
    return _PREFIX.sub("", match[0].rstrip().rpartition("\n")[2]) if match else ""


def only_kernel(text: str) -> bool:
    """Whether a log, given as printable text, has Zircon's greeting and after it nothing from userspace."""
    greetings = list(_GREETING.finditer(text))
    return bool(greetings) and _USERSPACE.search(text, greetings[-1].end()) is None


def found_in_log(log: Path) -> str:
    """The line at the end of a serial log which shows that the kernel has halted; "" if none does, or there is no log.

    The part that pipeline/vm/qemu/keeper.py has rotated is looked at too.
    """
    end, whole = _end_of(log, END)
    if whole:  # only now the older part: the log may be rotated at this moment
        older, whole = _end_of(log.with_name(f"{log.name}.1"), END - len(end))
        end = older + end
    # A line whose beginning is cut off could be one of a process
    return found(printable(end if whole else end.partition(b"\n")[2]))


def _end_of(log: Path, length: int) -> tuple[bytes, bool]:
    """The last bytes of a log, at most `length`, and whether they are all of it; b"" and True if it cannot be read."""
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - length))
            return stream.read(length), size <= length
    except OSError:
        return b"", True
