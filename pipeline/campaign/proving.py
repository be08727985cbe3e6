"""Proving fixes: which known crashes have not been tried with the present builds of their fuzzers."""

from collections.abc import Mapping

from pipeline.fuzz.crashes import rules, verdicts
from pipeline.fuzz.crashes.store import OTHERS, CrashStore
from pipeline.fuzz.crashes.verdicts import CrashVerdict
from pipeline.store.freshness import record_path


def lacking(store: CrashStore, builds: Mapping[str, str], version: int) -> list[tuple[str, str]]:
    """The buckets of these fuzzers that are known from other builds than the present one and have no verdict with it.

    `builds` has the digests of the present builds by fuzzer, `version` is that of the task that tries. What was only
    seen with the present build needs no proof, and what was counted in OTHERS has nothing to be tried. The buckets are
    told by fuzzer and slug, in the order in which they were first seen. Raises StoreError.
    """
    found = []
    for fuzzer, build in builds.items():
        for slug in store.slugs(fuzzer):
            if slug == OTHERS or current(store, fuzzer, slug, build, version):
                continue
            bucket = store.bucket(fuzzer, slug)
            if bucket and set(bucket.builds) != {build}:
                found.append((bucket.first_seen, fuzzer, slug))
    return [(fuzzer, slug) for _, fuzzer, slug in sorted(found)]


def current(store: CrashStore, fuzzer: str, slug: str, build: str, version: int) -> CrashVerdict | None:
    """The verdict with this build, by the present rule and the present way of trying; None if there is none.

    One without a record does not count: somebody was killed while it was made, or wants it to be made again. Raises
    StoreError.
    """
    path = verdicts.path_of(store.directory(fuzzer, slug), build)
    verdict = verdicts.read(path) if record_path(path).exists() else None
    now = (fuzzer, slug, build, rules.DEFAULT.versioned, version)
    then = verdict and (verdict.fuzzer, verdict.bucket, verdict.build, verdict.rule, verdict.version)
    return verdict if then == now else None
