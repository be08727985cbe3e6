"""Histories of buckets that tests make up: with each build, how often it was seen, and what became of its inputs."""

from dataclasses import dataclass

from hypothesis import strategies as st

from pipeline.campaign.report import matrix
from pipeline.campaign.report.matrix import FuzzerMatrix, Row
from pipeline.fuzz.crashes.bucket import Bucket, Seen
from pipeline.fuzz.crashes.builds import KnownBuild
from pipeline.fuzz.crashes.verdicts import CrashVerdict, InputVerdict

FUZZER = "mine/a_fuzzer"
TRIED = {
    "still": InputVerdict("a", same=10),
    "seldom": InputVerdict("a", same=1, none=9),
    "none": InputVerdict("a", none=10),
    "masked": InputVerdict("a", others={"segv-other-0123456789ab": 10}),
    "lost": InputVerdict("a", lost=10),
    "failed": InputVerdict("a", failed=10),
}


@dataclass(frozen=True)
class Then:
    """What is known of a bucket with one build."""

    tried: str = ""
    """A word of TRIED; empty if its inputs were not run."""
    seen: int = 0


thens = st.builds(Then, st.sampled_from(["", *TRIED]), st.integers(0, 2))
histories = st.integers(1, 7).flatmap(
    lambda n: st.lists(st.lists(thens, min_size=n, max_size=n), min_size=1, max_size=4)
)
"""Of several buckets with the same builds."""


def builds(number: int) -> tuple[KnownBuild, ...]:
    return tuple(KnownBuild(f"b3:{at:02}{'f' * 60}", f"2026-12-{at + 1:02}T08:00:00Z") for at in range(number))


def row_of(history: list[Then], slug: str = "segv-parse-0123456789ab") -> Row:
    digests = [one.digest for one in builds(len(history))]
    seen = {
        build: Seen("2026-12-01T08:00:00Z", "2026-12-01T08:00:00Z", then.seen)
        for build, then in zip(digests, history, strict=True)
        if then.seen
    }
    told = [
        CrashVerdict(FUZZER, slug, build, "default/1", 1, 10, (TRIED[then.tried],))
        for build, then in zip(digests, history, strict=True)
        if then.tried
    ]
    bucket = Bucket(FUZZER, slug, "SEGV", ("parse",), "default/1", "", "", 1, builds=seen)
    return matrix.row(bucket, digests, told)


def matrix_of(histories: list[list[Then]]) -> FuzzerMatrix:
    rows = (row_of(history, f"segv-bug_{at}-0123456789{at:02}") for at, history in enumerate(histories))
    return FuzzerMatrix(FUZZER, builds(len(histories[0])), tuple(rows))
