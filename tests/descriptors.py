"""What a test's process has open."""

import os


def descriptors() -> set[str]:
    """Each with what it leads to. Compare them by `<=`: others than the test's own may be closed meanwhile."""
    found = set()
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208  Path.iterdir shows no more
        try:
            found.add(f"{entry} {os.readlink(f'/proc/self/fd/{entry}')}")  # noqa: PTH115
        except FileNotFoundError:  # the listing itself
            continue
    return found
