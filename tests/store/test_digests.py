"""Digests of files."""

import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store import digests
from pipeline.store.digests import BLOCK, digest
from tests.waiting import SOON

MIB = 1 << 20


def write_sparse(path: Path, size: int, parts: list[tuple[int, bytes]]) -> Path:
    """A file of holes, with some data."""
    with path.open("wb") as stream:
        for start, data in parts:
            stream.seek(start)
            stream.write(data)
        stream.truncate(size)
    return path


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, MIB, 2 * MIB, 2 * MIB + 1, 9 * MIB + 77])
def test_a_file_without_zero_blocks_has_the_digest_that_b3sum_prints(tmp_path: Path, size: int) -> None:
    data = os.urandom(size).replace(b"\0", b"x")  # a last block of one byte would be a block of zeros each 256th time
    (tmp_path / "file").write_bytes(data)
    assert digest(tmp_path / "file") == f"b3:{blake3(data).hexdigest()}"


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 20 * BLOCK), st.binary(min_size=1, max_size=300)), max_size=5), st.data())
def test_holes_and_zeros_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("sparse")
    size = data.draw(st.integers(21 * BLOCK, 25 * BLOCK))
    sparse = write_sparse(directory / "sparse", size, parts)
    (directory / "full").write_bytes(sparse.read_bytes())
    assert digest(sparse) == digest(directory / "full")
    assert digest(sparse).startswith("b3s:")
    at = data.draw(st.integers(0, size - 1))
    content = bytearray(sparse.read_bytes())
    content[at] ^= 0xFF
    (directory / "full").write_bytes(content)
    assert digest(sparse) != digest(directory / "full"), "every byte counts"
    write_sparse(directory / "longer", size + 1, parts)
    assert digest(sparse) != digest(directory / "longer"), "the length counts"


def test_where_the_data_is_counts(tmp_path: Path) -> None:
    block = os.urandom(BLOCK)
    found = {digest(write_sparse(tmp_path / f"{start}", 8 * BLOCK, [(start * BLOCK, block)])) for start in range(8)}
    assert len(found) == 8


def test_only_data_of_a_huge_sparse_file_is_read(tmp_path: Path) -> None:
    began = time.process_time()
    assert digest(write_sparse(tmp_path / "huge", 1 << 40, [(1 << 39, b"x")])).startswith("b3s:")
    assert time.process_time() - began < 10, "a terabyte is not read"


@pytest.mark.parametrize("size", [BLOCK, 5 * MIB])
def test_a_file_that_is_cut_off_while_it_is_read_is_no_failure(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes out is never remembered: the signature has changed."""
    (tmp_path / "file").write_bytes(os.urandom(size))
    read = os.preadv

    def cut_off(descriptor: int, buffers: list[bytearray], position: int) -> int:
        os.truncate(tmp_path / "file", size // 2 + 1)
        return read(descriptor, buffers, position)

    monkeypatch.setattr(os, "preadv", cut_off)
    assert digest(tmp_path / "file").startswith("b3s:")


def test_a_disk_that_fails_is_an_error_and_no_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x" * BLOCK)

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "lseek", fail)
    with pytest.raises(OSError, match="Input/output error"):
        digest(tmp_path / "file")


def test_reading_ahead_leaves_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(os.urandom(9 * MIB))

    def fail(*_: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(digests, "_dense", fail)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        digest(tmp_path / "file")
    assert threading.active_count() == before


def test_a_process_that_was_forked_after_a_large_file_was_hashed_can_hash_one_too(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(1 << 20) * 8)
    expected = digest(large)
    worker = multiprocessing.get_context("fork").Process(target=digest, args=(large,))
    worker.start()
    worker.join(SOON)
    hangs = worker.is_alive()
    worker.kill()
    assert not hangs
    assert worker.exitcode == 0
    assert digest(large) == expected
