"""The environment variables of QEMU, and of the programs that run beside it."""

import os

# PATH and HOME, for a script may stand in QEMU's place. No language: causes.py expects QEMU's messages in English
_NEEDED = ("PATH", "HOME", "TMPDIR", "TZ", "LD_LIBRARY_PATH")
_OWN = "QEMU_"
_PATHS = ("PATH", "LD_LIBRARY_PATH", "QEMU_MODULE_DIR")


def of_qemu() -> dict[str, str]:
    """The part of this process's environment that QEMU gets: what it needs, and all variables named QEMU_*.

    Whoever breaks out of a guest can read the environment of QEMU, and of every other process of this user. So secrets
    are kept out, also of QEMU's keeper, which lives as long, and of the programs that are run for QEMU. A QEMU that is
    unpacked somewhere may need LD_LIBRARY_PATH and QEMU_MODULE_DIR; Fuchsia's finds its parts by itself. Paths in these
    variables are made absolute, because QEMU works in another directory.
    """
    given = {name: value for name, value in os.environ.items() if name in _NEEDED or name.startswith(_OWN)}
    return given | {name: _absolute(given[name]) for name in _PATHS if given.get(name)}


def _absolute(paths: str) -> str:
    """The same list of paths, with colons between, made absolute. An empty one means the current directory."""
    return ":".join(map(os.path.abspath, paths.split(":")))
