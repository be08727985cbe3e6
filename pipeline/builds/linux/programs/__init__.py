"""Topcoat's own programs in the Linux guest: small ones in C, for what no tool of the guest can do.

Each is one source here, and becomes /bin/NAME in the guest.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.builds.linux.compiler import Compiler, unpack
from pipeline.host.faults import host_faults
from pipeline.images import cpio

SOURCES = Path(__file__).parent
"""The directory of the programs' sources."""


def inputs() -> dict[str, Path]:
    """The sources, by the names of the programs."""
    return {source.stem: source for source in sorted(SOURCES.glob("*.c"))}


def make(compiler: Compiler, sysroot: Path, image: Path, *, timeout: float) -> None:
    """Compile all programs into the cpio archive `image`. `timeout` is in seconds, for each run of the compiler.

    Raises StoreError or ToolError.
    """
    with host_faults("making the programs of the Linux guest"), TemporaryDirectory(dir=image.parent) as scratch:
        root = unpack(sysroot, Path(scratch, "root"))
        entries = [cpio.directory("bin")]
        for name, source in inputs().items():
            program = root / name
            # All that it needs of its libraries is looked up when it starts, not later
            words = ("-Wl,-z,now", "-std=gnu17", "-O1", "-Wall", "-Wextra", "-Werror", "-s", source.name)
            compiler.link(*words, directory=source.parent, output=program, root=root, timeout=timeout)
            entries.append(cpio.file(f"bin/{name}", program.read_bytes(), 0o755))
        image.write_bytes(cpio.encode(entries))
