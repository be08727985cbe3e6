"""`topcoat targets`: what it prints of a directory of targets."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.builds.targets import entries
from pipeline.cli.main import parser
from pipeline.cli.targets import targets
from pipeline.errors import MissingResource, NotSupported, SettingsError, UsageError
from pipeline.fuzz.sanitizers import loses
from pipeline.settings import load
from tests.builds.elves import LIBFUZZER, Elf
from tests.builds.linux import debs
from tests.builds.targets.packages import Package, library, target
from tests.conftest import Workspace

ASAN = bytes(Elf(text=LIBFUZZER, exported=("__asan_init",)))

Run = Callable[..., str]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    made = Package(tmp_path)
    for name in ("FUCHSIA_DIR", "FUCHSIA_RESOURCES_DIR", "TOPCOAT_ROOT", "LUIGI_CONFIG_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TOPCOAT_TARGETS", str(made.directory))
    monkeypatch.chdir(tmp_path)
    return made


@pytest.fixture
def run(package: Package, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run `topcoat targets` with these words, and return what it prints."""

    def run(*words: str) -> str:
        options = parser().parse_args(["targets", *words])
        assert options.run is targets
        status = targets(load(), options)
        out, errors = capsys.readouterr()
        assert errors == ""
        nothing = out.startswith("no targets in ") and "left out:" not in out
        assert status == (
            20 if nothing or (words == ("--json",) and '"hint"' not in out and '"engine"' not in out) else 0
        )
        return out

    yield run
    assert not Path("out").exists(), "nothing is made"


@pytest.fixture
def filled(package: Package) -> Package:
    package.program("xml_fuzzer", ASAN)
    package.put("xml_fuzzer.dict", b'"x"\n')
    package.put("xml_fuzzer_seed_corpus.zip")
    package.put("xml_fuzzer_seed_corpus/1")
    package.program("deep/a", target("libz.so.1", "libown.so", "libstdc++.so.6"))
    package.put("deep/a.options", b"[libfuzzer]\nmax_len = 9\nruns = 5\n")
    package.put("lib/libown.so", library())
    package.put("b_fuzzer", ASAN)
    package.put("ordinary.o")
    package.program("tool", b"#!/bin/sh")
    return package


def test_the_table(filled: Package, run: Run) -> None:
    table, passed_over, left_out = run().split("\n\n")
    lines = table.splitlines()
    assert [re.split("  +", line) for line in lines] == [
        ["target", "engine", "sanitizers", "dictionary", "seeds", "libraries", "size"],
        ["expat/a", "libFuzzer", "none", "-", "-", "libown.so libz.so.1 (Debian)", "545 B"],
        ["expat/xml_fuzzer", "libFuzzer", "address", "xml_fuzzer.dict", "directory zip", "-", "474 B"],
    ]
    assert {line.index(word) for line, word in zip(lines, ("engine", "libF", "libF"), strict=True)} == {18}
    assert passed_over.splitlines() == [
        "to note:",
        "  expat/a: a.options: runs = 5 is passed over: slices have limits of their own: see budget and slice",
    ]
    assert left_out.splitlines() == ["left out:", "  b_fuzzer: it may not be executed (chmod +x b_fuzzer)"]


def test_all_other_files(filled: Package, run: Run) -> None:
    _, _, left_out = run("--all").partition("\nleft out:\n")
    assert left_out.splitlines() == [
        "  b_fuzzer: it may not be executed (chmod +x b_fuzzer)",
        "  ordinary.o: it is an object file, not a program",
        "  tool: it is a script",
    ]


def test_for_machines(filled: Package, run: Run) -> None:
    """A frozen sample: what is in it stays."""
    answer = json.loads(run("--json"))
    assert answer == {
        "schema": 1,
        "package": "expat",
        "directory": str(filled.directory),
        "targets": [
            {
                "name": "expat/a",
                "program": "deep/a",
                "bytes": (filled.directory / "deep/a").stat().st_size,
                "engine": "libFuzzer",
                "sanitizers": [],
                "dictionary": None,
                "options": "deep/a.options",
                "seeds": [],
                "libraries": ["libown.so", "libz.so.1"],
                "problems": [
                    "a.options: runs = 5 is passed over: slices have limits of their own: see budget and slice"
                ],
            },
            {
                "name": "expat/xml_fuzzer",
                "program": "xml_fuzzer",
                "bytes": len(ASAN),
                "engine": "libFuzzer",
                "sanitizers": ["address"],
                "dictionary": "xml_fuzzer.dict",
                "options": None,
                "seeds": ["xml_fuzzer_seed_corpus", "xml_fuzzer_seed_corpus.zip"],
                "libraries": [],
                "problems": [],
            },
        ],
        "left_out": [
            {"path": "b_fuzzer", "reason": "it may not be executed", "hint": "chmod +x b_fuzzer", "broken": True}
        ],
        "from_debian": {"libz.so.1": ["a"]},
    }
    assert [one["path"] for one in json.loads(run("--json", "--all"))["left_out"]] == ["b_fuzzer", "ordinary.o", "tool"]


