"""Taking what a fuzzer has found from its guest, whatever the guest does meanwhile."""

import errno
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.campaign import harvest as harvests
from pipeline.campaign.guests import Room
from pipeline.campaign.harvest import LONGEST_NAME, Harvest
from pipeline.campaign.site import CORPUS
from pipeline.corpus import Corpus, intake
from pipeline.errors import CommandError, CommandTimeout, ConnectError, StoreError, TopcoatError
from pipeline.worker import Worker
from tests.campaign.scripted import ScriptedGuest, ScriptedSite, World, unit

NEVER = 3600.0
SOON = 20.0
UNIT_SIZE = 100
DEAD = ConnectError("the guest does not answer", stage="connect", hint="")
REFUSED = CommandError("there is no such file", hint="")


class Directory(ScriptedSite):
    """A fuzzer whose files are real ones."""

    def __init__(self, root: Path) -> None:
        super().__init__(World(), ScriptedGuest(World(), "pool-0", "boot"), "fuzzers/a")
        self.root = root
        self.asked: list[str] = []
        """The names of all files that were to be fetched."""
        self.faults: dict[str, TopcoatError] = {}
        """What fetching a file raises, by its name; listing a directory, by that."""

    def write(self, directory: str, *units: tuple[str, bytes]) -> None:
        (self.root / directory).mkdir(parents=True, exist_ok=True)
        for name, content in units:
            (self.root / directory / name).write_bytes(content)

    def sizes(self, directory: str) -> dict[str, int]:
        self._raise(directory)
        return {path.name: path.stat().st_size for path in sorted((self.root / directory).glob("*"))}

    def fetch(self, directory: str, names: Collection[str], into: Path) -> None:
        for name in names:
            self.asked.append(name)
            self._raise(name)
            if (self.root / directory / name).exists():
                shutil.copy(self.root / directory / name, into / name)

    def _raise(self, name: str) -> None:
        if error := self.faults.get(name):
            raise error


class Bench:
    """One run of a fuzzer, and the corpus that it brings units for."""

    def __init__(self, directory: Path) -> None:
        self.site = Directory(directory / "guest")
        self.room = Room(self.site)
        self.corpus = Corpus.of(directory / "out", "fuzzers/a")
        self.came = 0

    def harvest(self, every: float = NEVER) -> Harvest:
        def came() -> None:
            self.came += 1

        return Harvest(self.room, self.corpus, "fuzzers/a#1.1", every, UNIT_SIZE, came)

    @property
    def contents(self) -> set[bytes]:
        return {self.corpus.path(name).read_bytes() for name in self.corpus.units()}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    before = set(threading.enumerate())
    yield Bench(tmp_path)
    assert set(threading.enumerate()) <= before


class Running:
    """A harvest with its thread."""

    def __init__(self, harvest: Harvest) -> None:
        self.harvest = harvest
        self.harvested: queue.Queue[int] = queue.Queue()
        self.failed = threading.Event()
        self.worker: Worker = harvest.start(self.harvested.put, self.failed.set)

    def end(self) -> None:
        self.harvest.end(self.worker)
        assert self.worker.join(0)


def refuse(number: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, "no such luck")

    return fail


