"""A corpus survives whatever happens to those who write it."""

import itertools
import multiprocessing
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from pipeline.fuzz.corpus import Added, Corpus, CorpusLimits, Coverage
from pipeline.settings import DAY
from tests.fuzz.corpus.conftest import FUZZER, contents, files, kept, make_old, merge, name_of
from tests.waiting import SOON

OPERATIONS: dict[str, Callable[[Corpus], object]] = {
    "add": lambda corpus: corpus.add([b"new", b"newer", b"a"], "x"),
    "quarantine by content": lambda corpus: corpus.quarantine(b"a", "x"),
    "quarantine by name": lambda corpus: corpus.quarantine(name_of(b"a"), "x"),
    "replace": lambda corpus: merge(corpus, [b"a", b"b"], [b"a"], [b"new"]),
    "refused": lambda corpus: merge(corpus, [b"a", b"b"], [b"a"], [b"new", Path("/nothing")]),
    "recover": lambda corpus: corpus.recover(),
    "restore": lambda corpus: corpus.restore(),
    "expire": lambda corpus: merge(
        Corpus(FUZZER, corpus.directory, CorpusLimits(kept=DAY)), [b"a", b"b"], [b"a", b"b"]
    ),
}

AFTER = {
    "add": {b"a", b"b", b"c", b"new", b"newer"},
    "quarantine by content": {b"b", b"c"},
    "quarantine by name": {b"b", b"c"},
    "replace": {b"a", b"c", b"new"},
    "refused": {b"a", b"b", b"c"},
    "recover": {b"a", b"b", b"c"},
}

STEPS = ("open", "os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "fcntl.flock")


def content_in_quarantine(corpus: Corpus) -> set[bytes]:
    """Each unit has its note, and nothing else is there."""
    found = files(corpus.directory / "quarantine")
    names = corpus.quarantined().keys()
    assert found.keys() == {*names, *(f"{name}.json" for name in names)}
    assert all(name_of(found[name]) == name for name in names)
    return {found[name] for name in names}


def require_listed_files(corpus: Corpus) -> set[bytes]:
    """All that the manifest lists is there, whatever else is."""
    listed = {name: corpus.path(name).read_bytes() for name in corpus.units()}
    assert all(name_of(content) == name for name, content in listed.items())
    return set(listed.values())


def kill_at_each_step(template: Path, work: Path, operation: str) -> None:
    """Copies of the corpus, in each of which a process was killed one step later. The last was not killed."""
    for number in itertools.count(1):
        directory = work / f"{number}"
        shutil.copytree(template, directory)
        process = os.fork()
        if process == 0:
            try:
                die_at(number)
                OPERATIONS[operation](Corpus.of(directory, FUZZER))
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(process, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit(os.waitstatus_to_exitcode(status))


def die_at(number: int) -> None:
    steps = itertools.count(1)

    def hook(event: str, _: tuple[Any, ...]) -> None:
        if event in STEPS and next(steps) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [False, True], ids=["", "without a manifest"])
@pytest.mark.parametrize("operation", AFTER)
def test_a_process_killed_at_any_step_leaves_the_old_corpus_or_the_new_one(
    tmp_path: Path, operation: str, lost: bool
) -> None:
    before, after = {b"a", b"b", b"c"}, AFTER[operation]
    template = Corpus.of(tmp_path / "template", FUZZER)
    template.add(before, "seed")
    if lost:
        (template.directory / "manifest.json").unlink()
    (work := tmp_path / "work").mkdir()
    arguments = (tmp_path / "template", work, operation)
    killer = multiprocessing.get_context("spawn").Process(target=kill_at_each_step, args=arguments)
    killer.start()
    killer.join(SOON)
    assert killer.exitcode == 0
    assert len(list(work.iterdir())) > 5
    for directory in work.iterdir():
        corpus = Corpus.of(directory, FUZZER)
        assert require_listed_files(corpus) in (before, after)
        corpus.add([], "x")
        assert contents(corpus) in (before, after)
        assert contents(corpus) | content_in_quarantine(corpus) in (before, before | after, after)
        OPERATIONS[operation](corpus)
        assert contents(corpus) == after


EXPIRED = {b"1", b"2"}


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["replace", "restore", "expire"])
def test_wherever_a_process_is_killed_each_unit_is_in_the_corpus_or_kept(tmp_path: Path, operation: str) -> None:
    everything = {b"a", b"b", b"c", b"d"} | EXPIRED
    template = Corpus.of(tmp_path / "template", FUZZER)
    template.add(everything, "seed")
    assert merge(template, everything, everything - EXPIRED)
    assert merge(template, everything - EXPIRED, [b"a", b"b"])
    make_old(template, 1, 2 * DAY)
    (work := tmp_path / "work").mkdir()
    killer = multiprocessing.get_context("spawn").Process(
        target=kill_at_each_step, args=(tmp_path / "template", work, operation)
    )
    killer.start()
    killer.join(SOON)
    assert killer.exitcode == 0
    assert len(list(work.iterdir())) > 10
    safe = everything - EXPIRED if operation == "expire" else everything
    for directory in work.iterdir():
        corpus = Corpus.of(directory, FUZZER)
        assert safe <= require_listed_files(corpus) | kept(corpus)
        corpus.add([], "x")
        assert safe <= contents(corpus) | kept(corpus)
        assert contents(corpus).isdisjoint(kept(corpus))
        OPERATIONS[operation](corpus)
        assert safe <= contents(corpus) | kept(corpus)
        if operation == "expire":
            assert kept(corpus) == {b"c", b"d"}
        assert not list(corpus.directory.glob("replaced/.*"))
        corpus.restore()
        assert safe <= contents(corpus)
        assert list(corpus.directory.glob("replaced/*")) == []


