"""Triage: whether the inputs of a bucket still crash there with the present build, and which smaller one does.

Nothing here changes what is known of a crash: its inputs stay as they are, and one that does not crash again is kept
with what its runs have said.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256

from pipeline.builds.build import Build
from pipeline.campaign.guests import Guests, PooledGuests
from pipeline.campaign.trying import BATCH, Conditions, Tried, Tries, replay_options
from pipeline.fuzz.crashes import artifacts, rules, verdicts
from pipeline.fuzz.crashes.bucket import Bucket
from pipeline.fuzz.crashes.crash import KeptCrash
from pipeline.fuzz.crashes.verdicts import CrashVerdict, InputVerdict, TriedOutcome
from pipeline.host.deadline import Clock, Deadline, utc_now
from pipeline.settings import Settings
from pipeline.store.digests import digest_of_text
from pipeline.store.freshness import Key
from pipeline.text.printable import one_line, printable
from pipeline.vm.pool import Pool
from pipeline.vm.qemu.pooled import QemuGuests
from pipeline.vm.template import Templates

LIMIT = 300.0
"""Seconds after which no further round of tries begins: each try of an input that hangs takes its whole timeout."""

EVIDENCE_LIMIT = 1 << 16
"""How many bytes of a run's output are kept as evidence: the last ones."""

MOST_LOST = 2
"""How many guests one input may take down before it is not run any more: the others are still to be tried."""

_AT_ONCE = 30.0
"""Seconds for which rounds are asked for at once: what is given to a guest costs time, and it may hang."""

_NO_INPUT = "no input of it is kept"

GuestsWith = Callable[[Mapping[str, str]], Guests]
"""Returns guests in which the fuzzer has these variables in its environment."""


