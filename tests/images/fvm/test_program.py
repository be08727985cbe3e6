"""The command line."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.images import fvm
from tests.images.fvm.volumes import COPY_B, GIB, SLICE, extended, flipped, make, read, with_entries


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "fvm.blk"
    (tmp_path / "content").write_bytes(b"x" * 100_000)
    assert fvm.main([str(path), "create", "--slice", "32K", "--partition", f"data={tmp_path / 'content'}"]) == 0
    return path


def test_it_is_a_program(volume: Path) -> None:
    words = [sys.executable, "-m", "pipeline.images.fvm", str(volume), "extend", "--length", "3G"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(fvm.__file__).parents[3])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert volume.stat().st_size == 3 * GIB


@pytest.mark.parametrize(
    ("words", "code", "size"),
    [
        (("--length", "100k"), 1, None),
        (("--length", "100k", "--length-is-lowerbound"), 0, None),
        (("--length", "1M", "--length-is-lowerbound"), 0, 1 << 20),
        (("--length", "1M", "--in-place"), 0, 1 << 20),
        (("--length", "64M", "--in-place"), 0, 64 << 20),
        (("--length", "1M", "--resize-image-file-to-fit"), 0, 2 * COPY_B + 4 * SLICE),
        (("--length", "1M", "--resize-image-file-to-fit", "--in-place"), 0, 2 * COPY_B + 4 * SLICE),
        (("--length", "3T"), 1, None),
        (("--length", "0x100000"), 1, None),
        (("--length", "8000000G"), 1, None),
    ],
    ids=["too small", "lower bound below", "lower bound above", "in place", "not in place", "fit", "fit in place",
         "no size", "hex", "huge"],
)  # fmt: skip
def test_lengths(
    volume: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, size: int | None
) -> None:
    before = volume.read_bytes()
    assert fvm.main([str(volume), "extend", *words]) == code
    assert capsys.readouterr().err.startswith("fvm: " if code else "")
    assert (volume.stat().st_size == size) if size else (volume.read_bytes() == before)
    assert fvm.check(volume) == ()


def test_a_lower_bound_below_the_volume_of_a_trimmed_file(volume: Path) -> None:
    trimmed = extended(volume.read_bytes(), 1 << 20, to_fit=True)
    volume.write_bytes(trimmed)
    assert fvm.main([str(volume), "extend", "--length", "400K"]) == 1
    assert volume.read_bytes() == trimmed
    assert fvm.main([str(volume), "extend", "--length", "400K", "--length-is-lowerbound"]) == 0
    assert volume.stat().st_size == read(trimmed).header.partition_size


def test_a_refusal_is_a_line_and_a_hint(volume: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fvm.main([str(volume), "extend", "--length", "100K"]) == 1
    assert capsys.readouterr().err == (
        f"fvm: {volume}: |length|(102400) must be greater or equal than |disk_size|(294912 bytes)\n"
        "  hint: ask for more, or add --length-is-lowerbound\n"
    )


@pytest.mark.parametrize("words", [(), ("extend",), ("grow",), ("create", "--size", "1M"), ("check", "--length", "1M")])
def test_arguments_that_make_no_sense(volume: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        fvm.main([str(volume), *words])
    assert caught.value.code == 2
    assert "usage: fvm" in capsys.readouterr().err


def test_the_help_tells_what_in_place_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fvm.main(["FILE", "extend", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "so that a kill leaves the old volume or the new one" in said


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--partition", "data"), "--partition data: no file is named"),
        (("--partition", "=content"), "'' cannot name a partition"),
        (("--partition", f"{'n' * 25}=content"), f"'{'n' * 25}' cannot name a partition"),
        (("--partition", "\udcff=content"), "'\\udcff' cannot name a partition"),
        (("--partition", "a=content", "--partition", "a=content"),
         "--partition a=content: there is one of that name"),
        (("--partition", "data=no-such-file"), "No such file or directory: no-such-file"),
        (("--partition", "data=."), ". is a directory, not a file"),
        (("--slice", "1000", "--partition", "data=content"), "new.blk: slices of 1000 bytes"),
        (("--slice", "0"), "Bad size: 0"),
        (("--length", "3T"), "Bad size: 3T"),
        (("--length", "1"), "new.blk: 1 bytes are too few"),
        (("--max-disk-size", ""), "Bad size: "),
        (("--max-disk-size", "1"), "new.blk: a volume of 196608 bytes on a disk of at most 1"),
    ],
    ids=lambda value: " ".join(value).replace("\udcff", "?") if isinstance(value, tuple) else "",
)  # fmt: skip
def test_volumes_that_cannot_be_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "content").touch()
    assert fvm.main(["new.blk", "create", *words]) == 1
    said = capsys.readouterr().err
    assert said.startswith("fvm: ")
    assert problem in said
    assert "\n  hint: " in said
    assert [path.name for path in tmp_path.iterdir()] == ["content"]


def test_a_volume_that_is_to_grow(tmp_path: Path) -> None:
    path = tmp_path / "fvm.blk"
    (tmp_path / "content").write_bytes(b"x")
    words = ["--slice", "32K", "--length", "1M", "--max-disk-size", "64M", "--partition", f"a={tmp_path / 'content'}"]
    assert fvm.main([str(path), "create", *words]) == 0
    inode = path.stat().st_ino
    assert fvm.main([str(path), "extend", "--length", "64M", "--in-place"]) == 0
    assert (path.stat().st_size, path.stat().st_ino) == (64 << 20, inode)


def test_check_says_nothing_of_a_sound_volume(volume: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fvm.main([str(volume), "check"]) == 0
    assert capsys.readouterr() == ("", "")


def test_check_tells_each_problem_in_a_line(volume: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume.write_bytes(flipped(with_entries(volume.read_bytes(), {4: 9}), 64))
    assert fvm.main([str(volume), "check"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"fvm: {volume}: copy A of the tables is not valid: at byte 0x40: the hash of the tables is wrong",
        f"fvm: {volume}: slice 4: there is no partition 9",
        f"fvm: {volume}: partition 1 'data': its slice count is 4, but 3 entries of the allocation table belong to it",
    ]


@pytest.mark.parametrize("command", ["check", "size"])
@pytest.mark.parametrize(
    ("image", "problem"),
    [(b"", "FVM magic mismatch"), (b"FVM SPRS", "this is a sparse FVM"), (make({})[:9000], "neither of the two")],
    ids=["empty", "sparse", "cut off"],
)
def test_what_is_no_volume(
    volume: Path, capsys: pytest.CaptureFixture[str], command: str, image: bytes, problem: str
) -> None:
    volume.write_bytes(image)
    assert fvm.main([str(volume), command]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"fvm: {volume}: ")
    assert problem in said


def test_size_tells_the_least_one_and_that_of_the_volume(volume: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fvm.main([str(volume), "extend", "--length", "1M"]) == 0
    assert fvm.main([str(volume), "size"]) == 0
    assert capsys.readouterr().out == f"least {2 * COPY_B + 4 * SLICE}\nvolume 1048576\n"


def test_what_a_file_is_called_does_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a\x1b[2Jb").write_bytes(b"")
    assert fvm.main([str(tmp_path / "a\x1b[2Jb"), "check"]) == 1
    assert f"fvm: {tmp_path}/ab: " in capsys.readouterr().err
