"""Work with a running guest, by the command line alone."""

import io
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.undercoat import session
from pipeline.undercoat.handle import HandleFile
from tests.campaign.scripted import unit
from tests.conftest import Workspace
from tests.undercoat.test_guest import call, process_of, started, with_tmpdir
from tests.waiting import SOON

TESTS = [
    {"test": {"build_rule": "fuchsia_fuzzer_package", "package_url": f"fuchsia-pkg://fuchsia.com/{url}.cm"}}
    for url in (
        "foo#meta/bar",
        "example-fuzzers#meta/noop_fuzzer",
        "example-fuzzers#meta/out_of_memory_fuzzer",
        "example-fuzzers#meta/toy_example_arbitrary",
    )
]


@pytest.fixture
def caller(bundle: Workspace) -> Workspace:
    path = bundle.directory / "bundle/build/out/default/tests.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*TESTS, {"test": {"build_rule": "other"}}]))
    return with_tmpdir(bundle)


def test_b7_the_fuzzers_of_the_build(caller: Workspace) -> None:
    with started(caller) as path:
        listed = call(caller, "list_fuzzers", path)
        assert listed.status == 0, listed.text
        assert listed.stdout.decode().splitlines() == [
            "example-fuzzers/out_of_memory_fuzzer",
            "example-fuzzers/toy_example_arbitrary",
            "foo/bar",
        ]


@pytest.mark.parametrize("words", [("prepare_fuzzer",), ("run_fuzzer",), ("get_data", "-src", "a", "-dst", "/tmp")])
def test_i8_an_unknown_fuzzer_is_told_without_asking_the_guest(caller: Workspace, words: tuple[str, ...]) -> None:
    with started(caller) as path:
        outcome = call(caller, words[0], path, "-fuzzer", "foo/none", *words[1:])
        assert outcome.status == 1
        assert outcome.stdout == b"Error executing command: no such fuzzer: foo/none\n"


def test_e11_a_guest_that_has_died_is_told(caller: Workspace) -> None:
    with started(caller) as path:
        process_of(path).send(signal.SIGKILL)
        assert process_of(path).wait(SOON)
        outcome = call(caller, "run_fuzzer", path, "-fuzzer", "foo/bar")
        assert outcome.status == 1
        assert b"is not running" in outcome.stdout
        assert call(caller, "get_logs", path).status == 0


def test_a_guest_whose_kernel_has_halted_is_told(caller: Workspace) -> None:
    with started(caller) as path:
        with (Path(HandleFile(path).read().launcher.directory) / "serial.log").open("ab") as log:
            log.write(b"\r\nHalted\r\nentering panic shell loop\r\n! ")
        for command in (["prepare_fuzzer"], ["run_fuzzer"], ["get_data", "-src", "a", "-dst", "/tmp"]):
            outcome = call(caller, command[0], path, "-fuzzer", "foo/bar", *command[1:])
            assert outcome.status == 1
            assert b"its kernel has halted: entering panic shell loop" in outcome.stdout, outcome.text
        assert process_of(path).alive, "it is not ended unasked"
        assert call(caller, "get_logs", path).stdout.endswith(b"! ")


def test_an_artifact_that_is_not_what_its_name_says_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A guest whose disk is full keeps the beginning of it, or nothing."""
    whole, torn = (f"crash-{unit(text)[0]}" for text in ("whole", "torn"))
    contents = {whole: b"whole", torn: b"to", "crash-1": b"any"}

    class Guest:
        def own_flags(self) -> list[str]:
            return []

        def run(self, *_: object) -> list[str]:
            return [f"/data/tmp/{name}" for name in (*contents, "gone")]

        def get(self, source: str, directory: Path) -> None:
            name = source.rpartition("/")[2]
            if name in contents:
                (directory / name).write_bytes(contents[name])

    @contextmanager
    def fuzzer(*_: object) -> Iterator[tuple[Guest, Guest]]:
        yield Guest(), Guest()

    monkeypatch.setattr(session, "_fuzzer", fuzzer)
    session.run(HandleFile(tmp_path / "handle"), "foo/bar", [], io.BytesIO(), tmp_path)
    assert caplog.messages == [f"{tmp_path / torn} is not what its name says: is the guest's disk full?"]
    assert (tmp_path / torn).read_bytes() == b"to", "it is there all the same"


def test_a_missing_artifact_directory_is_told_before_anything_runs(caller: Workspace) -> None:
    with started(caller) as path:
        outcome = call(caller, "run_fuzzer", path, "-fuzzer", "foo/bar", "-artifact-dir", "/nowhere/x")
        assert outcome.status == 1
        assert b"the artifact directory /nowhere/x is not there" in outcome.stdout


def test_a_build_without_lists_is_told(caller: Workspace) -> None:
    Path(caller.directory / "bundle/build/out/default/tests.json").unlink()
    with started(caller) as path:
        outcome = call(caller, "list_fuzzers", path)
        assert (outcome.status, b"the build has neither fuzzers.json nor tests.json" in outcome.stdout) == (1, True)
