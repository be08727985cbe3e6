"""What reading, proving and rewriting images costs, each beside what could not be spared, in the same rounds.

ZBI: adding a key to an image of 100 MB, against unpacking and packing its BOOTFS with the libraries for zstd and LZ4
alone, in memory, with the same settings. FVM: extending a disk of 3 GiB that holds 1 GiB of data, against `cp
--sparse=always` of it; once so that its tables grow and every slice moves, once in place. Both sides of a pair end with
the data on the disk (fsync) or both without. Last the proofs, against the tool whose work they prove. What a round has
made is removed before the next one, outside of the time: to free a gigabyte takes as long as to write it.

    python -m bench.images [--rounds 7] [--zbi 100M] [--data 1G]
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import lz4.frame
import zstandard

from pipeline.builds import prepare, proof
from pipeline.host.tools import Tool
from pipeline.images import fvm, zbi
from pipeline.images.zbi import container, item_types
from pipeline.images.zbi.compression import LZ4, ZSTD, Method
from pipeline.images.zbi.merge import ZbiMerge
from pipeline.text.quantity import parse_size

TARGET = "data/ssh/authorized_keys"
KEY = b"ssh-ed25519 AAAA key-of-the-bench\n"
_LIMIT = 600.0
_SLICE = 1 << 20
_DISK = 3 << 30

Side = Callable[[], object]


def main() -> int:
    """Run all pairs and print them."""
    parser = argparse.ArgumentParser(description="Compare the cost of image work with what could not be spared.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--zbi", default="100M", metavar="SIZE", help="of the BOOTFS, unpacked")
    parser.add_argument("--data", default="1G", metavar="SIZE", help="in the disk of 3 GiB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="topcoat-bench-") as name:
        directory = Path(name)
        (directory / "key").write_bytes(KEY)
        for method in (ZSTD, LZ4):
            zbis(directory, method, parse_size(options.zbi), options.rounds)
        disks(directory, parse_size(options.data), options.rounds)
    return 0


def compare(title: str, target: float, sides: Mapping[str, Side], rounds: int, *made: Path) -> None:
    """Run the sides in turn, print the median seconds of each, and the ratio of the first to the second.

    The files in `made` are removed before each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            for file in made:
                file.unlink(missing_ok=True)
            started = time.perf_counter()
            side()
            if number:  # the first round fills caches
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first, second = list(medians.values())[:2]
    spread = "  ".join(
        f"{name} {medians[name]:.3f} s ({min(values):.3f}-{max(values):.3f})" for name, values in seconds.items()
    )
    print(f"{title:<44} {first / second:.3f} (target {target})  {spread}", flush=True)


def zbis(directory: Path, method: Method, size: int, rounds: int) -> None:
    """An image whose BOOTFS is compressed by this method."""
    name = method.algorithm
    source, output = directory / f"{name}.zbi", directory / f"{name}-out.zbi"
    write_zbi(source, method, size)
    arguments = ["-o", str(output), str(source), "-e", f"{TARGET}={directory / 'key'}"]
    tool = Tool.module("zbitool", "pipeline.images.zbi")
    with container.opened(source) as items:
        payload = items[-1].payload.read(0, items[-1].payload.size)
    alone = by_zstd if method == ZSTD else by_lz4
    print(f"{name}: {source.stat().st_size} bytes, unpacked {size}")
    compare(
        f"add a key ({name}): topcoat / libraries",
        1.2,
        {"topcoat": lambda: zbi.main(arguments), "libraries": lambda: alone(payload)},
        rounds,
        output,
    )
    zbi.main(arguments)
    again = directory / "again.zbi"
    compare(
        f"proof ({name}): proof / tool",
        0.15,
        {
            "proof": lambda: proof.prove_initrd(tool, output, source, "x64", TARGET, KEY),
            "tool": lambda: prepare.add_file(tool, source, again, TARGET, directory / "key", _LIMIT),
        },
        rounds,
        again,
    )


