"""Seeds of a target, out of all kinds of seed corpora."""

import errno
import io
import os
import resource
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.builds.targets.seeds import SUFFIXES, SeedLimits, Seeds, gather
from pipeline.settings import CampaignSettings
from tests.builds.targets.archives import directory, gathered, member, named, tarred, zipped

FILES = {"a": b"first", "sub/b": b"second", "sub/deep/c": bytes(1000), "empty": b""}
CONTENTS = (b"first", b"second", bytes(1000))

Pack = Callable[[Path, Any], Path]
PACKS: dict[str, Pack] = {
    "zip": lambda place, files: zipped(place / "x_seed_corpus.zip", files),
    "tar": lambda place, files: tarred(place / "x_seed_corpus.tar", files),
    "tar.gz": lambda place, files: tarred(place / "x_seed_corpus.tar.gz", files),
    "directory": lambda place, files: directory(place / "x_seed_corpus", files),
}
every_pack = pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS.keys())


@pytest.mark.parametrize("suffix", ["", *SUFFIXES])
def test_the_seeds_of_every_kind_of_corpus(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"parser_seed_corpus{suffix}"
    (zipped if suffix == ".zip" else tarred if suffix else directory)(path, FILES)
    written, seeds = gathered(path)
    assert written == named(*CONTENTS)
    assert seeds == Seeds(3, 1011, ())


def test_the_compression_of_a_tar_archive_is_not_believed_to_be_what_its_name_says(tmp_path: Path) -> None:
    path = tarred(tmp_path / "x_seed_corpus.tar.xz", FILES).rename(tmp_path / "x_seed_corpus.tar.gz")
    assert gathered(path)[0] == named(*CONTENTS)


def test_an_archive_may_be_reached_by_a_link(tmp_path: Path) -> None:
    tarred(tmp_path / "blob.lzma", FILES).rename(tmp_path / "blob")
    (tmp_path / "x_seed_corpus.tar.lzma").symlink_to("blob")
    assert gathered(tmp_path / "x_seed_corpus.tar.lzma") == (named(*CONTENTS), Seeds(3, 1011, ()))


def test_the_limits_are_those_of_a_corpus() -> None:
    chosen, limits = CampaignSettings(), SeedLimits()
    assert (limits.unit, limits.bytes, limits.units) == (chosen.unit_size, chosen.corpus_size, chosen.corpus_units)


@every_pack
def test_equal_content_is_one_seed_wherever_it_is(tmp_path: Path, pack: Pack) -> None:
    source = pack(tmp_path, {"a": b"same", "b": b"same", "c/a": b"other"})
    again = zipped(tmp_path / "again.zip", {"z": b"same", "y": b"third"})
    assert gathered(source, again) == (named(b"same", b"other", b"third"), Seeds(3, 14, ()))


@every_pack
def test_an_empty_file_is_no_seed(tmp_path: Path, pack: Pack) -> None:
    assert gathered(pack(tmp_path, {"empty": b"", "sub/empty": b""})) == ({}, Seeds(0, 0, ()))


def test_no_sources_no_seeds(tmp_path: Path) -> None:
    assert gather([], tmp_path / "into") == Seeds(0, 0, ())
    assert list(tmp_path.iterdir()) == []


def _twice(contents: list[bytes]) -> st.SearchStrategy[tuple[list[bytes], list[bytes]]]:
    return st.tuples(st.just(contents), st.permutations(contents))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.binary(max_size=30), max_size=8).flatmap(_twice))