@dataclass(frozen=True)
class CrashInput:
    """An input of a bucket, and how the fuzzer was run when it crashed."""

    content: bytes
    options: Mapping[str, str] = field(default_factory=dict)
    """libFuzzer's options that matter for one input."""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the input."""
        return sha256(self.content).hexdigest()

    @property
    def conditions(self) -> str:
        """A digest of the options and the environment."""
        return digest_of_text(json.dumps([dict(self.options), dict(self.environment)], sort_keys=True))

    @classmethod
    def of(cls, crash: KeptCrash) -> "CrashInput":
        """The input of a crash that is kept. Raises StoreError."""
        return cls(crash.input(), replay_options(crash.facts.options), dict(crash.facts.environment))


def inputs_of(kept: Sequence[KeptCrash]) -> list[CrashInput]:
    """The inputs of these crashes in the order of their SHA-256s, each once. Raises StoreError.

    Left out are those that the guest has lost: they are empty, and the names of their artifacts say otherwise.
    """
    found = {one.sha256: one for crash in kept if _is_there(one := CrashInput.of(crash), crash)}
    return [found[digest] for digest in sorted(found)]


def _is_there(one: CrashInput, crash: KeptCrash) -> bool:
    artifact = crash.facts.artifact
    return bool(one.content) or (bool(artifacts.unit_of(artifact)) and artifacts.is_whole(artifact, one.content))


@dataclass(frozen=True)
class Question:
    """What is asked of a bucket."""

    bucket: Bucket
    build: str
    """The digest of the fuzzer as the guests have it."""
    version: int
    """The version of the task that asks."""
    tries: int
    """How often each input is to be run."""
    rule: str = rules.DEFAULT.versioned

    def holds(self, before: CrashVerdict | None) -> bool:
        """Whether an earlier verdict is of the same build, rule and version, so that what it counted still counts."""
        now = (self.bucket.fuzzer, self.bucket.slug, self.build, self.rule, self.version)
        then = before and (before.fuzzer, before.bucket, before.build, before.rule, before.version)
        return then == now


@dataclass(frozen=True)
class Triaged:
    """The answer to a question."""

    verdict: CrashVerdict
    evidence: str
    """What the runs have said, fit to print: one output of each way in which a try has ended."""


def triage(
    question: Question,
    inputs: Sequence[CrashInput],
    guests_with: GuestsWith,
    *,
    before: Triaged | None = None,
    others: Sequence[CrashVerdict] = (),
    limit: float = LIMIT,
    clock: Clock = time.monotonic,
) -> Triaged:
    """Run each input as often as is asked, and count what came of it.

    What `before` has counted of the same inputs under the same conditions counts again, and only what is missing is
    run. `others` are the bucket's verdicts of other builds, in the order of the builds. If no input is kept, or none
    could be run, that is the verdict: `not run`, and why. Raises what leasing a guest raises, and what is the host's
    fault.
    """
    tally = _Counting(question, inputs, before if before and question.holds(before.verdict) else None)
    deadline = Deadline(limit, clock)
    for group in tally.groups():
        conditions = Conditions(question.bucket.fuzzer, group[0].options)
        with Tries(guests_with(group[0].environment), conditions, clock=clock) as tries:
            tally.count(group, tries, deadline)
    found = tally.verdict()
    return Triaged(replace(found, word=verdicts.word(found, others, question.bucket.times)), tally.evidence())


class _Counting:
    """What came of the tries so far."""

    def __init__(self, question: Question, inputs: Sequence[CrashInput], before: Triaged | None) -> None:
        self._question, self._inputs = question, inputs
        old = {(one.sha256, one.conditions): one for one in before.verdict.inputs} if before else {}
        keys = [(one.sha256, one.conditions) for one in inputs]
        self._counts = {key[0]: old.get(key, InputVerdict(*key)) for key in keys}
        counted = before if any(one.tries for one in self._counts.values()) else None
        self._ways = set().union(*map(self._ways_of, counted.verdict.inputs)) if counted else set()
        self._said = counted.evidence if counted else ""
        self._boots = counted.verdict.boots if counted else ()
        self._trouble = ""
        self._deadly: Counter[str] = Counter()
        """How many guests each input has taken down this time."""

    def _ways_of(self, one: InputVerdict) -> set[str]:
        ways: tuple[TriedOutcome, ...] = ("none", "timeout", "lost", "failed")
        return {*one.others, *([self._question.bucket.slug] * one.same), *(way for way in ways if getattr(one, way))}

    def groups(self) -> list[list[CrashInput]]:
        """The inputs of which tries are missing, by their conditions."""
        found: dict[str, list[CrashInput]] = {}
        for one in self._inputs:
            if self._left(one):
                found.setdefault(one.conditions, []).append(one)
        return [found[conditions] for conditions in sorted(found)]

    def _left(self, one: CrashInput) -> int:
        deadly = self._deadly[one.sha256] >= MOST_LOST
        return 0 if deadly else max(0, self._question.tries - self._counts[one.sha256].tries)

    def count(self, group: Sequence[CrashInput], tries: Tries, deadline: Deadline) -> None:
        """Run each of these inputs in turn, until none is left to be run, time is over, or no guest is left."""
        rounds = 1
        while wanted := [one for one in group if self._left(one)]:
            if tries.given_up or deadline.expired:
                self._trouble = self._trouble or tries.given_up or f"it took longer than {deadline.seconds:.0f} s"
                break
            began = deadline.elapsed
            asked = [one for at in range(rounds) for one in wanted if at < self._left(one)]
            for one, tried in zip(asked, tries.each([one.content for one in asked]), strict=False):
                self._note(one, tried)
            seconds = (deadline.elapsed - began) / len(asked)
            deadly = any(self._deadly[one.sha256] for one in wanted)
            rounds = 1 if deadly else max(1, int(min(BATCH, _AT_ONCE / max(seconds, 0.01)) / len(wanted)))
        self._boots += tuple(tries.boots)

    def _note(self, one: CrashInput, tried: Tried) -> None:
        counts, way = self._counts[one.sha256], tried.slug or tried.outcome
        self._counts[one.sha256] = counts.counted(self._question.bucket.slug, [(tried.outcome, tried.slug)])
        self._trouble = self._trouble or one_line(tried.why)
        self._deadly[one.sha256] += tried.fault == "lost"
        if way not in self._ways:
            self._ways.add(way)
            said = printable(tried.output[-EVIDENCE_LIMIT:]).rstrip("\n")
            self._said += f"=== {way}: input {one.sha256[:12]}, after {tried.seconds:.1f} s\n{said}\n\n"

    def evidence(self) -> str:
        """See Triaged."""
        return self._said

    def verdict(self) -> CrashVerdict:
        """What was counted, without a word."""
        asked = self._question
        return CrashVerdict(
            asked.bucket.fuzzer,
            asked.bucket.slug,
            asked.build,
            asked.rule,
            asked.version,
            asked.tries,
            tuple(self._counts[digest] for digest in sorted(self._counts)),
            self._boots,
            utc_now(),
            self._trouble if self._inputs else _NO_INPUT,
        )


@contextmanager
def pooled(
    settings: Settings, build: Build, key: Callable[[], Key], templates: Templates | None, fuzzer: str, work: str
) -> Iterator[GuestsWith]:
    """Yield what lends guests of the pool for tries of a fuzzer; `work` tells others what they are wanted for.

    `key` tells all that the guests are booted with; they are clones if `templates` has a template. Raises StoreError or
    InstanceBusy.
    """
    guests = QemuGuests(settings, build, "ssh", key, templates)
    with Pool(settings, guests, work=work, refill=False) as pool, ExitStack() as connected:

        def guests_with(environment: Mapping[str, str]) -> Guests:
            found = PooledGuests(pool, guests, {fuzzer: environment})
            connected.callback(found.disconnect)
            return found

        yield guests_with
