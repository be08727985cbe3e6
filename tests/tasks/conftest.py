"""Bundles with scripted tools on which something has run."""

import pytest

from tests.conftest import Workspace
from tests.tasks.runs import ran, with_module


@pytest.fixture
def prepared(bundle: Workspace) -> Workspace:
    """A bundle whose images have been made; nothing runs."""
    assert set(ran(with_module(bundle)).values()) == {"missing"}
    return bundle


@pytest.fixture
def running(bundle: Workspace) -> Workspace:
    """A bundle from which i0 has been booted."""
    assert with_module(bundle).luigi("BootInstance").status == 0
    return bundle
