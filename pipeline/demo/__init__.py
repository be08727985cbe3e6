"""The demo guest: a small Linux made of Debian packages, so that everything runs without a Fuchsia checkout."""

from pathlib import Path

INIT = Path(__file__).with_name("init")
"""The guest's first program."""

SYMBOLIZER = Path(__file__).with_name("symbolizer.py")
"""The program that names the frames of stacks."""

BOOT_ID = "/etc/boot_id"
"""The file in the guest that holds the id of its boot."""


def host_key_file(demo: Path) -> Path:
    """Where the public half of the guest's host key lies, "TYPE BASE64"."""
    return demo / "host_key.pub"
