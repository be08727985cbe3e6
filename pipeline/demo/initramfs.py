"""The demo guest's file system: busybox, an SSH server, the modules for virtio, and `init`, in one initramfs."""

import lzma
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from pipeline.demo import INIT
from pipeline.demo.packages import LIBRARIES, Packages, opened
from pipeline.errors import PackageError
from pipeline.images import cpio

USER = "clusterfuchsia"
"""The user of Fuchsia's launcher; here another name for root."""

MODULES = ("virtio_pci", "virtio_net", "virtio_blk")
"""The drivers that the guest needs; what they depend on is loaded before them."""

_LIBRARY_DIRECTORIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
_PROGRAMS = {
    "busybox-static": {"bin/busybox": "bin/busybox", "usr/bin/busybox": "bin/busybox"},
    "dropbear-bin": {"usr/sbin/dropbear": "bin/dropbear"},
    # Where dropbear looks for it
    "openssh-sftp-server": {"usr/lib/openssh/sftp-server": "usr/lib/sftp-server"},
}
# Fuchsia's name and arguments; here the kernel's log is the only one
_LOG_LISTENER = """#!/bin/busybox sh
[ "$1 $2" = "--dump_logs --pid" ] || { echo "usage: log_listener --dump_logs --pid PID" >&2; exit 1; }
dmesg | grep -F "[$3]"
exit 0
"""
_ETC = {
    "etc/passwd": f"root:x:0:0::/data:/bin/sh\n{USER}:x:0:0::/data:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/shells": "/bin/sh\n",
    # A shell for `topcoat console`; ttyS0 by name, as /dev/console cannot be a controlling terminal: no Ctrl-C
    "etc/inittab": "ttyS0::respawn:-/bin/sh\n::ctrlaltdel:/bin/poweroff -f\n",
    # busybox and dropbear find names through libc
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
_DIRECTORIES = (
    "bin", "data", "dev", "etc", "etc/dropbear", "lib", "lib64", "modules", "proc", "root", "sys", "tmp", "usr",
    "usr/lib", "var", "var/log", "var/run",
)  # fmt: skip


def build(packages: Packages, host_key: bytes) -> bytes:
    """The whole initramfs as an uncompressed cpio archive. `host_key` is dropbear's private key file.

    An SSH public key goes in later, as data/ssh/authorized_keys. Raises PackageError.
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
        *_programs(packages),
        *_libraries(packages),
        *_modules(packages),
    ]
    return cpio.encode(entries)


def _programs(packages: Packages) -> Iterator[cpio.Entry]:
    for package, wanted in _PROGRAMS.items():
        found = {wanted[name]: data for name, data in _files(packages, package, wanted)}
        if not found:
            raise PackageError(
                f"{package} does not hold {' or '.join(wanted)}", hint="use the package of a Debian release from 12 on"
            )
        yield from (cpio.file(name, data, 0o755) for name, data in found.items())


def _files(packages: Packages, package: str, wanted: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    with opened(packages.find(package)) as archive:
        for member in archive:
            name = str(PurePosixPath(member.name))
            if name in wanted and member.isfile():
                yield name, _content(archive, member)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    assert stream is not None  # the caller asked isfile()
    return stream.read()


def _libraries(packages: Packages) -> Iterator[cpio.Entry]:
    """All shared libraries at the top of the library directories, flat in /lib, and the loader in /lib64."""
    for package in LIBRARIES:
        with opened(packages.find(package)) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if str(path.parent) not in _LIBRARY_DIRECTORIES or ".so" not in path.name:
                    continue
                name = f"lib/{path.name}"
                if member.issym():
                    yield cpio.symlink(name, PurePosixPath(member.linkname).name)
                elif member.isfile():
                    yield cpio.file(name, _content(archive, member), 0o755)
    yield cpio.symlink("lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-x86-64.so.2")


def _modules(packages: Packages) -> Iterator[cpio.Entry]:
    """The modules, uncompressed and flat in /modules, and the file `order` with their names in loading order."""
    package = packages.kernel()
    modules: dict[str, bytes] = {}
    with opened(package) as archive:
        for member in archive:
            match = re.fullmatch(r"([^.]+)\.ko(\.xz)?", PurePosixPath(member.name).name)
            if match and member.isfile() and re.search(r"/drivers/(virtio|net|block)/|/net/core/", member.name):
                data = _content(archive, member)
                modules[match[1].replace("-", "_")] = lzma.decompress(data) if match[2] else data
    missing = [name for name in MODULES if name not in modules]
    if missing:
        raise PackageError(f"{package.name} lacks the modules {missing}", hint="use another linux-image package")
    order = loading_order(modules)
    yield from (cpio.file(f"modules/{name}.ko", modules[name]) for name in order)
    yield cpio.file("modules/order", "".join(f"{name}.ko\n" for name in order).encode())


def loading_order(modules: dict[str, bytes], wanted: Iterable[str] = MODULES) -> list[str]:
    """The names of `wanted` and all that they depend on, each after its dependencies.

    `modules` holds the .ko files by name. A dependency that is not among them is built into the kernel.
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
    # .modinfo is a section of NUL-terminated KEY=VALUE texts; packages without depmod's lists have no other source
    match = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.replace("-", "_") for name in match[1].decode().split(",") if name] if match else []
