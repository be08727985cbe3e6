"""Finding pids and artifacts in the output, and the rules by which its lines change."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import CommandError
from pipeline.fuzz import artifact_scanner, line_scanner
from pipeline.fuzz.arguments import Arguments
from pipeline.fuzz.artifact_scanner import ArtifactScanner
from pipeline.fuzz.lines import LineEnds, LogPrefixes, Stage, through
from pipeline.fuzz.pid_scanner import PidScanner
from tests.fuzz.cuts import cut, cuts

LOG = b"[1][klog] INFO: the log\n"


def whole(stages: list[Stage], pieces: list[bytes]) -> bytes:
    given: Iterator[bytes] = iter(pieces)
    for stage in stages:
        given = through(stage, given)
    return b"".join(given)


class Syslog:
    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, pid: int) -> bytes:
        self.asked.append(pid)
        return b"LOG %d" % pid


def pids(text: bytes) -> tuple[bytes, list[int]]:
    syslog = Syslog()
    return whole([PidScanner(syslog)], [text]), syslog.asked


def test_syslog_stands_behind_the_first_ms_line() -> None:
    said, asked = pids(b"==12== ERROR\nMS: 1 x\nMS: 2 y\nz\n")
    assert said == b"==12== ERROR\nMS: 1 x\nLOG 12\nMS: 2 y\nz\n"
    assert asked == [12]


def test_syslog_stands_at_the_end_if_there_is_no_ms_line() -> None:
    assert pids(b"==12== ERROR\nx MS: 1\n==x==\n")[0] == b"==12== ERROR\nx MS: 1\n==x==\nLOG 12\n"


def test_the_last_pid_counts_and_others_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "topcoat"):
        said, _ = pids(b"==1==\n==1==\n==2==\n==3==\nMS: \n==4==\n")
    assert b"MS: \nLOG 3\n" in said
    assert len(caplog.records) == 1


@pytest.mark.parametrize("line", [b" ==12==", b"==12=", b"==1a==", b"====", b"==" + b"1" * 21 + b"==", b"==-1=="])
def test_what_is_no_pid(line: bytes) -> None:
    assert pids(line + b"\n")[0] == line + b"\nWARNING: failed to fetch syslog: missing pid\n"


def test_a_line_goes_on_before_the_syslog_is_fetched() -> None:
    came: list[bytes] = []

    def syslog(_: int) -> bytes:
        assert came == [b"==1==\nMS: 1\n"]
        return LOG

    for piece in PidScanner(syslog).feed(b"==1==\nMS: 1\nafter\n"):
        came.append(piece)  # noqa: PERF402  while it is made
    assert came == [b"==1==\nMS: 1\n", LOG, b"after\n"]


@pytest.mark.parametrize("newline", [b"", b"\n"])
def test_syslog_stands_behind_a_long_ms_line_however_it_comes(newline: bytes) -> None:
    line = b"MS: " + b"x" * 70_000
    pieces = [b"==12==\n", line[:65_000], line[65_000:69_000], line[69_000:] + newline, b"y\n" if newline else b""]
    said = whole([PidScanner(Syslog())], [piece for piece in pieces if piece])
    assert said == b"==12==\n" + line + newline + b"LOG 12\n" + (b"y\n" if newline else b"")


def test_a_syslog_that_fails_is_one_line() -> None:
    def syslog(_: int) -> bytes:
        raise CommandError("no\nlog", hint="none")

    assert whole([PidScanner(syslog)], [b"==1==\n"]) == b"==1==\nWARNING: failed to fetch syslog: no\\nlog\n"


def test_an_empty_syslog_is_nothing() -> None:
    assert whole([PidScanner(lambda _: b"")], [b"==1==\n"]) == b"==1==\n"


def scan(text: str, host: str | None = None, prefix: str = "tmp/") -> tuple[str, list[str]]:
    scanner = ArtifactScanner(Arguments({"artifact_prefix": prefix}), Path(host) if host else None)
    return whole([scanner], [text.encode()]).decode(), scanner.artifacts


@pytest.mark.parametrize(
    ("line", "host", "becomes", "artifacts"),
    [
        ("Test unit written to /tmp/result_input", "/h", "", []),
        ("Test unit written to /tmp/result_input2", None, "Test unit written to /tmp/result_input2", ["*"]),
        ("Test unit written to tmp/crash-1", None, "Test unit written to tmp/crash-1", ["tmp/crash-1"]),
        ("Test unit written to tmp/crash-1", "/h", "Test unit written to /h/crash-1", ["tmp/crash-1"]),
        (
            "artifact_prefix='tmp/'; Test unit written to tmp/crash-1 tmp/",
            "/h",
            "artifact_prefix='/h/'; Test unit written to /h/crash-1 tmp/",
            ["tmp/crash-1"],
        ),
        (
            "Input saved to '/tmp/fuzz_ctl/x/crash-1'.",
            "/h",
            "artifact_prefix='/h/'; Test unit written to /h/crash-1",
            ["tmp/crash-1"],
        ),
        (
            "Minimized input written to 'tmp/a b'.",
            None,
            "artifact_prefix='tmp/'; Test unit written to tmp/a b",
            ["tmp/a b"],
        ),
        ("Running: tmp/corpus/tmp/x", "/h", "Running: data/corpus/tmp/x", []),
        ("Running: tmp/", "/h", "Running: tmp/", []),
        ("x Running: tmp/x", "/h", "x Running: tmp/x", []),
        ("Running: /tmp/temp_corpus", "/h", "Running: /tmp/temp_corpus", []),
        ("INFO: 3 files found in /tmp/live_corpus", "/h", "INFO: 3 files found in /tmp/live_corpus", []),
        ("INFO: 3 files found in tmp/c", "/h", "INFO: 3 files found in data/c", []),
        ("INFO: files found in tmp/c", "/h", "INFO: files found in tmp/c", []),
        ("Using 'tmp/x' as the output corpus.", "/h", "Using 'tmp/x' as the output corpus.", []),
        ("Test unit written to ", "/h", "Test unit written to ", []),
        ("Using '", "/h", "Using '", []),
    ],
)
def test_rules(line: str, host: str | None, becomes: str, artifacts: list[str]) -> None:
    expected = ["/tmp/result_input2"] if artifacts == ["*"] else artifacts
    assert scan(line + "\n", host) == (becomes + "\n", expected)


def test_names_that_the_fuzzer_is_told_are_remembered() -> None:
    text = (
        "Using 'tmp/out' as the output corpus.\nUsing 'tmp/in/x' as the test input.\n"
        "3 files found in /tmp/live_corpus\nRunning: /tmp/temp_corpus/0\nUsing 'a' as the test input.\n"
        "Running: /tmp/temp_corpus\n"
    )
    assert scan(text)[0].split("\n")[2:] == [
        "3 files found in data/out",
        "Running: data/in/x",
        "Using 'a' as the test input.",
        "Running: a",
        "",
    ]


def test_the_first_rule_wins() -> None:
    line = "Running: tmp/x Input saved to 'tmp/y' Test unit written to tmp/z\n"
    assert scan(line) == (line, ["tmp/z"])


def test_i9_the_tail_of_the_prefix_stays() -> None:
    line = "artifact_prefix='tmp/wow/x'; Test unit written to tmp/wow/xcrash-1312\n"
    assert scan(line, "/host", "tmp/wow/x") == (
        "artifact_prefix='/host/x'; Test unit written to /host/xcrash-1312\n",
        ["tmp/wow/xcrash-1312"],
    )


def test_an_artifact_is_noted_once() -> None:
    assert scan("Test unit written to tmp/a\nTest unit written to tmp/b\n" * 3)[1] == ["tmp/a", "tmp/b"]


@pytest.mark.parametrize("path", ["tmp/", "tmp/..", "..", "/", "tmp/.", "x" * 5000, "tmp/\0"])
def test_what_can_be_no_file_is_left_out(path: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "topcoat"):
        assert scan(f"Test unit written to {path}\nTest unit written to tmp/a\n" * 2)[1] == ["tmp/a"]
    assert len(caplog.records) == 1


def test_more_artifacts_than_there_can_be_are_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(artifact_scanner, "MOST", 3)
    with caplog.at_level(logging.WARNING, "topcoat"):
        found = scan("".join(f"Test unit written to tmp/{number}\n" for number in range(9)))[1]
    assert found == ["tmp/0", "tmp/1", "tmp/2"]
    assert "more than 3" in caplog.text


def test_a_long_line_is_looked_at_as_far_as_the_limit() -> None:
    text = "Test unit written to tmp/a " + "x" * 70_000 + " Test unit written to tmp/b"
    said, artifacts = scan(text + "\n", "/h")
    assert artifacts == ["tmp/a"]
    assert said == text.replace("tmp", "/h", 1) + "\n"


def test_a_long_line_is_not_held_back() -> None:
    scanner = ArtifactScanner(Arguments({"artifact_prefix": "tmp/"}), None)
    assert sum(len(piece) for _ in range(4) for piece in scanner.feed(b"x" * 65536)) >= 3 * 65536


words = st.sampled_from(
    [
        b"Test unit written to ", b"tmp/", b"tmp/crash-1", b"/tmp/result_input", b"Input saved to '", b"'",
        b"Running: ",
        b"Minimized input written to '", b"/tmp/temp_corpus", b"3 files found in ", b"/tmp/live_corpus", b"Using '",
        b"' as the output corpus.", b"' as the test input.", b"==1==", b"==22==", b"MS: ", b"\n", b"\n", b"\r\n", b"x",
        b"\r", b"\xff", b"[1.2][klog] INFO: ", b"{{{0x41}}}",
    ]
)  # fmt: skip
streams = st.lists(words).map(b"".join) | st.binary()


def chain() -> tuple[list[Stage], ArtifactScanner, Syslog]:
    artifacts = ArtifactScanner(Arguments({"artifact_prefix": "tmp/"}), Path("/host"))
    syslog = Syslog()
    return [LineEnds(), PidScanner(syslog), artifacts, LogPrefixes()], artifacts, syslog


@pytest.fixture(scope="module", params=[12, 65536])
def limit(request: pytest.FixtureRequest) -> Iterator[int]:
    """Lines that are long are so after this many bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_scanner, "LIMIT", request.param)
        yield request.param


@settings(max_examples=400)
@given(streams, cuts)
def test_however_the_stream_is_cut_the_same_comes_out(limit: int, text: bytes, places: list[int]) -> None:
    one, many = chain(), chain()
    assert whole(one[0], [text]) == whole(many[0], cut(text, places))
    assert one[1].artifacts == many[1].artifacts
    assert one[2].asked == many[2].asked


@given(st.binary(), cuts)
def test_what_means_nothing_passes_unchanged(limit: int, text: bytes, places: list[int]) -> None:
    scanner = ArtifactScanner(Arguments({"artifact_prefix": "tmp/"}), None)
    assert whole([scanner], cut(text, places)) == text
