"""`topcoat corpus`."""

import json
from pathlib import Path

import pytest

from pipeline.fuzz.corpus import Corpus, Coverage, Manifest, MergeRecord, Unit
from pipeline.settings import DAY
from tests.conftest import Workspace
from tests.fuzz.corpus.conftest import make_old
from tests.tasks.runs import in_a_namespace

MAZE = "example-fuzzers/maze_fuzzer"
SOME = Coverage(20, 31)
MERGE = MergeRecord("2026-11-25T14:00:00Z", 1200, 2, Coverage(20, 3100), Coverage(20, 3099))


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


@pytest.fixture
def merged(workspace: Workspace, corpus: Corpus) -> Corpus:
    """The same after a merge, with times that do not change, beside one that has nothing but a unit in quarantine."""
    units = {name: Unit(name, unit.bytes, "2026-11-25T13:00:00Z", "seed") for name, unit in corpus.units().items()}
    last = "2026-11-25T15:00:00Z"
    units[max(units)] = units[max(units)]._replace(added=last)
    (corpus.directory / "manifest.json").write_text(json.dumps(Manifest(units, 3, MERGE).encode()))
    Corpus.of(workspace.store.root, "net/dns").quarantine(b"x", "it crashes")
    return corpus


def test_all_are_listed(workspace: Workspace, merged: Corpus) -> None:
    done = workspace.topcoat("corpus", "list")
    assert (done.status, done.stderr) == (0, b"")
    assert done.stdout.decode() == (
        "fuzzer                       last unit             last merge          "
        "  units  size  in quarantine  merged units  merged features  replaced units\n"
        "example-fuzzers/maze_fuzzer  2026-11-25T15:00:00Z  2026-11-25T14:00:00Z"
        "      2   8 B              1    1,200 -> 2   3,100 -> 3,099               -\n"
        "net/dns                      -                     -                   "
        "      0   0 B              1             -                -               -\n"
    )


def test_units_for_a_store_that_is_mounted_read_only(workspace: Workspace, directory: Path) -> None:
    (workspace.store.root / "corpora" / MAZE).mkdir(parents=True)
    mount = 'mount --bind "$ROOT" "$ROOT" && mount -o remount,bind,ro "$ROOT"'
    status, text = in_a_namespace(workspace, mount, f"topcoat corpus import {MAZE} {directory}")
    assert status == 30
    assert "Read-only file system" in text
    assert "hint: the file system is mounted read-only" in text


def test_for_machines(workspace: Workspace, merged: Corpus) -> None:
    done = workspace.topcoat("corpus", "list", "--json", "*/maze_*")
    assert (done.status, done.stderr) == (0, b"")
    assert json.loads(done.stdout) == {
        "schema": 1,
        "corpora": [
            {
                "fuzzer": MAZE,
                "directory": str(merged.directory),
                "units": 2,
                "bytes": 8,
                "quarantined": 1,
                "last_unit": "2026-11-25T15:00:00Z",
                "merges": 3,
                "last_merge": {
                    "at": "2026-11-25T14:00:00Z",
                    "units_before": 1200,
                    "units_after": 2,
                    "before": {"edges": 20, "features": 3100},
                    "after": {"edges": 20, "features": 3099},
                },
                "replaced": 0,
                "replaced_bytes": 0,
            }
        ],
        "failed": [],
    }


@pytest.mark.parametrize(
    ("patterns", "listed"),
    [
        (("net/*",), ["net/dns"]),
        (("*/dns", MAZE, "net/*"), [MAZE, "net/dns"]),
        (("*/*",), [MAZE, "net/dns"]),
    ],
)
def test_those_are_listed_that_any_pattern_asks_for(
    workspace: Workspace, merged: Corpus, patterns: tuple[str, ...], listed: list[str]
) -> None:
    done = workspace.topcoat("corpus", "list", *patterns)
    assert (done.status, done.stderr) == (0, b"")
    assert [line.split()[0] for line in done.stdout.decode().splitlines()[1:]] == listed


def test_what_is_no_corpus_is_not_listed(workspace: Workspace, merged: Corpus) -> None:
    root = workspace.store.root / "corpora"
    before = workspace.topcoat("corpus", "list").stdout
    for name in (".net.tmp/dns", "net/.dns.tmp", "net/two words"):
        (root / name).mkdir(parents=True)
    (root / "net/file").touch()
    done = workspace.topcoat("corpus", "list")
    assert (done.status, done.stdout, done.stderr) == (0, before, b"")


def test_without_any_that_is_said(workspace: Workspace) -> None:
    done = workspace.topcoat("corpus", "list")
    assert (done.status, done.stdout) == (0, b"")
    assert done.stderr.startswith(b"no corpora yet in ")
    assert json.loads(workspace.topcoat("corpus", "list", "--json").stdout) == {
        "schema": 1,
        "corpora": [],
        "failed": [],
    }


