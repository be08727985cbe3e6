"""Fuzz the readers, writers and commands of images by coverage (atheris, libFuzzer's engine), for as long as you like.

Needs the extra: pip install -e '.[fuzz]'. An input that raises anything but Topcoat's own errors, takes more than
seconds or more than 1.5 GiB of memory is left as a file, crash-HASH, timeout-HASH or oom-HASH, and ends the run with an
error; copied to tests/images/findings it is tried by every test run from then on. The corpus grows in --corpus.

    python -m bench.fuzz_images [--seconds 600] [--corpus DIR] [FILE...]
"""

import argparse
import os
import struct
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pipeline.images", "pipeline.images.zbi", "pipeline.images.fvm"]):
    from tests.images import fuzzing, zbis

_TIMEOUT = 20
_MEMORY = 1536  # MiB


def main() -> int:
    """Fuzz, or try the given files once."""
    parser = argparse.ArgumentParser(description="Fuzz the readers of images.")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", type=Path, help="a directory that keeps what was found; made if needed")
    parser.add_argument("files", nargs="*", help="inputs to try once, instead of fuzzing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="topcoat-fuzz-", dir="/dev/shm") as name:
        corpus = options.corpus or Path(name) / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(seeds()):
            (corpus / f"seed-{number}").write_bytes(data)
        work = Path(name) / "work"
        work.mkdir()
        limits = [f"-timeout={_TIMEOUT}", f"-rss_limit_mb={_MEMORY}", f"-max_len={1 << 16}", "-print_final_stats=1"]
        words = options.files or [f"-max_total_time={options.seconds}", str(corpus)]
        atheris.Setup([sys.argv[0], *limits, *words], lambda data: fuzzing.exercise(data, work))
        os.environ.setdefault("TMPDIR", name)
        atheris.Fuzz()
    return 0


def seeds() -> list[bytes]:
    """An input for each way to make an image."""
    files = {"bin/init": b"#!" * 300, "data/x": b"", "lib/a/b": b"\0" * 5000}
    raw = zbis.payload(files)
    images = [
        *(zbis.image(files, pack, before=zbis.item(zbis.CMDLINE, b"TERM=dumb\0")) for pack in zbis.PACKS.values()),
        b"070701" + b"0" * 104,
    ]
    packed = [struct.pack("<I", len(raw)) + zbis.PACKS[name](raw) for name in ("lz4", "zstd")]
    patches = [struct.pack("<IQ", 73728 + 8, 0x10001), struct.pack("<IQ", 16, 3) * 2]
    return [
        *(bytes([0]) + image for image in images),
        *(bytes([1]) + image[32:] for image in images[:3]),
        bytes([2]) + struct.pack("<III", zbis.BOOTFS, len(raw), zbis.VERSION) + raw,
        *(bytes([way]) + raw for way in (3, 4, 5)),
        *(bytes([6]) + data for data in packed),
        *(bytes([7]) + patch for patch in patches),
    ]


if __name__ == "__main__":
    sys.exit(main())
