"""Directories of seeds."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from pipeline.builds.targets.seeds import SeedLimits, Seeds
from tests.builds.targets.archives import directory, gathered, named


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(b"secret")
    return directory(tmp_path / "x_seed_corpus", {"a": b"a", "sub/b": b"b"})


def test_hidden_files_are_seeds_and_hidden_directories_are_not_entered(corpus: Path) -> None:
    (corpus / "sub/.hidden").write_bytes(b"hidden")
    directory(corpus / ".git", {"config": b"config"})
    told = "1 hidden directory: x_seed_corpus/.git; libFuzzer passes over them: give seeds another place"
    assert gathered(corpus) == (named(b"a", b"b", b"hidden"), Seeds(3, 8, (told,)))


def test_a_link_to_a_file_of_the_corpus_is_that_file(corpus: Path) -> None:
    directory(corpus / ".kept", {"c": b"c"})
    for name, target in {"1": "a", "2": "sub/../sub/b", "3": str(corpus / ".kept/c"), "4": "3"}.items():
        (corpus / name).symlink_to(target)
    written, seeds = gathered(corpus)
    assert written == named(b"a", b"b", b"c")
    assert [clause for clause in seeds.left_out if "link" in clause] == []


@pytest.mark.parametrize(
    "target", ["../secret", "/etc/hostname", "gone", "sub", "..", "link", "../x_seed_corpus.d/y", "pipe"]
)
def test_a_link_to_anything_else_is_left_out(corpus: Path, target: str) -> None:
    directory(corpus.parent / "x_seed_corpus.d", {"y": b"y"})
    os.mkfifo(corpus / "pipe")
    (corpus / "link").symlink_to(target)
    written, seeds = gathered(corpus)
    assert written == named(b"a", b"b")
    told = "1 link that leads to no file of its corpus: x_seed_corpus/link; put the files themselves there"
    assert told in seeds.left_out


def test_the_directory_itself_may_be_a_link(tmp_path: Path, corpus: Path) -> None:
    (corpus / "link").symlink_to("sub/b")
    (tmp_path / "y_seed_corpus").symlink_to("x_seed_corpus")
    assert gathered(tmp_path / "y_seed_corpus") == (named(b"a", b"b"), Seeds(2, 2, ()))


def test_pipes_and_sockets_are_never_opened(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(corpus / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(corpus)  # the path of a socket must be short
        listening.bind("socket")
        opened, real = [], os.open

        def noting(path: Any, *others: Any) -> int:
            opened.append(Path(path).name)
            return real(path, *others)

        monkeypatch.setattr(os, "open", noting)
        written, seeds = gathered(corpus)
    assert written == named(b"a", b"b")
    assert set(opened) == {"a", "b"}
    told = "2 things that are no regular files, such as x_seed_corpus/pipe; only regular files can be seeds"
    assert seeds.left_out == (told,)


def test_a_file_that_becomes_a_pipe_is_not_waited_for(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It becomes one between the look at it and its opening."""
    _before_opening(monkeypatch, "a", os.mkfifo)
    told = "1 path that cannot be read: x_seed_corpus/a (it is no regular file); give your user the right to read it"
    assert gathered(corpus) == (named(b"b"), Seeds(1, 1, (told,)))


def test_a_file_that_becomes_a_link_is_not_followed(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _before_opening(monkeypatch, "a", lambda path: path.symlink_to("../secret"))
    written, seeds = gathered(corpus)
    assert written == named(b"b")
    assert seeds.left_out[0].startswith(
        "1 path that cannot be read: x_seed_corpus/a (Too many levels of symbolic links)"
    )


def test_a_file_that_vanishes_is_left_out(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _before_opening(monkeypatch, "a", lambda path: None)
    written, seeds = gathered(corpus)
    assert written == named(b"b")
    assert seeds.left_out[0].startswith("1 path that cannot be read: x_seed_corpus/a (No such file or directory)")


def _before_opening(monkeypatch: pytest.MonkeyPatch, name: str, instead: Callable[[Path], None]) -> None:
    real = os.open

    def late(path: Any, *others: Any) -> int:
        if Path(path).name == name:
            Path(path).unlink()
            instead(Path(path))
        return real(path, *others)

    monkeypatch.setattr(os, "open", late)


def test_directories_lie_in_each_other_as_deep_as_the_system_can_have_them(corpus: Path) -> None:
    deepest = corpus.joinpath(*["d" * 30] * 100)
    deepest.mkdir(parents=True)
    (deepest / "c").write_bytes(b"c")
    assert gathered(corpus)[0] == named(b"a", b"b", b"c")


def test_a_directory_with_too_many_files_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = directory(tmp_path / "x_seed_corpus", {str(at): b"same" for at in range(200)})
    looked = []
    real = os.scandir

    class Counting:
        def __init__(self, path: Path) -> None:
            self._found = real(path)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self._found.close()

        def __iter__(self) -> Self:
            return self

        def __next__(self) -> "os.DirEntry[str]":
            entry = next(self._found)
            looked.append(entry.name)
            return entry

    monkeypatch.setattr(os, "scandir", Counting)
    written, seeds = gathered(corpus, limits=SeedLimits(units=10))
    assert (written, len(looked)) == (named(b"same"), 41)
    told = "they lie among more than 40 files"
    assert seeds.left_out == (f"more seeds, in x_seed_corpus and after it: {told}; merge them into fewer",)
