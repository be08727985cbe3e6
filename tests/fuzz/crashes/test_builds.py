"""The builds of a fuzzer, the targets' own files, and what came back after it was fixed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.fuzz.crashes import verdicts
from pipeline.fuzz.crashes.builds import MOST_BUILDS, KnownBuild, KnownBuilds
from pipeline.fuzz.crashes.store import CrashStore
from pipeline.fuzz.crashes.target_files import TargetFiles
from pipeline.fuzz.crashes.verdicts import InputVerdict
from pipeline.store.digests import digest
from pipeline.store.freshness import record_path
from tests.fuzz.crashes.made_up import BUILD, CRASH, FUZZER, SEEN, SLUG, elsewhere, judge, names, other

PROGRAM = "/targets/files/example-fuzzers/a"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    program = tmp_path / "images/a"
    program.parent.mkdir()
    program.write_bytes(b"\x7fELF with symbols")
    return program


@pytest.fixture
def crash_store(tmp_path: Path, program: Path) -> CrashStore:
    return CrashStore(tmp_path, now=lambda: SEEN, own_files=lambda fuzzer, build: {PROGRAM: program})


def test_the_files_of_each_build_stay_though_the_target_is_built_again(crash_store: CrashStore, program: Path) -> None:
    crash_store.add(CRASH)
    old = digest(program)
    assert crash_store.builds(FUZZER).builds == (KnownBuild(BUILD, SEEN, {PROGRAM: old}),)
    assert crash_store.files.path(old).samefile(program)
    program.unlink()
    program.write_bytes(b"\x7fELF anew")
    crash_store.add(replace(CRASH, build="b3:new"))
    new = digest(program)
    assert [build.files for build in crash_store.builds(FUZZER).builds] == [{PROGRAM: old}, {PROGRAM: new}]
    assert crash_store.files.path(old).read_bytes() == b"\x7fELF with symbols"
    assert crash_store.files.directory.stat().st_mode & 0o077 == 0
    assert crash_store.files.unused({old}) == [crash_store.files.path(new)]


def test_files_are_asked_for_once_for_each_build(tmp_path: Path, program: Path) -> None:
    asked = []

    def own_files(fuzzer: str, build: str) -> dict[str, Path]:
        asked.append((fuzzer, build))
        return {PROGRAM: program}

    crash_store = CrashStore(tmp_path, own_files=own_files)
    for crash in (CRASH, other(1), elsewhere("g"), replace(CRASH, build="b3:new"), replace(CRASH, fuzzer="p/f"), CRASH):
        crash_store.add(crash)
    assert asked == [(FUZZER, BUILD), (FUZZER, "b3:new"), ("p/f", BUILD)]
    assert names(crash_store.files.directory) == [digest(program).replace(":", "-")]


def test_a_crash_is_stored_though_the_files_cannot_be_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    crash_store = CrashStore(tmp_path, own_files=lambda fuzzer, build: {PROGRAM: tmp_path / "gone"})
    assert crash_store.add(CRASH).directory
    assert crash_store.builds(FUZZER).builds[0].files == {}
    assert "its files are not kept for later: keeping a target's own files: No such file" in caplog.text


def test_of_a_build_without_files_nothing_is_made(tmp_path: Path) -> None:
    crash_store = CrashStore(tmp_path)
    crash_store.add(CRASH)
    assert names(crash_store.root) == ["example-fuzzers"]


def test_files_beyond_the_limit_are_not_kept(tmp_path: Path, program: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = TargetFiles(tmp_path / ".files", most=30)
    assert files.keep({PROGRAM: program}) == {PROGRAM: digest(program)}
    large = tmp_path / "large"
    large.write_bytes(bytes(31))
    assert files.keep({PROGRAM: program, "/lib": large}) == {}
    assert "has 17 B, and no room for the files of another build" in caplog.text
    assert files.keep({"/another/name": program}) == {"/another/name": digest(program)}


@pytest.mark.parametrize("text", ["", "b3:", "../../keys/sshid", "b3:" + "0" * 63 + "/", "b3:" + "0" * 64 + "\n"])
def test_what_is_no_digest_leads_nowhere(tmp_path: Path, text: str) -> None:
    with pytest.raises(StoreError, match="is no digest of a file"):
        TargetFiles(tmp_path).path(text)


def test_a_digest_that_is_none_keeps_no_crash_from_being_stored(crash_store: CrashStore, program: Path) -> None:
    crash_store.add(CRASH)
    file = crash_store.directory(FUZZER) / "builds.json"
    file.write_text(file.read_text().replace(digest(program), "../../x"))
    assert crash_store.add(elsewhere("g")).directory
    assert crash_store.builds(FUZZER).builds[0].files == {PROGRAM: digest(program)}


def test_a_disk_that_takes_no_files_is_told(tmp_path: Path, program: Path) -> None:
    (tmp_path / ".files").write_bytes(b"")
    with pytest.raises(StoreError):
        TargetFiles(tmp_path / ".files").keep({PROGRAM: program})


def test_builds_are_in_the_order_in_which_they_were_seen(crash_store: CrashStore) -> None:
    crash_store.add(CRASH)
    for build in ("b3:2", "b3:1", BUILD, "b3:2"):
        crash_store.note_build(FUZZER, build)
    crash_store.add(replace(other(1), build="b3:1"))
    builds = crash_store.builds(FUZZER)
    assert [(build.digest, bool(build.files)) for build in builds.builds] == [
        (BUILD, True),
        ("b3:2", False),
        ("b3:1", True),
    ]
    assert builds.before("b3:1") == ("b3:2", BUILD)
    assert builds.before(BUILD) == ()
    assert builds.before("b3:not seen yet") == ("b3:1", "b3:2", BUILD)


def test_a_frozen_sample_is_understood() -> None:
    sample = {"schema": 1, "builds": [{"digest": BUILD, "first_seen": SEEN, "files": {PROGRAM: "b3:34cd"}}]}
    builds = KnownBuilds((KnownBuild(BUILD, SEEN, {PROGRAM: "b3:34cd"}),))
    assert KnownBuilds.decode(json.dumps(sample).encode()) == builds
    assert json.loads(json.dumps(builds.encode())) == sample


def test_of_very_many_builds_the_last_ones_are_remembered() -> None:
    builds = KnownBuilds()
    for number in range(MOST_BUILDS + 5):
        builds = builds.with_build(KnownBuild(f"b3:{number}", SEEN))
    assert len(builds.builds) == MOST_BUILDS
    assert builds.builds[0].digest == "b3:5"
    assert KnownBuilds.decode(json.dumps(builds.encode()).encode()) == builds


SAME, NONE = InputVerdict("aa", same=10), InputVerdict("aa", none=10)


def test_what_was_fixed_and_is_seen_again_is_back(crash_store: CrashStore) -> None:
    assert crash_store.add(CRASH).state == "new"
    judge(crash_store, SLUG, BUILD, SAME)
    judge(crash_store, SLUG, "b3:1", NONE)
    assert crash_store.add(CRASH).state == "known"  # an old build has it as ever
    assert [crash_store.add(replace(other(n), build="b3:2")).state for n in range(2)] == ["back", "back"]
    assert crash_store.add(replace(CRASH, build="b3:3")).state == "known"
    judge(crash_store, SLUG, "b3:4", InputVerdict("aa", others={"another": 10}))
    assert crash_store.add(replace(CRASH, build="b3:5")).state == "known"
    judge(crash_store, SLUG, "b3:6", NONE)
    judge(crash_store, SLUG, "b3:7", InputVerdict("aa", lost=10))
    assert crash_store.add(replace(CRASH, build="b3:8")).state == "back"
    assert crash_store.add(replace(elsewhere("g"), build="b3:8")).state == "new"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff", b'{"build": 1}', b'{"schema": 1, "build": "b3:1"}']
)
def test_a_verdict_that_cannot_be_understood_says_nothing(crash_store: CrashStore, content: bytes) -> None:
    crash_store.add(CRASH)
    judge(crash_store, SLUG, BUILD, SAME)
    path = judge(crash_store, SLUG, "b3:1", NONE)
    record_path(path).write_text('{"build": "b3:1", "word": "a record"}')
    (path.parent / "0.json").mkdir()
    assert [one.build for one in verdicts.read_all(path.parents[1], [BUILD])] == [BUILD, "b3:1"]
    path.write_bytes(content)
    assert [one.build for one in verdicts.read_all(path.parents[1], [BUILD])] == [BUILD]
    assert crash_store.add(replace(CRASH, build="b3:2")).state == "known"
