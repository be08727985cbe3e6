import pytest

from pipeline.host.deadline import Deadline, Patience


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_time_passes_from_the_making_on(clock: FakeClock) -> None:
    deadline = Deadline(10, clock)
    clock.now += 4
    assert (deadline.started, deadline.elapsed, deadline.remaining, deadline.expired) == (1000.0, 4.0, 6.0, False)


def test_it_expires_at_the_very_moment(clock: FakeClock) -> None:
    deadline = Deadline(10, clock)
    clock.now += 10
    assert (deadline.remaining, deadline.expired) == (0.0, True)


def test_what_remains_is_never_negative(clock: FakeClock) -> None:
    deadline = Deadline(10, clock)
    clock.now += 25
    assert (deadline.elapsed, deadline.remaining, deadline.expired) == (25.0, 0.0, True)


@pytest.mark.parametrize("seconds", [0, -1])
def test_no_time_at_all_has_expired_at_once(clock: FakeClock, seconds: float) -> None:
    assert Deadline(seconds, clock).expired


@pytest.mark.parametrize(("passed", "step"), [(0, 3.0), (8, 2.0), (12, 0.0)], ids=["own limit", "what remains", "none"])
def test_a_step_gets_the_shorter_of_its_limit_and_what_remains(clock: FakeClock, passed: float, step: float) -> None:
    deadline = Deadline(10, clock)
    clock.now += passed
    assert deadline.within(3.0) == step


def test_renewed_it_has_all_of_its_time_again(clock: FakeClock) -> None:
    deadline = Deadline(10, clock)
    for passed in (9, 9, 25):
        clock.now += passed
        deadline.renew()
        assert (deadline.elapsed, deadline.remaining, deadline.expired) == (0.0, 10.0, False)
    clock.now += 10
    assert deadline.expired


def test_the_default_clock_runs() -> None:
    deadline = Deadline(3600)
    assert 0 <= deadline.elapsed <= deadline.elapsed < 3600


class TestPatience:
    """A deadline that does not count what others are to blame for."""

    def test_what_is_excused_does_not_count(self, clock: FakeClock) -> None:
        patience = Patience(10, 100, lambda: 4.0, clock)
        clock.now += 9
        assert patience.remaining == 1.0, "nobody was asked yet"
        clock.now += 3
        assert patience.remaining == 2.0
        clock.now += 2
        assert patience.expired

    def test_there_is_an_end_to_all_patience(self, clock: FakeClock) -> None:
        patience = Patience(10, 25, lambda: clock.now, clock)
        clock.now += 24
        assert patience.remaining == 1.0
        clock.now += 1
        assert patience.expired

    def test_a_host_that_never_lets_it_run_and_one_that_always_does(self, clock: FakeClock) -> None:
        starved, served = Patience(10, 60, lambda: clock.now - 1000.0, clock), Patience(10, 60, lambda: 0.0, clock)
        while not served.expired:
            clock.now += 0.5
        assert clock.now == 1010.0
        while not starved.expired:
            clock.now += 0.5
        assert clock.now == 1060.0
