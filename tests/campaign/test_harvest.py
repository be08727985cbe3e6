"""Taking what a fuzzer has found from its guest, whatever the guest does meanwhile."""

import errno
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.campaign import harvest as harvests
from pipeline.campaign.guest_fuzzer import CORPUS
from pipeline.campaign.harvest import LONGEST_NAME
from pipeline.errors import CommandError, CommandTimeout, StoreError, TopcoatError
from pipeline.fuzz.corpus import intake
from tests.campaign.scripted import unit
from tests.campaign.scripted_harvest import (
    DEAD,
    REFUSED,
    UNIT_SIZE,
    Bench,
    Running,
    mistaken,
    raise_once,
    refuse,
)
from tests.waiting import SOON, eventually


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    before = set(threading.enumerate())
    yield Bench(tmp_path)
    assert set(threading.enumerate()) <= before


class TestUnits:
    def test_each_is_fetched_once(self, bench: Bench) -> None:
        bench.guest_fuzzer.write(CORPUS, unit("a"), unit("b"))
        harvest = bench.harvest()
        assert (harvest.take(), harvest.take()) == (2, 0)
        bench.guest_fuzzer.write(CORPUS, unit("c"))
        assert (harvest.take(), harvest.added) == (1, 3)
        assert bench.contents == {b"a", b"b", b"c"}
        assert sorted(bench.guest_fuzzer.asked) == sorted(name for name, _ in map(unit, "abc"))
        assert {one.source for one in bench.corpus.units().values()} == {"fuzzers/a#1.1"}

    def test_while_the_fuzzer_is_about_to_be_ended_none_is_fetched(self, bench: Bench) -> None:
        """What ends it ends all that works in its directory. The artifact comes, and whoever ends it is told."""
        bench.guest_fuzzer.write(CORPUS, unit("a"))
        bench.guest_fuzzer.write("tmp", ("crash-1", b"x"))
        harvest = bench.harvest()
        harvest.found("tmp/crash-1")
        harvest.over()
        running = Running(harvest)
        eventually(lambda: bench.came > 0)
        assert bench.guest_fuzzer.asked == ["crash-1"]
        running.end()
        assert (bench.guest_fuzzer.asked, bench.contents) == (["crash-1", unit("a")[0]], {b"a"})

    def test_even_if_nothing_was_reported_whoever_ends_it_is_told(self, bench: Bench) -> None:
        harvest = bench.harvest()
        harvest.over()
        running = Running(harvest)
        eventually(lambda: bench.came == 1)
        running.end()

    def test_what_the_guest_was_given_is_not_fetched(self, bench: Bench) -> None:
        bench.guest_fuzzer.write(CORPUS, unit("a"), unit("b"))
        bench.workspace.known.add(unit("a")[0])
        assert bench.harvest().take() == 1
        assert bench.guest_fuzzer.asked == [unit("b")[0]]

    def test_the_next_run_in_the_same_guest_does_not_fetch_them_again(self, bench: Bench) -> None:
        bench.guest_fuzzer.write(CORPUS, unit("a"))
        assert (bench.harvest().take(), bench.harvest().take()) == (1, 0)
        assert bench.guest_fuzzer.asked == [unit("a")[0]]

    def test_one_that_the_host_has_is_fetched_and_not_counted(self, bench: Bench) -> None:
        bench.corpus.add([b"a"], "seed")
        bench.guest_fuzzer.write(CORPUS, unit("a"), unit("b"))
        harvest = bench.harvest()
        assert (harvest.take(), harvest.added) == (1, 1)

    def test_without_a_corpus_there_is_nothing(self, bench: Bench) -> None:
        assert bench.harvest().take() == 0
        assert bench.guest_fuzzer.asked == []

    def test_one_that_is_too_large_is_not_asked_for(self, bench: Bench) -> None:
        bench.guest_fuzzer.write(CORPUS, ("just", b"x" * UNIT_SIZE), ("more", b"x" * (UNIT_SIZE + 1)))
        assert bench.harvest().take() == 1
        assert bench.guest_fuzzer.asked == ["just"]

    def test_names_that_are_gone_are_not_kept_in_memory(self, bench: Bench) -> None:
        """A guest could have us remember twenty thousand more with each harvest."""
        harvest = bench.harvest()
        for name in ("one", "two", "three"):
            bench.guest_fuzzer.write(CORPUS, (name, name.encode()))
            assert harvest.take() == 1
            assert bench.workspace.known == {name}
            (bench.guest_fuzzer.root / CORPUS / name).unlink()

    def test_a_name_that_no_file_can_have_is_not_asked_for(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        names = ["é" * (LONGEST_NAME // 2), "é" * (LONGEST_NAME // 2 + 1), "x" * (LONGEST_NAME + 1)]
        bench.guest_fuzzer.write(CORPUS, (names[0], b"a"))
        monkeypatch.setattr(bench.guest_fuzzer, "sizes", lambda _: dict.fromkeys(names, 1))
        assert bench.harvest().take() == 1
        assert bench.guest_fuzzer.asked == names[:1]

    def test_a_name_that_is_no_text_is_one_like_any_other(self, bench: Bench) -> None:
        bench.guest_fuzzer.write(CORPUS, ("latin\udcff", b"a"), ("two\nlines", b"b"))
        assert bench.harvest().take() == 2
        assert bench.contents == {b"a", b"b"}

    def test_of_very_many_the_rest_comes_the_next_time(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(harvests, "MOST_FILES", 5)
        bench.guest_fuzzer.write(CORPUS, *(unit(str(number)) for number in range(12)))
        harvest = bench.harvest()
        assert [harvest.take() for _ in range(4)] == [5, 5, 2, 0]
        assert len(bench.guest_fuzzer.asked) == 12

    def test_a_torn_one_is_fetched_again(self, bench: Bench) -> None:
        name, content = unit("whole")
        bench.guest_fuzzer.write(CORPUS, (name, content[:2]), unit("a"))
        harvest = bench.harvest()
        assert (harvest.take(), bench.contents) == (1, {b"a"})
        bench.guest_fuzzer.write(CORPUS, (name, content))
        assert (harvest.take(), harvest.take(), bench.contents) == (1, 0, {b"a", b"whole"})
        assert sorted(bench.guest_fuzzer.asked) == sorted([unit("a")[0], name, name])

    def test_one_that_is_torn_in_the_end_is_told_once_in_a_guest(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its disk may be full, or the fuzzer was killed while it wrote."""
        (name, _), (other, _) = unit("whole"), unit("other")
        bench.guest_fuzzer.write(CORPUS, (name, b"who"), unit("a"))
        harvest = bench.harvest()
        harvest.take()
        assert caplog.messages == []
        harvest.finish()
        told = "units of fuzzers/a#1.1 are lost, as the guest has other content under their names: 1, such as"
        assert caplog.messages == [f"{told} {name}"]
        bench.guest_fuzzer.write(CORPUS, (other, b""))
        bench.harvest().finish()
        assert caplog.messages == [f"{told} {name}", f"{told} {other}"]
        bench.guest_fuzzer.write(CORPUS, unit("whole"), unit("other"))
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
        bench.guest_fuzzer.write(CORPUS, *((f"_{name}", content) for name, content in units.items()))
        given_ = {f"_{name}" for number, name in enumerate(units) if number in known}
        bench.workspace.known |= given_
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(harvests, "MOST_FILES", most)
            harvest = bench.harvest()
            for _ in units:
                harvest.take()
        there = {f"_{name}": content for name, content in units.items()}
        wanted = {name: content for name, content in there.items() if name not in given_ and len(content) <= UNIT_SIZE}
        assert bench.contents == set(wanted.values())
        assert sorted(bench.guest_fuzzer.asked) == sorted(wanted)
        assert harvest.added == len(set(wanted.values()))


class TestGuestAtFault:
    @pytest.mark.parametrize("error", [DEAD, REFUSED])
    def test_one_that_does_not_answer_is_told_and_no_error(
        self, bench: Bench, error: TopcoatError, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench.guest_fuzzer.write(CORPUS, unit("a"))
        bench.guest_fuzzer.faults[CORPUS] = error
        harvest = bench.harvest()
        assert harvest.take() == 0
        assert f"harvesting fuzzers/a#1.1: {error}" in caplog.text
        bench.guest_fuzzer.faults.clear()
        assert harvest.take() == 1

    def test_what_has_come_before_it_died_is_kept(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        units = sorted(map(unit, "abcd"))
        bench.guest_fuzzer.write(CORPUS, *units)
        bench.guest_fuzzer.faults[units[2][0]] = DEAD
        harvest = bench.harvest()
        assert (harvest.take(), harvest.added) == (0, 2)
        assert bench.contents == {content for _, content in units[:2]}
        assert "the guest does not answer" in caplog.text
        bench.guest_fuzzer.faults.clear()
        assert (harvest.take(), harvest.added) == (2, 4)
        assert bench.guest_fuzzer.asked == [name for name, _ in [*units[:3], *units[2:]]]

    def test_its_words_are_fit_to_print(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        bench.guest_fuzzer.faults[CORPUS] = CommandError("\033[31mred\nTraceback", hint="")
        assert bench.harvest().take() == 0
        assert caplog.messages == ["harvesting fuzzers/a#1.1: red\\nTraceback"]


class TestArtifacts:
    def test_one_is_fetched_by_its_name(self, bench: Bench) -> None:
        bench.guest_fuzzer.write("tmp", ("crash-1", b"boom"), ("crash-2", b"bang"))
        harvest = bench.harvest()
        harvest.found("tmp/crash-1")
        assert (harvest.take(), harvest.artifacts, bench.came) == (0, {"crash-1": b"boom"}, 1)
        harvest.take()
        assert (bench.guest_fuzzer.asked, bench.came) == (["crash-1"], 1)

    def test_one_that_is_refused_does_not_keep_the_units_away(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench.guest_fuzzer.write(CORPUS, unit("a"))
        bench.guest_fuzzer.write("tmp", ("crash-2", b"bang"))
        bench.guest_fuzzer.faults["crash-1"] = REFUSED
        harvest = bench.harvest()
        harvest.found("tmp/crash-1")
        harvest.found("tmp/crash-2")
        assert (harvest.take(), harvest.artifacts) == (1, {"crash-2": b"bang"})
        assert bench.guest_fuzzer.asked == ["crash-1", "crash-1", "crash-2", unit("a")[0]], "it is asked for once more"
        assert "an artifact of fuzzers/a#1.1 is left out: there is no such file" in caplog.text
        harvest.take()
        assert len(bench.guest_fuzzer.asked) == 4

    def test_one_that_comes_at_the_second_time_is_kept(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.guest_fuzzer.write("tmp", ("crash-1", b"boom"))
        bench.guest_fuzzer.faults["crash-1"] = REFUSED
        monkeypatch.setattr(bench.guest_fuzzer, "_raise", lambda name: raise_once(bench.guest_fuzzer.faults, name))
        harvest = bench.harvest()
        harvest.found("tmp/crash-1")
        harvest.take()
        assert harvest.artifacts == {"crash-1": b"boom"}

    def test_one_that_is_not_what_its_name_says_is_asked_for_once_more_and_is_none(self, bench: Bench) -> None:
        name = f"crash-{unit('whole')[0]}"
        bench.guest_fuzzer.write(CORPUS, unit("a"))
        bench.guest_fuzzer.write("tmp", (name, b"who"), ("crash-1", b"boom"))
        harvest = bench.harvest()
        harvest.found(f"tmp/{name}")
        harvest.found("tmp/crash-1")
        assert (harvest.take(), harvest.artifacts, harvest.torn) == (1, {"crash-1": b"boom"}, {name})
        harvest.take()
        assert bench.guest_fuzzer.asked == [name, name, "crash-1", unit("a")[0]]

    def test_one_of_a_guest_that_is_gone_is_asked_for_when_it_is_back(self, bench: Bench) -> None:
        bench.guest_fuzzer.write("tmp", ("crash-1", b"boom"))
        bench.guest_fuzzer.faults["crash-1"] = DEAD
        harvest = bench.harvest()
        harvest.found("tmp/crash-1")
        assert (harvest.take(), harvest.artifacts) == (0, {})
        bench.guest_fuzzer.faults.clear()
        harvest.take()
        assert harvest.artifacts == {"crash-1": b"boom"}

    def test_one_that_is_too_large_is_not_kept(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(harvests, "LARGEST_ARTIFACT", 10)
        sizes = {"crash-1": 11, "crash-2": 6, "crash-3": 5, "crash-4": 4}
        bench.guest_fuzzer.write("tmp", *((name, b"x" * size) for name, size in sizes.items()))
        harvest = bench.harvest()
        for name in sizes:
            harvest.found(f"tmp/{name}")
        harvest.take()
        assert harvest.artifacts == {"crash-2": b"x" * 6, "crash-4": b"x" * 4}, "together they are no larger either"
        left_out = "an artifact of fuzzers/a#1.1 is left out: it is more than 10 B with those before: tmp/crash-"
        assert caplog.messages == [f"{left_out}1", f"{left_out}3"]

    def test_one_that_is_gone_is_told(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        """Units go all the time, and nobody tells of them; an artifact is what the fuzzer was run for."""
        bench.guest_fuzzer.write("tmp")
        harvest = bench.harvest()
        harvest.found("tmp/crash-1")
        harvest.take()
        assert (harvest.artifacts, bench.came) == ({}, 1)
        assert caplog.messages == ["an artifact of fuzzers/a#1.1 is left out: it is not there any more: tmp/crash-1"]

    def test_of_very_many_only_the_first_are_fetched(self, bench: Bench) -> None:
        names = [f"crash-{number}" for number in range(harvests.MOST_ARTIFACTS + 5)]
        bench.guest_fuzzer.write("tmp", *((name, b"boom") for name in names))
        harvest = bench.harvest()
        for name in names[:10]:
            harvest.found(f"tmp/{name}")
        harvest.take()
        for name in names[10:]:
            harvest.found(f"tmp/{name}")
        harvest.take()
        assert bench.guest_fuzzer.asked == names[: harvests.MOST_ARTIFACTS]

    def test_many_that_stall_do_not_keep_the_run_from_ending(self, bench: Bench) -> None:
        """Each takes as long as a transfer may stall: a minute. /proc/kmsg in a guest is such a file."""
        names = [f"crash-{number}" for number in range(harvests.MOST_ARTIFACTS)]
        bench.guest_fuzzer.faults |= dict.fromkeys(names, CommandTimeout("nothing came for 60 s", hint=""))
        harvest = bench.harvest()
        for name in names:
            harvest.found(f"/proc/{name}")
        harvest.take()
        assert len(bench.guest_fuzzer.asked) * 60 < harvests.END_LIMIT


class TestThread:
    def test_it_harvests_again_and_again(self, bench: Bench) -> None:
        bench.guest_fuzzer.write(CORPUS, unit("a"))
        running = Running(bench.harvest(every=0.001))
        try:
            assert running.harvested.get(timeout=SOON) == 1
            bench.guest_fuzzer.write(CORPUS, unit("b"))
            while running.harvested.get(timeout=SOON) == 0:
                pass
        finally:
            running.end()
        assert bench.contents == {b"a", b"b"}

    def test_what_is_found_is_fetched_at_once_and_units_wait(self, bench: Bench) -> None:
        """To list them costs the fuzzer as much as a hundred runs, and one may crash each second."""
        bench.guest_fuzzer.write("tmp", ("crash-1", b"boom"))
        bench.guest_fuzzer.write(CORPUS, unit("a"))
        running = Running(bench.harvest())
        try:
            running.harvest.found("tmp/crash-1")
            eventually(lambda: bench.came == 1)
            assert bench.guest_fuzzer.asked == ["crash-1"]
        finally:
            running.end()
        assert running.harvest.artifacts == {"crash-1": b"boom"}
        assert bench.contents == {b"a"}

    def test_it_ends_with_another_harvest(self, bench: Bench) -> None:
        bench.guest_fuzzer.write(CORPUS, unit("a"))
        running = Running(bench.harvest())
        running.end()
        assert bench.contents == {b"a"}
        assert running.harvest.failure is None
        assert not running.failed.is_set()

    def test_a_full_disk_is_told_of_the_last_one_too(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.guest_fuzzer.write(CORPUS, unit("a"))
        monkeypatch.setattr(intake, "write_new", refuse(errno.ENOSPC))
        running = Running(bench.harvest())
        running.end()
        assert isinstance(running.harvest.failure, StoreError)

    def test_its_end_waits_for_a_harvest_under_way(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.guest_fuzzer.write(CORPUS, unit("a"))
        begun, go_on = threading.Event(), threading.Event()
        real = bench.guest_fuzzer.fetch

        def slow(*arguments: Any) -> None:
            begun.set()
            assert go_on.wait(SOON)
            real(*arguments)

        monkeypatch.setattr(bench.guest_fuzzer, "fetch", slow)
        running = Running(bench.harvest(every=0.001))
        assert begun.wait(SOON)
        threading.Timer(0.05, go_on.set).start()
        running.end()
        assert bench.contents == {b"a"}

    def test_a_full_disk_ends_it_and_is_told(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.guest_fuzzer.write(CORPUS, unit("a"))
        monkeypatch.setattr(intake, "write_new", refuse(errno.ENOSPC))
        running = Running(bench.harvest(every=0.001))
        assert running.failed.wait(SOON)
        assert running.worker.join(SOON), "without being told to"
        running.end()
        assert isinstance(running.harvest.failure, StoreError)
        assert "writing the corpus of fuzzers/a" in str(running.harvest.failure)
        assert running.harvested.empty()

    def test_what_it_did_not_expect_is_raised_at_its_end(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench.guest_fuzzer, "sizes", mistaken)
        running = Running(bench.harvest(every=0.001))
        assert running.worker.join(SOON)
        with pytest.raises(ZeroDivisionError):
            running.end()

    def test_one_that_hangs_is_left_behind(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(harvests, "END_LIMIT", 0.01)
        begun, go_on = threading.Event(), threading.Event()

        def hanging(_: str) -> dict[str, int]:
            begun.set()
            assert go_on.wait(SOON)
            return {}

        monkeypatch.setattr(bench.guest_fuzzer, "sizes", hanging)
        running = Running(bench.harvest(every=0.001))
        assert begun.wait(SOON)
        running.harvest.end(running.worker)
        assert isinstance(running.harvest.failure, CommandTimeout)
        told = "harvesting fuzzers/a#1.1: what it had found had not all come 0.01 s after its end"
        assert caplog.messages == [told]
        go_on.set()
        assert running.worker.join(SOON)
        assert running.harvested.empty(), "nobody waits for it any more"
        assert not running.failed.is_set()


@pytest.mark.parametrize("artifact", [True, False])
def test_without_a_temporary_directory_it_is_the_hosts_fault(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, artifact: bool
) -> None:
    """As on a full /tmp: whoever runs the campaign gets a hint, and no traceback."""
    bench.guest_fuzzer.write(CORPUS, unit("a"))
    bench.guest_fuzzer.write("tmp", ("crash-1", b"boom"))
    monkeypatch.setattr(tempfile, "tempdir", str(bench.guest_fuzzer.root / "gone"))
    harvest = bench.harvest()
    if artifact:
        harvest.found("tmp/crash-1")
    with pytest.raises(StoreError):
        harvest.take()
