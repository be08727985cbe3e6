"""The verdict why a boot has failed: the one cause in the table that fits what was seen."""

import re
from dataclasses import dataclass

from pipeline.errors import BootError
from pipeline.text.printable import printable, tail
from pipeline.vm.qemu.causes import CAUSES, Cause, Evidence

_HARMLESS = re.compile(r"(?m)^.*externally provided fw_cfg item names should be prefixed.*$")  # said to undercoat too


@dataclass(frozen=True)
class Verdict:
    """Why a boot has failed: the cause, and the evidence for it."""

    cause: Cause
    seen: Evidence
    quote: str
    """The line of QEMU, the guest or the client that proves the cause; "" if there is none."""

    def error(self) -> BootError:
        """The exception to raise, with the message, the hint, and the evidence in one block."""
        facts = {**vars(self.seen), **_derived(self.seen), "quote": self.quote}
        return self.cause.error(
            self.cause.says.format_map(facts),
            hint=self.cause.hint.format_map(facts),
            stage=self.seen.stage,
            detail=_block(self.seen),
            cause=self.cause.name,
            transient=self.cause.transient,
        )


def _derived(seen: Evidence) -> dict[str, str]:
    usual = f" (slow boots take {seen.usual:.0f} s here)" if seen.usual is not None else ""
    return {
        "problem": " ".join(printable(seen.problem).split()),
        "last_line": tail(seen.console, 1) or "(nothing)",
        "refusal": seen.refusal,
        "last_event": seen.events[-1] if seen.events else "",
        "usually": usual,
    }


def _block(seen: Evidence) -> str:
    qemu = tail(_HARMLESS.sub("", seen.qemu), 5)
    console = tail(seen.console, 20)
    return "\n".join(part for part in (qemu, console) if part)


def judge(seen: Evidence) -> Verdict:
    """The verdict on what was seen: the first row of CAUSES that holds; the last one always does."""
    found = ((cause, cause.found_in(seen)) for cause in CAUSES)
    return next(Verdict(cause, seen, quote) for cause, quote in found if quote is not None)


def hopeless(console: str, events: tuple[str, ...]) -> bool:
    """Whether waiting any longer is of no use, by what has been seen so far: some row with `at_once` holds.

    `console` is printable text of the guest; `events` are QEMU's.
    """
    seen = Evidence("marker", console=console, events=events)
    return any(cause.at_once and cause.found_in(seen) is not None for cause in CAUSES)
