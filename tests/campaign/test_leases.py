"""The leases of a campaign: when boots that fail end it."""

import pytest

from pipeline.campaign.leases import BOOT_FAILURES, Leases
from pipeline.campaign.ledger import LedgerEntry
from pipeline.errors import BootError
from tests.campaign.scripted import ScriptedGuests, World


def failed(leases: Leases) -> BootError:
    with pytest.raises(BootError) as caught, leases.one():
        pass
    return caught.value


def test_only_failures_one_after_the_other_end_a_campaign() -> None:
    world, noted = World(), list[LedgerEntry]()
    leases = Leases(ScriptedGuests(world), noted.append)
    for _ in range(3):
        world.unbootable = BOOT_FAILURES - 1
        for _ in range(BOOT_FAILURES - 1):
            leases.failed(failed(leases))
        with leases.one() as guest:
            guest.spoil("so that the next lease boots")
    world.unbootable = BOOT_FAILURES
    for _ in range(BOOT_FAILURES - 1):
        leases.failed(failed(leases))
    last = failed(leases)
    with pytest.raises(BootError) as caught:
        leases.failed(last)
    assert caught.value is last
    assert len(noted) == 4 * BOOT_FAILURES
