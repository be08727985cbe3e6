"""What a document tells of buckets and fuzzers: the values that it is made from, and the sentences for people."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.fuzz.crashes.report import CrashReport
from pipeline.fuzz.crashes.stack import Frame
from pipeline.text.printable import one_line

BucketState = Literal["new", "known", "back", "gone"]
"""How a bucket stands, compared with what was known before.

new: nothing was known of it. known: it was there before. back: it had gone, and is there again. gone: it was there
before, and is not any more.
"""

ReportedLevel = Literal["error", "warning", "note"]
"""How bad the crashes of a bucket are, in the words of SARIF."""

_STATES: dict[BucketState, str] = {
    "new": "It is new.",
    "known": "It was known before.",
    "back": "It is back: it had gone.",
    "gone": "It is gone: it was there before.",
}


@dataclass(frozen=True)
class ReportedBucket:
    """What a document tells of one bucket of one fuzzer. Nothing in it needs to be fit to print."""

    slug: str
    fuzzer: str
    """The full name of the fuzzer."""
    kind: str
    title: str
    """One line for people, such as `SEGV in parse`."""
    message: str = ""
    """What the target itself said; empty if it said nothing."""
    report: CrashReport | None = None
    """What the output of one of its crashes told; None if that is not known any more."""
    deciding: tuple[Frame, ...] = ()
    """The frames that tell it from other buckets, the one that is named first before the others.

    They say where the crash happened. Without them, that is the uppermost of the target's own.
    """
    state: BucketState | None = None
    """How it stands; None if there is nothing to compare with."""
    rule: str = "default/1"
    """The rule that made the bucket, NAME/VERSION."""
    severity: str = ""
    """How bad it is, in one sentence or part of one; empty if nobody has judged it."""
    level: ReportedLevel = "error"
    reproduced: tuple[int, int] | None = None
    """In how many tries it came again, and of how many; None if nobody has tried."""
    count: int = 1
    """How many of its crashes were seen, at least 1."""

    @property
    def present(self) -> bool:
        """Whether it is there now."""
        return self.state != "gone"


@dataclass(frozen=True)
class ReportedFuzzer:
    """What a document tells of one fuzzer of a campaign."""

    name: str
    """The full name."""
    seconds: float = 0.0
    """The seconds for which it ran."""
    executions: int = 0
    not_run: str = ""
    """Why it was not run; empty if it was."""
    failed: str = ""
    """Why it could not be run to the end of its budget; empty if it could."""


def sentences(bucket: ReportedBucket) -> Iterator[str]:
    """Yield what is known of a bucket, apart from its title and its stack: whole sentences, each fit to print."""
    if bucket.message and bucket.message not in bucket.title:
        yield f"The target said: {_ended(bucket.message)}"
    if bucket.report and bucket.report.access:
        yield f"The bad access is {_ended(bucket.report.access)}"
    yield f"It was found by {_ended(bucket.fuzzer)}"
    if bucket.state:
        yield _STATES[bucket.state]
    if bucket.severity:
        yield f"Severity: {_ended(bucket.severity)}"
    if bucket.reproduced:
        yield "It came again in {} of {} tries.".format(*bucket.reproduced)


def _ended(text: str) -> str:
    text = one_line(text)
    return text if text.endswith((".", "!", "?")) else f"{text}."


def stack_lines(report: CrashReport) -> list[str]:
    """Return the stack for people, one frame on each line; a frame of which nothing is known is `??`."""
    return [f"#{number} {_frame_text(frame)}" for number, frame in enumerate(report.frames)]


def _frame_text(frame: Frame) -> str:
    source = f"{frame.file}:{frame.line}" if frame.line else frame.file
    place = f"({frame.place})" if frame.place else ""
    return one_line(" ".join(filter(None, (frame.function, source, place))) or "??")
