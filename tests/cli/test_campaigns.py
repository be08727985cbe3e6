"""`topcoat campaign`, as it is typed: what it prints, and its exit codes."""

import json

import pytest

from pipeline.builds.targets.listing import ListedOmission, TargetsListing
from pipeline.campaign import ledger
from pipeline.campaign.ledger import Seeded
from pipeline.fuzz.corpus import Corpus
from pipeline.fuzz.corpus.files import name_of
from tests.conftest import Workspace
from tests.waiting import SOON

FILE = """name = "nightly"
fuzzers = ["example-fuzzers/*"]
[options]
max_len = 4096
[[fuzzer]]
name = "*/maze_fuzzer"
budget = "90s"
options = { timeout = 5 }
dictionary = "maze.dict"
seeds = ["seeds"]
[[fuzzer]]
name = "*/crash_fuzzer"
budget = { runs = 100000 }
"""


def fuzzers(*names: str) -> str:
    return json.dumps([{"label": f"//{name}", "package": "example-fuzzers", "fuzzer": name} for name in names])


@pytest.fixture
def nightly(workspace: Workspace) -> Workspace:
    """A workspace with a campaign, and a build whose fuzzers are known."""
    (workspace.directory / "nightly.toml").write_text(FILE)
    (workspace.directory / "maze.dict").write_text('"up"\n')
    (workspace.directory / "seeds").mkdir()
    (workspace.directory / "seeds/a").write_text("a")
    (workspace.directory / "fuzzers.json").write_text(fuzzers("noop_fuzzer", "maze_fuzzer", "crash_fuzzer"))
    (workspace.directory / "tests.json").write_text("[]")
    workspace.configure("[build]\nfuzzers.json = fuzzers.json\ntests.json = tests.json\n[campaign]\nslice = 40\n")
    return workspace


def test_a_sound_file_becomes_a_table(nightly: Workspace) -> None:
    done = nightly.topcoat("campaign", "check", "nightly.toml")
    assert (done.status, done.stderr) == (0, b"")
    assert done.text.splitlines() == [
        "fuzzer                        budget        slice  slices  options                 dictionary  seeds",
        "example-fuzzers/crash_fuzzer  100,000 runs  40 s   -       max_len=4096            -           -",
        "example-fuzzers/maze_fuzzer   1m30s         40 s   3       max_len=4096 timeout=5  maze.dict   1 unit",
        "example-fuzzers/noop_fuzzer   10m00s        40 s   15      max_len=4096            -           -",
        "",
        "nightly: 3 fuzzers, 18 slices in 11m30s, 100,000 runs; seed 1, allocation gain",
    ]


def test_of_seeds_exactly_those_are_counted_that_would_be_imported(nightly: Workspace) -> None:
    seeds = nightly.directory / "seeds"
    nightly.configure((nightly.directory / "luigi.cfg").read_text() + "unit_size = 8\n")
    for name, text in {"b": "b", "same": "b", "large": "much too large", "larger": "much too large!"}.items():
        (seeds / name).write_text(text)
    (seeds / "dangling").symlink_to("nowhere")
    (seeds / "link").symlink_to("../maze.dict")
    maze = Corpus.of(nightly.store.root, "example-fuzzers/maze_fuzzer")
    maze.quarantine(b"a", "it crashes")
    done = nightly.topcoat("campaign", "check", "nightly.toml")
    assert done.stdout.decode().splitlines()[2].endswith("maze.dict   2 units"), "b, and what the link leads to"
    warning = "nightly.toml: warning: seeds left out: "
    assert [line.partition(" (")[0].removeprefix(warning) for line in done.stderr.decode().splitlines()] == [
        f"1 in quarantine, such as {seeds}/a",
        f"2 larger than [campaign] unit_size, such as {seeds}/large",
        f"1 no files that can be read, such as {seeds}/dangling",
    ]
    assert maze.units() == {}, "it is only asked"
    told = json.loads(nightly.topcoat("campaign", "check", "--json", "nightly.toml").stdout)
    assert [(one["file"], one["key"]) for one in told["warnings"]] == [("nightly.toml", "seeds")] * 3


def test_seeds_that_the_campaign_has_brought_and_a_merge_has_dropped_are_not_counted(nightly: Workspace) -> None:
    (nightly.directory / "seeds/b").write_text("b")
    maze = Corpus.of(nightly.store.root, "example-fuzzers/maze_fuzzer")
    maze.add([b"b"], "seed")
    with ledger.opened(nightly.store.campaigns / "nightly/ledger.jsonl", SOON) as book:
        book.append(Seeded(maze.fuzzer, tuple(sorted(map(name_of, (b"a", b"b")))), 2))
    done = nightly.topcoat("campaign", "check", "nightly.toml")
    assert done.stdout.decode().splitlines()[2].endswith("maze.dict   1 unit"), done.text


