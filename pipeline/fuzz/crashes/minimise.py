"""Making the input of a crash smaller, and plainer to read, while the crash stays in its bucket.

libFuzzer's own minimiser runs in the guest and takes another bug for the same one: without a symbolizer there it has
nothing to compare. So this one runs on the host and knows nothing of guests: an oracle is given candidates, and tells
which of them are in the bucket. As a question to a guest takes its time, it asks for many candidates at once.

The way is that of delta debugging: pieces are removed, from half of the input down to single bytes, then what is left
is made plain, byte for byte, then pieces are removed that begin anywhere, and this is repeated until nothing changes.
Nothing is taken on trust: each step is a
candidate that the oracle has seen in the bucket, and the result is tried again at the end.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal

from pipeline.host.deadline import Clock, Deadline

Oracle = Callable[[Sequence[bytes]], Sequence[bool]]
"""Tells of each candidate, in order, whether it was in the bucket when it was run once.

It answers for fewer than it was asked for if it cannot go on, and for none from then on.
"""

End = Literal["minimal", "runs", "deadline", "gave up", "not in its bucket", "not confirmed"]
"""Why a minimisation has ended.

`minimal`: no single byte can be removed or made plainer. `runs`, `deadline`: a limit was reached, and the input may
become smaller yet. `gave up`: so did the oracle. `not in its bucket`: the original was not in it to begin with.
`not confirmed`: the result was not in it when it was tried again. After the last two the original is kept, and so it is
if the oracle gave up before the result was confirmed.
"""

PLAIN: Final = (*b"0A ", 0)
"""The bytes that others are replaced by, the first one preferred: so what is left of other bytes is what matters."""

FLAKY_MISS: Final = 0.05
"""How likely it may be that a candidate counts as harmless by chance, although it crashes as often as the original."""


@dataclass(frozen=True)
class Limits:
    """What a minimisation may cost."""

    runs: int = 3000
    """How many runs the oracle may be asked for, besides those that confirm the result."""
    seconds: float = 300.0
    """How long it may take. A batch that has begun is waited for."""
    windows: int = 1000
    """How many pieces may be tried that begin anywhere, once nothing else makes the input smaller."""
    batch: int = 32
    """How many candidates the oracle is given at once."""
    tries: int = 1
    """How often a candidate is run before it counts as out of the bucket; more than once for a flaky crash."""
    confirm: int = 10
    """How often the result is run at the end."""


@dataclass(frozen=True)
class Minimised:
    """What has become of an input."""

    content: bytes
    """The result: an input in the bucket, or else the original."""
    steps: int
    """How many changes the result consists of."""
    tried: int
    """How often an input was run for it."""
    why: End
    """Why it has ended."""
    confirmed: int = 0
    """How often the result was in the bucket when it was run `confirm` times at the end."""
    of: int = 0
    """How often it was run then."""


class _Over(Exception):
    """There must be no more runs; `why` says which limit it was."""

    def __init__(self, why: End) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True)
class _Edit:
    """One change: the bytes from `start` to `stop` give way to others, which are no more."""

    start: int
    stop: int
    by: bytes


def tries_for(same: int, of: int) -> int:
    """How often a candidate must be run if its crash came `same` times in `of` tries, so that it is hardly missed.

    Once if it always came. At most ten times, and so often if it never came.
    """
    if same >= of:
        return 1
    return min(10, math.ceil(math.log(FLAKY_MISS) / math.log(1 - same / of))) if same else 10


def minimise(content: bytes, stays: Oracle, limits: Limits, clock: Clock = time.monotonic) -> Minimised:
    """Make the input as small and plain as the limits allow, so that it stays in its bucket.

    The result is never larger than the original, and the same whenever the oracle gives the same answers. It is run
    `limits.confirm` times at the end: if it is never in the bucket then, the original is the result. Raises what the
    oracle raises.
    """
    return _Minimiser(content, stays, limits, Deadline(limits.seconds, clock)).run()


class _Minimiser:
    def __init__(self, content: bytes, stays: Oracle, limits: Limits, deadline: Deadline) -> None:
        self._original = self._best = content
        self._stays, self._limits, self._deadline = stays, limits, deadline
        self._steps = self._tried = 0
        self._known: dict[bytes, bool] = {}
        """What is known of candidates, by their digests: megabytes of them would take too much memory."""

    def run(self) -> Minimised:
        try:
            if not self._ask([self._original])[0]:
                return self._result("not in its bucket", self._original)
            self._to_the_end()
            why: End = "minimal"
        except _Over as over:
            why = over.why
        if self._best == self._original:
            return self._result(why, self._best)
        answers = self._run([self._best] * self._limits.confirm)
        if any(answers):
            return self._result(why, self._best, sum(answers), len(answers))
        return self._result("not confirmed" if answers else "gave up", self._original, 0, len(answers))

    def _result(self, why: End, content: bytes, confirmed: int = 0, of: int = 0) -> Minimised:
        steps = 0 if content == self._original else self._steps
        return Minimised(content, steps, self._tried, why, confirmed, of)

    def _to_the_end(self) -> None:
        """Remove and make plain until nothing changes anything. Raises _Over."""
        before = None
        while before != self._best:
            before = self._best
            self._remove()
            for byte in PLAIN:
                self._make_plain(byte)
            if before == self._best:
                self._remove_anywhere()

    def _remove(self) -> None:
        """Remove pieces, from half of the input down to single bytes; these until no single one can be removed."""
        for size in _sizes((len(self._best) + 1) // 2):
            self._pass([_Edit(start, stop, b"") for start, stop in _pieces(len(self._best), size)])
        while self._pass([_Edit(at, at + 1, b"") for at in range(len(self._best))]):
            pass

    def _remove_anywhere(self) -> None:
        """Remove pieces of each size wherever they begin, as records that tell their own length go only as a whole.

        There are many such pieces, so the sizes are only as large as `limits.windows` allows.
        """
        length, left, largest = len(self._best), self._limits.windows, 1
        while largest + 1 < length and (left := left - (length - largest)) >= 0:
            largest += 1
        for size in range(largest, 1, -1):
            self._pass([_Edit(at, at + size, b"") for at in range(len(self._best) - size + 1)])

    def _make_plain(self, byte: int) -> None:
        """Replace by this byte whatever is less plain: all at once, then piece by piece, down to single bytes."""
        for size in _sizes(len(self._best)):
            pieces = _pieces(len(self._best), size)
            edits = [_Edit(start, stop, self._plain(start, stop, byte)) for start, stop in pieces]
            self._pass([edit for edit in edits if edit.by != self._best[edit.start : edit.stop]])

    def _plain(self, start: int, stop: int, byte: int) -> bytes:
        plainer = PLAIN[: PLAIN.index(byte)]
        return bytes(old if old in plainer else byte for old in self._best[start:stop])

    def _pass(self, edits: Sequence[_Edit]) -> bool:
        """Try all edits, in the order of where they start, and make as many as can be made. Whether any was.

        The last ones come first, so that what is in front of them, and still to be tried, stays where it is. Edits that
        overlap with one that was made are left out. Raises _Over.
        """
        before, untouched, left = self._steps, len(self._best), list(reversed(edits))
        while left := [edit for edit in left if edit.stop <= untouched]:
            batch, left = left[: self._limits.batch], left[self._limits.batch :]
            answers = self._ask([_edited(self._best, [edit]) for edit in batch])
            untouched = self._make([edit for edit, stays in zip(batch, answers, strict=True) if stays], untouched)
        return self._steps > before

    def _make(self, good: Sequence[_Edit], untouched: int) -> int:
        """Make as many of these edits as go together; each can be made alone.

        Returns up to where the input is as it was: `untouched` if none was made. Raises _Over.
        """
        left = _apart(good)
        while left:
            sizes = [len(left) >> halves for halves in range(len(left).bit_length())]
            answers = self._ask([_edited(self._best, left[:size]) for size in sizes])
            size = next((size for size, stays in zip(sizes, answers, strict=True) if stays), 0)
            if size:
                self._best, self._steps = _edited(self._best, left[:size]), self._steps + size
                untouched = left[size - 1].start
            left = left[max(size, 1) :]
        return untouched

    def _ask(self, candidates: Sequence[bytes]) -> list[bool]:
        """Whether each candidate is in the bucket in one of its tries. Raises _Over."""
        digests = [sha256(candidate).digest() for candidate in candidates]
        pending = {one: what for one, what in zip(digests, candidates, strict=True) if one not in self._known}
        for _ in range(self._limits.tries):
            if not pending:
                break
            self._require(len(pending))
            answers = self._run([*pending.values()])
            if len(answers) < len(pending):
                raise _Over("gave up")
            self._known |= {one: True for one, stays in zip(pending, answers, strict=True) if stays}
            pending = {one: what for one, what in pending.items() if one not in self._known}
        self._known |= dict.fromkeys(pending, False)
        return [self._known[one] for one in digests]

    def _require(self, runs: int) -> None:
        """Raise _Over if so many more runs would go beyond a limit."""
        if self._deadline.expired:
            raise _Over("deadline")
        if self._tried + runs > self._limits.runs:
            raise _Over("runs")

    def _run(self, inputs: Sequence[bytes]) -> list[bool]:
        """The oracle's answers for these inputs, each of which is run once; fewer if it gives up."""
        answers: list[bool] = []
        for at in range(0, len(inputs), self._limits.batch):
            batch = inputs[at : at + self._limits.batch]
            answers += self._stays(batch)[: len(batch)]
            self._tried += len(batch)
            if len(answers) < at + len(batch):
                break
        return answers


def _sizes(largest: int) -> Iterator[int]:
    """Sizes of pieces, from the largest down to 1: each a quarter of the one before, so that a batch is well filled."""
    size = largest
    while size > 0:
        yield size
        size = (size + 3) // 4 if size > 1 else 0


def _pieces(length: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _apart(edits: Sequence[_Edit]) -> list[_Edit]:
    """Those of the edits, the last place first, that do not overlap with one before them in the list."""
    found: list[_Edit] = []
    for edit in edits:
        if not found or edit.stop <= found[-1].start:
            found.append(edit)
    return found


def _edited(content: bytes, edits: Sequence[_Edit]) -> bytes:
    """The content after these edits, the last place of it first."""
    for edit in edits:
        content = content[: edit.start] + edit.by + content[edit.stop :]
    return content
