"""The buckets that a campaign has found crashes of, by its ledger, with what the store of crashes says of them."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.campaign.ledger import Subject
from pipeline.campaign.state import State
from pipeline.fuzz.crashes import crash as crashes
from pipeline.fuzz.crashes import earlier
from pipeline.fuzz.crashes.bucket import Bucket
from pipeline.fuzz.crashes.store import CrashStore
from pipeline.vm.capsule import found_in


@dataclass(frozen=True)
class FoundBucket:
    """A bucket that a campaign has found crashes of."""

    bucket: Bucket
    state: crashes.State
    """What the campaign's crashes have told of it."""
    present: int
    """How many crashes the campaign has found with the fuzzers as they are built and planned now."""
    earlier: int
    """How many it has found with others."""
    directory: Path
    """Where the files of the crashes are."""
    capsule: Path | None
    """The directory of a capsule, if there is one."""


def find(store: CrashStore, campaign: Path, state: State, present: Iterable[Subject]) -> list[FoundBucket]:
    """The buckets of a campaign in this directory and state, in the order in which they were first seen by anybody.

    `present` are its fuzzers as they are built and planned now. What was deleted is left out. Raises StoreError.
    """
    now, found = set(present), list[FoundBucket]()
    counts: Counter[tuple[str, str]] = Counter()
    for subject, fuzzer_state in state.fuzzer_states.items():
        counts.update({(subject.fuzzer, slug): count for slug, count in fuzzer_state.crashes.items()})
    for (fuzzer, slug), count in counts.items():
        bucket, directory = store.bucket(fuzzer, slug), store.directory(fuzzer, slug)
        if bucket is None:
            bucket, directory = earlier.read(campaign, fuzzer, slug), earlier.directory(campaign, slug)
        if bucket:
            mine = sum(state.fuzzer_state(subject).crashes.get(slug, 0) for subject in now if subject.fuzzer == fuzzer)
            capsule = next(iter(found_in(directory)), None)
            found.append(FoundBucket(bucket, _state(state, now, fuzzer, slug), mine, count - mine, directory, capsule))
    return sorted(found, key=lambda one: (one.bucket.first_seen, one.bucket.fuzzer, one.bucket.slug))


def _state(state: State, now: Collection[Subject], fuzzer: str, slug: str) -> crashes.State:
    """What the crashes of the present builds and plans have told; if there are none, those of the others."""
    having = {one: told for one, told in state.fuzzer_states.items() if one.fuzzer == fuzzer and slug in told.crashes}
    told = {having[one].told[slug] for one in (having.keys() & set(now) or having)}
    return "new" if "new" in told else "back" if "back" in told else "known"
