"""A keeper at work."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.qemu.keeping import Scene, playing


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with playing(tmp_path) as made:
        yield made
