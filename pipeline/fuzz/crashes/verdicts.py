"""Verdicts: what became of the inputs of a bucket when they were run again with one build of the fuzzer.

A verdict has counts, not opinions: how many tries ended in the bucket, in which others, in none, or were no tries at
all. Only a try in the bucket itself counts as "still there"; a crash elsewhere never does. `word` is what that says of
the build, with what is known from other builds.

::

    crashes/PACKAGE/FUZZER/BUCKET/verdicts/BUILD12.json, BUILD12.txt     BUILD12: see `name_of`

The text file has what the runs have said: one output of each way in which a try has ended.
"""

import logging
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from pipeline.host.faults import host_faults
from pipeline.store import document
from pipeline.store.freshness import record_path
from pipeline.text.printable import one_line

log = logging.getLogger("topcoat")

SCHEMA = 1
"""The version of a verdict's format. A test holds a frozen sample of it."""

DIRECTORY = "verdicts"
"""The name of the directory of verdicts in that of their bucket."""

FIXED = "fixed"
"""The word for a build with which the crash is gone."""

DOUBT = 0.05
"""How likely it may be that a crash is gone only by chance, and yet counts as fixed."""

TriedOutcome = Literal["bucket", "none", "timeout", "lost", "failed"]
"""How one try has ended.

bucket: with a crash, whatever it was. none: the target ran to its end on the input, as libFuzzer itself has told.
timeout: it was killed, as it said nothing for too long. lost: the guest was lost. failed: none of these, as when the
target ends the process by itself.
"""

Outcome = Literal["same bucket", "other bucket", "none", "timeout", "guest lost", "not run"]
"""What a verdict comes to. See CrashVerdict.outcome."""


@dataclass(frozen=True)
class InputVerdict:
    """How often each thing happened when one input was run."""

    sha256: str
    """The SHA-256 of the input."""
    conditions: str = ""
    """A digest of the options and the environment that it was run with."""
    same: int = 0
    """Crashes in the bucket."""
    others: Mapping[str, int] = field(default_factory=dict)
    """Crashes in other buckets, by these."""
    none: int = 0
    """Runs to the end, without a crash."""
    timeout: int = 0
    """Runs that were killed, as they did not end."""
    lost: int = 0
    """Runs in which the guest was lost."""
    failed: int = 0
    """Runs that ended otherwise, which says nothing."""

    @property
    def tries(self) -> int:
        """How often the input was run."""
        return self.same + sum(self.others.values()) + self.none + self.timeout + self.lost + self.failed

    def counted(self, bucket: str, outcomes: Sequence[tuple[TriedOutcome, str]]) -> "InputVerdict":
        """The same with more tries: how each of them ended, and the bucket of its crash."""
        count = Counter("same" if one == "bucket" and slug == bucket else one for one, slug in outcomes)
        others = Counter(self.others) + Counter(slug for one, slug in outcomes if one == "bucket" and slug != bucket)
        return replace(
            self,
            same=self.same + count["same"],
            others=dict(others),
            none=self.none + count["none"],
            timeout=self.timeout + count["timeout"],
            lost=self.lost + count["lost"],
            failed=self.failed + count["failed"],
        )


@dataclass(frozen=True)
class CrashVerdict:
    """What became of the inputs of a bucket with one build. All text in it is fit to print."""

    fuzzer: str
    """The full name of the fuzzer, PACKAGE/FUZZER."""
    bucket: str
    """The slug of the bucket."""
    build: str
    """The digest of the fuzzer as it was built."""
    rule: str
    """The rule by which crashes are told apart, with its version."""
    version: int
    """The version of how inputs are tried."""
    wanted: int
    """How often each input was to be run."""
    inputs: tuple[InputVerdict, ...]
    """What became of each input, in the order of their SHA-256s."""
    boots: tuple[str, ...] = ()
    """The ids of the boots of the guests in which they were run."""
    made: str = ""
    """When they were run: in UTC."""
    trouble: str = ""
    """What went wrong, so that tries are missing or say nothing; empty if nothing did."""
    word: str = ""
    """What the function `word` said of the build when the verdict was made."""

    @property
    def tries(self) -> int:
        """How often an input was run."""
        return sum(one.tries for one in self.inputs)

    @property
    def same(self) -> int:
        """How many tries ended in the bucket."""
        return sum(one.same for one in self.inputs)

    @property
    def none(self) -> int:
        """How many tries ran to their end."""
        return sum(one.none for one in self.inputs)

    @property
    def timeout(self) -> int:
        """How many tries were killed, as they did not end."""
        return sum(one.timeout for one in self.inputs)

    @property
    def lost(self) -> int:
        """In how many tries the guest was lost."""
        return sum(one.lost for one in self.inputs)

    @property
    def failed(self) -> int:
        """How many tries ended otherwise, which says nothing."""
        return sum(one.failed for one in self.inputs)

    @property
    def others(self) -> Mapping[str, int]:
        """How many tries ended in which other buckets, the most frequent first."""
        found: Counter[str] = Counter()
        for one in self.inputs:
            found.update(one.others)
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    @property
    def rate(self) -> str:
        """In how many of the tries the crash came again, such as `3 of 10`."""
        return f"{self.same} of {self.tries}"

    @property
    def outcome(self) -> Outcome:
        """What the tries come to.

        `same bucket` as soon as one try has ended there. `none` only if each input ran to its end at least once: an
        input on which another crash always comes first says nothing of this one, which is `other bucket`.
        """
        if self.same:
            return "same bucket"
        if self.inputs and all(one.none for one in self.inputs):
            return "none"
        if self.others:
            return "other bucket"
        if any(one.timeout for one in self.inputs):
            return "timeout"
        return "guest lost" if any(one.lost for one in self.inputs) else "not run"

    @property
    def told(self) -> str:
        """The outcome for people, with the other bucket's name."""
        named = f"other bucket ({next(iter(self.others))})" if self.outcome == "other bucket" else self.outcome
        return f"{named}: {self.rate}" + (f"; {self.trouble}" if self.trouble else "")

    def encode(self) -> dict[str, Any]:
        """The content of its file: all fields, and what they come to, for those who read it without Topcoat."""
        sums = {"timeout": self.timeout, "lost": self.lost, "failed": self.failed}
        come_to = {"tries": self.tries, "same": self.same, "none": self.none, "others": dict(self.others), **sums}
        return {"schema": SCHEMA, **asdict(self), **come_to, "outcome": self.outcome}

    @classmethod
    def decode(cls, text: bytes) -> "CrashVerdict":
        """The verdict in the content of its file. Raises ValueError if it is none of this schema."""
        return document.decode(text, cls, SCHEMA)