def test_the_order_in_an_archive_does_not_matter(orders: tuple[list[bytes], list[bytes]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place)
        found = [
            gathered(pack(path / f"{number}{suffix}", [(str(at), content) for at, content in enumerate(order)]))
            for number, order in enumerate(orders)
            for pack, suffix in ((zipped, ".zip"), (tarred, ".tar.gz"))
        ]
    expected = named(*filter(None, orders[0]))
    assert found == [(expected, Seeds(len(expected), sum(map(len, expected.values())), ()))] * 4


_HOSTILE = st.sampled_from([
    b"../../x", b"/tmp/x", b"..", b".", b"a\0b", b"\xff\xfe", b"\xed\xb2\x80", b"C:\\x", b"\x1b[2J\n", b"n" * 5000,
    b"../" * 40 + b"tmp/x", b"0" * 40, b"into", "\u202e".encode(),
])  # fmt: skip
_NAMES = st.lists(_HOSTILE | st.binary(min_size=1, max_size=120), min_size=1, max_size=5)


@settings(deadline=None, max_examples=150)
@given(_NAMES, st.sampled_from(["zip", "tar", "tar.gz"]))
def test_no_name_in_an_archive_is_used_as_a_path(names: list[bytes], kind: str) -> None:
    names = [name.rstrip(b"/") or b"/x" for name in names]  # in a zip archive it would be a directory
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"deep/deep/x_seed_corpus.{kind}"
        path.parent.mkdir(parents=True)
        (_hostile_zip if kind == "zip" else _hostile_tar)(path, names)
        before = {*Path(place).rglob("*")}
        written, seeds = gathered(path)
        there = {*Path(place).rglob("*")} - before
        assert written == named(*(b"seed %d" % at for at in range(len(names))))
        assert seeds.left_out == ()
        assert {file.name for file in there} - written.keys() == {file.parent.name for file in there if file.is_file()}
        assert len(there) == len(written) + 1


class _RawName(zipfile.ZipInfo):
    """An entry with a name that zipfile would not write."""

    def __init__(self, number: int, name: bytes) -> None:
        super().__init__(f"name {number}")
        self.raw = name

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802
        return self.raw, self.flag_bits


def _hostile_zip(path: Path, names: list[bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for at, name in enumerate(names):
            archive.writestr(_RawName(at, name), b"seed %d" % at)
    assert all(name in path.read_bytes() for name in names)


def _hostile_tar(path: Path, names: list[bytes]) -> None:
    tarred(path, [(os.fsdecode(name), b"seed %d" % at) for at, name in enumerate(names)], tarfile.GNU_FORMAT)


@every_pack
def test_a_seed_of_exactly_the_limit_is_taken(tmp_path: Path, pack: Pack) -> None:
    source = pack(tmp_path, {"big": b"b" * 2049, "most": b"m" * 2048, "small": b"s", "large": b"l" * 5000})
    written, seeds = gathered(source, limits=SeedLimits(unit=2048))
    assert written == named(b"m" * 2048, b"s")
    first = "x_seed_corpus/big" if source.is_dir() else f"big in {source.name}"
    assert seeds.left_out == (f"2 files larger than 2 KiB, such as {first}; make smaller seeds",)


def test_one_thing_left_out_is_told_as_one(tmp_path: Path) -> None:
    source = zipped(tmp_path / "x.zip", {"big": bytes(11)})
    left_out = ("1 file larger than 10 bytes: big in x.zip; make smaller seeds",)
    assert gathered(source, limits=SeedLimits(unit=10)) == ({}, Seeds(0, 0, left_out))


@every_pack
@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (SeedLimits(units=3), ""),
        (SeedLimits(units=2), "there are more than 2"),
        (SeedLimits(bytes=30), ""),
        (SeedLimits(bytes=29), "all have more than 29 B"),
    ],
)
def test_the_limits_of_all_seeds(tmp_path: Path, pack: Pack, limits: SeedLimits, told: str) -> None:
    """Content that is there already counts for nothing."""
    contents = [b"a" * 10, b"b" * 10, b"a" * 10, b"", b"c" * 10, b"b" * 10]
    source = pack(tmp_path, {str(at): content for at, content in enumerate(contents)})
    after = zipped(tmp_path / "after.zip", {"d": b"a" * 10, **({"e": b"e"} if told else {})})
    written, seeds = gathered(source, after, limits=limits)
    assert written == named(b"a" * 10, b"b" * 10, *([] if told else [b"c" * 10]))
    more = f"more seeds, in {source.name} and after it: {told}; merge them into fewer"
    assert seeds.left_out == ((more,) if told else ())


@every_pack
def test_only_so_many_files_are_looked_at(tmp_path: Path, pack: Pack) -> None:
    source = pack(tmp_path, {f"{at:02}": b"same" for at in range(12)})
    after = zipped(tmp_path / "after.zip", {"z": b"another"})
    limits = SeedLimits(units=3)
    assert gathered(source, limits=limits) == (named(b"same"), Seeds(1, 4, ()))
    told = "more seeds, in after.zip and after it: they lie among more than 12 files; merge them into fewer"
    assert gathered(source, after, limits=limits) == (named(b"same"), Seeds(1, 4, (told,)))


def test_a_source_that_may_not_be_read_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [
        zipped(tmp_path / "a.zip", FILES),
        directory(tmp_path / "b", FILES),
        tarred(tmp_path / "c.tar", {"x": b"x"}),
    ]
    _refuse(monkeypatch, errno.EACCES, "a.zip", "b", "deep")
    written, seeds = gathered(*sources)
    assert written == named(b"x")
    assert seeds.left_out == (
        "2 paths that cannot be read, such as a.zip (Permission denied); give your user the right to read it",
    )


def test_a_fault_of_the_host_while_reading_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = zipped(tmp_path / "a.zip", FILES)
    _refuse(monkeypatch, errno.EMFILE, "a.zip")
    with pytest.raises(OSError, match="Too many open files"):
        gathered(source)


def _refuse(monkeypatch: pytest.MonkeyPatch, number: int, *names: str) -> None:
    """Whoever opens a file or looks into a directory with one of these names gets an error."""

    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def instead(path: Any, *others: Any) -> Any:
            if not isinstance(path, int) and Path(path).name in names:
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *others)

        return instead

    monkeypatch.setattr(os, "open", refusing(os.open))
    monkeypatch.setattr(os, "scandir", refusing(os.scandir))


