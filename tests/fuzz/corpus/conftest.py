"""A corpus, what comes into it, and what is in it."""

import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from pipeline.fuzz.corpus import Corpus, Coverage

FUZZER = "example-fuzzers/crash_fuzzer"
XYZ = "66b27417d37e024c46526c2f6d358a754fc552f3"
SOME = Coverage(10, 100)


def name_of(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def contents(corpus: Corpus) -> set[bytes]:
    """What the manifest lists. Nothing else is there, and each is what it should be."""
    found = files(corpus.directory / "units")
    assert {name: len(content) for name, content in found.items()} == {u.name: u.bytes for u in corpus.units().values()}
    assert all(name_of(content) == name for name, content in found.items())
    return set(found.values())


def kept(corpus: Corpus) -> set[bytes]:
    """What merges took out of it, and can be brought back."""
    found = {path: path.read_bytes() for path in corpus.replaced()}
    assert all(name_of(content) == path.name for path, content in found.items())
    return set(found.values())


def make_old(corpus: Corpus, merge: int, seconds: float) -> None:
    """Have this merge be so long ago."""
    then = time.time() - seconds
    os.utime(corpus.directory / f"replaced/{merge}/manifest.json", (then, then))


def landed(directory: Path, *some: bytes) -> list[Path]:
    directory.mkdir(exist_ok=True)
    paths = [directory / name_of(content) for content in some]
    for path, content in zip(paths, some, strict=True):
        path.write_bytes(content)
    return paths


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus.of(tmp_path / "out", FUZZER)


def merge(
    corpus: Corpus, given: Iterable[bytes], kept: Iterable[bytes], new: Iterable[Path | bytes] = (), **facts: Coverage
) -> bool:
    old, stay = ([name_of(content) for content in some] for some in (given, kept))
    before, after = facts.get("before", SOME), facts.get("after", SOME)
    return corpus.replace(old, stay, new, before=before, after=after, tolerance=0.02, source="merge")