def word(verdict: CrashVerdict, others: Sequence[CrashVerdict] = (), seen: Mapping[str, int] | None = None) -> str:
    """What a verdict says of its build.

    That is `still there 3 of 10`, `fixed`, `masked by BUCKET`, `0 of 10` or `not run: WHY`.
    `others` are the bucket's verdicts of other builds, in the order of the builds; `seen` tells how often campaigns saw
    the bucket with which builds. `0 of 10` says that it did not come again, and that this proves nothing: it was seen
    with this very build, or it has never come again with any, or it comes so seldom that this may be chance.
    """
    outcome = verdict.outcome
    if outcome == "same bucket":
        return f"still there {verdict.rate}"
    if outcome == "other bucket":
        return f"masked by {next(iter(verdict.others))}"
    if outcome == "none":
        return FIXED if _proved(verdict, others, seen or {}) else verdict.rate
    said = {"timeout": "the runs hung", "guest lost": "the guest was lost each time", "not run": "nothing could be run"}
    return f"not run: {verdict.trouble or said[outcome]}"


def _proved(verdict: CrashVerdict, others: Sequence[CrashVerdict], seen: Mapping[str, int]) -> bool:
    """Whether it must be due to the build that the crash did not come again."""
    if verdict.build in seen:
        return False
    came = [one for one in others if one.same and one.build != verdict.build]
    if not came:  # of a crash that campaigns saw again and again, nobody has measured how often it comes
        tried_in_vain = any(one.outcome == "none" for one in others if one.build in seen)
        return not tried_in_vain and sum(seen.values()) > 1
    return _chance(verdict, came[-1]) <= DOUBT


def _chance(verdict: CrashVerdict, before: CrashVerdict) -> float:
    """How likely the tries of the verdict would be if the crash still came as often as before."""
    rates = {one.sha256: one.same / one.tries for one in before.inputs if one.tries}
    known = [one for one in verdict.inputs if rates.get(one.sha256)]
    if not known:
        return (1 - before.same / before.tries) ** verdict.none
    return math.prod((1 - rates[one.sha256]) ** one.none for one in known)


def words(verdicts: Sequence[CrashVerdict], seen: Mapping[str, int] | None = None) -> dict[str, str]:
    """The words for all builds that there are verdicts of, by the builds' digests; see `word`."""
    return {one.build: word(one, [other for other in verdicts if other.build != one.build], seen) for one in verdicts}


def fixed_before(earlier: Sequence[str], seen: Collection[str], told: Mapping[str, str]) -> str:
    """The last of the earlier builds of which it is told that the crash is fixed there; empty if there is none.

    `earlier` are the digests of the builds before this one, the last one first. A build does not count if the bucket
    was `seen` with it, or with one after it. `told` are the words for builds; see `words`.
    """
    for build in earlier:
        if build in seen:
            return ""
        if told.get(build) == FIXED:
            return build
    return ""


def name_of(build: str) -> str:
    """The name, without its ending, of the files of the verdict for the build with this digest."""
    return sha256(build.encode(errors="replace")).hexdigest()[:12]


def path_of(bucket: Path, build: str) -> Path:
    """The path of the verdict for this build, below the directory of the bucket."""
    return bucket / DIRECTORY / f"{name_of(build)}.json"


def read(path: Path) -> CrashVerdict | None:
    """Read a verdict. None if there is none, or if it cannot be understood, which is logged. Raises StoreError."""
    try:
        with host_faults(f"reading the verdict {path.name}"):
            text = path.read_bytes() if path.is_file() else None
        return CrashVerdict.decode(text) if text is not None else None
    except ValueError as error:
        log.warning("it counts as not there: %s cannot be understood: %s", path, one_line(str(error)))
        return None


def read_all(bucket: Path, builds: Sequence[str] = ()) -> list[CrashVerdict]:
    """Read all verdicts in the directory of a bucket, in the order of `builds`, then of when they were made.

    What cannot be understood is left out, which is logged. Raises StoreError.
    """
    with host_faults("reading the verdicts of a crash"):
        paths = sorted((bucket / DIRECTORY).glob("*.json"))
    records = {record_path(path) for path in paths}
    found = [verdict for path in paths if path not in records and (verdict := read(path))]
    order = {build: at for at, build in enumerate(builds)}
    return sorted(found, key=lambda one: (order.get(one.build, len(order)), one.made, one.build))