class TestPatterns:
    def test_of_full_names(self, filled: Package, run: Run) -> None:
        def told(*patterns: str) -> list[str]:
            return [one["name"] for one in json.loads(run("--json", *patterns))["targets"]]

        assert told("expat/a") == ["expat/a"]
        assert told("expat/*") == ["expat/a", "expat/xml_fuzzer"]
        assert told("*/*_fuzzer", "expat/[ab]") == ["expat/a", "expat/xml_fuzzer"]
        assert told("other/*") == []

    def test_what_is_left_out_is_asked_for_in_the_same_way(self, filled: Package, run: Run) -> None:
        assert "left out" not in run("expat/a", "--all")
        assert run("expat/b_fuzzer").splitlines() == [
            "no target has a name like expat/b_fuzzer; full names are meant, such as expat/*",
            "",
            "left out:",
            "  b_fuzzer: it may not be executed (chmod +x b_fuzzer)",
        ]

    def test_names_without_the_package(self, filled: Package, run: Run) -> None:
        assert run("xml*", "a\n") == ("no target has a name like xml* or a\\n; full names are meant, such as expat/*\n")

    def test_a_malformed_one_is_refused_whatever_there_is(self, run: Run) -> None:
        with pytest.raises(UsageError):
            run("[")


def test_no_targets(package: Package, run: Run) -> None:
    assert run() == f"no targets in {package.directory}\n"
    package.put("README")
    assert run() == f"no targets in {package.directory}\n"
    assert json.loads(run("--json"))["targets"] == []


def test_targets_that_are_not_compiled_yet(package: Package, run: Run) -> None:
    package.says('[[target]]\nname = "parse"\n')
    assert run().splitlines() == [
        f"no targets in {package.directory}",
        "",
        "left out:",
        "  parse (parse.c): it has not been compiled yet (compile it: luigi --module tasks TargetsImage)",
    ]


class TestProblems:
    def test_of_options_and_of_the_variables_that_lose_findings(self, package: Package, run: Run) -> None:
        package.program("a")
        package.put(
            "a.options", b"[libfuzzer]\nmax_len = much\nmy_own = 1\nnonsense\n[asan]\nexitcode = 0\n[libfuzer]\n"
        )
        (told,) = json.loads(run("--json"))["targets"]
        (losing,) = loses({"ASAN_OPTIONS": "exitcode=0"})
        assert told["problems"] == [
            "a.options: line 4: nonsense is passed over: it is not of the form NAME = VALUE",
            "a.options: line 7: the section libfuzer is passed over: did you mean libfuzzer?",
            "a.options: max_len = much is passed over: it takes a whole number that fits 32 bits",
            f"a.options: {losing}",
        ]
        assert losing.startswith("exitcode=0 in ASAN_OPTIONS: ")

    def test_of_dictionaries(self, package: Package, run: Run) -> None:
        package.program("a")
        package.program("b")
        package.put("a.dict", b"wrong")
        package.put("b.options", b"[libfuzzer]\ndict = gone.dict\n")
        wrong, missing = run().partition("to note:\n")[2].splitlines()
        assert wrong.startswith(
            "  expat/a: its dictionary a.dict is passed over, as libFuzzer would not start: line 1: "
        )
        assert missing == "  expat/b: its options name the dictionary gone.dict, which is not there"
        package.put("gone.dict", b'"x"\n')
        assert json.loads(run("--json"))["targets"][1]["dictionary"] == "gone.dict"

    def test_a_huge_file_of_options(self, package: Package, run: Run) -> None:
        package.program("a")
        with (package.directory / "a.options").open("wb") as stream:
            stream.truncate(1 << 40)
        (told,) = json.loads(run("--json"))["targets"]
        assert told["problems"] == ["a.options: it has 65537 bytes, more than 65536, and was not read"]


