"""The contract of launchers, held by both: QEMU's (with a scripted QEMU) and a script on this host. And retries."""

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import settings
from pipeline.builds import build
from pipeline.errors import AlreadyRunning, BootError, BootTimeout, GuestDied, HostFault, MissingResource, StoreError
from pipeline.vm.history import History
from pipeline.vm.launcher import ATTEMPTS_OF_HOST, Launcher, start
from pipeline.vm.qemu.plan import plan
from pipeline.vm.timeline import Timeline
from tests.conftest import Workspace, qemus_of
from tests.fakes.launcher import ShellLauncher
from tests.vm.qemu.playing import Played


@dataclass
class Case:
    """One launcher, and what a test must know of it."""

    launcher: Launcher
    left: Callable[[], list[str]]
    """Whatever of it is still there, besides logs."""
    break_guest: Callable[[], object]
    """From now on its guest ends before it is ready."""
    take_resource: Callable[[], object]
    """Take away something that it needs."""


@pytest.fixture(params=["qemu", "shell"])
def case(request: pytest.FixtureRequest, bundle: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    if request.param == "qemu":
        played = Played(bundle, monkeypatch)
        yield Case(
            played.launcher(),
            lambda: [*played.remains(), *map(str, qemus_of(bundle.directory))],
            lambda: played.play("die"),
            lambda: (bundle.directory / "bundle/target/x64/multiboot.bin").unlink(),
        )
        return
    base = bundle.directory / "guests"
    base.mkdir()
    launcher = ShellLauncher(base)
    yield Case(
        launcher,
        lambda: [str(path) for path in base.glob("*") if path != launcher.log],
        lambda: setattr(launcher, "script", "echo early; exit 0"),
        lambda: shutil.rmtree(base),
    )
    launcher.kill()


def test_a_whole_life(case: Case) -> None:
    launcher = case.launcher
    assert not launcher.is_running()
    launcher.prepare()
    launcher.prepare()
    assert not launcher.is_running(), "preparing starts nothing"
    launcher.start().close()
    assert launcher.is_running()
    launcher.kill()
    assert not launcher.is_running()
    assert case.left() == []
    launcher.kill()


def test_a_second_start_is_refused_and_harms_nothing(case: Case) -> None:
    case.launcher.start().close()
    with pytest.raises(AlreadyRunning):
        case.launcher.start()
    assert case.launcher.is_running()


def test_a_failed_start_releases_everything_but_the_logs(case: Case) -> None:
    case.break_guest()
    with pytest.raises(BootError):
        case.launcher.start()
    assert not case.launcher.is_running()
    assert case.left() == []
    assert logs(case.launcher) != b""


def test_a_guest_can_be_started_again_after_it_was_killed(case: Case) -> None:
    for _ in range(2):
        case.launcher.start().close()
        case.launcher.kill()
    assert case.left() == []


def test_a_missing_resource_is_told_before_anything_is_made(case: Case) -> None:
    case.take_resource()
    with pytest.raises(MissingResource):
        case.launcher.prepare()
    with pytest.raises(MissingResource):
        case.launcher.start()
    assert case.left() == []


def test_the_logs_are_there_while_it_runs_and_afterwards_but_not_before(case: Case) -> None:
    with pytest.raises(StoreError):
        logs(case.launcher)
    case.launcher.start().close()
    while_running = logs(case.launcher)
    assert while_running
    case.launcher.kill()
    assert logs(case.launcher).startswith(while_running)


def logs(launcher: Launcher) -> bytes:
    into = io.BytesIO()
    launcher.get_logs(into)
    return into.getvalue()


def test_the_connector_runs_commands(tmp_path: Path) -> None:
    launcher = ShellLauncher(tmp_path)
    try:
        assert launcher.start().run("echo $((6 * 7))", 5).stdout == b"42\n"
    finally:
        launcher.kill()


PASSING = HostFault("no port", hint="wait", stage="spawn", cause="port refused", transient=True)
LASTING = HostFault("no KVM", hint="buy", stage="spawn", cause="no KVM")
OF_GUEST = BootTimeout("late", hint="wait", stage="marker", cause="marker never came")


@pytest.mark.parametrize(
    ("failures", "of_guest", "starts", "raised"),
    [
        ([], 1, 1, None),
        ([PASSING], 1, 2, None),
        ([PASSING, PASSING], 1, 3, None),
        ([PASSING, PASSING, PASSING], 1, 3, PASSING),
        ([LASTING], 1, 1, LASTING),
        ([OF_GUEST], 1, 1, OF_GUEST),
        ([OF_GUEST], 2, 2, None),
        ([OF_GUEST, OF_GUEST], 2, 2, OF_GUEST),
        ([LASTING, OF_GUEST], 3, 3, None),
        ([PASSING, OF_GUEST], 1, 2, OF_GUEST),
        ([PASSING] * 4, 5, 5, None),
    ],
)
def test_what_is_tried_again(
    tmp_path: Path, failures: list[BootError], of_guest: int, starts: int, raised: BootError | None
) -> None:
    launcher, pauses = ShellLauncher(tmp_path, failures=list(failures)), list[float]()
    try:
        if raised is None:
            start(launcher, of_guest, pause=pauses.append).close()
        else:
            with pytest.raises(BootError) as caught:
                start(launcher, of_guest, pause=pauses.append)
            assert caught.value is raised
        assert launcher.starts == starts
        passed = [failure for failure in failures[: starts - 1] if failure.transient]
        assert len(pauses) == len(passed), "it waits only for what may pass"
    finally:
        launcher.kill()


class Failing(ShellLauncher):
    def start(self) -> NoReturn:
        self.starts += 1
        raise self.failures.pop(0)


@given(st.lists(st.sampled_from([PASSING, LASTING, OF_GUEST]), min_size=20, max_size=20), st.integers(1, 6))
def test_retries_always_end(failures: list[BootError], of_guest: int) -> None:
    launcher = Failing(Path(), failures=list(failures))
    with pytest.raises(BootError):
        start(launcher, of_guest, pause=lambda _: None)
    assert 1 <= launcher.starts <= max(ATTEMPTS_OF_HOST, of_guest)


def test_an_interruption_is_not_tried_again(tmp_path: Path) -> None:
    launcher = Failing(tmp_path, failures=[KeyboardInterrupt()])  # type: ignore[list-item]
    with pytest.raises(KeyboardInterrupt):
        start(launcher, 9, pause=lambda _: None)
    assert launcher.starts == 1


def test_boots_with_other_threads_are_no_measure(bundle: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    Played(bundle, monkeypatch)

    def history(threads: str) -> History:
        bundle.configure(f"[qemu]\naccel = tcg\ntcg_threads = {threads}\n")
        chosen = settings.load(directory=bundle.directory)
        return plan(chosen, build.load(chosen), bundle.instance(), "marker").history

    history("single").add(1.0)
    assert (history("single").seconds(), history("multi").seconds()) == ([1.0], [])


def test_a_guest_that_dies_is_the_guests_fault() -> None:
    assert (GuestDied.fault, HostFault.fault) == ("guest", "host")


@pytest.mark.parametrize(
    "kind", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "interrupted"]
)
def test_what_fails_after_the_guest_was_ready_leaves_no_guest(
    bundle: Workspace, monkeypatch: pytest.MonkeyPatch, kind: BaseException
) -> None:
    played, real = Played(bundle, monkeypatch), Timeline.reached

    def reached(timeline: Timeline, event: str, **facts: str) -> None:
        real(timeline, event, **facts)
        if event == "ready":
            raise kind

    monkeypatch.setattr(Timeline, "reached", reached)
    with pytest.raises(StoreError if isinstance(kind, OSError) else KeyboardInterrupt):
        played.launcher().start()
    assert qemus_of(bundle.directory) == []
    assert played.remains() == []
