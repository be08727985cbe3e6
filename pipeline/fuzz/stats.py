"""A stage that reads what libFuzzer tells of its progress, as its output passes.

The lines are those of LLVM's compiler-rt/lib/fuzzer: PrintStats, PrintFinalStats and the reports of FuzzerLoop.cpp,
FuzzerFork.cpp's line for each job, and CrashResistantMerge of FuzzerMerge.cpp; besides, AddressSanitizer's by
WaitForDebugger of sanitizer_common.h. What they say is only claimed: anything in the guest can write such lines.
"""

import re
import time
from dataclasses import dataclass, replace

from pipeline.fuzz.line_scanner import LineScanner
from pipeline.host.deadline import Clock
from pipeline.text.printable import one_line

POINTS = 200
"""The most points of a curve, not counting the latest."""

PROBLEMS = 16
"""How many problems are remembered: the first ones, and the last."""

MOST = 10**18 - 1
"""The largest number in libFuzzer's lines. A line with a longer one is not libFuzzer's."""

_NUMBER = rb"(\d{1,18})"
_PROGRESS = re.compile(
    rb"#%b(?::|\t([A-Za-z]{1,16}) {0,8})"
    rb"(?: cov: %b)?(?: ft: %b)?(?: corp: %b(?:/%b([KkMm]?)[Bb])?)?"
    rb"(?: [a-z]{1,16}: \d{1,18}){0,4}"
    rb" exec/s:? %b(?!\d)(?: rss: %bM[Bb])?" % ((_NUMBER,) * 7)
)
_UNITS = {b"": 1, b"K": 1 << 10, b"M": 1 << 20}
_FINAL = re.compile(rb"stat::([a-z_]{1,40}): {0,20}" + _NUMBER + rb"(?!\d)")
_FINAL_FIELDS = {
    b"number_of_executed_units": "executions",
    b"average_exec_per_sec": "per_second",
    b"new_units_added": "added",
    b"slowest_unit_time_sec": "slowest",
    b"peak_rss_mb": "rss",
}
_DONE = re.compile(rb"Done %b runs in %b second" % (_NUMBER, _NUMBER))
_MERGE_START = re.compile(rb"MERGE-OUTER: %b files, %b in the initial corpus, %b processed earlier" % ((_NUMBER,) * 3))
_MERGE_ATTEMPT = re.compile(rb"MERGE-OUTER: attempt " + _NUMBER + rb"(?!\d)")
_MERGE_END = re.compile(
    rb"MERGE-OUTER: %b new files with %b new features added(?:; %b new coverage edges)?" % ((_NUMBER,) * 3)
)
_MERGE_NOTHING = b"MERGE-OUTER: nothing to do"
_PROBLEM = re.compile(
    rb"(?:ERROR: |WARNING: (?=Memory|Thread))(?:libFuzzer: |(?=[A-Za-z]{1,64}Sanitizer: ))(.{1,200})"
    rb"|(Scudo ERROR: .{1,200}|GWP-ASan detected a memory error)"
    rb"|(runtime error: .{1,200})"
)
_ASLEEP = re.compile(rb"==(\d{1,9})==Sleeping for \d{1,9} second\(s\) before dying$")
_ADDRESS = re.compile(rb"(?: on| at)?(?: (?:unknown )?address)?(?: \(pc |[ :]0x)")
_ANYWHERE = (b" exec/s", b"ERROR: ", b"Sanitizer: ", b"runtime error: ", b"GWP-ASan detected", b"before dying")
# "#" is for speed. " exec/s" stands far into its line, but finds it also behind text that a target has not ended
_AT_START = (b"#", b"stat::", b"Done ", b"MERGE-OUTER: ")


@dataclass(frozen=True)
class Stats:
    """What one line told of the fuzzer's progress. A number that it did not tell is 0."""

    seconds: float
    """Seconds from when the scanner was made until the line came."""
    event: str
    """INITED, NEW, REDUCE, pulse, RELOAD, LOADED, DONE and so on; `fork` for a line of -fork."""
    executions: int
    edges: int = 0
    features: int = 0
    units: int = 0
    """The number of units in the corpus."""
    size: int = 0
    """The size of the corpus in bytes; libFuzzer rounds it from 16 KiB on."""
    per_second: int = 0
    """Executions per second."""
    rss: int = 0
    """The peak of the fuzzer's memory, in MiB."""


@dataclass(frozen=True)
class Final:
    """What -print_final_stats=1 tells at the end, also of a run that ended in a crash."""

    executions: int = 0
    per_second: int = 0
    added: int = 0
    """The number of new units."""
    slowest: int = 0
    """Seconds that the slowest unit took."""
    rss: int = 0
    """The peak of the fuzzer's memory, in MiB."""


