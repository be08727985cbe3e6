import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.descriptors import descriptors
from tests.fuzz.fakes import STYLES, FakeConnector, Guest


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No thread and no open file is left by any test of a fuzzer, whatever happened in it."""
    if request.path.parent != Path(__file__).parent:  # corpora and crashes: their tests start processes of other kinds
        yield
        return
    threads, files = set(threading.enumerate()), descriptors()
    yield
    assert set(threading.enumerate()) <= threads
    gc.collect()  # pytest keeps tracebacks of expected errors, and their frames
    assert descriptors() <= files


@pytest.fixture(params=STYLES)
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guest]:
    """A guest of each style. All that was started in it has ended when the test has."""
    made = Guest(request.param, tmp_path / "fuzz")
    yield made
    made.connector.close()


@pytest.fixture
def linux(tmp_path: Path) -> Iterator[Guest]:
    """The same for the style whose commands this host can really run."""
    made = Guest("linux", tmp_path / "fuzz")
    yield made
    made.connector.close()


@pytest.fixture
def connector() -> Iterator[FakeConnector]:
    made = FakeConnector()
    yield made
    made.close()
