"""Small Debian packages and kernels for tests, made without dpkg."""

import gzip
import io
import lzma
import struct
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lz4.block
import zstandard

KERNEL_NAME = "linux-image-6.1.0-9-cloud-amd64"


@dataclass(frozen=True)
class Link:
    """A symbolic link in a package."""

    target: str


Content = bytes | Link


def tar(files: Mapping[str, Content]) -> bytes:
    """A tar archive as dpkg makes it: names start with "./"."""
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


def deb(data: bytes, member: str = "data.tar.xz", control: bytes = b"Package: x\n") -> bytes:
    """A package around a compressed data archive."""
    packed = lzma.compress(tar({"control": control}))
    return ar({"debian-binary": b"2.0\n", "control.tar.xz": packed, member: data})


def write(
    directory: Path,
    name: str,
    files: Mapping[str, Content],
    *,
    version: str = "1",
    how: str = "xz",
    depends: Sequence[str] = (),
) -> Path:
    """Write the package `name` with these files, compressed by xz or zst."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}_{version}_amd64.deb"
    fields = {"Package": name, "Version": version, "Architecture": "amd64", "Maintainer": "nobody"}
    fields |= {"Depends": ", ".join(depends)} if depends else {}
    control = "".join(f"{field}: {value}\n" for field, value in {**fields, "Description": "a test"}.items())
    packers = {"xz": lzma.compress, "zst": zstd, "gz": gzip.compress}
    path.write_bytes(deb(packers[how](tar(files)), f"data.tar.{how}", control.encode()))
    return path


def elf(*needs: str, text: bytes = b"") -> bytes:
    """A program or library that loads others: a header, a LOAD and a DYNAMIC segment, the names, and `text`."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in needs)
    at, address = 64 + 2 * 56, 0x1000
    positions = [names.index(b"\0" + name.encode() + b"\0") + 1 for name in needs]
    entries = [*((1, position) for position in positions), (5, address + at), (10, len(names)), (0, 0)]
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    size = at + len(names) + len(dynamic)
    header = b"\x7fELF\2\1\1".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, address, address, size, size, 4096)
    where = at + len(names)
    segment = struct.pack("<IIQQQQQQ", 2, 4, where, address + where, 0, len(dynamic), len(dynamic), 8)
    return header + load + segment + names + dynamic + text


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

RELEASE = "6.1.0-9-cloud-amd64"
MODULES = f"lib/modules/{RELEASE}/kernel"
LIB = "lib/x86_64-linux-gnu"
LIBC = "libc.so.6"
CONTENTS: dict[str, dict[str, Content]] = {
    KERNEL_NAME: {
        f"boot/config-{RELEASE}": b"CONFIG_PVH=y\n",
        f"boot/vmlinuz-{RELEASE}": bzimage(payload(VMLINUX, "lz4")),
        f"lib/modules/{RELEASE}/modules.builtin": b"kernel/fs/ext4/ext4.ko\n",
        f"{MODULES}/drivers/virtio/virtio.ko": module("virtio_ring"),
        f"{MODULES}/drivers/virtio/virtio_ring.ko.xz": lzma.compress(module()),
        f"{MODULES}/drivers/virtio/virtio_pci.ko": module("virtio", "virtio-ring"),
        f"{MODULES}/drivers/net/virtio_net.ko": module("net_failover", "virtio"),
        f"{MODULES}/drivers/net/net_failover.ko": module("failover"),
        f"{MODULES}/net/core/failover.ko": module(),
        f"{MODULES}/drivers/block/virtio_blk.ko": module("virtio", "built_in"),
        f"{MODULES}/fs/squashfs/squashfs.ko": module(),
        f"{MODULES}/drivers/net/dummy.ko": module(),
    },
    "busybox-static": {"bin/busybox": b"the busybox", "usr/share/doc/x": b"doc"},
    "dropbear-bin": {"usr/sbin/dropbear": elf("libtommath.so.1", "libz.so.1", LIBC), "usr/bin/dropbearkey": b"keys"},
    "openssh-sftp-server": {"usr/lib/openssh/sftp-server": elf(LIBC)},
    "libc6": {
        f"{LIB}/ld-linux-x86-64.so.2": b"the loader",
        f"{LIB}/{LIBC}": elf("ld-linux-x86-64.so.2"),
        f"{LIB}/libnss_files.so.2": b"loaded by libc when it likes",
        f"{LIB}/gconv/UTF-7.so": b"too deep",
        "lib64/ld-linux-x86-64.so.2": Link(f"/{LIB}/ld-linux-x86-64.so.2"),
    },
    "libgcc-s1": {f"{LIB}/libgcc_s.so.1": elf(LIBC)},
    "libstdc++6": {f"usr/{LIB}/libstdc++.so.6": Link("libstdc++.so.6.0.3"), f"usr/{LIB}/libstdc++.so.6.0.3": elf(LIBC)},
    "libgmp10": {f"usr/{LIB}/libgmp.so.10": Link("libgmp.so.10.4.1"), f"usr/{LIB}/libgmp.so.10.4.1": elf(LIBC)},
    "libtommath1": {f"usr/{LIB}/libtommath.so.1": elf("libgmp.so.10"), f"usr/{LIB}/libextra.so.1": b"not loaded"},
    # Named otherwise than its library, and a link from one half of the merged /usr into the other
    "zlib1g": {f"{LIB}/libz.so.1": Link(f"/usr/{LIB}/libz.so.1.2"), f"usr/{LIB}/libz.so.1.2": elf(LIBC, text=b"zlib")},
}
DEPENDS: dict[str, tuple[str, ...]] = {
    KERNEL_NAME: ("linux-base (>= 1)", "kmod | module-init"),
    "dropbear-bin": ("libc6 (>= 1)", "libtommath1 (>= 1)", "zlib1g (>= 1~rc1)"),
    "openssh-sftp-server": ("libc6 (>= 1)",),
    "libgcc-s1": ("libc6 (>= 1)",),
    "libgmp10": ("libc6 (>= 1)",),
    "libtommath1": ("libc6", "libgmp10 (>= 0.6)"),
    "zlib1g": ("libc6 (>= 1)",),
}
"""The packages of a small Linux guest, and what they depend on; dropbear loads libgmp through libtommath."""


def write_all(directory: Path) -> list[str]:
    """Write all packages of the Linux guest and return the names of their files, sorted."""
    return sorted(write(directory, name, files, depends=DEPENDS.get(name, ())).name for name, files in CONTENTS.items())
