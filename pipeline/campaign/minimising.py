"""Making the input of a crash smaller in guests: see pipeline.fuzz.crashes.minimise for how.

::

    crashes/PACKAGE/FUZZER/BUCKET/minimised/
        input           the smallest input that was found in the bucket, or the original if there is none
        original        the input that it was made of
        output.txt      what the last run of `input` in the bucket has said; empty if there was none
        minimised.json  what it cost, why it ended, and how often `input` was in the bucket when it was confirmed
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.campaign.triage import CrashInput, GuestsWith, Question
from pipeline.campaign.trying import BATCH, Conditions, Tries
from pipeline.errors import CampaignError
from pipeline.fuzz.crashes.bucket import KeptInput
from pipeline.fuzz.crashes.minimise import End, Limits, minimise, tries_for
from pipeline.fuzz.crashes.verdicts import CrashVerdict, InputVerdict
from pipeline.host.deadline import Clock
from pipeline.store import document
from pipeline.store.publish import publish_json
from pipeline.text.printable import printable

SCHEMA = 1
"""The version of minimised.json's format. A test holds a frozen sample of it."""

DIRECTORY = "minimised"
"""The name of the directory in that of the bucket."""

FILES = ("input", "original", "output.txt", "minimised.json")
"""The files in it."""

SLOW_BATCH = 4
"""How many candidates are tried at once of an input that hangs: each that stays so takes its whole timeout."""

OUTPUT_LIMIT = 1 << 18
"""The most bytes of output.txt: the last ones of what was said."""


@dataclass(frozen=True)
class Facts:
    """The content of minimised.json. All text in it is fit to print."""

    fuzzer: str
    bucket: str
    build: str
    """The digest of the fuzzer as it was built."""
    rule: str
    """The rule by which crashes are told apart, with its version."""
    original: KeptInput
    result: KeptInput
    why: End
    """Why it has ended: see pipeline.fuzz.crashes.minimise."""
    steps: int
    """How many changes the result consists of; 0 if it is the original."""
    tried: int
    """How often an input was run."""
    tries: int
    """How often each candidate was run before it counted as out of the bucket."""
    confirmed: int
    """How often the result was in the bucket when it was run again at the end."""
    of: int
    """How often it was run then: 0 if it is the original."""
    boots: tuple[str, ...]
    """The ids of the boots of the guests."""
    trouble: str
    """What went wrong, so that it ended early; empty if nothing did."""

    def encode(self) -> dict[str, Any]:
        """The content of minimised.json."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def decode(cls, text: bytes) -> "Facts":
        """The facts in the content of minimised.json. Raises ValueError if it is none of this schema."""
        return document.decode(text, cls, SCHEMA)


@dataclass(frozen=True)
class Smaller:
    """What has become of an input."""

    facts: Facts
    original: bytes
    content: bytes
    """The result, which is the original if nothing smaller stays in the bucket."""
    output: bytes
    """What the last run of the result in the bucket has said."""

    def write(self, files: Sequence[Path]) -> None:
        """Write FILES to these paths, in that order. Raises StoreError or OSError."""
        content, original, output, facts = files
        content.write_bytes(self.content)
        original.write_bytes(self.original)
        output.write_text(printable(self.output[-OUTPUT_LIMIT:]))
        publish_json(facts, self.facts.encode())


def read(bucket: Path) -> Facts | None:
    """Read what is known of the minimised input in the directory of a bucket; None if there is none.

    Raises OSError, and ValueError if it cannot be understood.
    """
    try:
        return Facts.decode((bucket / DIRECTORY / FILES[-1]).read_bytes())
    except FileNotFoundError:
        return None


def choose(inputs: Sequence[CrashInput], verdict: CrashVerdict, made: Facts | None = None) -> CrashInput:
    """The input to be minimised: the smallest of those that were in the bucket when they were run again.

    One that was `made` smaller before stays chosen until an input comes that is smaller than what was made of it. So
    not each crash that is found begins it anew. Raises CampaignError if no input has crashed again.
    """
    came = {one.sha256 for one in verdict.inputs if one.same}
    found = sorted((one for one in inputs if one.sha256 in came), key=lambda one: (len(one.content), one.sha256))
    if not found:
        raise CampaignError(
            f"{verdict.bucket} cannot be minimised: it did not come again: {verdict.told}",
            hint="its inputs stay as they are, with what their runs have said in verdicts/; raise --tries to try again",
        )
    last = next((one for one in found if made and one.sha256 == made.original.sha256), None)
    return last if last and made and made.result.size <= len(found[0].content) else found[0]


def smaller(
    question: Question,
    chosen: CrashInput,
    verdict: CrashVerdict,
    guests_with: GuestsWith,
    *,
    limits: Limits | None = None,
    clock: Clock = time.monotonic,
) -> Smaller:
    """Make the input smaller, in guests. `verdict` tells how often its crash came again.

    Raises what leasing a guest raises, and what is the host's fault.
    """
    slug, fuzzer = question.bucket.slug, question.bucket.fuzzer
    counts = next((one for one in verdict.inputs if one.sha256 == chosen.sha256), InputVerdict(chosen.sha256))
    tries = tries_for(counts.same, counts.tries)
    batch = SLOW_BATCH if question.bucket.kind == "timeout" else BATCH
    limits = limits or Limits(batch=batch, tries=tries, confirm=question.tries)
    said: dict[bytes, bytes] = {}
    with Tries(guests_with(chosen.environment), Conditions(fuzzer, chosen.options), clock=clock) as guests:

        def stays(candidates: Sequence[bytes]) -> list[bool]:
            came = guests.each(candidates)
            good = [one.outcome == "bucket" and one.slug == slug for one in came]
            for content, one, stayed in zip(candidates, came, good, strict=False):
                if stayed:
                    said.clear()
                    said[content] = one.output
            return good

        made = minimise(chosen.content, stays, limits, clock)
    facts = Facts(
        *(fuzzer, slug, question.build, question.rule, _kept(chosen.content), _kept(made.content)),
        *(made.why, made.steps, made.tried, limits.tries, made.confirmed, made.of),
        *(tuple(guests.boots), guests.given_up),
    )
    return Smaller(facts, chosen.content, made.content, said.get(made.content, b""))


def _kept(content: bytes) -> KeptInput:
    return KeptInput(sha256(content).hexdigest(), len(content))