@pytest.mark.slow
def test_a_process_killed_while_it_makes_a_corpus_leaves_none_or_all(tmp_path: Path) -> None:
    (work := tmp_path / "work").mkdir()
    (tmp_path / "template").mkdir()
    arguments = (tmp_path / "template", work, "add")
    killer = multiprocessing.get_context("spawn").Process(target=kill_at_each_step, args=arguments)
    killer.start()
    killer.join(SOON)
    assert killer.exitcode == 0
    for directory in work.iterdir():
        corpus = Corpus.of(directory, FUZZER)
        assert require_listed_files(corpus) in (set(), {b"a", b"new", b"newer"})
        OPERATIONS["add"](corpus)
        assert contents(corpus) == {b"a", b"new", b"newer"}


ADDING = """
import itertools, sys
from pathlib import Path
from pipeline.fuzz.corpus import Corpus
corpus, who = Corpus.of(Path(sys.argv[1]), sys.argv[2]), sys.argv[3]
for number in itertools.count():
    some = [f"{who} {number} {part}".encode() for part in range(5)]
    assert corpus.add(some, who).new == 5
    print(number, flush=True)
"""


@pytest.mark.slow
def test_what_was_acknowledged_before_a_kill_at_a_random_moment_stays(tmp_path: Path) -> None:
    expected: set[bytes] = set()
    for who in range(6):
        words = [sys.executable, "-c", ADDING, str(tmp_path), FUZZER, str(who)]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(random.randrange(1, 8))]
            with suppress(subprocess.TimeoutExpired):
                process.wait(random.random() / 20)
            process.kill()
            said += process.stdout.read().splitlines(keepends=True)
        numbers = [int(line) for line in said if line.endswith(b"\n")]
        expected |= {b"%d %d %d" % (who, number, part) for number in numbers for part in range(5)}
        assert expected <= require_listed_files(Corpus.of(tmp_path, FUZZER))
    corpus = Corpus.of(tmp_path, FUZZER)
    corpus.add([], "x")
    assert expected <= contents(corpus)


class Killed(BaseException):
    """The process takes no further step."""


