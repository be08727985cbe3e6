"""`topcoat crash list` and `topcoat crash show`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cli import crash_report
from pipeline.cli import crashes as crashes_cli
from pipeline.fuzz.crashes import known
from pipeline.fuzz.crashes.crash import Crash
from pipeline.fuzz.crashes.report import CrashReport, parse
from pipeline.fuzz.crashes.stack import Frame
from pipeline.fuzz.crashes.store import CrashStore
from pipeline.fuzz.crashes.verdicts import InputVerdict
from pipeline.text.printable import is_plain
from pipeline.vm.capsule import FACTS, NAME
from tests.conftest import Workspace
from tests.fuzz.crashes.made_up import BUILD, CRASH, REPORT, SLUG, elsewhere, judge, other
from tests.tasks.runs import in_a_namespace

OUTPUT = (Path(__file__).parents[1] / "fuzz/crashes/outputs/fuzz-parser.txt").read_bytes()
PARSER = "example-fuzzers/parser_fuzzer"
OVERFLOW = "heap-buffer-overflow-copy_text-d6d4979a3e9a"
DIVISION = "fpe-average-47c9b38a6ffd"
SEEN = ("2026-11-25T14:00:00Z", "2026-11-26T15:30:00Z")
SEVERITY = "corruption of memory: it writes 20 bytes outside a buffer of the heap (heap-buffer-overflow, WRITE 20)"
DIGEST = "221b4fad1f429743af2ae1c44c3afd4236e894c10ef9b0a0057883630cdea69f"


def fill(root: Path) -> CrashStore:
    """Crashes of two fuzzers, in three buckets; of the second one in two campaigns, with two builds and a verdict."""
    times = iter((SEEN[0], SEEN[0], SEEN[1], SEEN[1]))
    store = CrashStore(root, now=lambda: next(times))
    store.add(CRASH)
    real = replace(CRASH, fuzzer=PARSER, output=OUTPUT, report=parse(OUTPUT), input=bytes(range(40)))
    store.add(real)
    store.add(replace(real, build="b3:new", campaign="weekly", input=b"RECORD\0\x1b[31m", options=("-runs=1", "a b")))
    store.add(elsewhere("g"))
    judge(store, OVERFLOW, "b3:new", InputVerdict("aa", same=3, others={DIVISION: 1}, none=6), PARSER)
    return store


@pytest.fixture
def store(workspace: Workspace) -> CrashStore:
    return fill(workspace.store.root)


def test_all_are_listed_those_last_that_were_seen_last(workspace: Workspace, store: CrashStore) -> None:
    done = workspace.topcoat("crash", "list")
    assert (done.status, done.stderr) == (0, b"")
    rows = [line.split("  ") for line in done.stdout.decode().splitlines()]
    assert [[cell.strip() for cell in row if cell] for row in rows] == [
        [
            *("crash", "place", "fuzzer", "bucket", "first seen", "last seen"),
            *("times", "builds", "smallest", "reproduced"),
        ],
        [
            *("SEGV in f", "a.c:1", "example-fuzzers/a", SLUG, "2026-11-25 14:00", "2026-11-25 14:00"),
            *("1", "1", "3 B", "-"),
        ],
        [
            *("SEGV in g", "-", "example-fuzzers/a", "segv-g-70b4efa137f5"),
            *("2026-11-26 15:30", "2026-11-26 15:30", "1", "1", "3 B", "-"),
        ],
        [
            *("heap-buffer-overflow in copy_text", "parser_fuzzer.c:27", PARSER, OVERFLOW),
            *("2026-11-25 14:00", "2026-11-26 15:30", "2", "2", "12 B", "3/10"),
        ],
    ]


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (None, []),
        (400, []),
        (120, ["first seen", "builds", "crash", "place", "smallest"]),
        (80, ["first seen", "builds", "crash", "place", "smallest", "fuzzer", "last seen"]),
        (1, ["first seen", "builds", "crash", "place", "smallest", "fuzzer", "last seen", "reproduced"]),
    ],
)
def test_a_narrow_terminal_gets_fewer_columns(width: int | None, left_out: list[str]) -> None:
    head = [
        "crash",
        "place",
        "fuzzer",
        "bucket",
        "first seen",
        "last seen",
        "times",
        "builds",
        "smallest",
        "reproduced",
    ]
    row = ["heap-buffer-overflow in copy_text", "parser_fuzzer.c:27", PARSER, OVERFLOW, *["2026-11-25 14:00"] * 2]
    lines, missing = crashes_cli.within(width, [head, [*row, "12,345", "2", "12 B", "3/10"]])
    assert missing == left_out
    assert lines[0].split() == " ".join(name for name in head if name not in left_out).split()
    assert width is None or width == 1 or max(map(len, lines)) <= width
    assert OVERFLOW in lines[1]


def test_for_machines(workspace: Workspace, store: CrashStore) -> None:
    done = workspace.topcoat("crash", "list", "--json", "*/parser_*")
    assert (done.status, done.stderr) == (0, b"")
    assert json.loads(done.stdout) == {
        "schema": 1,
        "buckets": [
            {
                "fuzzer": PARSER,
                "slug": OVERFLOW,
                "title": "heap-buffer-overflow in copy_text",
                "kind": "heap-buffer-overflow",
                "frames": ["copy_text", "record", "LLVMFuzzerTestOneInput"],
                "rule": "default/1",
                "file": "pipeline/demo/fuzzers/parser_fuzzer.c",
                "line": 27,
                "size": 12,
                "kept": 2,
                "first_seen": SEEN[0],
                "last_seen": SEEN[1],
                "count": 2,
                "builds": {
                    BUILD: {"first_seen": SEEN[0], "last_seen": SEEN[0], "count": 1},
                    "b3:new": {"first_seen": SEEN[1], "last_seen": SEEN[1], "count": 1},
                },
                "campaigns": {
                    "nightly": {"first_seen": SEEN[0], "last_seen": SEEN[0], "count": 1},
                    "weekly": {"first_seen": SEEN[1], "last_seen": SEEN[1], "count": 1},
                },
                "reproduced": {"build": "b3:new", "same": 3, "tries": 10},
                "probably_same": [],
                "verdicts": {"b3:new": {"build": "b3:new", "word": "still there 3 of 10", "same": 3, "tries": 10}},
                "directory": str(store.directory(PARSER, OVERFLOW)),
            }
        ],
    }


@pytest.mark.parametrize(
    ("pattern", "count"), [("example-fuzzers/*", 3), ("segv-*", 2), (SLUG, 1), (f"*/*/{OVERFLOW}", 1), ("no/*", 0)]
)
def test_patterns_are_of_fuzzers_and_of_buckets(
    workspace: Workspace, store: CrashStore, pattern: str, count: int
) -> None:
    done = workspace.topcoat("crash", "list", pattern)
    assert done.status == 0
    assert len(done.stdout.splitlines()) == (count and count + 1)
    assert done.stderr == (b"" if count else b"no bucket matches; see which there are: topcoat crash list\n")


def test_before_there_are_any(workspace: Workspace) -> None:
    done = workspace.topcoat("crash", "list")
    assert (done.status, done.stdout) == (0, b"")
    assert done.stderr.decode() == f"no crashes yet in {workspace.store.crashes}\n"
    assert json.loads(workspace.topcoat("crash", "list", "--json").stdout) == {"schema": 1, "buckets": []}
    assert workspace.topcoat("crash", "show", "x").status == 2
    assert not workspace.store.crashes.exists()


def test_a_report_for_people(workspace: Workspace, store: CrashStore) -> None:
    done = workspace.topcoat("crash", "show", "heap")
    assert (done.status, done.stderr) == (0, b"")
    assert (
        done.stdout.decode()
        == f"""\
