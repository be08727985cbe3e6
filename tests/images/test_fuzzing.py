"""What the fuzzer has found, tried again: nothing but Topcoat's own errors comes out of any of it."""

from pathlib import Path

import pytest

from pipeline.images import kinds
from tests.images import fuzzing, zbis

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
"""Inputs of bench/fuzz_images.py: those that led to new code, and those that once broke it."""


@pytest.mark.parametrize("part", range(8))
def test_the_corpus(tmp_path: Path, part: int) -> None:
    for path in CORPUS[part::8]:
        fuzzing.exercise(path.read_bytes(), tmp_path)


def test_the_corpus_is_there_and_leads_everywhere() -> None:
    ways = {path.read_bytes()[0] % len(fuzzing.WAYS) for path in CORPUS if path.stat().st_size}
    assert ways == set(range(len(fuzzing.WAYS)))


@pytest.mark.parametrize("way", range(8))
def test_each_way_leads_to_a_sound_image(tmp_path: Path, way: int) -> None:
    """Else a fuzzer would only ever see refusals."""
    raw = zbis.payload({"bin/init": b"#!"})
    inputs = [
        zbis.image({"bin/init": b"#!"}),
        zbis.KERNEL + zbis.bootfs_item(raw),
        (0x4D4F4F42).to_bytes(4, "little") + bytes(4) + zbis.VERSION.to_bytes(4, "little"),
        *[raw] * 3,
        len(raw).to_bytes(4, "little") + zbis.PACKS["zstd"](raw),
        b"",
    ]
    (tmp_path / "image").write_bytes(fuzzing.image(bytes([way]) + inputs[way]))
    assert kinds.inspect(tmp_path / "image").sound
    fuzzing.exercise(bytes([way]) + inputs[way], tmp_path)
