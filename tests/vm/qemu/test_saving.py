"""Making a template, where what its maker is given is not what it should be."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline.errors import CloneUnsound, StoreError
from pipeline.vm.qemu import saving


@dataclass
class Guest:
    """A launcher, a shell and an instance in one, of a guest whose handle says whether it is a clone."""

    is_clone: bool
    closed: bool = False

    def start(self) -> "Guest":
        return self

    def close(self) -> None:
        self.closed = True

    def require_running(self) -> Any:
        return self

    @property
    def boot_id(self) -> str:
        return "6ed5"


@pytest.mark.parametrize("clones", [(True, False), (False, False)])
def test_guests_that_were_booted_prove_nothing(clones: tuple[bool, bool]) -> None:
    guests = [Guest(is_clone) for is_clone in clones]
    with pytest.raises(CloneUnsound, match="no clone can be made of it"):
        saving._proved(cast(Any, guests), cast(Any, guests), renewed=False)  # noqa: SLF001
    assert all(guest.closed for guest in guests)


def test_two_clones_do() -> None:
    guests = [Guest(is_clone=True), Guest(is_clone=True)]
    assert saving._proved(cast(Any, guests), cast(Any, guests), renewed=False) == {"clones": 2}  # noqa: SLF001


def test_the_memory_must_have_room(tmp_path: Path) -> None:
    saving._require_room(tmp_path, 1)  # noqa: SLF001
    with pytest.raises(StoreError, match="a template needs room for the guest's memory"):
        saving._require_room(tmp_path, 1 << 62)  # noqa: SLF001
