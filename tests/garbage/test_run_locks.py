"""Lock directories of luigi."""

import os

from pipeline import gc
from pipeline.garbage.run_locks import lock_directory
from pipeline.gc import Outcome
from pipeline.settings import Store
from tests.garbage.conftest import DAY, World


class TestLockDirectory:
    def test_it_goes_when_no_luigi_runs(self, world: World) -> None:
        made = lock_directory(world.store)
        assert made.is_relative_to(world.temporary)
        made.mkdir()
        (made / "a.pid").write_text("999999999\n")
        (made / "b.pid").write_text("")
        (item,) = gc.items(world.store, DAY)
        assert (item.kind, item.what, item.why) == ("lock directory", str(made), "no luigi runs on this store")
        assert gc.reclaim(item) == Outcome(item)
        assert not made.exists()
        assert gc.reclaim(item).spared == "it is gone already"

    def test_not_while_one_runs_or_if_it_is_not_luigi_s(self, world: World) -> None:
        made = lock_directory(world.store)
        made.mkdir()
        file = made / "a.pid"
        file.write_text("1\n")
        (made / "b.pid").write_text("999999999\n")
        for text in (f"999999999\n{os.getpid()}\n", "precious"):
            file.write_text(text)
            assert world.listed() == {}
        file.write_text("999999999\n")
        (item,) = gc.items(world.store, DAY)
        file.write_text(f"{os.getpid()}\n")
        assert gc.reclaim(item).spared == "luigi runs on this store"
        assert file.exists()

    def test_each_store_has_its_own(self, world: World) -> None:
        assert lock_directory(world.store) != lock_directory(Store(world.directory))
        lock_directory(Store(world.directory)).mkdir()
        assert world.listed() == {}