def test_a_fault_of_the_host_while_writing_is_raised(tmp_path: Path) -> None:
    source = zipped(tmp_path / "x.zip", {"small": b"small", "large": bytes(100_000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            gather([source], tmp_path / "into")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_nothing_is_written_into_a_directory_that_is_there(tmp_path: Path) -> None:
    source = zipped(tmp_path / "x.zip", FILES)
    (tmp_path / "into").mkdir()
    with pytest.raises(FileExistsError):
        gather([source], tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []


def test_a_source_that_is_neither_file_nor_directory_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x_seed_corpus.zip")
    told = "1 thing that is no regular file: x_seed_corpus.zip; only regular files can be seeds"
    assert gathered(tmp_path / "x_seed_corpus.zip") == ({}, Seeds(0, 0, (told,)))


def test_what_is_told_is_bounded_and_fit_to_print(tmp_path: Path) -> None:
    """The names are those of a hostile archive; this has nearly every kind of thing that is left out."""
    long = "\x1b]0;\n\u202e" + "n" * 3000
    sources = []
    for at in range(40):
        path = tmp_path / f"{at}{'m' * 200}.tar"
        with tarfile.open(path, "w") as archive:
            archive.addfile(member(long, 2 << 20), io.BytesIO(bytes(2 << 20)))
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"?"):
                archive.addfile(member(long, kind=kind, link="x"))
            end = archive.offset
        os.truncate(path, end)
        sources.append(path)
    seeds = gathered(*sources)[1]
    assert [clause.partition(", such as ")[0] for clause in seeds.left_out] == [
        "40 files larger than 1 MiB",
        "80 links in archives",
        "120 things that are no regular files",
        "40 archives that cannot be read to their ends",
    ]
    assert max(map(len, seeds.left_out)) <= 500
    assert all(clause.isprintable() for clause in seeds.left_out)
