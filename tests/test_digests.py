"""Digests of files, and the cache of them."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from pipeline.digests import BLOCK, RACY, Digests, digest

AGED = 10 * RACY


def write_sparse(path: Path, size: int, parts: list[tuple[int, bytes]]) -> Path:
    """A file of holes, with some data."""
    with path.open("wb") as stream:
        for start, data in parts:
            stream.seek(start)
            stream.write(data)
        stream.truncate(size)
    return path


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 9 << 20])
def test_a_file_without_zero_blocks_has_the_digest_that_b3sum_prints(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    assert digest(tmp_path / "file") == f"b3:{blake3(data).hexdigest()}"


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
    began = time.monotonic()
    assert digest(write_sparse(tmp_path / "huge", 1 << 40, [(1 << 39, b"x")])).startswith("b3s:")
    assert time.monotonic() - began < 10, "a terabyte is not read"


class Clock:
    """Now is `seconds` after the file was last changed."""

    def __init__(self, path: Path, ahead: int) -> None:
        facts = path.stat()
        self.now = max(facts.st_mtime_ns, facts.st_ctime_ns) + ahead

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"content")
    return tmp_path / "file"


def remembered(cache: Path) -> int:
    return len(json.loads(cache.read_text())["entries"]) if cache.exists() else 0


@pytest.mark.parametrize(("ahead", "kept"), [(AGED, 1), (RACY + 1, 1), (RACY, 0), (0, 0), (-AGED, 0)])
def test_a_file_that_changed_just_now_or_in_the_future_is_not_remembered(
    tmp_path: Path, file: Path, ahead: int, kept: int
) -> None:
    digests = Digests(tmp_path / "cache/digests.json", Clock(file, ahead))
    digests.of(file)
    digests.save()
    assert remembered(tmp_path / "cache/digests.json") == kept


def aged(cache: Path, file: Path) -> Digests:
    return Digests(cache, Clock(file, AGED))


def test_what_is_remembered_is_believed_while_the_signature_stays(tmp_path: Path, file: Path) -> None:
    cache = tmp_path / "digests.json"
    first = aged(cache, file)
    true = first.of(file)
    first.save()
    text = cache.read_text()
    cache.write_text(text.replace(true, "b3:remembered"))
    assert Digests(cache).of(file) == "b3:remembered"
    os.utime(file, (1, 1))
    assert Digests(cache).of(file) == true, "another time of modification"


def test_equal_size_and_time_of_modification_do_not_deceive(tmp_path: Path, file: Path) -> None:
    """The time of change cannot be set."""
    cache = tmp_path / "digests.json"
    first = aged(cache, file)
    before = first.of(file)
    first.save()
    facts = file.stat()
    file.write_bytes(b"CONTENT")
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert Digests(cache).of(file) != before


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"schema": 2, "entries": {}}', '{"schema": 1}', '{"schema": 1, "entries": {"1:2": 7}}'],
)
def test_a_damaged_cache_is_begun_anew_with_one_warning(
    tmp_path: Path, file: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "digests.json"
    cache.write_text(text)
    warnings: list[str] = []
    monkeypatch.setattr("pipeline.digests.log.warning", lambda text, *_: warnings.append(text))
    digests = aged(cache, file)
    assert digests.of(file) == digest(file)
    assert digests.of(file) == digest(file)
    assert warnings == ["the cache of digests is begun anew: %s: %s"]
    digests.save()
    assert remembered(cache) == 1


def test_the_frozen_format(tmp_path: Path, file: Path) -> None:
    facts = file.stat()
    sample = {
        "schema": 1,
        "entries": {
            f"{facts.st_dev}:{facts.st_ino}": [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, "b3:frozen"]
        },
    }
    (tmp_path / "digests.json").write_text(json.dumps(sample))
    assert Digests(tmp_path / "digests.json").of(file) == "b3:frozen"


def test_several_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from pipeline.digests import Digests\n"
        "d = Digests(Path(sys.argv[1]), lambda: time.time_ns() + 10**11)\n"
        "for name in sys.argv[2:]: d.of(Path(name)); d.save()"
    )
    cache = tmp_path / "digests.json"
    groups: list[list[Path]] = [[tmp_path / f"{group}-{number}" for number in range(10)] for group in range(4)]
    for path in itertools.chain.from_iterable(groups):
        path.write_text(path.name)
    running = [subprocess.Popen([sys.executable, "-c", program, cache, *group]) for group in groups]
    assert [process.wait(60) for process in running] == [0] * 4
    assert remembered(cache) == 40


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, file: Path) -> None:
    (tmp_path / "blocked").touch()
    digests = aged(tmp_path / "blocked/digests.json", file)
    assert digests.of(file) == digest(file)
    digests.save()


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Digests(None).of(tmp_path / "nothing")
