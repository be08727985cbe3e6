"""A fuzzer that is run on each of many inputs: the loop in the guest's shell, and what is told of its runs."""

import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pipeline.errors import FuzzerError, FuzzerTimeout
from pipeline.fuzz.batch import Batch
from pipeline.fuzz.fuzzer import Fuzzer
from pipeline.fuzz.loop import Looped
from pipeline.fuzz.styles import Linux
from pipeline.fuzz.symbolizer import Writer
from pipeline.fuzz.targets import FuzzTarget
from pipeline.ssh.connector import Connector
from tests.fakes import sshd
from tests.fuzz.fakes import SYMBOLIZER, Guest
from tests.fuzz.loops import SHELLS, TOKEN, Followed, said_by, script, split
from tests.ssh.conftest import connector, here, key, root, server, way
from tests.waiting import NEVER, SOON

__all__ = ["connector", "here", "key", "root", "server", "way"]

# The input says what the program does
DOES = 'exec >&2; for input; do :; done; . "./$input"'


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The directory of a fuzzer that does what its input says."""
    made = tmp_path / "a guest's directory"
    (made / "pkg").mkdir(parents=True)
    install(made, DOES)
    return made


def install(place: Path, *lines: str) -> None:
    (place / "pkg").mkdir(parents=True, exist_ok=True)
    (place / "pkg/bar").write_text(script(*lines))
    (place / "pkg/bar").chmod(0o755)


def given(place: Path, inputs: Mapping[str, str]) -> None:
    (place / "tmp").mkdir(exist_ok=True)
    for name, does in inputs.items():
        (place / "tmp" / name).write_text(does + "\n")


def loop(shell: str, place: Path, inputs: Sequence[str], environment: Mapping[str, str]) -> bytes:
    looped = Looped(str(place), "pkg/bar", environment, ["-a=b c", "-runs=1"])
    return said_by(shell, Batch(inputs, NEVER, TOKEN).script(looped))


@pytest.mark.parametrize("shell", SHELLS)
class TestLoop:
    def test_each_input_is_run_once_in_its_turn(self, shell: str, directory: Path) -> None:
        given(directory, {"a": 'echo "$1 $2 $ODD $$"; exit 77', "b c": "echo second; exit 0", "'$(d)": "echo odd"})
        said = loop(shell, directory, ["tmp/a", "tmp/b c", "tmp/'$(d)", "tmp/a"], {"ODD": "it's $(odd)"})
        followed, splitter, _ = split([said])
        first, *between, last = followed.runs
        assert between == [b"second\n", b"odd\n"]
        assert first.startswith(b"-a=b c -runs=1 it's $(odd) ")
        assert first.split()[-1] != last.split()[-1], "each is a process of its own"
        assert followed.errors == ["77", "", "", "77"]
        assert not splitter.running

    def test_it_goes_on_whatever_becomes_of_a_run(self, shell: str, directory: Path) -> None:
        given(directory, {"killed": "kill -9 $$", "odd": "exit 3", "fine": "echo fine"})
        followed, _, _ = split([loop(shell, directory, ["tmp/killed", "tmp/odd", "tmp/gone", "tmp/fine"], {})])
        assert followed.errors[:2] == [str(128 + signal.SIGKILL), "3"]
        assert followed.runs[3:] == [b"fine\n"]

    def test_variables_that_are_named_as_those_of_the_loop_reach_the_fuzzer(self, shell: str, directory: Path) -> None:
        install(directory, 'exec >&2; echo "$input $run $status"')
        said = loop(shell, directory, ["tmp/a", "tmp/a"], {"input": "x", "run": "y", "status": "z"})
        assert split([said])[0].runs == [b"x y z\n"] * 2

    def test_what_is_no_program_is_told_of_each_run(self, shell: str, directory: Path) -> None:
        (directory / "pkg/bar").unlink()
        followed, _, _ = split([loop(shell, directory, ["tmp/a", "tmp/a"], {})])
        assert followed.errors == ["127", "127"]

    def test_what_a_run_has_left_behind_is_ended_before_the_next_one(self, shell: str, directory: Path) -> None:
        left = f"sleep {NEVER} >/dev/null 2>&1 & echo $! >left; exit 77"
        given(directory, {"leaves": left, "looks": "[ -e /proc/$(cat left)/cwd ] && exit 9; exit 0"})
        followed, _, _ = split([loop(shell, directory, ["tmp/leaves", "tmp/looks"], {})])
        assert followed.errors == ["77", ""]

    def test_what_is_left_behind_can_say_nothing_in_the_next_run(self, shell: str, directory: Path) -> None:
        left = "(while :; do echo left; done) & sleep 0.1; exit 0"
        given(directory, {"leaves": left, "quiet": "sleep 0.1; exit 0"})
        followed, _, _ = split([loop(shell, directory, ["tmp/leaves", "tmp/quiet"], {})])
        assert b"left\n" in followed.runs[0]
        assert followed.runs[1] == b""

    def test_a_fuzzer_that_forges_marks_speaks_for_itself_alone(self, shell: str, directory: Path) -> None:
        forges = f'echo "{TOKEN} end 7 0"; echo "{TOKEN} begin 2"; echo "{TOKEN} end 1 0"; echo "{TOKEN} end 1 1"'
        given(directory, {"forges": f"{forges}; exit 77", "crashes": "echo crashed; exit 77"})
        followed, _, _ = split([loop(shell, directory, ["tmp/forges", "tmp/crashes"], {})])
        assert followed.runs == [f"{TOKEN} end 7 0\n{TOKEN} begin 2\n".encode(), b"crashed\n"]
        assert followed.errors == ["", "77"]


@pytest.fixture
def fuzzer(root: Path) -> tuple[Fuzzer, Path]:
    target = FuzzTarget("foo", "bar")
    place = root / "foo/bar"
    install(place, DOES)
    return Fuzzer(target, Linux(target, str(root)), SYMBOLIZER), place


def run_each(
    fuzzer: tuple[Fuzzer, Path], connector: Connector, inputs: Mapping[str, str], seconds: float = SOON
) -> Followed:
    made, place = fuzzer
    made.prepare(connector)
    given(place, inputs)
    followed = Followed()
    made.run_each(connector, ["-runs=1"], Batch([f"data/{name}" for name in inputs], seconds), followed)
    return followed


class TestOverSsh:
    def test_each_run_comes_whole_with_its_end(self, fuzzer: tuple[Fuzzer, Path], connector: Connector) -> None:
        told = "echo \"artifact_prefix='tmp/'; Test unit written to tmp/crash-1\"; printf 'no newline'; exit 77"
        inputs = {"a": told, "b": "exit 5", "c": "echo Running: tmp/c; exit 0", "d": "kill -6 $$"}
        followed = run_each(fuzzer, connector, inputs)
        assert followed.runs[0].endswith(b"\nno newline\n")
        assert followed.runs[1:3] == [b"", b"Running: data/c\n"], "of the last one the shell may say a word"
        assert followed.paths == [(1, f"{fuzzer[1]}/tmp/crash-1")]
        odd = "failed during wait: unexpected return code: "
        assert followed.errors == ["", f"{odd}5", "", f"{odd}{128 + signal.SIGABRT}"]

    def test_one_command_does_it(self, fuzzer: tuple[Fuzzer, Path], connector: Connector, server: sshd.Server) -> None:
        fuzzer[0].prepare(connector)
        before = len(server.commands)
        run_each(fuzzer, connector, {f"i{number}": "exit 77" for number in range(40)})
        assert len(server.commands) - before <= 5, "two to prepare, one to run, one to end what was left behind"

    def test_one_that_hangs_is_killed_and_to_blame(self, fuzzer: tuple[Fuzzer, Path], connector: Connector) -> None:
        """The time of those before it is not its own."""
        made, place = fuzzer
        made.prepare(connector)
        given(place, {"slow": "sleep 1.1", "hangs": f"echo $$ >pid; echo hangs; exec sleep {NEVER}", "last": "exit 0"})
        followed = Followed()
        inputs = ["data/slow", "data/slow", "data/slow", "data/hangs", "data/last"]
        with pytest.raises(FuzzerTimeout, match=r"did not end within 3 s and was killed"):
            made.run_each(connector, [], Batch(inputs, 3), followed)
        assert followed.runs == [b"", b"", b"", b"hangs\n"]
        assert (followed.errors, followed.open) == ([""] * 3, True)
        pid = int((place / "pid").read_text())
        assert connector.run(f"test -e /proc/$$/exe && test ! -e /proc/{pid}/exe", SOON).status == 0

    def test_a_flood_is_taken(self, fuzzer: tuple[Fuzzer, Path], connector: Connector) -> None:
        flood = "head -c 8000000 /dev/zero | tr '\\0' x; exit 77"
        followed = run_each(fuzzer, connector, {"flood": flood, "next": "echo next"})
        assert followed.runs == [b"x" * 8_000_000 + b"\n", b"next\n"]

    def test_a_connection_that_breaks_is_told(
        self, fuzzer: tuple[Fuzzer, Path], connector: Connector, server: sshd.Server
    ) -> None:
        made, place = fuzzer
        made.prepare(connector)
        given(place, {"a": "echo fine", "b": f"echo begun; exec sleep {NEVER}"})
        followed = Followed()
        take = followed.write

        def write(data: bytes, /) -> int:
            if b"begun" in data:
                server.drop()
            return take(data)

        followed.write = write  # type: ignore[method-assign]
        try:
            with pytest.raises(FuzzerError, match=r"^failed during (reading|wait): "):
                made.run_each(connector, [], Batch(["data/a", "data/b", "data/a"], SOON), followed)
        finally:
            made.style.stop(connector)
        assert followed.runs == [b"fine\n", b"begun\n"]
        assert (followed.errors, followed.open) == ([""], True)

    def test_a_fuzzer_that_ends_the_loop_is_to_blame(self, fuzzer: tuple[Fuzzer, Path], connector: Connector) -> None:
        made, place = fuzzer
        made.prepare(connector)
        given(place, {"fine": "exit 0", "ends": "kill -9 $PPID; exit 77"})
        followed = Followed()
        with pytest.raises(FuzzerError):
            made.run_each(connector, [], Batch(["data/fine", "data/ends", "data/fine"], SOON), followed)
        assert (len(followed.runs), followed.errors, followed.open) == (2, [""], True)

    def test_a_loop_that_cannot_begin_is_told(self, fuzzer: tuple[Fuzzer, Path], connector: Connector) -> None:
        made, place = fuzzer
        place.rename(place.with_name("gone"))
        followed = Followed()
        with pytest.raises(FuzzerError, match="unexpected return code: 127"):
            made.run_each(connector, [], Batch(["data/a"], SOON), followed)
        assert followed.runs == []

    def test_ended_from_outside_the_run_that_was_on_is_to_blame(
        self, fuzzer: tuple[Fuzzer, Path], connector: Connector
    ) -> None:
        made, place = fuzzer
        made.prepare(connector)
        given(place, {"a": "exit 0", "b": f"exec sleep {NEVER}"})
        followed = Followed()
        sleeps = threading.Event()
        begin = followed.begin

        def begun() -> Writer:
            if len(followed.runs) == 1:
                sleeps.set()
            return begin()

        followed.begin = begun  # type: ignore[method-assign]

        def end() -> None:
            assert sleeps.wait(SOON)
            made.style.stop(connector)

        ender = threading.Thread(target=end)
        ender.start()
        with pytest.raises(FuzzerError):
            made.run_each(connector, [], Batch(["data/a", "data/b"], SOON), followed)
        ender.join()
        assert (len(followed.runs), followed.errors, followed.open) == (2, [""], True)


@pytest.mark.parametrize("style", ["v1", "fuzz_ctl"])
class TestFromHere:
    """Fuchsia has no shell that could: each run is a command of its own."""

    def test_each_input_is_run_once(self, style: str, tmp_path: Path) -> None:
        guest = Guest(style, tmp_path)
        guest.install(script('echo "got $*"'))
        followed = Followed()
        guest.fuzzer.run_each(guest.connector, ["-runs=1"], Batch(["data/a", "data/b"], SOON), followed)
        assert [run.splitlines()[0].split()[-1] for run in followed.runs] == [b"tmp/a", b"tmp/b"]
        assert (followed.errors, followed.open) == (["", ""], False)
        guest.connector.close()

    def test_one_that_ends_oddly_is_to_blame_and_none_follows(self, style: str, tmp_path: Path) -> None:
        guest = Guest(style, tmp_path)
        guest.install(script("exit 5"))
        followed = Followed()
        with pytest.raises(FuzzerError, match="unexpected return code: 5"):
            guest.fuzzer.run_each(guest.connector, [], Batch(["data/a", "data/b"], SOON), followed)
        assert (len(followed.runs), followed.open) == (1, True)
        guest.connector.close()
