"""What programs load, as their files say."""

import struct
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.builds.linux.libraries import needed
from pipeline.errors import PackageError
from tests.builds.linux import debs


def test_what_a_real_program_loads() -> None:
    loaded = {Path(line.split()[-1]).name for line in Path("/proc/self/maps").read_text().splitlines()}
    found = needed("python", Path(sys.executable).resolve())
    assert "libc.so.6" in found
    # libz.so.1 is a link to libz.so.1.3.1
    assert [name for name in found if not any(file.startswith(name) for file in loaded)] == []


@pytest.mark.parametrize("names", [(), ("libz.so.1",), ("libc.so.6", "libm.so.6", "libc.so.6")])
def test_the_libraries_are_told_in_their_order(tmp_path: Path, names: tuple[str, ...]) -> None:
    (tmp_path / "file").write_bytes(debs.elf(*names))
    assert needed("package", tmp_path / "file") == names


@pytest.mark.parametrize("content", [b"", b"\x7fEL", b"#!/bin/sh\n"])
def test_what_is_no_elf_file_loads_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert needed("package", tmp_path / "file") == ()


@pytest.mark.parametrize("offset", [64 + 8, 64 + 16, 64 + 56 + 8])
def test_names_that_do_not_lie_in_the_file(tmp_path: Path, offset: int) -> None:
    data = bytearray(debs.elf("libz.so.1"))
    struct.pack_into("<Q", data, offset, 2**40)
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(PackageError, match="file of package is damaged: "):
        needed("package", tmp_path / "file")


@given(changes=st.lists(st.tuples(st.integers(4, 276), st.integers(0, 255)), max_size=20), size=st.integers(4, 300))
def test_no_damage_is_too_much(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], size: int
) -> None:
    data, file = bytearray(debs.elf("libz.so.1", "libc.so.6")), tmp_path_factory.getbasetemp() / "damaged-names"
    for offset, value in changes:
        data[offset] = value
    file.write_bytes(data[:size])
    with suppress(PackageError):
        assert len(needed("package", file)) <= 64
