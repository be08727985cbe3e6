"""The proof of a template, by clones that are not sound."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from pipeline.errors import CloneUnsound
from pipeline.ssh.result import Result
from pipeline.vm.qemu.proving import prove

BOOT_IDS = ("6ed5b97c4d0d497abbc50ccdd8f53e66", "77cdb97c4d0d497abbc50ccdd8f53e66")
NUMBERS = itertools.count()


@dataclass
class Clone:
    """A clone that is sound, but for what a test changes."""

    boot_id: str
    speed: float = 1.0
    """Seconds that pass in it while one passes here."""
    ahead: float = 0.0
    """Seconds by which its time of day is ahead."""
    random: Callable[[], object] = lambda: next(NUMBERS)
    keeps: str = "{0}\n{0}\n"
    status: int = 0
    slow: float = 0.0
    """Seconds that each answer takes."""
    began: float = field(default_factory=time.monotonic)

    def run(self, command: str, _: float) -> Result:
        uptime = (time.monotonic() - self.began) * self.speed
        said = f"{self.boot_id}\n{uptime:.2f}\n{time.time() + self.ahead:.0f}\n{self.random()}\n{self.random()}\n"
        time.sleep(self.slow)
        if "vda" in command:
            said = self.keeps.format(self.boot_id)
        return Result(self.status, said.encode(), b"it \x1b[1mbroke\n")

    def close(self) -> None:
        pass


def clones(**changed: object) -> list[Clone]:
    return [Clone(BOOT_IDS[0]), Clone(BOOT_IDS[1], **changed)]  # type: ignore[arg-type]


@pytest.mark.parametrize("slow", [0.0, 0.4], ids=["idle host", "busy host"])
def test_sound_clones_are_told_of(slow: float) -> None:
    found = prove(clones(slow=slow), BOOT_IDS)
    assert (found["clones"], found["random numbers"]) == (2, 8)
    assert int(found["milliseconds compared"]) >= 1000


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"speed": 12.0}, "the clock of a clone is wrong"),
        ({"speed": 3.0}, "the clock of a clone is wrong"),
        ({"speed": 0.3}, "the clock of a clone is wrong"),
        ({"speed": 0.0}, "the clock of a clone is wrong"),
        ({"ahead": 5.0}, "the time of day of a clone"),
        ({"ahead": -6.0}, "the time of day of a clone"),
        ({"random": lambda: 7}, "the same random numbers"),
        ({"keeps": "{0}\n\n"}, "does not keep what is written"),
        ({"keeps": "\n"}, "does not keep what is written"),
        ({"status": 1}, "a command failed in a clone with status 1"),
        ({"boot_id": BOOT_IDS[0]}, f"its boot id is {BOOT_IDS[0]}"),
    ],
)
def test_a_clone_that_is_not_sound_is_refused(changed: dict[str, object], said: str) -> None:
    two = clones()
    for name, value in changed.items():
        setattr(two[1], name, value)
    with pytest.raises(CloneUnsound, match=said) as refused:
        prove(two, BOOT_IDS)
    assert "luigi --module tasks BootTemplate" in refused.value.hint
    assert "\x1b" not in refused.value.explain()


def test_what_makes_no_sense_is_refused() -> None:
    two = clones()
    two[1].boot_id = "\x1b[31m a b c d e f"
    with pytest.raises(CloneUnsound, match="does not tell of itself"):
        prove(two, BOOT_IDS)
