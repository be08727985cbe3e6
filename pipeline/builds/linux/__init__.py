"""The Linux guest: a small system made of Debian packages, in which fuzz targets run without a Fuchsia checkout."""

from pathlib import Path

INIT = Path(__file__).with_name("init")
"""The script that is the guest's first process."""

SYMBOLIZER = Path(__file__).with_name("symbolizer.py")
"""The program that gives the frames of stacks their functions and lines."""

BOOT_ID = "/etc/boot_id"
"""The file in the guest that holds the id of its boot."""


RENEW = "/bin/renew"
"""The program in the guest that renews what no two copies of one running guest may share; see programs/renew.c."""


def host_key_file(demo: Path) -> Path:
    """The path of the public half of the guest's host key, "TYPE BASE64", in the directory `demo` of the store."""
    return demo / "host_key.pub"
