"""Directories for what is only on its way."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.faults import host_faults


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """A new directory in the host's place for temporary files, for the body. Raises StoreError if there is no room."""
    with host_faults("making a temporary directory", "temporary"):
        made = tempfile.TemporaryDirectory(prefix=f"topcoat-{purpose}-", ignore_cleanup_errors=True)
    with made as directory:
        yield Path(directory)
