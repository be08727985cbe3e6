"""`topcoat gc`: what is nobody's is reclaimed, and nothing else is touched."""

import signal
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline.host.locks import locked
from pipeline.upkeep import directories, gc, remains
from pipeline.upkeep.gc import Outcome
from pipeline.upkeep.leftover import Leftover, Spared
from tests.conftest import Workspace
from tests.upkeep.conftest import DAY, World, make_old, new_world, spared
from tests.waiting import SOON


def test_there_is_nothing_in_no_store_and_none_is_made(world: World) -> None:
    assert gc.items(world.store) == []
    assert not world.store.root.exists()
    world.instance()
    assert gc.items(world.store, DAY) == []


def test_errors_are_reported_one_by_one() -> None:
    def fail() -> None:
        raise PermissionError(13, "Permission denied", "/x")

    def spare() -> None:
        raise Spared("somebody has it")

    broken, taken = (Leftover("disk", "/x", 1, "", remove) for remove in (fail, spare))
    error = gc.reclaim(broken).error
    assert str(error) == "removing /x: Permission denied: /x"
    assert gc.reclaim(taken) == Outcome(taken, spared="somebody has it")


def test_what_cannot_be_looked_at_hides_nothing_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def fail(*_: object) -> list[Leftover]:
        raise PermissionError(13, "Permission denied", "/x")

    monkeypatch.setattr(gc.log, "error", lambda _, text: said.append(text.partition("\n")[0]))
    monkeypatch.setattr(directories, "items", fail)
    monkeypatch.setattr(remains, "items", fail)
    world.killed_boot()
    assert set(world.listed().values()) == {"process"}
    assert said == [
        "looking for instances that are nobody's: Permission denied: /x",
        "looking for remains that are nobody's: Permission denied: /x",
    ]


MAKERS = {
    "live": World.live,
    "broken": World.live,
    "killed": World.killed_boot,
    "dead": World.dead,
    "old": World.dead,
    "logs": World.instance,
    "booting": World.killed_boot,
    "locked": World.dead,
}
SAFE = ("live", "broken", "booting", "locked")


@pytest.mark.slow
@hypothesis_settings(max_examples=60)
@given(states=st.lists(st.sampled_from(sorted(MAKERS)), max_size=6))
def test_what_lives_or_is_locked_stays_and_nothing_else_does(states: list[str]) -> None:
    with new_world() as world, ExitStack() as held:
        for number, state in enumerate(states):
            instance = MAKERS[state](world, f"{state}{number}")
            if state == "broken":
                instance.handle_file.write_text("{")
            if state == "old":
                make_old(instance.directory, 2 * DAY)
            if state in ("booting", "locked"):
                held.enter_context(locked(instance.directory))
        before = {path for path in world.left() if path.startswith("instances/")}
        alive = [child for child in world.started if child.poll() is None]
        assert set(spared(world.collect())) <= {""}
        assert world.listed() == {}
        after = {path for path in world.left() if path.startswith("instances/")}
        stays = {path for path in before if path.split("/")[1].startswith(SAFE)}
        logs = {f"instances/{state}{number}/serial.log" for number, state in enumerate(states) if state != "old"}
        assert after == stays | logs
        safe = [(number, state) for number, state in enumerate(states) if state in SAFE]
        assert sum(child.poll() is None for child in alive) == sum(state != "locked" for _, state in safe)


class TestBoots:
    """With Topcoat's own boots of a scripted QEMU."""

    @pytest.fixture
    def running(self, world: World, bundle: Workspace) -> Workspace:
        bundle.environment["TMPDIR"] = str(world.temporary)
        assert bundle.luigi("BootInstance").status == 0
        return bundle

    def test_a_guest_that_was_killed_leaves_its_logs_only(self, running: Workspace) -> None:
        instance = running.instance()
        assert gc.items(running.store, 0) == []
        live = instance.live_handle()
        assert live
        live.process.send(signal.SIGKILL)
        assert live.process.wait(SOON)
        found = gc.items(running.store, DAY)
        assert [item.kind for item in found] == ["disk"]
        assert spared([gc.reclaim(item) for item in found]) == [""]
        assert not [
            path for path in instance.directory.iterdir() if ".log" not in path.name and "time" not in path.name
        ]
        assert running.luigi("BootInstance").status == 0
        assert instance.live_handle()
