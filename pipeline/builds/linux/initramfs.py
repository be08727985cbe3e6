"""The Linux guest's own file system: busybox, an SSH server, drivers, and `init`, in one initramfs.

Fuzz targets are not in it: they come on a disk of their own, which `init` mounts at TARGETS.
"""

import lzma
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from pipeline.builds.linux import INIT
from pipeline.builds.linux.gathering import gather
from pipeline.builds.linux.libraries import TARGET, Libraries, Selection
from pipeline.builds.linux.packages import KERNEL, Packages, content, members, opened
from pipeline.errors import PackageError
from pipeline.host.faults import host_faults
from pipeline.images import cpio
from pipeline.store.publish import write_new

USER = "clusterfuchsia"
"""The user as whom Fuchsia's launcher logs in; in this guest it is another name for root."""

MODULES = ("virtio_pci", "virtio_net", "virtio_blk", "squashfs")
"""The drivers that the guest needs; those that they depend on are loaded before them."""

_DRIVERS = re.compile(r"/drivers/(virtio|net|block)/|/net/core/|/fs/squashfs/")

PROVIDED = frozenset(
    [
        "ld-linux-x86-64.so.2",
        "libc.so.6",
        "libm.so.6",
        "libmvec.so.1",
        "libdl.so.2",
        "libpthread.so.0",
        "librt.so.1",
        "libresolv.so.2",
        "libutil.so.1",
        "libanl.so.1",
        "libgcc_s.so.1",
        "libstdc++.so.6",
    ]
)
"""Libraries that the guest has in any case, and that targets need not bring."""

_PLACES = {
    "busybox": "bin/busybox",
    "dropbear": "bin/dropbear",
    "sftp-server": "usr/lib/sftp-server",  # where dropbear looks for it
}
_LOADER = "lib64/ld-linux-x86-64.so.2"
_WHOLE = ("libc6", "libgcc-s1", "libstdc++6")
GUEST = Selection(
    packages=(KERNEL,),
    programs={
        "busybox-static": {"usr/bin/busybox": "busybox"},
        "dropbear-bin": {"usr/sbin/dropbear": "dropbear"},
        "openssh-sftp-server": {"usr/lib/openssh/sftp-server": "sftp-server"},
    },
    libraries=_WHOLE,
    # This package depends on the current kernel
    through=("linux-image-cloud-amd64",),
)
"""The packages of the guest, with what nearly all targets load. For those of the compiler see `compiler.COMPILER`."""

