"""The demo build: the Linux guest with targets of ours, so that everything runs without a build of the user's."""

from pathlib import Path

TARGETS = Path(__file__).with_name("targets")
"""The directory of the targets."""
