"""`topcoat crash repro`, `minimise`, `bundle` and `replay`, with guests of a script."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.fuzz.crashes import bundle
from pipeline.text.printable import is_plain
from tests.campaign.scripted_tries import DIES, EXITS, HANGS, A, bucket_of
from tests.cli.test_crashes import BAD, HOSTILE
from tests.conftest import Outcome, Workspace
from tests.tasks.test_triage import SLUG, Triage, crash

OTHER = bucket_of("average")
INPUT = b"crash! and more"


@pytest.fixture
def triage(workspace: Workspace) -> Triage:
    made = Triage(workspace)
    made.store.add(crash(INPUT))
    return made


def said(done: Outcome) -> tuple[list[str], int]:
    """The lines on stdout, and how often the fuzzer was run."""
    assert "Traceback" not in done.text, done.text
    text, _, runs = done.stdout.decode().rpartition("runs: ")
    return text.splitlines(), int(runs)


def answer(done: Outcome) -> dict[str, Any]:
    found: dict[str, Any] = json.loads("\n".join(said(done)[0]))
    return found


class TestRepro:
    def test_the_same_crash(self, triage: Triage) -> None:
        done = triage.topcoat("crash", "repro", "deadly-signal-parse", "--tries", "3")
        lines, runs = said(done)
        assert (done.status, runs) == (0, 3)
        (evidence,) = (triage.place / "verdicts").glob("*.txt")
        assert lines[:2] == [f"{SLUG} of {A}: same bucket", "  same bucket  3 of 3"]
        assert lines[2].startswith("build b3:first: still there 3 of 3; 1 input, tried at 2")
        assert lines[3:] == [
            f"what the runs have said: out/crashes/{A}/{SLUG}/{evidence.relative_to(triage.place)}",
        ]
        again = triage.topcoat("crash", "repro", SLUG, "--tries", "3")
        assert (again.status, said(again)) == (0, (lines, 0)), "what is known is only told"

    @pytest.mark.parametrize(
        ("does", "told", "way", "code"),
        [
            ("average", f"other bucket {OTHER}", f"{OTHER}  2 of 2", 1),
            ("", "none", "none  2 of 2", 1),
            (HANGS, "timeout", "timeout  2 of 2", 30),
            (DIES, "guest lost", "guest lost  2 of 2", 30),
        ],
    )
    def test_anything_else(self, triage: Triage, does: str, told: str, way: str, code: int) -> None:
        done = triage.topcoat("crash", "repro", SLUG, "--tries", "2", crashes_in=does)
        lines, _ = said(done)
        assert (done.status, lines[:2]) == (code, [f"{SLUG} of {A}: {told}", f"  {way}"]), done.text
        assert (triage.place / "1/input").read_bytes() == INPUT

    def test_for_machines(self, triage: Triage) -> None:
        done = triage.topcoat("crash", "repro", SLUG, "--tries", "2", "--json")
        found = answer(done)
        assert (done.status, found["schema"], found["outcome"], found["same"], found["tries"]) == (
            *(0, 1),
            *("same bucket", 2, 2),
        )
        assert Path(found["output"]).read_text().startswith(f"=== {SLUG}: input ")
        assert (found["build"], found["word"], found["trouble"]) == ("b3:first", "still there 2 of 2", None)

    def test_a_fuzzer_that_cannot_be_run(self, triage: Triage) -> None:
        done = triage.topcoat("crash", "repro", SLUG, crashes_in=EXITS)
        assert (done.status, said(done)[0][0]) == (
            30,
            f"{SLUG} of {A}: not run: the process ended before its input was done",
        )

    @pytest.mark.parametrize("command", ["repro", "minimise"])
    def test_mistakes(self, triage: Triage, command: str) -> None:
        done = triage.topcoat("crash", command, "deadly-signal-pars-x")
        assert (done.status, "there is no bucket deadly-signal-pars-x" in done.text) == (2, True)
        done = triage.topcoat("crash", command, SLUG, "--tries", "0")
        assert (done.status, "--tries 0: nothing would be tried" in done.text) == (2, True)


class TestMinimise:
    def test_it_becomes_smaller(self, triage: Triage) -> None:
        done = triage.topcoat("crash", "minimise", SLUG)
        lines, runs = said(done)
        assert done.status == 0, done.text
        assert lines[0] == f"{SLUG} of {A}: 15 -> 1 byte, confirmed 10 of 10"
        assert lines[1].startswith("minimal: no single byte can be removed or made plainer; ")
        assert lines[2:] == [f"out/crashes/{A}/{SLUG}/minimised/input"]
        assert runs > 20
        done = triage.topcoat("crash", "minimise", SLUG, "--json")
        found = answer(done)
        assert (done.status, said(done)[1], found["original"]["size"], found["result"]["size"]) == (0, 0, 15, 1)
        assert Path(found["path"]).read_bytes() == b"!"

    def test_what_is_minimal_already(self, triage: Triage) -> None:
        triage.store.add(crash(b"!"))
        done = triage.topcoat("crash", "minimise", SLUG)
        assert (done.status, said(done)[0][0]) == (0, f"{SLUG} of {A}: 1 byte, as before")

    def test_what_does_not_come_again(self, triage: Triage) -> None:
        done = triage.topcoat("crash", "minimise", SLUG, crashes_in="")
        assert done.status == 30
        assert f"{SLUG} cannot be minimised: it did not come again: none: 0 of 10" in done.text


class TestBundle:
    def make(self, triage: Triage) -> Path:
        triage.topcoat("crash", "minimise", SLUG)
        path = triage.workspace.directory / "given/crash.bundle"
        path.parent.mkdir()
        done = triage.topcoat("crash", "bundle", "deadly-signal-parse", "-o", str(path))
        lines, _ = said(done)
        assert done.status == 0, done.text
        assert lines[0].startswith("given/crash.bundle: ")
        assert lines[1:] == [
            f"crash 1 of {SLUG}: input 15 bytes, minimised 1 byte",
            "the target's own files: none; they are not kept",
        ]
        assert [one.name for one in path.parent.iterdir()] == ["crash.bundle"], "no lock stays"
        return path

    def test_all_that_is_known_is_in_it(self, triage: Triage) -> None:
        triage.topcoat("crash", "repro", SLUG)
        found = bundle.read(self.make(triage))
        assert (found.fuzzer, found.bucket, found.rule, found.seed) == (A, SLUG, "default/1", 4711)
        assert (found.input, found.minimised, found.serial) == (INPUT, b"!", b"the console\n")
        assert b"heap-buffer-overflow" in found.output or b"ERROR: " in found.output
        assert found.argv == (A, "-max_len=16", "data/corpus")
        assert found.environment == {"ASAN_OPTIONS": "symbolize=0"}
        assert found.digests["fuzzer"] == {A: "b3:first"}
        assert sorted(found.digests) == ["fuzzer", "images", "qemu", "tools"]
        assert found.facts["verdicts"]["b3:first"]["word"] == "still there 10 of 10"
        assert found.facts["build_here"] == "b3:first"
        assert str(triage.workspace.directory) not in json.dumps(dict(found.facts))

    def test_what_is_there_is_never_overwritten(self, triage: Triage) -> None:
        path = triage.workspace.directory / "mine"
        path.write_text("mine")
        done = triage.topcoat("crash", "bundle", SLUG, "-o", "mine")
        assert (done.status, "mine is there already" in done.text, path.read_text()) == (2, True, "mine")

    def test_a_place_that_is_not_there(self, triage: Triage) -> None:
        done = triage.topcoat("crash", "bundle", SLUG, "-o", "no/such/file")
        assert done.status != 0
        assert "error: writing file: " in done.text
        assert "Traceback" not in done.text

    def test_a_crash_whose_input_is_lost(self, triage: Triage) -> None:
        triage.store.add(replace(crash(b""), fuzzer="p/f", artifact=""))
        done = triage.topcoat("crash", "bundle", "p/f/", "-o", "b")
        assert (done.status, "is kept, so nobody could see the crash again" in done.text) == (30, True), done.text
        assert not (triage.workspace.directory / "b").exists()

    def test_for_machines(self, triage: Triage) -> None:
        done = triage.topcoat("crash", "bundle", SLUG, "--output", "b", "--json", build="b3:second")
        found = answer(done)
        path = triage.workspace.directory / "b"
        assert found == {
            "schema": 1,
            "file": str(path),
            "bytes": path.stat().st_size,
            "fuzzer": A,
            "bucket": SLUG,
            "crash": 1,
            "minimised": False,
            "files": [],
            "same_build": False,
        }

    def test_the_target_s_own_files_go_with_it(self, triage: Triage) -> None:
        program = triage.workspace.directory / "program"
        program.write_bytes(b"\x7fELF of a")
        where = "/targets/files/fuzzers/a"
        triage.store._own_files = lambda *_: {where: program}  # noqa: SLF001
        triage.store.add(replace(crash(b"!"), build="b3:second"))
        done = triage.topcoat("crash", "bundle", SLUG, "--output", "b", build="b3:second")
        assert "the target's own files: 1" in done.text
        found = bundle.read(triage.workspace.directory / "b")
        assert {name: b"".join(one.pieces()) for name, one in found.files.items()} == {where: b"\x7fELF of a"}
        assert found.argv[0] == where

    @pytest.mark.parametrize(
        ("does", "told", "code"),
        [("parse", "same bucket", 0), ("average", f"other bucket {OTHER}", 1), ("", "none", 1)],
    )
    def test_it_is_replayed_where_nothing_is_known(self, triage: Triage, does: str, told: str, code: int) -> None:
        path, store = self.make(triage), triage.workspace.directory / "another"
        words = ("crash", "replay", str(path), "--tries", "2")
        done = triage.topcoat(*words, crashes_in=does, TOPCOAT_ROOT=str(store), build="b3:here")
        lines, runs = said(done)
        assert lines, done.text
        assert (done.status, lines[0], runs) == (code, f"{SLUG} of {A}: {told}", 4), done.text
        assert "these digests differ from those in the bundle:" in lines
        assert "  fuzzer  fuzzers/a  b3:first  b3:here" in lines
        assert not (store / "crashes").exists(), "what others have found is not ours"
        done = triage.topcoat(*words, "--json", crashes_in=does, TOPCOAT_ROOT=str(store), build="b3:here")
        found = answer(done)
        assert (done.status, said(done)[1], found["told"], found["tries"]) == (code, 0, told, 4)
        difference = {"group": "fuzzer", "name": A, "then": "b3:first", "now": "b3:here"}
        assert found["differences"] == [difference]
        assert Path(found["output"]).is_relative_to(store / "replays")

    def test_with_the_same_build_nothing_differs(self, triage: Triage) -> None:
        done = triage.topcoat("crash", "replay", str(self.make(triage)))
        assert (done.status, "it ran with what the bundle tells of" in done.text) == (0, True)

    def test_a_damaged_one_is_refused(self, triage: Triage) -> None:
        path = self.make(triage)
        data = bytearray(path.read_bytes())
        data[-3000] ^= 1
        path.write_bytes(data)
        done = triage.topcoat("crash", "replay", str(path))
        assert (done.status, said(done)) == (30, ([], 0))
        assert "is no sound bundle" in done.text
        assert "hint: ask whoever made it for the bundle again" in done.text

    def test_one_of_another_rule_is_judged_by_ours(self, triage: Triage) -> None:
        path = triage.workspace.directory / "older"
        bundle.write(replace(bundle.read(self.make(triage)), bucket="older-name", rule="default/0"), path)
        done = triage.topcoat("crash", "replay", str(path))
        assert (done.status, said(done)[0][0]) == (0, f"older-name of {A}: same bucket")

    @pytest.mark.parametrize("words", [("replay", "hostile"), ("replay", "hostile", "--json")])
    def test_a_hostile_one_is_harmless(self, triage: Triage, words: tuple[str, ...]) -> None:
        path = triage.workspace.directory / "hostile"
        whole = bundle.read(self.make(triage))
        hostile = replace(whole, bucket="../../../" + BAD, options=(BAD, "-dict=/etc/passwd"), argv=(BAD,))
        bundle.write(replace(hostile, environment={"A": BAD}, digests={BAD: {BAD: BAD}}, facts={BAD: BAD}), path)
        before = {one for one in triage.workspace.directory.rglob("*") if "out" not in one.parts}
        done = triage.topcoat("crash", *words)
        assert all(map(is_plain, done.stdout.decode().splitlines()))
        assert done.status == 0, done.text
        after = {one for one in triage.workspace.directory.rglob("*") if "out" not in one.parts}
        assert {one for one in after - before if "__pycache__" not in one.parts} == set()


def test_what_is_hostile_in_a_crash_is_harmless(triage: Triage) -> None:
    stored = triage.store.add(replace(HOSTILE, fuzzer=A))
    for words in (
        ("repro", stored.bucket, "--tries", "1"),
        ("minimise", stored.bucket, "--tries", "1"),
        ("bundle", stored.bucket, "-o", "b"),
        ("replay", "b", "--tries", "1"),
        ("rebucket", "--rule", "frames:1", "--diff"),
    ):
        done = triage.topcoat("crash", *words, crashes_in="average")
        assert "Traceback" not in done.text, done.text
        assert all(map(is_plain, done.text.splitlines())), words
