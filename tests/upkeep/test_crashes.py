"""Targets' own files, which are kept for crashes."""

import shutil
from dataclasses import replace

from pipeline.fuzz.crashes.store import CrashStore
from pipeline.host.locks import locked
from pipeline.store.digests import digest
from pipeline.upkeep import gc
from pipeline.upkeep.gc import Outcome
from tests.fuzz.crashes.made_up import BUILD, CRASH, FUZZER, SLUG, elsewhere
from tests.upkeep.conftest import World


def crashed(world: World) -> CrashStore:
    """Crashes of two builds of one fuzzer, in two buckets; each build has a program and shares a library."""
    for name in ("one", "two", "library"):
        (world.directory / name).write_text(name)

    def own_files(fuzzer: str, build: str) -> dict[str, object]:
        return {"/program": world.directory / ("one" if build == BUILD else "two"), "/lib": world.directory / "library"}

    crashes = CrashStore(world.store.root, own_files=own_files)  # type: ignore[arg-type]
    crashes.add(CRASH)
    crashes.add(replace(elsewhere("g"), build="b3:new"))
    return crashes


def test_files_stay_as_long_as_there_are_crashes_of_their_build(world: World) -> None:
    crashes = crashed(world)
    assert gc.items(world.store) == []
    shutil.rmtree(crashes.directory(FUZZER, SLUG))
    (item,) = gc.items(world.store)
    one = crashes.files.path(digest(world.directory / "one"))
    assert (item.kind, item.what, item.why) == ("files", str(one), "no crash is of a build that has it")
    assert gc.reclaim(item) == Outcome(item)
    assert not one.exists()
    assert gc.reclaim(item).spared == "it is gone already, or needed by now"
    assert gc.items(world.store) == []
    crashes.add(CRASH)
    assert one.read_text() == "one", "a crash of that build brings it back"


def test_when_all_crashes_are_gone_so_are_all_files(world: World) -> None:
    crashes = crashed(world)
    shutil.rmtree(crashes.directory(FUZZER))
    assert [gc.reclaim(item).spared for item in gc.items(world.store)] == ["", "", ""]
    assert list(crashes.files.directory.iterdir()) == []


def test_a_file_that_is_needed_meanwhile_is_spared(world: World) -> None:
    crashes = crashed(world)
    shutil.rmtree(crashes.directory(FUZZER, SLUG))
    (item,) = gc.items(world.store)
    for path in (crashes.lock(FUZZER), crashes.files.directory):
        with locked(path):
            assert gc.reclaim(item).spared == "another process works on it"
    crashes.add(replace(CRASH, fuzzer="p/other"))
    assert gc.reclaim(item).spared == "it is gone already, or needed by now"
