"""Archives of one form: other programs read them, and nothing else than that form is read."""

import io
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fuzz.crashes import archive

names = st.text("abcdef0123/._-", min_size=1, max_size=archive.LONGEST_NAME)
contents = st.dictionaries(names, st.binary(max_size=1200), max_size=4)


def made(members: Mapping[str, bytes]) -> bytes:
    parts = [
        archive.header(name, len(content)) + content + archive.padding(len(content))
        for name, content in members.items()
    ]
    return b"".join(parts) + archive.END


def read(data: bytes) -> dict[str, bytes]:
    found = archive.members(io.BytesIO(data), len(data))
    return {one.name: data[one.start : one.start + one.size] for one in found}


@given(contents)
def test_what_is_made_is_read(members: dict[str, bytes]) -> None:
    assert read(made(members)) == members


@given(contents.filter(lambda members: not any(name.endswith("/") for name in members)))
def test_python_s_tarfile_reads_the_same(members: dict[str, bytes]) -> None:
    with tarfile.open(fileobj=io.BytesIO(made(members))) as tar:
        found = tar.getmembers()
        assert all(one.isfile() and (one.mode, one.mtime, one.uid, one.gid) == (0o644, 0, 0, 0) for one in found)
        assert {one.name: tar.extractfile(one).read() for one in found} == members  # type: ignore[union-attr]


def test_tar_unpacks_it(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(made({"files/b": b"x" * 600, "input": b""}))
    said = subprocess.run(["tar", "xvf", "a.tar"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (said.stdout.split(), said.stderr) == (["files/b", "input"], "")
    assert (tmp_path / "files/b").read_bytes() == b"x" * 600


@pytest.mark.parametrize("name", ["", "a" * 101, "ü", "a\n", "a\0b"])
def test_names_that_no_member_has(name: str) -> None:
    with pytest.raises(ValueError, match="no member can be named"):
        archive.header(name, 0)


@pytest.mark.parametrize("size", [-1, 8**11])
def test_sizes_that_no_member_has(size: int) -> None:
    with pytest.raises(ValueError, match="no member can"):
        archive.header("a", size)


@given(st.dictionaries(names, st.binary(max_size=200), min_size=1, max_size=2), st.data())
def test_no_other_byte_is_read(members: dict[str, bytes], data: st.DataObject) -> None:
    """A byte that is not content is as it must be, or the archive is refused."""
    whole = bytearray(made(members))
    where, new = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 255))
    changed = whole[where] != new
    whole[where] = new
    try:
        found = read(bytes(whole))
    except ValueError:
        assert changed
        return
    assert [*found] == [*members]
    assert (found == members) != changed


@given(st.dictionaries(names, st.binary(max_size=200), max_size=2), st.data())
def test_nothing_is_missing_or_added(members: dict[str, bytes], data: st.DataObject) -> None:
    whole = made(members)
    with pytest.raises(ValueError, match=r"it ends within|it has lost its end"):
        read(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ValueError, match="it has lost its end, or something stands behind it"):
        read(whole + data.draw(st.binary(min_size=1, max_size=1100)))


@given(st.binary(max_size=2000))
def test_any_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"it \w+|its "):
        read(data)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(kind: bytes) -> None:
    info = tarfile.TarInfo("input")
    info.type, info.linkname = kind, "/etc/passwd"
    data = info.tobuf(tarfile.USTAR_FORMAT) + archive.END
    with pytest.raises(ValueError, match=r"its member input/? is a link or something else that is no file"):
        read(data)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_extensions_of_tar_are_refused(form: Literal[1, 2]) -> None:
    info = tarfile.TarInfo("a" * 200)
    with pytest.raises(ValueError, match="is a link or something else"):
        read(info.tobuf(form) + archive.END)


def test_a_claim_of_gigabytes_costs_nothing() -> None:
    with pytest.raises(ValueError, match="it ends within its member input"):
        read(archive.header("input", archive.LARGEST) + archive.END)