@contextmanager
def killed_at(number: int | None) -> Iterator[None]:
    """From that step on, nothing more is done to the disk in the body. What had not been fsynced is half there."""
    steps = itertools.count(1)
    dead = False

    def dying(step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal dead
            dead = dead or next(steps) == number
            if dead and step is os_fsync:
                cut_off(arguments[0])
            if dead:
                raise Killed
            return None if step is os_fsync else step(*arguments, **options)

        return call

    os_fsync = os.fsync
    with ExitStack() as stack:
        stack.enter_context(suppress(Killed))
        for name in ("open", "link", "rename", "replace", "unlink", "mkdir", "rmdir", "fsync"):
            stack.enter_context(patch.object(os, name, dying(getattr(os, name))))
        yield


def cut_off(descriptor: int) -> None:
    facts = os.fstat(descriptor)
    if stat.S_ISREG(facts.st_mode):
        os.truncate(f"/proc/self/fd/{descriptor}", facts.st_size // 2)


CONTENT = st.integers(0, 12).map(lambda number: b"%d" % number * number)
SOME = st.sets(CONTENT, max_size=5)
MOMENT = st.none() | st.integers(1, 60)


class Life(RuleBasedStateMachine):
    """A corpus beside what it should be. Each call may end early; then it was done, or not at all."""

    directory: Path

    def __init__(self) -> None:
        super().__init__()
        shutil.rmtree(self.directory, ignore_errors=True)
        self.corpus = Corpus.of(self.directory, FUZZER)
        self.members: set[bytes] = set()
        self.out: set[bytes] = set()
        self.ever: set[bytes] = set()

    def outcome(self, moment: int | None, operation: Callable[[], object], members: set[bytes]) -> None:
        done = False
        with killed_at(moment):
            operation()
            done = True
        now = require_listed_files(self.corpus)
        assert now == members if done else now in (self.members, members)
        self.members = now
        self.ever |= now

    @rule(some=SOME, moment=MOMENT)
    def add(self, some: set[bytes], moment: int | None) -> None:
        self.outcome(moment, lambda: self.corpus.add(some, "x"), self.members | (some - self.out))

    @rule(content=CONTENT, moment=MOMENT)
    def quarantine(self, content: bytes, moment: int | None) -> None:
        self.outcome(moment, lambda: self.corpus.quarantine(content, "x"), self.members - {content})
        if name_of(content) in self.corpus.quarantined():
            self.out.add(content)
            self.corpus.add([], "x")  # who writes next ends what was begun
            self.members -= {content}
        assert set(self.corpus.quarantined()) == {name_of(content) for content in self.out}

    @rule(given=SOME, kept=SOME, new=SOME, moment=MOMENT, less=st.booleans())
    def replace(self, given: set[bytes], kept: set[bytes], new: set[bytes], moment: int | None, less: bool) -> None:
        taken = not less and kept <= self.members and not new & self.out and bool(kept | new)
        members = (self.members - (given - kept)) | new if taken else self.members
        after = Coverage(1, 1) if less else Coverage(10, 100)
        self.outcome(moment, lambda: merge(self.corpus, given, kept, new, after=after), members)

    @rule(moment=MOMENT)
    def restore(self, moment: int | None) -> None:
        self.outcome(moment, self.corpus.restore, self.ever - self.out)

    @rule(moment=MOMENT)
    def recover(self, moment: int | None) -> None:
        self.corpus.add([], "x")  # leftovers with sound content would come back
        self.outcome(moment, self.corpus.recover, self.members)

    @rule()
    def lose_the_manifest(self) -> None:
        self.corpus.add([], "x")
        (self.corpus.directory / "manifest.json").unlink()

    @rule()
    def add_what_is_known(self) -> None:
        assert self.corpus.add(self.members | self.out, "x") == Added(
            known=len(self.members), quarantined=len(self.out)
        )
        assert contents(self.corpus) == self.members
        assert content_in_quarantine(self.corpus) == self.out

    @invariant()
    def is_what_it_should_be(self) -> None:
        assert require_listed_files(self.corpus) == self.members

    @invariant()
    def has_all_that_ever_was_in_it(self) -> None:
        assert self.ever <= self.members | kept(self.corpus) | self.out


@pytest.mark.slow
def test_no_life_loses_a_unit(tmp_path: Path) -> None:
    Life.directory = tmp_path
    run_state_machine_as_test(Life, settings=settings(max_examples=40, stateful_step_count=25))
