"""A fuzzer that is started again each time that it has crashed: the loop in the guest's shell, and its marks."""

import re
import signal
import subprocess
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

from pipeline.errors import FuzzerError
from pipeline.fuzz.fuzzer import Fuzzer
from pipeline.fuzz.loop import Looped
from pipeline.fuzz.repetition import LARGEST_SEED, Repetition, next_seed
from pipeline.fuzz.styles import FuzzCtl, Linux
from pipeline.fuzz.symbolizer import Writer
from pipeline.fuzz.targets import FuzzTarget
from pipeline.ssh.connector import Connector
from tests.fakes import sshd
from tests.fuzz.fakes import SYMBOLIZER
from tests.fuzz.loops import SHELLS, TOKEN, Followed, said_by, script, split
from tests.ssh.conftest import connector, here, key, root, server, way
from tests.waiting import NEVER, SOON

__all__ = ["connector", "here", "key", "root", "server", "way"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The directory of a fuzzer that counts its runs in `runs`, and is told by `plan` how each is to end."""
    made = tmp_path / "a guest's directory"
    (made / "pkg").mkdir(parents=True)
    (made / "pkg/bar").write_text(
        script(
            'echo run >>runs; echo "$*" >>words; n=$(wc -l <runs)',
            'echo to stdout; echo "said $n $ODD" >&2; line=$(sed -n ${n}p plan); eval "$line"',
        )
    )
    (made / "pkg/bar").chmod(0o755)
    return made


def loop(
    shell: str,
    directory: Path,
    repetition: Repetition,
    environment: Mapping[str, str],
    crashes: Collection[int] = (1, 77),
) -> bytes:
    looped = Looped(str(directory), "pkg/bar", environment, ["-a=b c", "tmp/corpus"])
    return said_by(shell, repetition.script(looped, crashes))


@pytest.mark.parametrize("shell", SHELLS)
class TestLoop:
    def test_it_starts_again_after_a_crash_and_ends_with_anything_else(self, shell: str, directory: Path) -> None:
        (directory / "plan").write_text("exit 77\nexit 1\nexit 0\nexit 77\n")
        said = loop(shell, directory, Repetition(NEVER, LARGEST_SEED - 1, 1000, TOKEN), {"ODD": "it's $(odd)"})
        followed, _, _ = split([said])
        assert followed.runs == [b"said %d it's $(odd)\n" % number for number in (1, 2, 3)]
        assert (followed.errors, followed.open) == (["77", "", ""], False)
        words = (directory / "words").read_text().splitlines()
        assert words == [f"-a=b c tmp/corpus -seed={seed} -max_total_time={NEVER}" for seed in seeds(3)]

    @pytest.mark.parametrize("how", ["exit 3", "kill -9 $$", "kill -6 $$"])
    def test_it_ends_when_the_fuzzer_ends_oddly(self, shell: str, directory: Path, how: str) -> None:
        (directory / "plan").write_text(f"{how}\n")
        said = loop(shell, directory, Repetition(NEVER, 1, 1000, TOKEN), {})
        status = {"exit 3": 3, "kill -9 $$": 128 + signal.SIGKILL, "kill -6 $$": 128 + signal.SIGABRT}[how]
        assert said.endswith(f"{TOKEN} end 1 {status}\n".encode())

    def test_it_makes_no_more_runs_than_it_may(self, shell: str, directory: Path) -> None:
        (directory / "plan").write_text("exit 1\n" * 9)
        assert loop(shell, directory, Repetition(NEVER, 1, 3, TOKEN), {}).count(b" end ") == 3

    def test_its_time_is_that_of_all_runs_together(self, shell: str, directory: Path) -> None:
        (directory / "plan").write_text("sleep 0.2; exit 1\n" * 9)
        loop(shell, directory, Repetition(0.3, 1, 1000, TOKEN), {})
        assert (directory / "words").read_text().count("-max_total_time=1\n") == 2

    def test_what_a_run_has_left_behind_is_ended_before_the_next_one(self, shell: str, directory: Path) -> None:
        """And the shell of the loop, which works in the same directory, is not."""
        left = f"sleep {NEVER} 2>/dev/null & echo $! >left; exit 1"
        (directory / "plan").write_text(f"{left}\n[ -e /proc/$(cat left)/cwd ] && exit 9; exit 0\n")
        assert loop(shell, directory, Repetition(NEVER, 1, 1000, TOKEN), {}).endswith(f"{TOKEN} end 2 0\n".encode())

    def test_a_variable_that_the_shell_cannot_have_reaches_the_fuzzer(self, shell: str, directory: Path) -> None:
        (directory / "plan").write_text('tr "\\0" "\\n" </proc/$$/environ | grep odd. >&2; exit 0\n')
        said = loop(shell, directory, Repetition(NEVER, 1, 1, TOKEN), {"odd.name": "x", "ODD": "y"})
        assert b"\nodd.name=x\n" in said

    def test_a_directory_that_is_not_there_is_told(self, shell: str, directory: Path) -> None:
        with pytest.raises(subprocess.CalledProcessError) as caught:
            loop(shell, directory / "gone", Repetition(NEVER, 1, 1, TOKEN), {})
        assert caught.value.returncode == 127


def seeds(count: int, first: int = LARGEST_SEED - 1) -> Iterator[int]:
    for _ in range(count):
        yield first
        first = next_seed(first)


def test_the_seeds_of_the_loop_are_those_that_are_told_here() -> None:
    assert [*seeds(3)] == [LARGEST_SEED - 1, LARGEST_SEED, 1]


class TestFromHere:
    """Fuchsia's shell can make no loop: a command for each run."""

    def test_it_is_started_again_after_each_crash(
        self, connector: Connector, server: sshd.Server, root: Path, tmp_path: Path
    ) -> None:
        server.programs = tmp_path / "programs"
        server.programs.mkdir()
        (server.programs / "fuzz_ctl").write_text(
            script(
                f'cd {root}; echo "$*" >>words',
                "[ -e count ] && read n <count; n=$((n + 1)); echo $n >count",
                "[ $n = 3 ] && { echo Done 7 runs in 1 second; exit 0; }",
                "echo \"artifact_prefix='tmp/'; Test unit written to tmp/crash-$n\"",
            )
        )
        (server.programs / "fuzz_ctl").chmod(0o755)
        target = FuzzTarget("foo", "bar")
        followed = Followed()
        made = Fuzzer(target, FuzzCtl(target), SYMBOLIZER)
        made.repeat(connector, ["-seed=7", "data/corpus"], Repetition(SOON, 5, 10), followed, SOON)
        assert len(followed.runs) == 3
        assert followed.paths == [(n, f"/tmp/fuzz_ctl/fuchsia.com/foo/bar/crash-{n}") for n in (1, 2)]
        words = (root / "words").read_text().splitlines()
        assert [re.findall(r"-seed=\d+", line) for line in words] == [["-seed=5"], ["-seed=6"], ["-seed=7"]]
        assert all("-max_total_time=60" in line for line in words)

    def test_its_runs_are_no_more_than_it_may_make(
        self, connector: Connector, server: sshd.Server, tmp_path: Path
    ) -> None:
        server.programs = tmp_path / "programs"
        server.programs.mkdir()
        (server.programs / "fuzz_ctl").write_text(script("echo 'Test unit written to tmp/crash-1'"))
        (server.programs / "fuzz_ctl").chmod(0o755)
        target = FuzzTarget("foo", "bar")
        followed = Followed()
        Fuzzer(target, FuzzCtl(target), SYMBOLIZER).repeat(connector, [], Repetition(SOON, 5, 2), followed, SOON)
        assert len(followed.runs) == 2


class TestOverSsh:
    @pytest.fixture
    def fuzzer(self, root: Path) -> tuple[Fuzzer, Path]:
        target = FuzzTarget("foo", "bar")
        place = root / "foo/bar"
        (place / "pkg").mkdir(parents=True)
        return Fuzzer(target, Linux(target, str(root)), SYMBOLIZER), place

    @staticmethod
    def install(place: Path, *lines: str) -> None:
        (place / "pkg/bar").write_text(script(*lines))
        (place / "pkg/bar").chmod(0o755)

    def test_each_run_comes_whole_with_its_artifacts(self, fuzzer: tuple[Fuzzer, Path], connector: Connector) -> None:
        made, place = fuzzer
        self.install(
            place,
            'echo run >>runs; n=$(wc -l <runs); exec >&2; echo "run $n"',
            "[ $n = 3 ] && { echo Done 7 runs in 1 second; exit 0; }",
            'echo "artifact_prefix=\'tmp/\'; Test unit written to tmp/crash-$n"; echo "no newline\\c"; exit 77',
        )
        made.prepare(connector)
        followed = Followed()
        made.repeat(connector, ["-seed=7", "-max_total_time=9", "data/corpus"], Repetition(SOON, 5, 10), followed, SOON)
        told = [run.decode().splitlines() for run in followed.runs]
        assert [lines[0] for lines in told] == ["run 1", "run 2", "run 3"]
        assert told[0][-1].startswith("no newline")
        assert followed.errors == ["", "", ""]
        assert followed.paths == [(n, f"{place}/tmp/crash-{n}") for n in (1, 2)]

    def test_one_that_ends_oddly_is_to_blame_itself(self, fuzzer: tuple[Fuzzer, Path], connector: Connector) -> None:
        made, place = fuzzer
        self.install(place, "[ -e once ] && exit 5; touch once; exit 77")
        made.prepare(connector)
        followed = Followed()
        made.repeat(connector, [], Repetition(SOON, 1, 10), followed, SOON)
        assert followed.errors == ["", "failed during wait: unexpected return code: 5"]

    def test_ended_from_outside_in_a_run_that_run_is_to_blame(
        self, fuzzer: tuple[Fuzzer, Path], connector: Connector
    ) -> None:
        made, place = fuzzer
        self.install(place, "[ -e once ] && exec sleep 1000; touch once; exit 77")
        made.prepare(connector)
        followed = Followed()
        sleeps = threading.Event()
        followed.write = lambda data: len(data)  # type: ignore[method-assign]
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
        with pytest.raises(FuzzerError, match=r"unexpected return code: 137|did not run to its end|signal"):
            made.repeat(connector, [], Repetition(SOON, 1, 10), followed, SOON)
        ender.join()
        assert (len(followed.runs), followed.errors, followed.open) == (2, [""], True)

    def test_no_longer_wanted_the_loop_is_ended(self, fuzzer: tuple[Fuzzer, Path], connector: Connector) -> None:
        made, place = fuzzer
        self.install(place, "echo run >>runs; exit 77")
        made.prepare(connector)
        followed = Followed(wanted=1)
        made.repeat(connector, [], Repetition(NEVER, 1, 100_000), followed, SOON)
        assert (len(followed.runs), followed.open) == (1, False)
