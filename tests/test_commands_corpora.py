"""`topcoat corpus`."""

import json
from pathlib import Path

import pytest

from pipeline.corpus import Corpus
from tests.conftest import Workspace

MAZE = "example-fuzzers/maze_fuzzer"


@pytest.fixture
def corpus(workspace: Workspace) -> Corpus:
    """With two units, and one in quarantine."""
    made = Corpus.of(workspace.store.root, MAZE)
    made.add([b"one", b"three"], "seed")
    made.quarantine(b"boom", "it crashes")
    return made


@pytest.fixture
def directory(workspace: Workspace) -> Path:
    """What somebody has from elsewhere."""
    made = workspace.directory / "elsewhere"
    (made / "below").mkdir(parents=True)
    (made / "a").write_bytes(b"one")
    (made / "below/b").write_bytes(b"new")
    (made / "c").write_bytes(b"boom")
    return made


def test_all_are_listed(workspace: Workspace, corpus: Corpus) -> None:
    Corpus.of(workspace.store.root, "net/dns").quarantine(b"x", "it crashes")
    done = workspace.topcoat("corpus", "list")
    assert (done.status, done.stderr) == (0, b"")
    _, maze, dns = map(str.split, done.stdout.decode().splitlines())
    assert (maze[0], maze[2:]) == (MAZE, ["2", "8", "B", "1", "0"])
    assert dns == ["net/dns", "-", "0", "0", "B", "1", "0"]
    (first, _) = json.loads(workspace.topcoat("corpus", "list", "--json").stdout)["corpora"]
    assert (first["fuzzer"], first["units"], first["bytes"], first["quarantined"]) == (MAZE, 2, 8, 1)
    assert first["directory"] == str(corpus.directory)


def test_without_any_that_is_said(workspace: Workspace) -> None:
    done = workspace.topcoat("corpus", "list")
    assert (done.status, done.stdout) == (0, b"")
    assert done.stderr.startswith(b"no corpora yet in ")
    assert json.loads(workspace.topcoat("corpus", "list", "--json").stdout) == {"schema": 1, "corpora": []}


def test_a_damaged_one_is_told_and_the_others_are_listed(workspace: Workspace, corpus: Corpus) -> None:
    Corpus.of(workspace.store.root, "net/dns").add([b"x"], "seed")
    (workspace.store.root / "corpora/net/dns/manifest.json").write_text("{")
    done = workspace.topcoat("corpus", "list")
    assert done.status == 30
    assert MAZE in done.stdout.decode()
    assert done.stderr.startswith(b"net/dns: ")
    assert b"Traceback" not in done.stderr


def test_what_is_exported_comes_back(workspace: Workspace, corpus: Corpus) -> None:
    done = workspace.topcoat("corpus", "export", MAZE, "out-there")
    assert (done.status, done.stdout, done.stderr) == (0, b"out-there: 2 new, 0 known\n", b"")
    assert {path.name for path in (workspace.directory / "out-there").iterdir()} == set(corpus.units())
    assert workspace.topcoat("corpus", "export", MAZE, "out-there").stdout == b"out-there: 0 new, 2 known\n"
    done = workspace.topcoat("corpus", "import", "other/fuzzer", "out-there")
    assert (done.status, done.stdout) == (0, b"out-there: 2 new, 0 known\n")
    assert set(Corpus.of(workspace.store.root, "other/fuzzer").units()) == set(corpus.units())


def test_what_is_imported_is_counted(workspace: Workspace, corpus: Corpus, directory: Path) -> None:
    done = workspace.topcoat("corpus", "import", MAZE, "elsewhere")
    assert (done.status, done.stdout) == (0, b"elsewhere: 1 new, 1 known, 1 in quarantine\n")
    assert {unit.source for unit in corpus.units().values()} == {"seed", "import"}


def test_the_limits_are_those_of_campaigns(workspace: Workspace, directory: Path) -> None:
    workspace.configure("[campaign]\nunit_size = 3\ncorpus_units = 1\n")
    said = workspace.topcoat("corpus", "import", MAZE, "elsewhere").stdout.decode()
    assert said == (
        "elsewhere: 1 new, 0 known, 1 larger than [campaign] unit_size, "
        "1 beyond [campaign] corpus_size or corpus_units\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("import", MAZE, "nowhere"), "there is no directory nowhere"),
        (("import", MAZE, "elsewhere", "elsewhere/a"), "there is no directory elsewhere/a"),
        (("import", "maze", "elsewhere"), "'maze' cannot be the name of a fuzzer"),
        (("import", "../x", "elsewhere"), "'../x' cannot be the name of a fuzzer"),
        (("export", "net/dns", "somewhere"), "there are no units of net/dns in "),
    ],
)
def test_mistakes_are_explained(workspace: Workspace, directory: Path, words: tuple[str, ...], said: str) -> None:
    done = workspace.topcoat("corpus", *words)
    assert (done.status, done.stdout) == (2, b"")
    first, hint = done.stderr.decode().splitlines()
    assert first.startswith(f"error: {said}")
    assert hint.startswith("  hint: ")
    assert not (workspace.store.root / "corpora").exists()