def test_for_machines(nightly: Workspace) -> None:
    done = nightly.topcoat("campaign", "check", "--json", "nightly.toml")
    assert (done.status, done.stderr) == (0, b"")
    told = json.loads(done.stdout)
    assert list(told) == ["definition", "not_expanded", "problems", "schema", "warnings"]
    assert (told["schema"], told["not_expanded"], told["problems"], told["warnings"]) == (1, None, [], [])
    maze = told["definition"]["fuzzers"][1]
    assert maze.pop("digest").startswith("b3:")
    assert maze == {
        "budget": {"seconds": 90},
        "dictionary": str(nightly.directory / "maze.dict"),
        "environment": {},
        "name": "example-fuzzers/maze_fuzzer",
        "options": {"max_len": "4096", "timeout": "5"},
        "seeds": [str(nightly.directory / "seeds")],
        "slice": 40,
    }


def test_every_problem_has_a_line_of_its_own(nightly: Workspace) -> None:
    text = FILE.replace("max_len", "mx_len").replace("budget =", "bugdet =").replace("*/crash_", "*/crahs_")
    (nightly.directory / "nightly.toml").write_text(text)
    (nightly.directory / "maze.dict").write_text("\nup\n")
    done = nightly.topcoat("campaign", "check", "nightly.toml")
    assert (done.status, done.stdout) == (2, b"")
    hint = 'write "value" or name="value"; # begins a comment'
    known = ", ".join(f"example-fuzzers/{name}_fuzzer" for name in ("crash", "maze", "noop"))
    assert done.text.splitlines() == [
        "nightly.toml:4: warning: libFuzzer has no option mx_len (did you mean max_len?)",
        f"maze.dict:2: an entry of a dictionary is a text in double quotes ({hint})",
        "nightly.toml:7: there is no key bugdet here (did you mean budget?)",
        f"nightly.toml:12: no fuzzer of the build is named */crahs_fuzzer (did you mean {known}?)",
        "nightly.toml:13: there is no key bugdet here (did you mean budget?)",
    ]


def test_a_fuzzer_that_is_not_compiled_yet_is_not_taken_for_a_wrong_name(workspace: Workspace) -> None:
    made = workspace.store.images("demo") / "targets"
    made.mkdir(parents=True)
    reason, again = "it has not been compiled yet", "compile it: luigi --module tasks TargetsImage"
    left_out = ListedOmission("example-fuzzers", "crash_fuzzer.c", "crash_fuzzer", reason, again)
    (made / "targets.json").write_text(json.dumps(TargetsListing((), (left_out,)).encode()))
    (workspace.directory / "n.toml").write_text('name = "n"\nfuzzers = ["*/crash_fuzzer"]\n')
    (workspace.directory / "units").mkdir()
    (workspace.directory / "units/a").write_text("a")
    why = f"({reason}; {again})"
    check = workspace.topcoat("campaign", "check", "n.toml")
    assert (check.status, check.text) == (2, f"n.toml:2: no fuzzer of the build is named */crash_fuzzer {why}\n")
    imported = workspace.topcoat("corpus", "import", "example-fuzzers/crash_fuzzer", "units")
    assert f"no fuzzer of the build is named example-fuzzers/crash_fuzzer {why}" in imported.text


def test_problems_for_machines(nightly: Workspace) -> None:
    (nightly.directory / "nightly.toml").write_text(FILE.replace("90s", "90x"))
    done = nightly.topcoat("campaign", "check", "nightly.toml", "--json")
    assert (done.status, done.stderr) == (2, b"")
    told = json.loads(done.stdout)
    assert told["definition"] is None
    assert told["problems"] == [
        {
            "file": "nightly.toml",
            "line": 7,
            "key": "fuzzer[0].budget",
            "message": "budget = '90x' cannot be used",
            "hint": "write seconds, or a number with s, m, h or d, such as 10m",
        }
    ]


def test_before_the_fuzzers_are_known_the_file_alone_is_checked(nightly: Workspace) -> None:
    nightly.configure("")
    done = nightly.topcoat("campaign", "check", "nightly.toml")
    assert done.status == 0
    assert done.stdout == b"nightly.toml: nothing is wrong with the file itself\n"
    assert done.stderr.startswith(b"not compared with the fuzzers of the build: the list of the guest's targets is not")
    told = json.loads(nightly.topcoat("campaign", "check", "nightly.toml", "--json").stdout)
    assert told["definition"] is None
    assert told["not_expanded"].startswith("the list of the guest's targets is not there: ")
    (nightly.directory / "nightly.toml").write_text(FILE.replace("90s", "90x"))
    assert nightly.topcoat("campaign", "check", "nightly.toml").status == 2


def test_a_damaged_list_of_fuzzers_is_not_passed_over(nightly: Workspace) -> None:
    (nightly.directory / "fuzzers.json").write_text("{")
    done = nightly.topcoat("campaign", "check", "nightly.toml")
    assert done.status == 20
    assert "fuzzers.json: it is no JSON" in done.text


def test_a_file_that_is_not_there(nightly: Workspace) -> None:
    done = nightly.topcoat("campaign", "check", "gone.toml")
    assert (done.status, done.text) == (2, "gone.toml: No such file or directory (name the campaign's file)\n")


def test_wrong_usage(workspace: Workspace) -> None:
    for words in ((), ("check",), ("chek", "x"), ("check", "x", "--jsn")):
        done = workspace.topcoat("campaign", *words)
        assert done.status == 2
        assert "usage: topcoat" in done.text
