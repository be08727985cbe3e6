"""Makes the frozen samples in vectors/: images byte by byte, and what must come of them.

`python -m tests.images.zbi.samples` writes them anew. That is needed for new cases only: frames of another version of
a library are other bytes, and old ones must stay readable.
"""

import hashlib
import json
from pathlib import Path

from tests.images import zbis

ROOT = Path(__file__).parent / "vectors"

KEY = b"ssh-ed25519 AAAAC3Nza topcoat\n"
FILES = {"bin/init": b"\x7fELF" * 30, "data/empty": b"", "lib/libc.so": bytes(range(256)) * 20}
WITH_KEY = {"bin/init": FILES["bin/init"], "data/empty": b"", "data/ssh/authorized_keys": KEY,
            "lib/libc.so": FILES["lib/libc.so"]}  # fmt: skip
KERNEL = zbis.checked(zbis.KERNEL_X64, b"kernel of no use", 0)
WORDS = zbis.checked(zbis.CMDLINE, b"TERM=dumb kernel.serial=legacy\0")
UNKNOWN = zbis.item(0x12345678, b"something", 7)
WRONG_CRC = zbis.item(0x4C4C564E, b"NVRAM", 0, zbis.VERSION | zbis.CRC, crc=0x0BADC4C0)


def bootfs(files: dict[str, bytes], pack: str = "raw") -> bytes:
    """A BOOTFS as Fuchsia's tool writes it."""
    raw = zbis.payload(files)
    flags = zbis.VERSION | (0 if pack == "raw" else zbis.COMPRESSED)
    return zbis.checked(zbis.BOOTFS, zbis.PACKS[pack](raw), len(raw), flags)


IMAGES = {
    "raw.zbi": zbis.container(KERNEL, UNKNOWN, WRONG_CRC, WORDS, bootfs(FILES)),
    "lz4.zbi": zbis.container(KERNEL, UNKNOWN, WRONG_CRC, WORDS, bootfs(FILES, "lz4")),
    "zstd.zbi": zbis.container(KERNEL, UNKNOWN, WRONG_CRC, WORDS, bootfs(FILES, "zstd")),
    "two.zbi": zbis.container(KERNEL, WORDS, bootfs({"bin/init": b"1"}, "lz4"), WORDS, bootfs({"z": b"2"}, "zstd")),
    "kernel.zbi": zbis.container(KERNEL),
    "empty.zbi": zbis.container(),
    "cut.zbi": zbis.container(KERNEL, WORDS)[:-8],
    "past-end.zbi": zbis.container(KERNEL, zbis.item(1, b"12345678", length=9)),
    "frame.zbi": zbis.container(zbis.item(zbis.BOOTFS, zbis.PACKS["zstd"](zbis.payload({"a": b"1"})) + b"\0", 8192,
                                          zbis.VERSION | zbis.COMPRESSED)),
    "climbing.zbi": zbis.container(zbis.bootfs_item(zbis.payload({"../a": b"1"}), zbis.PACKS["lz4"])),
    "overlap.zbi": zbis.container(zbis.bootfs_item(
        zbis.bootfs([zbis.entry(b"a\0", 5000, 4096), zbis.entry(b"b\0", 1, 8192)], bytes(8192)), zbis.PACKS["zstd"])),
}  # fmt: skip

ADD = ["-e", "data/ssh/authorized_keys=key"]
RESULTS = {
    "raw": (["raw.zbi", *ADD], zbis.container(KERNEL, UNKNOWN, WRONG_CRC, WORDS, bootfs(WITH_KEY))),
    "lz4 to raw": (["-u", "lz4.zbi", *ADD], zbis.container(KERNEL, UNKNOWN, WRONG_CRC, WORDS, bootfs(WITH_KEY))),
    "zstd to raw": (["-u", "zstd.zbi", *ADD], zbis.container(KERNEL, UNKNOWN, WRONG_CRC, WORDS, bootfs(WITH_KEY))),
    "copied": (["raw.zbi"], zbis.container(KERNEL, UNKNOWN, WRONG_CRC, bootfs(FILES), WORDS)),
    "no BOOTFS": (["-u", "kernel.zbi", "-e", "a=key"], zbis.container(KERNEL, bootfs({"a": KEY}))),
    "nothing": (["-u", "empty.zbi", "-e", "a=key"], zbis.container(bootfs({"a": KEY}))),
    "two": (["-u", "two.zbi", "-e", "key=key"], zbis.container(
        KERNEL, zbis.checked(zbis.CMDLINE, b"TERM=dumb kernel.serial=legacy TERM=dumb kernel.serial=legacy\0"),
        bootfs({"bin/init": b"1", "key": KEY, "z": b"2"}))),
    "replaced": (["-u", "two.zbi", "-r", "-e", "bin=key", "-T", "cmdline", "-e", "more"], zbis.container(
        KERNEL, zbis.checked(zbis.CMDLINE, b"TERM=dumb kernel.serial=legacy TERM=dumb kernel.serial=legacy more\0"),
        bootfs({"bin": KEY, "z": b"2"}))),
}  # fmt: skip
"""What `zbi -o OUT ...` must write, byte for byte."""

KEPT = {"lz4 kept": (["lz4.zbi", *ADD], "lz4"), "zstd kept": (["zstd.zbi", *ADD], "zstd")}
"""What stays compressed, and how."""

REFUSALS = {
    "clash": (["two.zbi", "-e", "bin/init=key"], "duplicate target path without --replace: bin/init"),
    "file or directory": (["two.zbi", "-e", "bin=key"], "(directory vs file) without --replace: bin"),
    "cut": (["cut.zbi"], "cut.zbi: at byte 0x4: header size doesn't match file size"),
    "past the end": (["past-end.zbi"], "past-end.zbi: at byte 0x70: input file too short for payload of 9 bytes"),
    "frame": (["frame.zbi", *ADD], "frame.zbi: at byte 0x20: item BOOTFS: it has"),
    "climbing": (["climbing.zbi", *ADD], "no . or .. allowed"),
    "overlap": (["overlap.zbi", *ADD], "overlap"),
    "slash": (["raw.zbi", "-e", "/a=key"], "a device refuses"),
}


def cases() -> dict[str, object]:
    """All that is written to cases.json."""
    files = {name: hashlib.sha256(data).hexdigest() for name, data in WITH_KEY.items()}
    return {
        "results": {
            name: {"args": args, "size": len(image), "sha256": hashlib.sha256(image).hexdigest()}
            for name, (args, image) in RESULTS.items()
        },
        "kept": {
            name: {"args": args, "compression": compression, "files": files}
            for name, (args, compression) in KEPT.items()
        },
        "refusals": {name: {"args": args, "problem": problem} for name, (args, problem) in REFUSALS.items()},
    }


def main() -> None:
    """Write all of it."""
    ROOT.mkdir(exist_ok=True)
    (ROOT / "key").write_bytes(KEY)
    for name, image in IMAGES.items():
        (ROOT / name).write_bytes(image)
    (ROOT / "cases.json").write_text(json.dumps(cases(), indent=2) + "\n")


if __name__ == "__main__":
    main()