def write_zbi(path: Path, method: Method, size: int) -> None:
    """A kernel, a command line, and files of a few hundred KiB, 70 % of which cannot be compressed."""
    files = path.with_suffix(".files")
    files.mkdir()
    randomly, left, number = random.Random(1), size, 0
    while left > 0:
        count = min(left, randomly.randrange(4096, 400_000))
        unit = randomly.randbytes(count if randomly.random() < 0.7 else 300)
        (files / f"{number:05}").write_bytes((unit * (count // len(unit) + 1))[:count])
        left, number = left - count, number + 1
    with ZbiMerge() as merge, path.open("w+b", buffering=0) as stream:
        merge.add_item(container.made(item_types.KERNEL_X64, randomly.randbytes(1 << 20)))
        merge.add_item(container.made(item_types.CMDLINE, b"kernel.serial=legacy\0"))
        merge.add_file("lib", files)
        container.write(stream, merge.outcome(method))


def by_zstd(payload: bytes) -> bytes:
    """Unpack and pack again, as `zbi` packs."""
    content = zstandard.ZstdDecompressor().decompress(payload)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        ZSTD.level, source_size=len(content), enable_ldm=True, threads=os.cpu_count() or 1
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(content)


def by_lz4(payload: bytes) -> bytes:
    """Unpack and pack again, as `zbi` packs."""
    packed: bytes = lz4.frame.compress(
        lz4.frame.decompress(payload),
        compression_level=LZ4.level,
        block_size=lz4.frame.BLOCKSIZE_MAX64KB,
        block_linked=False,
        store_size=True,
    )
    return packed


def disks(directory: Path, size: int, rounds: int) -> None:
    """A disk, extended by half a GiB and by one: the first fits its tables, the second does not."""
    source, copy, output = (directory / name for name in ("source.blk", "copy.blk", "output.blk"))
    write_disk(source, size)
    with source.open("rb") as stream:
        slices = fvm.read(stream).header.slices
    print(f"FVM: {_DISK} bytes, {slices} slices of {_SLICE}, {size} bytes of data")

    def rewrite() -> None:
        with source.open("rb") as old, output.open("wb") as new:
            fvm.extend(old, new, 4 << 30)

    compare(
        "extend, slices move: topcoat / cp",
        1.2,
        {"topcoat": rewrite, "cp": lambda: cp(source, copy)},
        rounds,
        output,
        copy,
    )
    compare(
        "the same with fsync: topcoat / cp and sync",
        1.2,
        {"topcoat": lambda: synced(rewrite, output), "cp": lambda: synced(lambda: cp(source, copy), copy)},
        rounds,
        output,
        copy,
    )
    in_place(source, copy, rounds)
    proofs(source, output, rounds)


def in_place(source: Path, copy: Path, rounds: int) -> None:
    """The same file again and again, each time made shorter before, which does not count."""
    lengths = iter(range(_DISK + (1 << 20), _DISK + (512 << 20), 1 << 20))
    disk = copy.with_name("in-place.blk")
    cp(source, disk)
    compare(
        "extend, in place, with fsync: topcoat / cp",
        0.1,
        {
            "topcoat": lambda: fvm.extend_file(disk, next(lengths), in_place=True),
            "cp": lambda: cp(source, copy),
        },
        rounds,
        copy,
    )


def proofs(source: Path, output: Path, rounds: int) -> None:
    """What ExtendedBlk does: cp and fvm extend, then the proof."""
    tool = Tool.module("fvm", "pipeline.images.fvm")

    def by_tool() -> None:
        cp(source, again)
        prepare.extend(tool, again, "4G", _LIMIT)

    again = output.with_name("again.blk")
    with source.open("rb") as old, output.open("wb") as new:
        fvm.extend(old, new, 4 << 30)
    compare(
        "proof (FVM): proof / cp and fvm extend",
        0.15,
        {"proof": lambda: proof.prove_disk(tool, output, source, 4 << 30), "tool": by_tool},
        rounds,
        again,
    )


def write_disk(path: Path, size: int) -> None:
    """Two partitions that share the data."""
    content = path.with_suffix(".content")
    with content.open("wb") as stream:
        for _ in range(size >> 21):
            stream.write(random.randbytes(1 << 20))
    with path.open("wb") as stream:
        fvm.create(stream, _SLICE, {"blobfs": content, "data": content}, length=_DISK)
    content.unlink()


def cp(source: Path, target: Path) -> None:
    """As the field copies a disk."""
    subprocess.run(["cp", "--sparse=always", source, target], check=True)


def synced(side: Side, path: Path) -> None:
    """The side, and then its file on the disk."""
    side()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