def test_a_damaged_one_is_told_and_the_others_are_listed(workspace: Workspace, corpus: Corpus) -> None:
    Corpus.of(workspace.store.root, "net/dns").add([b"x"], "seed")
    (workspace.store.root / "corpora/net/dns/manifest.json").write_text("{")
    done = workspace.topcoat("corpus", "list")
    assert done.status == 30
    assert [line.split()[0] for line in done.stdout.decode().splitlines()] == ["fuzzer", MAZE]
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("net/dns: the corpus of net/dns cannot be understood: ")
    assert line.endswith(
        "(was it written by another version? if not, move that file away: it is made anew from the units)"
    )
    done = workspace.topcoat("corpus", "list", "--json")
    assert (done.status, done.stderr.decode().splitlines()) == (30, [line])
    told = json.loads(done.stdout)
    assert [one["fuzzer"] for one in told["corpora"]] == [MAZE]
    (failed,) = told["failed"]
    assert f"{failed['fuzzer']}: {failed['reason']} ({failed['hint']})" == line
    assert workspace.topcoat("corpus", "list", MAZE).status == 0


def test_what_is_exported_comes_back(workspace: Workspace, corpus: Corpus) -> None:
    done = workspace.topcoat("corpus", "export", MAZE, "out-there")
    assert (done.status, done.stdout, done.stderr) == (0, b"out-there: 2 new\n", b"")
    assert {path.name for path in (workspace.directory / "out-there").iterdir()} == set(corpus.units())
    assert workspace.topcoat("corpus", "export", MAZE, "out-there").stdout == b"out-there: 0 new\n"
    done = workspace.topcoat("corpus", "import", "other/fuzzer", "out-there")
    assert (done.status, done.stdout, done.stderr) == (0, b"out-there: 2 new, 0 known\n", b"")
    assert set(Corpus.of(workspace.store.root, "other/fuzzer").units()) == set(corpus.units())


def test_an_export_leaves_alone_what_is_there(workspace: Workspace, corpus: Corpus) -> None:
    there = workspace.directory / "there"
    there.mkdir()
    (there / "notes.txt").write_text("mine")
    assert workspace.topcoat("corpus", "export", MAZE, "there").stdout == b"there: 2 new\n"
    (there / min(corpus.units())).write_text("mine too")
    done = workspace.topcoat("corpus", "export", MAZE, "there")
    assert (done.status, done.stdout) == (2, b"")
    assert b"is there, and is not the unit" in done.stderr
    assert (there / "notes.txt").read_text() == "mine"
    assert (there / min(corpus.units())).read_text() == "mine too"


@pytest.mark.parametrize("where", ["file", "file/below/it", "link"])
def test_an_export_needs_a_directory(workspace: Workspace, corpus: Corpus, where: str) -> None:
    (workspace.directory / "file").write_text("mine")
    (workspace.directory / "link").symlink_to("nowhere")
    done = workspace.topcoat("corpus", "export", MAZE, where)
    assert (done.status, done.stdout) == (2, b"")
    assert done.stderr.decode().splitlines() == [
        f"error: {where.split('/')[0]} is no directory",
        "  hint: name one that is there, or one to be made",
    ]
    assert (workspace.directory / "file").read_text() == "mine"


def test_what_is_imported_is_counted(workspace: Workspace, corpus: Corpus, directory: Path) -> None:
    done = workspace.topcoat("corpus", "import", MAZE, "elsewhere")
    assert (done.status, done.stdout) == (0, b"elsewhere: 1 new, 1 known; 1 in quarantine, such as elsewhere/c\n")
    assert {unit.source for unit in corpus.units().values()} == {"seed", "import"}


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        (MAZE, ""),
        (
            "example-fuzzers/mazy_fuzzer",
            f"warning: no fuzzer of the build is named example-fuzzers/mazy_fuzzer (did you mean {MAZE}?)\n",
        ),
    ],
)
def test_a_fuzzer_that_the_build_has_not_is_warned_of(
    workspace: Workspace, directory: Path, name: str, warning: str
) -> None:
    known = [{"label": "//maze", "package": "example-fuzzers", "fuzzer": "maze_fuzzer"}]
    (workspace.directory / "fuzzers.json").write_text(json.dumps(known))
    (workspace.directory / "tests.json").write_text("[]")
    workspace.configure("[build]\nfuzzers.json = fuzzers.json\ntests.json = tests.json\n")
    done = workspace.topcoat("corpus", "import", name, "elsewhere")
    assert (done.status, done.stdout, done.stderr.decode()) == (0, b"elsewhere: 3 new, 0 known\n", warning)