class TestUnits:
    def test_each_is_fetched_once(self, bench: Bench) -> None:
        bench.site.write(CORPUS, unit("a"), unit("b"))
        harvest = bench.harvest()
        assert (harvest.take(), harvest.take()) == (2, 0)
        bench.site.write(CORPUS, unit("c"))
        assert (harvest.take(), harvest.added) == (1, 3)
        assert bench.contents == {b"a", b"b", b"c"}
        assert sorted(bench.site.asked) == sorted(name for name, _ in map(unit, "abc"))
        assert {one.source for one in bench.corpus.units().values()} == {"fuzzers/a#1.1"}

    def test_what_the_guest_was_given_is_not_fetched(self, bench: Bench) -> None:
        bench.site.write(CORPUS, unit("a"), unit("b"))
        bench.room.known.add(unit("a")[0])
        assert bench.harvest().take() == 1
        assert bench.site.asked == [unit("b")[0]]

    def test_the_next_run_in_the_same_guest_does_not_fetch_them_again(self, bench: Bench) -> None:
        bench.site.write(CORPUS, unit("a"))
        assert (bench.harvest().take(), bench.harvest().take()) == (1, 0)
        assert bench.site.asked == [unit("a")[0]]

    def test_one_that_the_host_has_is_fetched_and_not_counted(self, bench: Bench) -> None:
        bench.corpus.add([b"a"], "seed")
        bench.site.write(CORPUS, unit("a"), unit("b"))
        harvest = bench.harvest()
        assert (harvest.take(), harvest.added) == (1, 1)

    def test_without_a_corpus_there_is_nothing(self, bench: Bench) -> None:
        assert bench.harvest().take() == 0
        assert bench.site.asked == []

    def test_one_that_is_too_large_is_not_asked_for(self, bench: Bench) -> None:
        bench.site.write(CORPUS, ("just", b"x" * UNIT_SIZE), ("more", b"x" * (UNIT_SIZE + 1)))
        assert bench.harvest().take() == 1
        assert bench.site.asked == ["just"]

    def test_a_name_that_no_file_can_have_is_not_asked_for(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        names = ["é" * (LONGEST_NAME // 2), "é" * (LONGEST_NAME // 2 + 1), "x" * (LONGEST_NAME + 1)]
        bench.site.write(CORPUS, (names[0], b"a"))
        monkeypatch.setattr(bench.site, "sizes", lambda _: dict.fromkeys(names, 1))
        assert bench.harvest().take() == 1
        assert bench.site.asked == names[:1]

    def test_a_name_that_is_no_text_is_one_like_any_other(self, bench: Bench) -> None:
        bench.site.write(CORPUS, ("latin\udcff", b"a"), ("two\nlines", b"b"))
        assert bench.harvest().take() == 2
        assert bench.contents == {b"a", b"b"}

    def test_of_very_many_the_rest_comes_the_next_time(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(harvests, "MOST_FILES", 5)
        bench.site.write(CORPUS, *(unit(str(number)) for number in range(12)))
        harvest = bench.harvest()
        assert [harvest.take() for _ in range(4)] == [5, 5, 2, 0]
        assert len(bench.site.asked) == 12

    def test_a_torn_one_is_fetched_again(self, bench: Bench) -> None:
        name, content = unit("whole")
        bench.site.write(CORPUS, (name, content[:2]), unit("a"))
        harvest = bench.harvest()
        assert (harvest.take(), bench.contents) == (1, {b"a"})
        bench.site.write(CORPUS, (name, content))
        assert (harvest.take(), harvest.take(), bench.contents) == (1, 0, {b"a", b"whole"})
        assert sorted(bench.site.asked) == sorted([unit("a")[0], name, name])

    def test_one_that_is_torn_in_the_end_is_told_once_in_a_guest(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its disk may be full, or the fuzzer was killed while it wrote."""
        (name, _), (other, _) = unit("whole"), unit("other")
        bench.site.write(CORPUS, (name, b"who"), unit("a"))
        harvest = bench.harvest()
        harvest.take()
        assert caplog.messages == []
        harvest.finish()
        told = "units of fuzzers/a#1.1 are lost, as the guest has other content under their names: 1, such as"
        assert caplog.messages == [f"{told} {name}"]
        bench.site.write(CORPUS, (other, b""))
        bench.harvest().finish()
        assert caplog.messages == [f"{told} {name}", f"{told} {other}"]
        bench.site.write(CORPUS, unit("whole"), unit("other"))
        bench.harvest().finish()
        assert (len(caplog.messages), bench.contents) == (2, {b"a", b"whole", b"other"})

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
    @given(
        units=st.dictionaries(
            st.text(st.characters(exclude_characters="/\0", max_codepoint=0x7FF), min_size=1, max_size=20),
            st.binary(max_size=2 * UNIT_SIZE),
        ),
        known=st.sets(st.integers(0, 9)),
        most=st.integers(1, 5),
    )
    def test_in_the_end_all_is_there_that_may_be(
        self, tmp_path_factory: pytest.TempPathFactory, units: dict[str, bytes], known: set[int], most: int
    ) -> None:
        bench = Bench(tmp_path_factory.mktemp("bench"))
        bench.site.write(CORPUS, *((f"_{name}", content) for name, content in units.items()))
        given_ = {f"_{name}" for number, name in enumerate(units) if number in known}
        bench.room.known |= given_
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(harvests, "MOST_FILES", most)
            harvest = bench.harvest()
            for _ in units:
                harvest.take()
        there = {f"_{name}": content for name, content in units.items()}
        wanted = {name: content for name, content in there.items() if name not in given_ and len(content) <= UNIT_SIZE}
        assert bench.contents == set(wanted.values())
        assert sorted(bench.site.asked) == sorted(wanted)
        assert harvest.added == len(set(wanted.values()))


class TestGuestAtFault:
    @pytest.mark.parametrize("error", [DEAD, REFUSED])
    def test_one_that_does_not_answer_is_told_and_no_error(
        self, bench: Bench, error: TopcoatError, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench.site.write(CORPUS, unit("a"))
        bench.site.faults[CORPUS] = error
        harvest = bench.harvest()
        assert harvest.take() == 0
        assert f"harvesting fuzzers/a#1.1: {error}" in caplog.text
        bench.site.faults.clear()
        assert harvest.take() == 1

    def test_what_has_come_before_it_died_is_kept(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        units = sorted(map(unit, "abcd"))
        bench.site.write(CORPUS, *units)
        bench.site.faults[units[2][0]] = DEAD
        harvest = bench.harvest()
        assert (harvest.take(), harvest.added) == (0, 2)
        assert bench.contents == {content for _, content in units[:2]}
        assert "the guest does not answer" in caplog.text
        bench.site.faults.clear()
        assert (harvest.take(), harvest.added) == (2, 4)
        assert bench.site.asked == [name for name, _ in [*units[:3], *units[2:]]]

    def test_its_words_are_fit_to_print(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        bench.site.faults[CORPUS] = CommandError("\033[31mred\nTraceback", hint="")
        assert bench.harvest().take() == 0
        assert caplog.messages == ["harvesting fuzzers/a#1.1: red\\nTraceback"]


class TestArtifacts:
    def test_one_is_fetched_by_its_name(self, bench: Bench) -> None:
        bench.site.write("tmp", ("crash-1", b"boom"), ("crash-2", b"bang"))
        harvest = bench.harvest()
        harvest.found("tmp/crash-1")
        assert (harvest.take(), harvest.artifacts, bench.came) == (0, {"crash-1": b"boom"}, 1)
        harvest.take()
        assert (bench.site.asked, bench.came) == (["crash-1"], 1)

    def test_one_that_is_refused_does_not_keep_the_units_away(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench.site.write(CORPUS, unit("a"))
        bench.site.write("tmp", ("crash-2", b"bang"))
        bench.site.faults["crash-1"] = REFUSED
        harvest = bench.harvest()
        harvest.found("tmp/crash-1")
        harvest.found("tmp/crash-2")
        assert (harvest.take(), harvest.artifacts) == (1, {"crash-2": b"bang"})
        assert bench.site.asked == ["crash-1", "crash-2", "crash-1", unit("a")[0]], "it is asked for once more"
        assert "an artifact of fuzzers/a#1.1 is left out: there is no such file" in caplog.text
        harvest.take()
        assert len(bench.site.asked) == 4

    def test_one_that_comes_at_the_second_time_is_kept(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.site.write("tmp", ("crash-1", b"boom"))
        bench.site.faults["crash-1"] = REFUSED
        monkeypatch.setattr(bench.site, "_raise", lambda name: raise_once(bench.site.faults, name))
        harvest = bench.harvest()
        harvest.found("tmp/crash-1")
        harvest.take()
        assert harvest.artifacts == {"crash-1": b"boom"}

    def test_one_that_is_not_what_its_name_says_is_asked_for_once_more_and_is_none(self, bench: Bench) -> None:
        name = f"crash-{unit('whole')[0]}"
        bench.site.write(CORPUS, unit("a"))
        bench.site.write("tmp", (name, b"who"), ("crash-1", b"boom"))
        harvest = bench.harvest()
        harvest.found(f"tmp/{name}")
        harvest.found("tmp/crash-1")
        assert (harvest.take(), harvest.artifacts, harvest.torn) == (1, {"crash-1": b"boom"}, {name})
        harvest.take()
        assert bench.site.asked == [name, "crash-1", name, unit("a")[0]]

    def test_one_of_a_guest_that_is_gone_is_asked_for_when_it_is_back(self, bench: Bench) -> None:
        bench.site.write("tmp", ("crash-1", b"boom"))
        bench.site.faults["crash-1"] = DEAD
        harvest = bench.harvest()
        harvest.found("tmp/crash-1")
        assert (harvest.take(), harvest.artifacts) == (0, {})
        bench.site.faults.clear()
        harvest.take()
        assert harvest.artifacts == {"crash-1": b"boom"}

    def test_one_that_is_too_large_is_not_kept(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(harvests, "LARGEST_ARTIFACT", 10)
        bench.site.write("tmp", ("crash-1", b"x" * 10), ("crash-2", b"x" * 11))
        harvest = bench.harvest()
        harvest.found("tmp/crash-1")
        harvest.found("tmp/crash-2")
        harvest.take()
        assert harvest.artifacts == {"crash-1": b"x" * 10}
        assert caplog.messages == ["an artifact of fuzzers/a#1.1 is left out: it is larger than 10 B: tmp/crash-2"]

    def test_one_that_is_gone_is_told(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        """Units go all the time, and nobody tells of them; an artifact is what the fuzzer was run for."""
        bench.site.write("tmp")
        harvest = bench.harvest()
        harvest.found("tmp/crash-1")
        harvest.take()
        assert (harvest.artifacts, bench.came) == ({}, 1)
        assert caplog.messages == ["an artifact of fuzzers/a#1.1 is left out: it is not there any more: tmp/crash-1"]

    def test_of_very_many_only_the_first_are_fetched(self, bench: Bench) -> None:
        names = [f"crash-{number}" for number in range(harvests.MOST_ARTIFACTS + 5)]
        bench.site.write("tmp", *((name, b"boom") for name in names))
        harvest = bench.harvest()
        for name in names[:10]:
            harvest.found(f"tmp/{name}")
        harvest.take()
        for name in names[10:]:
            harvest.found(f"tmp/{name}")
        harvest.take()
        assert bench.site.asked == names[: harvests.MOST_ARTIFACTS]

    def test_many_that_stall_do_not_keep_the_run_from_ending(self, bench: Bench) -> None:
        """Each takes as long as a transfer may stall: a minute. /proc/kmsg in a guest is such a file."""
        names = [f"crash-{number}" for number in range(harvests.MOST_ARTIFACTS)]
        bench.site.faults |= dict.fromkeys(names, CommandTimeout("nothing came for 60 s", hint=""))
        harvest = bench.harvest()
        for name in names:
            harvest.found(f"/proc/{name}")
        harvest.take()
        assert len(bench.site.asked) * 60 < harvests.JOIN_LIMIT


class TestThread:
    def test_it_harvests_again_and_again(self, bench: Bench) -> None:
        bench.site.write(CORPUS, unit("a"))
        running = Running(bench.harvest(every=0.001))
        try:
            assert running.harvested.get(timeout=SOON) == 1
            bench.site.write(CORPUS, unit("b"))
            while running.harvested.get(timeout=SOON) == 0:
                pass
        finally:
            running.end()
        assert bench.contents == {b"a", b"b"}

    def test_what_is_found_is_fetched_at_once(self, bench: Bench) -> None:
        bench.site.write("tmp", ("crash-1", b"boom"))
        bench.site.write(CORPUS, unit("a"))
        running = Running(bench.harvest())
        try:
            running.harvest.found("tmp/crash-1")
            assert running.harvested.get(timeout=SOON) == 1
        finally:
            running.end()
        assert running.harvest.artifacts == {"crash-1": b"boom"}

    def test_it_ends_without_another_harvest(self, bench: Bench) -> None:
        bench.site.write(CORPUS, unit("a"))
        running = Running(bench.harvest())
        running.end()
        assert bench.site.asked == []
        assert running.harvest.failure is None
        assert not running.failed.is_set()

    def test_its_end_waits_for_a_harvest_under_way(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.site.write(CORPUS, unit("a"))
        begun, go_on = threading.Event(), threading.Event()
        real = bench.site.fetch

        def slow(*arguments: Any) -> None:
            begun.set()
            assert go_on.wait(SOON)
            real(*arguments)

        monkeypatch.setattr(bench.site, "fetch", slow)
        running = Running(bench.harvest(every=0.001))
        assert begun.wait(SOON)
        threading.Timer(0.05, go_on.set).start()
        running.end()
        assert bench.contents == {b"a"}

    def test_a_full_disk_ends_it_and_is_told(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.site.write(CORPUS, unit("a"))
        monkeypatch.setattr(intake, "write_new", refuse(errno.ENOSPC))
        running = Running(bench.harvest(every=0.001))
        assert running.failed.wait(SOON)
        assert running.worker.join(SOON), "without being told to"
        running.end()
        assert isinstance(running.harvest.failure, StoreError)
        assert "writing the corpus of fuzzers/a" in str(running.harvest.failure)
        assert running.harvested.empty()

    def test_what_it_did_not_expect_is_raised_at_its_end(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench.site, "sizes", mistaken)
        running = Running(bench.harvest(every=0.001))
        assert running.worker.join(SOON)
        with pytest.raises(ZeroDivisionError):
            running.end()

    def test_one_that_hangs_is_left_behind(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(harvests, "JOIN_LIMIT", 0.01)
        begun, go_on = threading.Event(), threading.Event()

        def hanging(_: str) -> dict[str, int]:
            begun.set()
            assert go_on.wait(SOON)
            return {}

        monkeypatch.setattr(bench.site, "sizes", hanging)
        running = Running(bench.harvest(every=0.001))
        assert begun.wait(SOON)
        running.harvest.end(running.worker)
        assert "the harvest of fuzzers/a#1.1 still hangs after 0.01 s" in caplog.text
        go_on.set()
        assert running.worker.join(SOON)


@pytest.mark.parametrize("artifact", [True, False])
def test_without_a_temporary_directory_it_is_the_hosts_fault(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, artifact: bool
) -> None:
    """As on a full /tmp: whoever runs the campaign gets a hint, and no traceback."""
    bench.site.write(CORPUS, unit("a"))
    bench.site.write("tmp", ("crash-1", b"boom"))
    monkeypatch.setattr(tempfile, "tempdir", str(bench.site.root / "gone"))
    harvest = bench.harvest()
    if artifact:
        harvest.found("tmp/crash-1")
    with pytest.raises(StoreError):
        harvest.take()


def mistaken(*_: object) -> None:
    raise ZeroDivisionError


def raise_once(faults: dict[str, TopcoatError], name: str) -> None:
    if error := faults.pop(name, None):
        raise error
