"""A client that knows only undercoat's command line, and the real Linux guest: the original's end-to-end tests."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.undercoat.handle import HandleFile
from tests.conftest import BIN, Outcome, Workspace, qemus_of
from tests.undercoat.test_guest import process_of
from tests.waiting import SOON

CRASH = "example-fuzzers/crash_fuzzer"
OVERFLOW = "example-fuzzers/overflow_fuzzer"
PARSER = "example-fuzzers/parser_fuzzer"
NOOP = "example-fuzzers/noop_fuzzer"
NOISY = "example-fuzzers/noisy_fuzzer"


class Client:
    """Calls undercoat as ClusterFuzz does, in the forms that it uses."""

    def __init__(self, workspace: Workspace, handle: str) -> None:
        self.workspace = workspace
        self.handle = handle

    def call(self, name: str, *words: str) -> Outcome:
        return self.workspace.run("undercoat", name, "-handle", self.handle, *words)

    def done(self, name: str, *words: str) -> bytes:
        outcome = self.call(name, *words)
        assert outcome.status == 0, outcome.text
        return outcome.stdout

    def prepare(self, fuzzer: str) -> None:
        assert self.done("prepare_fuzzer", "-fuzzer", fuzzer) == b""

    def put(self, fuzzer: str, source: object, target: str) -> None:
        assert self.done("put_data", "-fuzzer", fuzzer, "-src", str(source), "-dst", target) == b""

    def get(self, fuzzer: str, source: str, target: Path) -> Outcome:
        return self.call("get_data", "-fuzzer", fuzzer, "-src", source, "-dst", str(target))

    def run(self, fuzzer: str, *words: str, artifacts: Path | None = None) -> str:
        chosen = ("-artifact-dir", str(artifacts)) if artifacts else ()
        return self.done("run_fuzzer", "-fuzzer", fuzzer, *chosen, "--", *words).decode(errors="replace")


def boot(directory: Path, parts: Path) -> Workspace:
    """A workspace whose store has the Linux guest's parts, and a TMPDIR."""
    workspace = Workspace(directory)
    left_out = ("FUCHSIA_", "TOPCOAT_", "LUIGI_", "PYTHONDONTWRITEBYTECODE")
    workspace.environment |= {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
    (directory / "tmp").mkdir(parents=True)
    workspace.environment |= {
        "PATH": f"{BIN}:{workspace.environment['PATH']}",
        "TOPCOAT_ROOT": str(directory / "out"),
        "TMPDIR": str(directory / "tmp"),
    }
    subprocess.run(["cp", "-a", "--sparse=always", parts, directory / "out"], check=True)
    return workspace


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, demo_parts: Path) -> Iterator[Client]:
    directory = tmp_path_factory.mktemp("undercoat")
    workspace = boot(directory / "work", demo_parts)
    started = workspace.run("undercoat", "start_instance")
    assert started.status == 0, started.text
    assert re.fullmatch(rb"\S+\n", started.stdout)
    made = Client(workspace, started.stdout.decode().strip())
    try:
        yield made
    finally:
        made.call("stop_instance")
        assert qemus_of(directory) == []
        shutil.rmtree(directory, ignore_errors=True)


def corpus(directory: Path, **files: bytes) -> Path:
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return directory


def units(directory: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in directory.iterdir())


def test_e1_the_log_has_the_marker(client: Client) -> None:
    assert b"{{{reset}}}" in client.done("get_logs")


def test_e2_the_examples_that_are_listed(client: Client) -> None:
    listed = client.done("list_fuzzers").decode().splitlines()
    assert {"example-fuzzers/out_of_memory_fuzzer", "example-fuzzers/toy_example_arbitrary"} <= set(listed)
    assert CRASH not in listed


