"""Small Debian packages and kernels for tests, made without dpkg."""

import gzip
import io
import lzma
import struct
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import lz4.block
import zstandard

from pipeline.demo.packages import LIBRARIES, PROGRAMS

KERNEL_NAME = "linux-image-6.1.0-9-cloud-amd64"


@dataclass(frozen=True)
class Link:
    """A symbolic link in a package."""

    target: str


Content = bytes | Link


def tar(files: Mapping[str, Content]) -> bytes:
    """A tar archive as dpkg makes it: names start with ./"""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            if isinstance(content, Link):
                member.type, member.linkname = tarfile.SYMTYPE, content.target
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def ar(members: Mapping[str, bytes]) -> bytes:
    """An ar archive."""
    parts = [b"!<arch>\n"]
    for name, data in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n"
        parts += [header.encode(), data, b"\n" * (len(data) % 2)]
    return b"".join(parts)


def zstd(data: bytes) -> bytes:
    """One zstd frame."""
    return zstandard.ZstdCompressor().compress(data)


def deb(data: bytes, member: str = "data.tar.xz") -> bytes:
    """A package around a compressed data archive."""
    return ar({"debian-binary": b"2.0\n", "control.tar.xz": lzma.compress(tar({"control": b"x"})), member: data})


def write(directory: Path, name: str, files: Mapping[str, Content], *, version: str = "1", how: str = "xz") -> Path:
    """Write the package `name` with these files, compressed by xz or zst."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}_{version}_amd64.deb"
    packed = lzma.compress(tar(files)) if how == "xz" else zstd(tar(files))
    path.write_bytes(deb(packed, f"data.tar.{how}"))
    return path


def module(*depends: str) -> bytes:
    """Something like a kernel module that depends on others."""
    return b"\x7fELF\0license=GPL\0depends=" + ",".join(depends).encode() + b"\0name=x\0"


def lz4_blocks(data: bytes, block: int = 8 << 20) -> bytes:
    """LZ4's legacy format."""
    parts = [b"\x02\x21\x4c\x18"]
    for start in range(0, len(data), block):
        packed = lz4.block.compress(data[start : start + block], store_size=False)
        parts += [struct.pack("<I", len(packed)), packed]
    return b"".join(parts)


def sized(data: bytes, size: int) -> bytes:
    """A payload with the unpacked size behind it, as the kernel's build appends it."""
    return data + struct.pack("<I", size)


def payload(vmlinux: bytes, how: str) -> bytes:
    """A kernel packed as the kernel's build does it. gzip ends with the size by itself."""
    packers = {
        "lz4": lambda: sized(lz4_blocks(vmlinux), len(vmlinux)),
        "xz": lambda: sized(lzma.compress(vmlinux, check=lzma.CHECK_CRC32), len(vmlinux)),
        "gzip": lambda: gzip.compress(vmlinux),
        "zstd": lambda: sized(zstd(vmlinux), len(vmlinux)),
    }
    return packers[how]()


def bzimage(packed: bytes, setup_sectors: int = 1) -> bytes:
    """A bzImage with this payload behind its set-up sectors and a stub."""
    stub = b"stub" * 4
    image = bytearray(((setup_sectors or 4) + 1) * 512)
    image[0x1F1] = setup_sectors
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, len(stub), len(packed))
    return bytes(image) + stub + packed + b"after"


VMLINUX = b"\x7fELF" + bytes(range(256)) * 40

MODULES = "lib/modules/6.1.0-9-cloud-amd64/kernel"
CONTENTS: dict[str, dict[str, Content]] = {
    KERNEL_NAME: {
        "boot/config-6.1.0-9-cloud-amd64": b"CONFIG_PVH=y\n",
        "boot/vmlinuz-6.1.0-9-cloud-amd64": bzimage(payload(VMLINUX, "lz4")),
        f"{MODULES}/drivers/virtio/virtio.ko": module("virtio_ring"),
        f"{MODULES}/drivers/virtio/virtio_ring.ko.xz": lzma.compress(module()),
        f"{MODULES}/drivers/virtio/virtio_pci.ko": module("virtio", "virtio-ring"),
        f"{MODULES}/drivers/net/virtio_net.ko": module("net_failover", "virtio"),
        f"{MODULES}/drivers/net/net_failover.ko": module("failover"),
        f"{MODULES}/net/core/failover.ko": module(),
        f"{MODULES}/drivers/block/virtio_blk.ko": module("virtio", "built_in"),
        f"{MODULES}/drivers/net/dummy.ko": module(),
    },
    "busybox-static": {"bin/busybox": b"the busybox", "usr/share/doc/x": b"doc"},
    "dropbear-bin": {"usr/sbin/dropbear": b"the dropbear", "usr/bin/dropbearkey": b"keys"},
    "openssh-sftp-server": {"usr/lib/openssh/sftp-server": b"the sftp-server"},
    **{name: {f"usr/lib/x86_64-linux-gnu/{name}.so.1": name.encode()} for name in LIBRARIES},
    "libc6": {
        "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": b"the loader",
        "lib/x86_64-linux-gnu/libc.so.6": b"the libc",
        "lib/x86_64-linux-gnu/gconv/UTF-7.so": b"too deep",
        "lib64/ld-linux-x86-64.so.2": Link("/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
    },
    "zlib1g": {
        "lib/x86_64-linux-gnu/libz.so.1": Link("/usr/lib/x86_64-linux-gnu/libz.so.1.2.13"),
        "lib/x86_64-linux-gnu/libz.so.1.2.13": b"the zlib",
    },
}


def write_all(directory: Path) -> list[str]:
    """Write all packages of the demo guest and return the names of their files, sorted."""
    assert CONTENTS.keys() == {KERNEL_NAME, *PROGRAMS, *LIBRARIES}
    return sorted(write(directory, name, files).name for name, files in CONTENTS.items())