@dataclass(frozen=True)
class Done:
    """What the fuzzer says when it has ended by itself and found nothing."""

    runs: int
    seconds: int


@dataclass(frozen=True)
class MergeStats:
    """How far libFuzzer's merge of corpora has come."""

    files: int = 0
    """The number of files in all corpora."""
    initial: int = 0
    """The number of files in the corpus that the others are merged into."""
    earlier: int = 0
    """The number of files that an earlier attempt had processed."""
    attempts: int = 0
    finished: bool = False
    new_files: int = 0
    new_features: int = 0
    new_edges: int = 0


class ProgressScanner(LineScanner):
    """A stage that remembers what libFuzzer told, and passes everything on unchanged.

    Other threads may read its attributes while it works.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        super().__init__(_ANYWHERE, _AT_START)
        self._clock = clock
        self._started = clock()
        self._points: list[Stats] = []
        self._stride = 1
        self._seen = 0
        self._problems: list[str] = []
        self._latest: tuple[float, re.Match[bytes]] | None = None
        self.final: Final | None = None
        self.done: Done | None = None
        self.merge: MergeStats | None = None
        self.asleep: int | None = None
        """The pid of a process that sleeps after a sanitizer's report, as it was told to; None if there is none."""

    @property
    def progress(self) -> Stats | None:
        """The latest progress; None if no line has told of any."""
        latest = self._latest
        return None if latest is None else _progress(*latest)

    @property
    def curve(self) -> tuple[Stats, ...]:
        """The progress so far: that of every line, or of every second, fourth … one, and the latest."""
        points, latest = tuple(self._points), self.progress
        return points if latest is None or latest in points[-1:] else (*points, latest)

    @property
    def problems(self) -> tuple[str, ...]:
        """What libFuzzer or a sanitizer complained of, each once, fit to print.

        Examples are `timeout after 9 seconds`, `AddressSanitizer: heap-buffer-overflow` and `runtime error: …`. If
        there are more than PROBLEMS, those in the middle are left out.
        """
        return tuple(self._problems)

    def look(self, line: bytes) -> bytes:
        """See LineScanner. The line stays as it is."""
        if match := _PROGRESS.search(line):
            self._progressed(match)
        elif match := _PROBLEM.search(line):
            self._complained(match)
        elif match := _ASLEEP.search(line):
            self.asleep = int(match[1])
        elif match := _FINAL.match(line):
            self._ended(match)
        elif match := _DONE.match(line):
            self.done = Done(int(match[1]), int(match[2]))
        elif line.startswith(b"MERGE-OUTER: "):
            self.merge = _merged(self.merge or MergeStats(), line)
        return line

    def _progressed(self, match: re.Match[bytes]) -> None:
        # Few lines are ever asked for, and it takes longer to make Stats of one than to find it
        self._latest = self._clock() - self._started, match
        if self._seen % self._stride == 0:
            self._points.append(_progress(*self._latest))
            if len(self._points) >= POINTS:
                del self._points[1::2]
                self._stride *= 2
        self._seen += 1

    def _complained(self, match: re.Match[bytes]) -> None:
        # An address differs from run to run and tells nothing
        text = one_line(match[3] or _ADDRESS.split(match[1] or match[2], 1)[0])
        if text not in self._problems:
            del self._problems[PROBLEMS - 1 :]
            self._problems.append(text)

    def _ended(self, match: re.Match[bytes]) -> None:
        if name := _FINAL_FIELDS.get(match[1]):
            self.final = replace(self.final or Final(), **{name: int(match[2])})


def _progress(seconds: float, match: re.Match[bytes]) -> Stats:
    executions, event, edges, features, units, size, unit, per_second, rss = match.groups(b"0")
    return Stats(
        seconds,
        event.decode() if match[2] else "fork",
        int(executions),
        int(edges),
        int(features),
        int(units),
        min(int(size) * _UNITS.get(unit.upper(), 1), MOST),
        int(per_second),
        int(rss),
    )


def _merged(merge: MergeStats, line: bytes) -> MergeStats:
    if match := _MERGE_START.match(line):
        files, initial, earlier = map(int, match.groups())
        return replace(merge, files=files, initial=initial, earlier=earlier)
    if match := _MERGE_ATTEMPT.match(line):
        return replace(merge, attempts=int(match[1]))
    if match := _MERGE_END.match(line):
        files, features, edges = map(int, match.groups(b"0"))
        return replace(merge, finished=True, new_files=files, new_features=features, new_edges=edges)
    return replace(merge, finished=True) if line.startswith(_MERGE_NOTHING) else merge
