"""Buckets as the parser makes them of real outputs, and hostile ones."""

from pathlib import Path

from hypothesis import strategies as st

from pipeline.campaign.report.reported import ReportedBucket, ReportedFuzzer
from pipeline.fuzz.crashes import report as reports
from pipeline.fuzz.crashes import rules
from pipeline.fuzz.crashes.report import CrashReport
from pipeline.fuzz.crashes.stack import Frame

OUTPUTS = Path(__file__).parents[2] / "fuzz/crashes/outputs"


def of_output(name: str, **facts: object) -> ReportedBucket:
    """The bucket of an output that tests of the parser have; its fuzzer is demo/NAME."""
    report, fuzzer = reports.parse((OUTPUTS / f"{name}.txt").read_bytes()), f"demo/{name}"
    assert report is not None
    decision = rules.decide(report, fuzzer)
    facts = {"deciding": decision.telling, **facts}
    return ReportedBucket(decision.slug, fuzzer, report.kind, decision.title, report.message, report, **facts)  # type: ignore[arg-type]


def all_of_them() -> list[ReportedBucket]:
    """Of each output that tells of a crash."""
    outputs = sorted(OUTPUTS.glob("*.txt"))
    return [of_output(path.stem) for path in outputs if reports.parse(path.read_bytes())]


COPY = of_output("parser_fuzzer-copy_text", state="new", reproduced=(7, 10), severity="corruption of memory")
AVERAGE = of_output("parser_fuzzer-average", state="known", count=12)
NO_PLACE = of_output("fork", state="back")
GONE = of_output("parser_fuzzer-set_name", state="gone")

HOSTILE = (
    "\x00\x1b[31mred\x1b[0m\x85\u202e\ufffe\uffff",
    "]]></failure><testcase name='x'/><![CDATA[",
    "\"&<>'`$(reboot)",
    "[click](https://example.org/) {0} {{1}} \\",
    "../../../../../etc/passwd",
    "file:///etc/shadow",
    "//host/share",
    "\ud800\udfff",
    "a\nb\tc\rd",
    "",
)

texts = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=30))
frames = st.builds(Frame, texts, texts, st.integers(0, 999_999_999), texts)
crash_reports = st.builds(
    CrashReport, texts, access=texts, frames=st.lists(frames, max_size=5).map(tuple), message=texts
)
states = st.sampled_from(["new", "known", "back", "gone", None])
buckets = st.builds(
    ReportedBucket,
    texts,
    texts,
    texts,
    texts,
    texts,
    st.none() | crash_reports,
    st.lists(frames, max_size=2).map(tuple),
    states,
    texts | st.just("frames:5/2"),
    texts,
    st.sampled_from(["error", "warning", "note"]),
    st.none() | st.tuples(st.integers(0, 10), st.integers(1, 10)),
    st.integers(-1, 10**12),
)
fuzzers = st.builds(ReportedFuzzer, texts, st.floats(0, 1e7), st.integers(0), texts, texts)