def test_a_damaged_build_does_not_stop_an_import(workspace: Workspace, directory: Path) -> None:
    (workspace.directory / "fuzzers.json").write_text("{")
    workspace.configure("[build]\nfuzzers.json = fuzzers.json\n")
    done = workspace.topcoat("corpus", "import", MAZE, "elsewhere")
    assert (done.status, done.stdout, done.stderr) == (0, b"elsewhere: 3 new, 0 known\n", b"")


def test_the_limits_are_those_of_campaigns(workspace: Workspace, directory: Path) -> None:
    workspace.configure("[campaign]\nunit_size = 3\ncorpus_units = 1\n")
    said = workspace.topcoat("corpus", "import", MAZE, "elsewhere").stdout.decode()
    assert said == (
        "elsewhere: 1 new, 0 known; 1 larger than [campaign] unit_size, such as elsewhere/c; "
        "1 beyond [campaign] corpus_size or corpus_units, such as elsewhere/below/b\n"
    )


def test_what_a_merge_has_dropped_comes_back_for_whoever_asks_for_it(
    workspace: Workspace, corpus: Corpus, directory: Path
) -> None:
    given = set(corpus.units())
    assert corpus.replace(given, [min(given)], [], before=SOME, after=SOME, tolerance=0.0, source="merge")
    (directory / "dropped").write_bytes(b"three")
    (directory / "link").symlink_to("dropped")
    workspace.topcoat("corpus", "import", MAZE, "elsewhere")
    assert given < set(corpus.units())


def test_what_a_merge_has_dropped_is_told_and_comes_back(workspace: Workspace, corpus: Corpus) -> None:
    given = set(corpus.units())
    corpus.add([b"bad"], "seed")
    assert corpus.replace(corpus.units(), [min(given)], [], before=SOME, after=SOME, tolerance=0.0, source="merge")
    size = sum(unit.bytes for unit in corpus.replaced().values())
    listed = workspace.topcoat("corpus", "list").stdout.decode().splitlines()[1]
    assert listed.endswith(f"  2 ({size} B)")
    (told,) = json.loads(workspace.topcoat("corpus", "list", "--json").stdout)["corpora"]
    assert (told["units"], told["replaced"], told["replaced_bytes"]) == (1, 2, size)
    corpus.quarantine(b"bad", "it crashes")
    done = workspace.topcoat("corpus", "restore", MAZE)
    assert (done.status, done.stdout, done.stderr) == (0, f"{MAZE}: 1 restored\n".encode(), b"")
    assert set(corpus.units()) == given
    done = workspace.topcoat("corpus", "restore", MAZE)
    assert (done.status, done.stdout) == (0, f"{MAZE}: 0 restored\n".encode())


def test_what_is_restored_keeps_to_the_limits(workspace: Workspace, corpus: Corpus) -> None:
    assert corpus.replace(corpus.units(), [], [b"new"], before=SOME, after=SOME, tolerance=0.0, source="merge")
    workspace.configure("[campaign]\ncorpus_units = 2\n")
    said = workspace.topcoat("corpus", "restore", MAZE).stdout.decode()
    assert said.startswith(f"{MAZE}: 1 restored; 1 beyond [campaign] corpus_size or corpus_units, such as ")
    assert len(corpus.replaced()) == 1


def test_gc_lets_go_what_was_kept_for_as_long_as_is_set(workspace: Workspace, corpus: Corpus) -> None:
    assert corpus.replace(corpus.units(), [], [b"new"], before=SOME, after=SOME, tolerance=0.0, source="merge")
    make_old(corpus, 1, 2 * DAY)
    assert "units" not in workspace.topcoat("gc", "--yes").text
    workspace.configure("[campaign]\nkeep_replaced = 1d\n")
    assert "reclaimed units " in workspace.topcoat("gc", "--yes").text
    assert corpus.replaced() == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("import", MAZE, "nowhere"), "there is no directory nowhere"),
        (("import", MAZE, "elsewhere", "elsewhere/a"), "there is no directory elsewhere/a"),
        (("import", "maze", "elsewhere"), "'maze' cannot be the name of a fuzzer"),
        (("import", "../x", "elsewhere"), "'../x' cannot be the name of a fuzzer"),
        (("export", "net/dns", "somewhere"), "there are no units of net/dns in "),
        (("restore", "net/dns"), "there is no corpus of net/dns in "),
        (("list", "*/maze"), "there is no corpus of */maze in "),
        (("list", "["), "syntax error in pattern: '['"),
    ],
)
def test_mistakes_are_explained(workspace: Workspace, directory: Path, words: tuple[str, ...], said: str) -> None:
    done = workspace.topcoat("corpus", *words)
    assert (done.status, done.stdout) == (2, b"")
    first, hint = done.stderr.decode().splitlines()
    assert first.startswith(f"error: {said}")
    assert hint.startswith("  hint: ")
    assert not (workspace.store.root / "corpora").exists()