def test_e3_a_second_preparation_deletes_what_was_put(client: Client, tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", unit=b"x")
    target = corpus(tmp_path / "out")
    client.prepare(OVERFLOW)
    client.put(OVERFLOW, source / "unit", "data/")
    assert client.get(OVERFLOW, "data/unit", target).status == 0
    client.prepare(OVERFLOW)
    gone = client.get(OVERFLOW, "data/unit", target)
    assert (gone.status, b"no files matching glob" in gone.stdout) == (1, True)
    assert re.search(rb"hint: see what is there: topcoat ssh undercoat-\w+ -- ls", gone.stderr)


def test_e4_a_crash_is_found_named_and_fetched(client: Client, tmp_path: Path) -> None:
    artifacts = corpus(tmp_path / "artifacts")
    client.prepare(CRASH)
    said = client.run(CRASH, "-max_total_time=60", "-rss_limit_mb=300", artifacts=artifacts)
    assert "deadly signal" in said
    assert "LLVMFuzzerTestOneInput" in said
    assert re.search(r"crash_fuzzer\.\w+:\d+", said), "stacks have lines"
    (found,) = re.findall(r"Test unit written to\s*(.*(?:crash|oom|timeout|leak)-.*)", said)
    assert Path(found).parent == artifacts
    assert Path(found).read_bytes().startswith(b"HI!")
    assert "WARNING: failed to fetch syslog" not in said
    assert b"{{{reset}}}" in client.done("get_logs")


def test_e5_a_corpus_grows(client: Client, tmp_path: Path) -> None:
    client.prepare(PARSER)
    client.put(PARSER, corpus(tmp_path / "in", a=b"TC", b=b"TCN\0", c=b"x"), "data/corpus")
    client.put(PARSER, corpus(tmp_path / "new"), "data/corpus")
    dictionary = "-dict=pkg/parser_fuzzer.dict"
    words = ["-max_len=64", "-max_total_time=4.0", "-print_final_stats=1", dictionary, "-seed=1"]
    said = client.run(PARSER, "data/corpus/new", "data/corpus/in", *words)
    assert re.search(r"\b3 files found in data/corpus/in", said)
    assert "Dictionary: " in said
    assert re.search(r"^stat::number_of_executed_units: *\d+$", said, re.MULTILINE)
    target = corpus(tmp_path / "out")
    assert client.get(PARSER, "data/corpus/new/*", target).status == 0
    assert units(target)


def test_e6_a_crash_is_minimised(client: Client, tmp_path: Path) -> None:
    artifacts, target = corpus(tmp_path / "artifacts"), corpus(tmp_path / "out")
    client.prepare(CRASH)
    client.put(CRASH, corpus(tmp_path / "in", testcase=b"HI!!") / "testcase", "data/")
    client.run(
        CRASH,
        "data/testcase",
        "-minimize_crash=1",
        "-max_total_time=5",
        "-exact_artifact_path=data/final-minimized-crash",
        artifacts=artifacts,
    )
    assert client.get(CRASH, "data/final-minimized-crash", target).status == 0
    assert (target / "final-minimized-crash").read_bytes() == b"HI!"


def test_e7_a_merge_keeps_what_counts(client: Client, tmp_path: Path) -> None:
    client.prepare(CRASH)
    many = {f"u{number}": b"x" * number for number in range(5)}
    client.put(CRASH, corpus(tmp_path / "in", **many, h=b"H", hi=b"HI"), "data/corpus")
    client.put(CRASH, corpus(tmp_path / "new"), "data/corpus")
    client.run(
        CRASH,
        "data/corpus/new",
        "data/corpus/in",
        "-merge=1",
        "-max_total_time=60",
        "-merge_control_file=data/.mergefile",
    )
    target = corpus(tmp_path / "out")
    assert client.get(CRASH, "data/corpus/new/*", target).status == 0
    kept = units(target)
    assert {b"H", b"HI"} <= set(kept)
    assert len(kept) < len(many) + 2
    assert client.get(CRASH, "data/.mergefile", target).status == 0


def test_e8_a_unit_is_reproduced(client: Client, tmp_path: Path) -> None:
    client.prepare(OVERFLOW)
    client.put(OVERFLOW, corpus(tmp_path / "in", harmless=b"") / "harmless", "data/")
    said = client.run(OVERFLOW, "data/harmless", "-timeout=25", "-rss_limit_mb=300", "-runs=100")
    assert "Running: data/harmless" in said
    assert "ERROR: AddressSanitizer" not in said
    client.prepare(CRASH)
    client.put(CRASH, corpus(tmp_path / "crash", testcase=b"HI!") / "testcase", "data/")
    said = client.run(CRASH, "data/testcase", "-runs=100")
    assert "Running: data/testcase" in said
    assert "deadly signal" in said


def test_e9_e10_thousands_of_files_arrive_and_come_back(client: Client, tmp_path: Path) -> None:
    files = {f"{number:04}": os.urandom(number % 97) for number in range(2000)}
    source, target = corpus(tmp_path / "many", **files), corpus(tmp_path / "out")
    client.prepare(CRASH)
    client.put(CRASH, source, "data/corpus")
    assert client.get(CRASH, "data/corpus/many", target).status == 0
    assert {path.name: path.read_bytes() for path in (target / "many").iterdir()} == files


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_given_up_is_ended_in_the_guest(client: Client, number: signal.Signals) -> None:
    """ClusterFuzz ends a run that takes too long by a signal, a person closes the terminal."""
    client.prepare(NOOP)
    with running(client, NOOP, "-max_total_time=100") as run:
        run.send_signal(number)
        assert run.wait(SOON) == 128 + number
    name = Path(HandleFile(Path(client.handle)).read().launcher.directory).name
    left = client.workspace.topcoat("ssh", name, "--", "ps | grep -c '[n]oop_fuzzer'; true")
    assert left.stdout == b"0\n"


@contextmanager
def running(client: Client, fuzzer: str, *words: str) -> "Iterator[subprocess.Popen[bytes]]":
    """A run that has begun to fuzz."""
    command = client.workspace.command("undercoat", "run_fuzzer", "-handle", client.handle, "-fuzzer", fuzzer, "--")
    with subprocess.Popen(
        [*command, *words],
        cwd=client.workspace.directory,
        env=client.workspace.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as run:
        assert run.stdout
        try:
            while b"INITED" not in run.stdout.readline():
                assert run.poll() is None
            yield run
        finally:
            run.kill()


def test_e13_a_noisy_fuzzer_is_heard_on_stderr_only(client: Client) -> None:
    client.prepare(NOISY)
    said = client.run(NOISY, "-runs=50")
    assert "stderr" in said
    assert "stdout" not in said


def test_e11_e12_a_guest_that_is_killed(tmp_path: Path, demo_parts: Path) -> None:
    workspace = boot(tmp_path / "work", demo_parts)
    started = workspace.run("undercoat", "start_instance")
    assert started.status == 0, started.text
    client = Client(workspace, started.stdout.decode().strip())
    try:
        client.prepare(NOOP)
        with running(client, NOOP, "-max_total_time=100") as run:
            process_of(Path(client.handle)).send(signal.SIGKILL)
            said, _ = run.communicate(timeout=60)
            assert run.returncode == 1
            assert b"Error executing command: " in said
        failed = client.call("run_fuzzer", "-fuzzer", CRASH, "--", "-runs=10")
        assert failed.status == 1
        assert b"{{{reset}}}" in client.done("get_logs")
    finally:
        assert client.call("stop_instance").status == 0
        assert qemus_of(tmp_path) == []
