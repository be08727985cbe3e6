"""Directories that are imported, and those that are exported."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import StoreError, UsageError
from pipeline.fuzz.corpus import Added, Corpus
from tests.fuzz.corpus.conftest import contents, files, name_of


def test_a_directory_is_imported_as_libfuzzer_reads_it(corpus: Corpus, tmp_path: Path) -> None:
    for path in ("a", ".hidden-file", "below/b", "below/deeper/c", ".git/object"):
        (tmp_path / "seeds" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "seeds" / path).write_text(path)
    (tmp_path / "seeds/loop").symlink_to(".")
    (tmp_path / "seeds/below/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text("linked")
    added = corpus.import_directory(tmp_path / "seeds", "import")
    assert added == Added(new=5, refused=1)
    assert list(map(str, added.reasons)) == [f"1 no files that can be read, such as {tmp_path}/seeds/loop"]
    assert contents(corpus) == {b"a", b".hidden-file", b"below/b", b"below/deeper/c", b"linked"}
    with pytest.raises(StoreError, match="imported"):
        corpus.import_directory(tmp_path / "nothing", "import")


def test_directories_without_an_end_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    at = tmp_path / "seeds"
    for _ in range(200):
        at.mkdir()
        at /= "d"
    with pytest.raises(StoreError, match="directories lie in each other over 64 deep"):
        corpus.import_directory(tmp_path / "seeds", "import")


@pytest.mark.slow
@given(st.sets(st.binary(max_size=50), max_size=8))
def test_what_is_exported_and_imported_is_the_same(tmp_path_factory: pytest.TempPathFactory, some: set[bytes]) -> None:
    directory = tmp_path_factory.mktemp("corpora")
    one, other = Corpus.of(directory, "a/one"), Corpus.of(directory, "a/other")
    one.add(some, "x")
    assert one.export_directory(directory / "exported") == len(some)
    assert files(directory / "exported") == {name_of(content): content for content in some}
    assert other.import_directory(directory / "exported", "import") == Added(new=len(some))
    assert contents(other) == some
    assert other.export_directory(directory / "exported") == 0


def test_an_export_overwrites_nothing(corpus: Corpus, tmp_path: Path) -> None:
    corpus.add([b"a", b"b"], "x")
    (tmp_path / "secret").write_bytes(b"a")
    for kind in ("directory", "file", "link"):
        exported = tmp_path / kind
        exported.mkdir()
        there = exported / name_of(b"a")
        if kind == "directory":
            there.mkdir()
        elif kind == "file":
            there.write_bytes(b"x")
        else:
            there.symlink_to("../secret")
        with pytest.raises(UsageError, match="is not the unit"):
            corpus.export_directory(exported)
        assert list(exported.iterdir()) == [there]
    assert files(tmp_path / "file") == {name_of(b"a"): b"x"}