heap-buffer-overflow in copy_text
severity     {SEVERITY}
fuzzer       {PARSER}
bucket       {OVERFLOW} by the rule default/1
seen         2 times, from {SEEN[0]} to {SEEN[1]}
verdict      still there 3 of 10, with b3:new
said         SUMMARY: AddressSanitizer: heap-buffer-overflow (/data/fuzz/example-fuzzers/parser_fuzzer/pkg/\
parser_fuzzer+0x470f8) (BuildId: 6e9a37781d02b8b3b6bc3f0088895c15487f8bc7)
access       WRITE 20

stack of crash 2, which has the smallest input; * marks the frames that decide
   #0 __asan_memcpy  libclang_rt.asan-x86_64.so+0x10788d  (a sanitizer's)
 * #1 copy_text  pipeline/demo/fuzzers/parser_fuzzer.c:27
 * #2 record  pipeline/demo/fuzzers/parser_fuzzer.c:69
 * #3 LLVMFuzzerTestOneInput  pipeline/demo/fuzzers/parser_fuzzer.c:82
   … and 9 frames below the entry

input        12 bytes, sha256 {DIGEST}
  00000000  52 45 43 4f 52 44 00 1b 5b 33 31 6d              RECORD..[31m
options      -runs=1 'a b'
environment  ASAN_OPTIONS=symbolize=0
run it again topcoat crash repro {PARSER}/{OVERFLOW}

build    times  first seen        last seen         verdict
b3:new   1      2026-11-26 15:30  2026-11-26 15:30  still there 3 of 10
b3:12ab  1      2026-11-25 14:00  2026-11-25 14:00

campaign  times  first seen        last seen
weekly    1      2026-11-26 15:30  2026-11-26 15:30
nightly   1      2026-11-25 14:00  2026-11-25 14:00

files in out/crashes/{PARSER}/{OVERFLOW}
crash  bytes  seen                  campaign
1      40     {SEEN[0]}  nightly
2      12     {SEEN[1]}  weekly
of each crash: input, output.txt, serial.txt, crash.json
"""
    )


def test_a_report_for_machines(workspace: Workspace, store: CrashStore) -> None:
    done = workspace.topcoat("crash", "show", "--json", OVERFLOW)
    assert (done.status, done.stderr) == (0, b"")
    told = json.loads(done.stdout)
    listed: Any = json.loads(workspace.topcoat("crash", "list", "--json", OVERFLOW).stdout)["buckets"][0]
    assert {name: told[name] for name in listed} == listed
    assert (told["schema"], told["severity"], told["capsules"]) == (1, SEVERITY, [])
    assert told["again"] == f"topcoat crash repro {PARSER}/{OVERFLOW}"
    assert [(one["number"], one["size"], one["campaign"], one["build"]) for one in told["crashes"]] == [
        (1, 40, "nightly", BUILD),
        (2, 12, "weekly", "b3:new"),
    ]
    shown = told["shown"]
    assert (shown["number"], shown["deciding"], shown["input"], shown["whole"]) == (
        *(2, [1, 2, 3]),
        *("UkVDT1JEABtbMzFt", True),
    )
    assert shown["report"]["frames"][1]["line"] == 27
    assert shown["options"] == ["-runs=1", "a b"]


def test_what_is_probably_the_same_is_told_with_the_reason(workspace: Workspace) -> None:
    """By the stacks of two buckets, or as the inputs of one showed both."""
    store = CrashStore(workspace.store.root)
    frames = [Frame(name) for name in ("parse", "read", "main_loop")]
    one, two = (
        store.add(replace(CRASH, report=replace(REPORT, frames=tuple(part)))).bucket
        for part in (frames, [Frame("copy"), *frames])
    )
    third = store.add(elsewhere("far")).bucket
    judge(store, third, BUILD, InputVerdict("aa", same=2, others={one: 3}))
    listed = json.loads(workspace.topcoat("crash", "list", "--json", one).stdout)["buckets"][0]
    alike = {"bucket": two, "why": ["both have parse, then read"]}
    both = f"the inputs of {third} showed both, 2 times its own and 3 times the other"
    assert listed["probably_same"] == [alike, {"bucket": third, "why": [both]}]
    shown = workspace.topcoat("crash", "show", one).stdout.decode()
    assert f"\nlike         probably the same as {two}: both have parse, then read\n" in shown
    assert f"\nlike         probably the same as {third}: {both}\n" in shown


class TestRebucket:
    def test_only_numbers_without_diff(self, workspace: Workspace, store: CrashStore) -> None:
        before = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
        done = workspace.topcoat("crash", "rebucket", "--rule", "frames:1")
        assert (done.status, done.stdout.decode().splitlines()) == (
            0,
            [
                "by the rule frames:1/1",
                "crashes   4",
                "buckets   3 now, 3 then, 2 of them as they are",
                "changes   0 joined, 0 split, 1 renamed",
            ],
        )
        assert done.stderr == b"nothing was changed: crashes stay in the buckets in which they are\n"
        done = workspace.topcoat("crash", "rebucket", "--rule", "frames:1", "--diff")
        assert f"\n{PARSER}: renamed: {OVERFLOW} to heap-buffer-overflow-copy_text-" in done.stdout.decode()
        assert {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()} == before

    def test_for_machines(self, workspace: Workspace, store: CrashStore) -> None:
        done = workspace.topcoat("crash", "rebucket", "--rule", "dedup-token", "--json")
        told = json.loads(done.stdout)
        assert told["counts"] == {"joins": 0, "splits": 0, "renames": 0}
        assert (told["crashes"], told["same"], list(told["notes"].values()), "joins" in told) == (4, 3, [4], False)
        done = workspace.topcoat("crash", "rebucket", "--rule", "frames:1", "--json", "--diff")
        told = json.loads(done.stdout)
        assert (told["counts"]["renames"], told["renames"][0]["bucket"], told["joins"]) == (1, OVERFLOW, [])

    @pytest.mark.parametrize("rule", ["frames", "frames:0", "default/9", "x"])
    def test_there_is_no_such_rule(self, workspace: Workspace, rule: str) -> None:
        done = workspace.topcoat("crash", "rebucket", "--rule", rule)
        assert (done.status, b"hint: " in done.stderr, b"Traceback" in done.stderr) == (2, True, False)


def test_the_manual_has_every_name(tmp_path: Path) -> None:
    store = fill(tmp_path)
    (bucket,) = store.buckets([OVERFLOW])
    told = crash_report.encode(known.look(store, bucket))
    place = store.directory(PARSER, OVERFLOW)
    stored = (json.loads((place / name).read_bytes()) for name in ("bucket.json", "2/crash.json"))
    names = {name for one in (told, told["shown"], told["crashes"][0], told["reproduced"], *stored) for name in one}
    manual = (Path(__file__).parents[2] / "docs/crashes.md").read_text()
    assert [name for name in sorted(names) if f"`{name}`" not in manual] == []


@pytest.mark.parametrize(
    "word", [SLUG, f"example-fuzzers/a/{SLUG}", "segv-f", "example-fuzzers/a/segv-f", "{place}", "{place}/1"]
)
def test_what_a_bucket_may_be_called(workspace: Workspace, store: CrashStore, word: str) -> None:
    place = store.directory("example-fuzzers/a", SLUG)
    done = workspace.topcoat("crash", "show", word.format(place=place))
    assert b"\nfuzzer       example-fuzzers/a\nbucket       segv-f-" in done.stdout, done.text


@pytest.mark.parametrize(
    ("word", "told", "hint"),
    [
        ("segv", "segv means several buckets", f"say which: example-fuzzers/a/{SLUG}, example-fuzzers/a/segv-g-"),
        ("segw-f", "there is no bucket segw-f in ", "is it example-fuzzers/a/segv-"),
        ("\x1b[31m", "there is no bucket  in ", "see which there are: topcoat crash list"),
        ("/", "there is no bucket / in ", "see which there are: topcoat crash list"),
    ],
)
def test_what_is_no_bucket(workspace: Workspace, store: CrashStore, word: str, told: str, hint: str) -> None:
    done = workspace.topcoat("crash", "show", word)
    assert (done.status, done.stdout) == (2, b"")
    assert f"error: {told}" in done.text
    assert f"\n  hint: {hint}" in done.text


def test_a_bucket_of_which_nothing_is_kept(workspace: Workspace, store: CrashStore) -> None:
    CrashStore(workspace.store.root).count("p/f", "gone", BUILD, "nightly", 1234)
    done = workspace.topcoat("crash", "show", "others")
    assert done.status == 0
    assert done.stdout.startswith(b"others\nfuzzer       p/f\n")
    assert b"no crash is kept\n" in done.stdout
    told = json.loads(workspace.topcoat("crash", "show", "others", "--json").stdout)
    assert (told["shown"], told["size"], told["file"], told["severity"], told["count"]) == (
        None,
        None,
        None,
        None,
        1234,
    )


def test_a_crash_with_a_capsule_a_large_input_and_no_report(workspace: Workspace) -> None:
    store = CrashStore(workspace.store.root)
    stored = store.add(replace(CRASH, report=None, input=bytes(range(256)) * 300))
    assert stored.directory
    (stored.directory / NAME).mkdir()
    (stored.directory / NAME / FACTS).write_text("{}")
    text = workspace.topcoat("crash", "show", "unknown").stdout.decode()
    place = f"out/crashes/example-fuzzers/a/{stored.bucket}/1"
    assert f"\nthe guest as it was at a crash: topcoat open {place}\n" in text
    assert "\n  000000f0  f0 f1 " in text
    assert "\n  … and 76,544 bytes more\n" in text
    assert "no stack is known" in text
    told = json.loads(workspace.topcoat("crash", "show", "unknown", "--json").stdout)
    assert (len(told["shown"]["input"]), told["shown"]["whole"]) == ((1 << 16) // 3 * 4 + 4, False)
    assert told["capsules"] == [str(stored.directory / NAME)]


def test_they_are_told_of_a_store_that_is_mounted_read_only(workspace: Workspace, store: CrashStore) -> None:
    mount = 'mount --bind "$ROOT" "$ROOT" && mount -o remount,bind,ro "$ROOT"'
    status, text = in_a_namespace(workspace, mount, "topcoat crash list && topcoat crash show heap")
    assert (status, "stack of crash 2" in text) == (0, True), text


BAD = "\x1b[31m\x1b]0;x\x07\r\n\u202e<script>`$(x)`;" + "y" * 5000
HOSTILE = replace(
    *(CRASH,),
    **dict.fromkeys(("build", "campaign", "boot_id", "artifact"), BAD),
    options=(BAD,),
    environment={BAD: BAD},
    input=BAD.encode(),
    report=CrashReport(BAD, BAD, (Frame(BAD, BAD, 1, BAD),) * 100, BAD, (BAD,), message=BAD),
)


def test_hostile_text_is_harmless_in_every_field(workspace: Workspace) -> None:
    store = CrashStore(workspace.store.root)
    stored = store.add(HOSTILE)
    # Whoever has the store can write to its files: what is read is as little trusted as what came
    for file in (store.directory(CRASH.fuzzer, stored.bucket) / name for name in ("bucket.json", "1/crash.json")):
        whole = json.loads(file.read_bytes())
        spoiled = {name: BAD if isinstance(value, str) else value for name, value in whole.items()}
        file.write_text(json.dumps(spoiled))
    spoiled_verdict = judge(store, stored.bucket, "b3:12ab", InputVerdict(BAD, BAD, same=10**15, others={BAD: 10**15}))
    told = json.loads(spoiled_verdict.read_bytes())
    spoiled_verdict.write_text(json.dumps(told | dict.fromkeys(("build", "word", "trouble", "made", "rule"), BAD)))
    for words in (("list",), ("list", "--json"), ("show", stored.bucket), ("show", stored.bucket, "--json")):
        done = workspace.topcoat("crash", *words)
        assert done.status == 0, done.text
        lines = done.stdout.decode().splitlines()
        assert all(map(is_plain, lines)), words
        assert "--json" in words or (max(map(len, lines)) < 1200 and len(lines) < 100)


words = st.text(max_size=20)
crashes = st.builds(
    Crash,
    *(st.just("p/f"), words, words, st.integers(), st.integers(), words, st.integers(), st.tuples(words)),
    *(st.dictionaries(words, words, max_size=2), words, st.binary(max_size=300), st.just(b""), st.just(b"")),
    st.none() | st.builds(CrashReport, words, words, st.lists(st.builds(Frame, words, words)).map(tuple), words),
)


@settings(max_examples=30)
@given(crashes)
def test_whatever_was_stored_is_told(tmp_path_factory: pytest.TempPathFactory, crash: Crash) -> None:
    store = CrashStore(tmp_path_factory.mktemp("crashes"))
    stored = store.add(crash)
    (bucket,) = store.buckets()
    found = known.look(store, bucket)
    lines = list(crash_report.lines(found))
    assert all(map(is_plain, lines))
    assert [line for line in lines if line.startswith(f"bucket       {stored.bucket} ")]
    assert json.loads(json.dumps(crash_report.encode(found)))["shown"]["size"] == len(crash.input)


def test_the_crash_with_the_smallest_input_stands_for_all(tmp_path: Path) -> None:
    store = CrashStore(tmp_path)
    for crash in (other(1), CRASH, other(2), replace(CRASH, input=b"IH!", report=replace(REPORT, summary="later"))):
        store.add(crash)
    (bucket,) = store.buckets()
    shown = known.look(store, bucket).shown
    assert shown
    assert (shown.number, shown.facts.size) == (2, 3)
