import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzzer.fakes import STYLES, FakeConnector, Guest


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No thread and no open file is left by any test, whatever happened in it."""
    threads, files = set(threading.enumerate()), _files()
    yield
    assert set(threading.enumerate()) <= threads
    gc.collect()  # pytest keeps tracebacks of expected errors, and their frames
    assert _files() <= files


def _files() -> set[str]:
    found = set()
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208  Path.iterdir shows no more
        try:
            found.add(f"{entry} {os.readlink(f'/proc/self/fd/{entry}')}")  # noqa: PTH115
        except FileNotFoundError:  # the listing itself
            continue
    return found


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
