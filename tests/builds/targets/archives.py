"""Seed corpora for tests: made with Python's own zipfile and tarfile, which the code that is tested does not use."""

import hashlib
import io
import itertools
import lzma
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.builds.targets.seeds import SeedLimits, Seeds, gather

MIB = 1 << 20

_numbers = itertools.count()

Files = Mapping[str, bytes] | Iterable[tuple[str, bytes]]


def pairs(files: Files) -> list[tuple[str, bytes]]:
    return list(files.items()) if isinstance(files, Mapping) else list(files)


def zipped(path: Path, files: Files, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in pairs(files):
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: Files, form: int = tarfile.PAX_FORMAT) -> Path:
    """A tar archive, compressed as the name says."""
    kind = {".bz2": "bz2", ".tb2": "bz2", ".tbz": "bz2", ".tbz2": "bz2", ".gz": "gz", ".tgz": "gz", ".xz": "xz"}
    with tarfile.open(path, f"w:{kind.get(path.suffix, '')}", format=form) as archive:  # type: ignore[call-overload]
        for name, content in pairs(files):
            archive.addfile(member(name, len(content)), io.BytesIO(content))
    if path.suffix == ".lzma":
        path.write_bytes(lzma.compress(path.read_bytes(), lzma.FORMAT_ALONE))
    return path


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname = size, kind, link
    return made


def directory(path: Path, files: Files) -> Path:
    path.mkdir()
    for name, content in pairs(files):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def named(*contents: bytes) -> dict[str, bytes]:
    """The contents by the names that libFuzzer would give them."""
    return {hashlib.sha1(content, usedforsecurity=False).hexdigest(): content for content in contents}


def gathered(*sources: Path, limits: SeedLimits | None = None) -> tuple[dict[str, bytes], Seeds]:
    """What `gather` writes for these sources, and what it returns."""
    into = sources[0].parent / f"into-{next(_numbers)}"
    seeds = gather(sources, into, limits or SeedLimits())
    written = {path.name: path.read_bytes() for path in into.iterdir()} if into.exists() else {}
    assert into.exists() == bool(written)
    assert (seeds.count, seeds.bytes) == (len(written), sum(map(len, written.values())))
    return written, seeds


def squeezed(compressor: Any, start: bytes, zeros: int, end: bytes = b"") -> bytes:
    """What a compressor makes of `start`, this many MiB of NULs, and `end`."""
    parts = [compressor.compress(start), *(compressor.compress(bytes(MIB)) for _ in range(zeros))]
    return b"".join([*parts, compressor.compress(end), compressor.flush()])


@contextmanager
def little_memory(most: int) -> Iterator[None]:
    """The body has at most this many bytes of memory at once."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak:,} bytes"