# Name and arguments are Fuchsia's; the only log here is the kernel's
_LOG_LISTENER = """#!/bin/busybox sh
[ "$1 $2" = "--dump_logs --pid" ] || { echo "usage: log_listener --dump_logs --pid PID" >&2; exit 1; }
dmesg | grep -F "[$3]"
exit 0
"""
_ETC = {
    "etc/passwd": f"root:x:0:0::/data:/bin/sh\n{USER}:x:0:0::/data:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/shells": "/bin/sh\n",
    # The shell of `topcoat console`. ttyS0, as /dev/console cannot be a controlling terminal, which Ctrl-C needs
    "etc/inittab": "ttyS0::respawn:-/bin/sh\n::ctrlaltdel:/bin/poweroff -f\n",
    # busybox and dropbear find names through libc
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
_DIRECTORIES = (
    "bin", "data", "data/fuzz", "dev", "etc", "etc/dropbear", "lib", "lib64", "modules", "proc", "root", "sys",
    "targets", "tmp", "usr", "usr/lib", "var", "var/log", "var/run",
)  # fmt: skip


def collect(directory: Path, provided: Path | None, state: Path, *, timeout: float) -> Packages:
    """Make `directory` with all packages of the guest, as `gather` does. Raises StoreError too."""
    with host_faults("collecting the packages of the Linux guest"):
        packages, _ = gather(directory, GUEST, provided, state, timeout=timeout)
    return packages


def build(packages: Packages, host_key: bytes, libraries: Path) -> bytes:
    """The whole initramfs, as an uncompressed cpio archive. `host_key` is dropbear's private key file.

    The libraries of the guest are put into the new directory `libraries` too. An SSH public key goes in later, as
    data/ssh/authorized_keys. Raises PackageError.
    """
    entries = [cpio.directory(name) for name in _DIRECTORIES]
    entries += [
        cpio.character_device("dev/console", 5, 1),
        cpio.file("init", INIT.read_bytes(), 0o755),
        cpio.file("bin/log_listener", _LOG_LISTENER.encode(), 0o755),
        # dropbear reads ~/.ssh; Fuchsia's place for keys is data/ssh
        cpio.directory("data/ssh", 0o700),
        cpio.symlink("data/.ssh", "ssh"),
        cpio.file("etc/dropbear/host_key", host_key, 0o600),
        *(cpio.file(name, text.encode()) for name, text in _ETC.items()),
        *_programs(packages, libraries),
        # Where the loader looks for the libraries of targets
        cpio.symlink(f"usr/lib/{TARGET}", "/targets/libraries"),
        *_modules(packages),
    ]
    return cpio.encode(entries)


def _programs(packages: Packages, libraries: Path) -> Iterator[cpio.CpioEntry]:
    """The programs and, flat in /lib, the libraries that they load, and all of libc6, which loads some later."""
    libraries.mkdir()
    with tempfile.TemporaryDirectory(prefix="topcoat-") as unpacked:
        found = Libraries(Path(unpacked), GUEST)
        found.add(packages.files())
        for name, path in found.programs().items():
            yield cpio.file(_PLACES[name], path.read_bytes(), 0o755)
        whole = {name: path for package in _WHOLE for name, path in found.of(package).items()}
        for name, path in sorted({**whole, **found.loaded()}.items()):
            write_new(libraries / name, path.read_bytes())
            yield cpio.file(f"lib/{name}", path.read_bytes(), 0o755)
    yield cpio.symlink(_LOADER, f"/lib/{PurePosixPath(_LOADER).name}")


def _modules(packages: Packages) -> Iterator[cpio.CpioEntry]:
    """The modules, uncompressed and flat in /modules, and the file `order` with their names in loading order."""
    package = packages.kernel()
    modules: dict[str, bytes] = {}
    built_in: set[str] = set()
    with opened(package) as archive:
        for path, member in members(archive):
            match = re.fullmatch(r"([^.]+)\.ko(\.xz)?", PurePosixPath(path).name)
            if match and member.isfile() and _DRIVERS.search(path):
                data = content(archive, member)
                modules[_module(match[1])] = lzma.decompress(data) if match[2] else data
            elif PurePosixPath(path).name == "modules.builtin" and member.isfile():
                built_in |= {_module(PurePosixPath(line).stem) for line in content(archive, member).decode().split()}
    missing = [name for name in MODULES if name not in modules and name not in built_in]
    if missing:
        raise PackageError(f"{package.name} lacks the modules {missing}", hint="use another linux-image package")
    order = loading_order(modules)
    yield from (cpio.file(f"modules/{name}.ko", modules[name]) for name in order)
    yield cpio.file("modules/order", "".join(f"{name}.ko\n" for name in order).encode())


def _module(name: str) -> str:
    """The name of a module with underscores: the kernel does not tell them from hyphens."""
    return name.replace("-", "_")


def loading_order(modules: dict[str, bytes], wanted: Iterable[str] = MODULES) -> list[str]:
    """The names of the modules `wanted` and of all that they depend on, each after its dependencies.

    `modules` holds the .ko files by name. A dependency that is not among them is taken for built into the kernel.
    Raises PackageError for a circle.
    """
    order: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise PackageError(
                f"modules depend on each other in a circle: {path}", hint="use another linux-image package"
            )
        if name in modules and name not in order:
            for dependency in _dependencies(modules[name]):
                visit(dependency, (*path, name))
            order.append(name)

    for name in wanted:
        visit(name, ())
    return order


def _dependencies(module: bytes) -> list[str]:
    # .modinfo, a section of NUL-terminated KEY=VALUE texts, tells it even where a package lacks depmod's lists
    match = re.search(rb"\0depends=([^\0]*)\0", module)
    return [_module(name) for name in match[1].decode().split(",") if name] if match else []
