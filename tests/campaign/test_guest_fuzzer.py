"""A fuzzer in a guest, as a campaign sees it: pipeline/campaign/guest_fuzzer.py over a real SSH server."""

import io
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.campaign.guest_fuzzer import CORPUS, MERGED, OverSsh
from pipeline.errors import CommandError, ConnectError, FuzzerError, StoreError
from pipeline.fuzz.batch import Batch
from pipeline.fuzz.fuzzer import Fuzzer
from pipeline.fuzz.styles import Linux
from pipeline.fuzz.targets import FuzzTarget
from pipeline.host.process import Process
from pipeline.host.worker import Worker
from pipeline.settings import Timeouts
from pipeline.ssh.connector import Connector
from tests.fakes import sshd
from tests.fuzz.fakes import SYMBOLIZER
from tests.fuzz.loops import Followed
from tests.ssh.conftest import PROMPT, connector, here, key, make, root, server, tree, way
from tests.waiting import SOON

__all__ = ["connector", "here", "key", "root", "server", "way"]

TARGET = FuzzTarget("foo", "bar")
ODD = ("-rf", "--", "a b", " ", "$(touch x)", "`touch x`", "'", '"', "*", "[a]", "\\", "two\nlines", "é")


class Said(io.BytesIO):
    """What a fuzzer says; `begun` is set by its first words."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()

    def write(self, data: "bytes | bytearray", /) -> int:  # type: ignore[override]
        self.begun.set()
        return super().write(data)


@pytest.fixture
def fuzzer(root: Path) -> Path:
    """The directory of the fuzzer in the guest."""
    return make(root, {"foo/bar/pkg/bar": b"#!/bin/sh\nexec >&2; echo begun; exec sleep 1000\n"}) / "foo/bar"


@pytest.fixture
def corpus(fuzzer: Path) -> Path:
    return fuzzer / "tmp/corpus"


@pytest.fixture
def qemu() -> Iterator[Process]:
    with subprocess.Popen(["sleep", "100"]) as running:
        found = Process.find(running.pid)
        assert found
        yield found
        running.kill()


@pytest.fixture
def guest_fuzzer(
    connector: Connector, root: Path, fuzzer: Path, qemu: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OverSsh]:
    """Of a fuzzer that says a word and runs on."""
    (fuzzer / "pkg/bar").chmod(0o755)
    temporary = tmp_path / "temporary [a*?\\é"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    made = OverSsh(Fuzzer(TARGET, Linux(TARGET, str(root)), SYMBOLIZER), connector, qemu)
    made.prepare()
    yield made
    assert list(temporary.iterdir()) == [], "nothing is left on the host"


def contents(names: tuple[str, ...]) -> dict[str, bytes | None]:
    return {name: f"content of {name}".encode() for name in names}


@pytest.fixture
def given(here: Path) -> dict[str, Path]:
    """Files of the host by the names that they are to have in the guest, which are odd."""
    named = {name: here / str(number) for number, name in enumerate(ODD)}
    for name, file in named.items():
        file.write_bytes(contents(ODD)[name] or b"")
    return named


@pytest.mark.usefixtures("way")
class TestFiles:
    def test_all_arrive_under_the_names_given(
        self, guest_fuzzer: OverSsh, corpus: Path, given: dict[str, Path]
    ) -> None:
        guest_fuzzer.push(given, CORPUS)
        assert tree(corpus) == contents(ODD)

    def test_one_by_itself_arrives(self, guest_fuzzer: OverSsh, corpus: Path, given: dict[str, Path]) -> None:
        for name in ODD[:3]:
            guest_fuzzer.push({name: given[name]}, CORPUS)
        assert tree(corpus) == contents(ODD[:3])

    def test_none_makes_the_directory(self, guest_fuzzer: OverSsh, fuzzer: Path) -> None:
        guest_fuzzer.push({}, MERGED)
        guest_fuzzer.push({}, MERGED)
        assert tree(fuzzer / "tmp") == {"merged": None}

    def test_what_is_there_stays(self, guest_fuzzer: OverSsh, corpus: Path, given: dict[str, Path]) -> None:
        make(corpus, {"old": b"old", "-rf": b"before"})
        guest_fuzzer.push(given, CORPUS)
        assert tree(corpus) == {"old": b"old", **contents(ODD)}

    def test_a_file_named_by_a_relative_path_arrives(
        self, guest_fuzzer: OverSsh, corpus: Path, given: dict[str, Path], here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(here)
        guest_fuzzer.push({"a": Path(given["-rf"].name)}, CORPUS)
        assert tree(corpus) == {"a": b"content of -rf"}

    def test_sizes_are_those_of_files(self, guest_fuzzer: OverSsh, corpus: Path, fuzzer: Path) -> None:
        assert guest_fuzzer.sizes(CORPUS) == {}
        make(corpus, {**contents(ODD), "directory/inner": b""})
        (corpus / "link").symlink_to("-rf")
        assert guest_fuzzer.sizes(CORPUS) == {name: len(content or b"") for name, content in contents(ODD).items()}
        make(fuzzer / "pkg/corpus", {"seed": b"seed"})
        assert guest_fuzzer.sizes("pkg/corpus") == {"seed": 4}

    def test_what_is_named_is_fetched(self, guest_fuzzer: OverSsh, corpus: Path, tmp_path: Path) -> None:
        make(corpus, {**contents(ODD), "other": b""})
        into = tmp_path / "into"
        into.mkdir()
        guest_fuzzer.fetch(CORPUS, ODD, into)
        assert tree(into) == contents(ODD)

    def test_artifacts_are_fetched_by_their_paths_in_the_guest(
        self, guest_fuzzer: OverSsh, fuzzer: Path, tmp_path: Path
    ) -> None:
        make(fuzzer / "tmp", {"crash-1": b"boom"})
        into = tmp_path / "into"
        into.mkdir()
        guest_fuzzer.fetch(str(fuzzer / "tmp"), ["crash-1"], into)
        assert tree(into) == {"crash-1": b"boom"}

    @pytest.mark.slow
    def test_only_what_is_named_is_removed(self, guest_fuzzer: OverSsh, corpus: Path, root: Path) -> None:
        make(corpus, {**contents(ODD), "a": b"", "b": b"", "directory/inner": b""})
        before = {name for name in tree(root) if not name.startswith("foo/bar/tmp/corpus/")}
        guest_fuzzer.remove(CORPUS, [*ODD, "gone"])
        assert tree(corpus) == {"a": b"", "b": b"", "directory": None, "directory/inner": b""}
        assert {name for name in tree(root) if not name.startswith("foo/bar/tmp/corpus/")} == before

    def test_a_link_is_removed_and_not_what_it_leads_to(self, guest_fuzzer: OverSsh, corpus: Path, root: Path) -> None:
        make(corpus, {})
        make(root, {"precious": b"precious"})
        corpus.mkdir()
        (corpus / "link").symlink_to(root / "precious")
        guest_fuzzer.remove(CORPUS, ["link"])
        assert tree(corpus) == {}
        assert (root / "precious").read_bytes() == b"precious"

    def test_what_cannot_be_removed_is_the_guests_fault(self, guest_fuzzer: OverSsh, corpus: Path) -> None:
        make(corpus, {"directory/inner": b""})
        with pytest.raises(CommandError, match="directory"):
            guest_fuzzer.remove(CORPUS, ["directory"])

    def test_a_preparation_leaves_no_data(self, guest_fuzzer: OverSsh, fuzzer: Path, given: dict[str, Path]) -> None:
        guest_fuzzer.push(given, CORPUS)
        make(fuzzer, {"data/x": b"x", "pkg/corpus/seed": b"seed"})
        guest_fuzzer.prepare()
        assert sorted(tree(fuzzer)) == ["data", "pkg", "pkg/bar", "pkg/corpus", "pkg/corpus/seed", "tmp"]


class TestRuns:
    def test_a_run_under_way_ends_when_another_thread_stops_it(self, guest_fuzzer: OverSsh, fuzzer: Path) -> None:
        said = Said()
        worker = Worker("fuzzer", lambda: guest_fuzzer.run(["data/corpus"], said, 60))
        assert said.begun.wait(SOON), worker.failure
        make(fuzzer, {"tmp/corpus/unit": b"unit"})
        guest_fuzzer.stop()
        assert worker.join(SOON)
        assert isinstance(worker.failure, FuzzerError)
        assert guest_fuzzer.sizes(CORPUS) == {"unit": 4}, "its data stay"
        assert not _working_in(fuzzer)

    def test_to_stop_what_does_not_run_is_no_error(self, guest_fuzzer: OverSsh) -> None:
        guest_fuzzer.stop()

    def test_it_is_run_once_on_each_input(self, guest_fuzzer: OverSsh, fuzzer: Path, given: dict[str, Path]) -> None:
        """Whatever the names of the inputs are."""
        (fuzzer / "pkg/bar").write_text('#!/bin/sh\nexec >&2; for input; do :; done; cat "$input"; exit 77\n')
        names = [name for name in ODD if name not in (" ", "-rf")]
        guest_fuzzer.push({name: given[name] for name in names}, CORPUS)
        followed = Followed()
        guest_fuzzer.run_each(["-runs=1"], Batch([f"{CORPUS}/{name}" for name in names], 60), followed)
        assert followed.runs == [f"content of {name}\n".encode() for name in names]
        assert (set(followed.errors), followed.open) == ({""}, False)

    def test_it_has_the_files_that_were_pushed(
        self, guest_fuzzer: OverSsh, fuzzer: Path, given: dict[str, Path]
    ) -> None:
        (fuzzer / "pkg/bar").write_text("#!/bin/sh\nls tmp/corpus | wc -l >&2\n")
        guest_fuzzer.push({name: given[name] for name in ODD[:3]}, CORPUS)
        said = Said()
        guest_fuzzer.run(["-runs=1", CORPUS], said, 60)
        assert said.getvalue().startswith(b"3\n")


def test_it_is_alive_as_long_as_its_process(guest_fuzzer: OverSsh, qemu: Process, server: sshd.Server) -> None:
    assert guest_fuzzer.alive()
    server.stop()
    server.drop()
    assert guest_fuzzer.alive(), "whether it answers or not"
    qemu.send(signal.SIGKILL)
    assert qemu.wait(SOON)
    assert not guest_fuzzer.alive()


@pytest.mark.parametrize("what", ["prepare", "stop", "push", "sizes", "fetch", "remove"])
def test_a_guest_that_does_not_answer_is_told(
    root: Path, server: sshd.Server, connector: Connector, qemu: Process, here: Path, what: str
) -> None:
    server.stop()
    impatient = Connector(connector.address, Timeouts(connect=1), PROMPT)
    guest_fuzzer = OverSsh(Fuzzer(TARGET, Linux(TARGET, str(root)), SYMBOLIZER), impatient, qemu)
    file = here / "file"
    file.touch()
    calls: dict[str, Callable[[], object]] = {
        "prepare": guest_fuzzer.prepare,
        "stop": guest_fuzzer.stop,
        "push": lambda: guest_fuzzer.push({"a": file}, CORPUS),
        "sizes": lambda: guest_fuzzer.sizes(CORPUS),
        "fetch": lambda: guest_fuzzer.fetch(CORPUS, ["a"], here),
        "remove": lambda: guest_fuzzer.remove(CORPUS, ["a"]),
    }
    with pytest.raises(ConnectError):
        calls[what]()
    assert tree(here) == {"file": b""}


def test_without_a_temporary_directory_it_is_the_hosts_fault(
    guest_fuzzer: OverSsh, given: dict[str, Path], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full /tmp: whoever runs the campaign gets a hint, and no traceback."""
    monkeypatch.setattr(tempfile, "tempdir", str(here / "gone"))
    with pytest.raises(StoreError):
        guest_fuzzer.push(given, CORPUS)


def _working_in(directory: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if entry.samefile(directory):
                found.append(entry.parent.name)
        except OSError:
            continue
    return found