def test_odd_files(package: Package, run: Run) -> None:
    """Nothing of a name or a file gets to the terminal as it is, and nothing odd is opened."""
    package.program("odd\x1b[31m\n_fuzzer", b"text")
    package.program(os.fsdecode(b"\xff_fuzzer"))
    package.program("loads", target("lib\x1b[31m\n.so"))
    package.program("x_fuzzer", b"\x7fELF")
    os.mkfifo(package.directory / "pipe_fuzzer")
    (package.directory / "circle_fuzzer").symlink_to("circle_fuzzer")
    (package.directory / "out_fuzzer").symlink_to("/bin/sh")
    text = run("--all")
    assert text.isprintable() or set(text) - {"\n"} <= set(filter(str.isprintable, text))
    lines = text.splitlines()
    assert lines[1].split()[:4] == ["expat/loads", "libFuzzer", "none", "-"]
    assert r"lib\n.so (Debian)" in lines[1]
    reasons = dict(line.strip().split(": ", 1) for line in lines if line.startswith("  "))
    assert reasons.keys() == {
        r"odd\n_fuzzer", "_fuzzer", "x_fuzzer", "pipe_fuzzer", "circle_fuzzer", "out_fuzzer",
    }  # fmt: skip
    assert reasons["out_fuzzer"] == "it is a link that leads out of the directory (put the file itself there)"
    assert json.loads(run("--json", "--all"))["targets"][0]["libraries"] == ["lib\x1b[31m\n.so"]


def test_the_glibc_of_the_guest_is_known_once_there_are_its_packages(
    package: Package, capsys: pytest.CaptureFixture[str]
) -> None:
    package.program("a", target(glibc="2.99"))

    def told() -> str:
        targets(load(), parser().parse_args(["targets"]))
        return capsys.readouterr().out

    assert "expat/a  libFuzzer" in told()
    debs.write(Path("out/demo/packages"), "libc6", {}, version="2.36-9+deb12u13")
    assert "  a: it needs glibc 2.99, and the guest has 2.36" in told()


def test_many_files(package: Package, run: Run) -> None:
    for number in range(3000):
        package.put(f"data/{number}")
    for number in range(100):
        package.program(f"f{number:02}_fuzzer")
    assert len(run().splitlines()) == 101


class TestRefusals:
    """One error, with a hint."""

    def test_a_build_of_fuchsia(self, package: Package, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TOPCOAT_TARGETS")
        monkeypatch.setenv("FUCHSIA_RESOURCES_DIR", "/bundle")
        with pytest.raises(NotSupported, match=r"^the clusterfuzz build has no directory of targets") as caught:
            run()
        assert caught.value.hint == "to look at targets for the Linux guest: TOPCOAT_TARGETS=DIR topcoat targets"

    def test_a_directory_that_is_not_there(self, package: Package, run: Run) -> None:
        package.directory.rmdir()
        with pytest.raises(SettingsError, match="the directory of targets cannot be read") as caught:
            run()
        assert caught.value.hint == "name the directory that holds the targets, such as $OUT of a build of OSS-Fuzz"

    def test_a_directory_that_holds_too_much(self, filled: Package, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(entries, "MOST_ENTRIES", 3)
        with pytest.raises(SettingsError, match="holds more than 3 files"):
            run()

    def test_a_wrong_file_of_sources(self, package: Package, run: Run) -> None:
        package.says("[[target]]\nnam = 1")
        with pytest.raises(SettingsError, match=r"\[\[target\]\] number 1: there is no key 'nam'"):
            run()

    def test_nothing_is_named(self, package: Package, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TOPCOAT_TARGETS")
        Path("luigi.cfg").write_text("[build]\nkind = linux\n")
        with pytest.raises(MissingResource, match="nothing says where the targets are") as caught:
            run()
        assert caught.value.hint == "name their directory: TOPCOAT_TARGETS=DIR, or [build] targets = DIR"


@pytest.mark.parametrize("wrong", ["missing", "sources"])
def test_whole_programs_say_one_error_and_what_needs_no_targets_works(workspace: Workspace, wrong: str) -> None:
    place = workspace.directory / "mine"
    if wrong == "sources":
        place.mkdir()
        (place / "topcoat-targets.toml").write_text("x")
    workspace.environment["TOPCOAT_TARGETS"] = str(place)
    for words in (
        ("topcoat", "targets"), ("topcoat", "why"), ("topcoat", "plan"), ("luigi", "--module", "tasks", "BootInstance"),
    ):  # fmt: skip
        done = workspace.run(*words)
        assert done.status == 2, done.text
        assert b"Traceback" not in done.stderr
        assert [line.startswith(b"error: ") for line in done.stderr.splitlines()].count(True) == 1, done.text
        assert b"\n  hint: " in done.stderr
        assert str(place).encode() in done.stderr
    assert workspace.topcoat("doctor").stdout.startswith(b"error    build: ")
    for command in (("instances",), ("stop", "--all")):
        done = workspace.topcoat(*command)
        assert (done.status, b"error" in done.stderr) == (0, False), done.text
