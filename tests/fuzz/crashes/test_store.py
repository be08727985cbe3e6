"""The crashes of all campaigns, on the disk."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StoreError, UsageError
from pipeline.fuzz.crashes import crash as crashes
from pipeline.fuzz.crashes import rules
from pipeline.fuzz.crashes.bucket import MOST_SEEN, Bucket, KeptInput, Seen
from pipeline.fuzz.crashes.crash import OUTPUT_LIMIT, SERIAL_LIMIT, KeptCrash
from pipeline.fuzz.crashes.report import CrashReport, parse
from pipeline.fuzz.crashes.stack import Frame
from pipeline.fuzz.crashes.store import OTHERS, CrashStore
from tests.fuzz.crashes.made_up import BUILD, CRASH, FUZZER, REPORT, SEEN, SLUG, elsewhere, names, other, sized

ONCE = {"first_seen": SEEN, "last_seen": SEEN, "count": 1}
SHA256 = "b60eaf09e14454fe5135c8fd9aeca44a49115f5c9ed8d54db7add6ce58e6d529"

BUCKET_SAMPLE = {
    "schema": 1,
    "kind": "SEGV",
    "frames": ["f"],
    "rule": "default/1",
    **ONCE,
    "builds": {BUILD: ONCE},
    "campaigns": {"nightly": ONCE},
    "kept": {"1": {"sha256": SHA256, "size": 3}},
    "last": 1,
}
"""Frozen, as the next ones: what earlier versions have written must be understood."""

CRASH_SAMPLE: dict[str, Any] = {
    "schema": 2,
    "seen": SEEN,
    "fuzzer": FUZZER,
    "build": BUILD,
    "campaign": "nightly",
    "slice": 3,
    "attempt": 1,
    "boot_id": "6ed5",
    "seed": 4711,
    "options": ["-max_len=16", "data/corpus"],
    "environment": {"ASAN_OPTIONS": "symbolize=0"},
    "artifact": "crash-1",
    "sha256": SHA256,
    "size": 3,
    "frames": ["f"],
    "report": {
        "kind": "SEGV",
        "access": "READ",
        "summary": "SUMMARY: it",
        "artifacts": ["crash-1"],
        "message": "",
        "address": "",
        "pc": "",
        "dedup_token": [],
        "frames": [
            {"function": "f", "file": "a.c", "line": 1, "place": "m+0x1"},
            {"function": "abort", "file": "", "line": 0, "place": ""},
        ],
    },
}

BUILDS_SAMPLE = {"schema": 1, "builds": [{"digest": BUILD, "first_seen": SEEN, "files": {}}]}

ONE = Bucket(
    *(FUZZER, SLUG, "SEGV", ("f",), "default/1", SEEN, SEEN, 1),
    *({BUILD: Seen(SEEN, SEEN, 1)}, {"nightly": Seen(SEEN, SEEN, 1)}, {"1": KeptInput(SHA256, 3)}, 1),
)


@pytest.fixture
def crash_store(tmp_path: Path) -> CrashStore:
    return CrashStore(tmp_path, now=lambda: SEEN)


@pytest.fixture
def place(crash_store: CrashStore) -> Path:
    """The directory of the bucket."""
    return crash_store.root / FUZZER / SLUG


def content(file: Path) -> Any:
    return json.loads(file.read_bytes())


def test_the_frozen_samples_are_what_is_written_and_understood(crash_store: CrashStore, place: Path) -> None:
    stored = crash_store.add(CRASH)
    assert stored.directory == place / "1"
    assert content(place / "bucket.json") == BUCKET_SAMPLE
    assert content(stored.directory / "crash.json") == CRASH_SAMPLE
    assert content(place.parent / "builds.json") == BUILDS_SAMPLE
    assert crash_store.buckets() == [ONE]
    (kept,) = crash_store.crashes(ONE)
    assert (kept.number, kept.input(), kept.output(), kept.facts.report) == (
        *(1, b"HI!", "it crashed\n"),
        replace(REPORT, base64=None),
    )


def test_what_is_kept_of_a_crash(crash_store: CrashStore, place: Path) -> None:
    directory = crash_store.add(CRASH).directory
    assert directory is not None
    assert names(directory) == ["crash.json", "input", "output.txt", "serial.txt"]
    assert (directory / "input").read_bytes() == b"HI!"
    assert (directory / "output.txt").read_text() == "it crashed\n"
    assert (directory / "serial.txt").read_text() == "the console\n"
    assert names(place) == ["1", "bucket.json"]
    assert names(place.parent) == ["builds.json", "builds.json.lock", SLUG]
    assert names(crash_store.root) == ["example-fuzzers"]
    assert (place.stat().st_mode | place.parent.stat().st_mode | crash_store.root.stat().st_mode) & 0o077 == 0


def test_one_bucket_in_time(tmp_path: Path) -> None:
    times = iter(["1", "2", "3", "4"])
    crash_store = CrashStore(tmp_path, now=lambda: next(times))
    assert [crash_store.add(other(number)).state for number in range(2)] == ["new", "known"]
    crash_store.add(replace(other(2), campaign="another"))
    crash_store.add(replace(other(3), build="b3:new"))
    (bucket,) = crash_store.buckets()
    assert (bucket.first_seen, bucket.last_seen, bucket.count, bucket.last) == ("1", "4", 4, 4)
    assert bucket.campaigns == {"nightly": Seen("1", "4", 3), "another": Seen("3", "3", 1)}
    assert bucket.builds == {BUILD: Seen("1", "3", 3), "b3:new": Seen("4", "4", 1)}
    assert [build.digest for build in crash_store.builds(FUZZER).builds] == [BUILD, "b3:new"]


def test_buckets_of_two_fuzzers_are_two(crash_store: CrashStore) -> None:
    assert [crash_store.add(replace(CRASH, fuzzer=fuzzer)).state for fuzzer in ("p/a", "p/b", "q/a")] == ["new"] * 3
    assert [(bucket.fuzzer, bucket.slug, bucket.count) for bucket in crash_store.buckets()] == [
        ("p/a", SLUG, 1),
        ("p/b", SLUG, 1),
        ("q/a", SLUG, 1),
    ]
    assert crash_store.fuzzers() == ["p/a", "p/b", "q/a"]


def test_buckets_are_found_by_patterns(crash_store: CrashStore) -> None:
    for fuzzer, function in (("p/a", "f"), ("p/b", "g"), ("q/a", "f")):
        crash_store.add(replace(elsewhere(function), fuzzer=fuzzer))

    def found(*patterns: str) -> list[str]:
        return [bucket.fuzzer for bucket in crash_store.buckets(patterns)]

    assert found() == found("*/*") == found("segv-*") == ["p/a", "p/b", "q/a"]
    assert found("p/*") == ["p/a", "p/b"]
    assert found("segv-g-*", "q/a") == ["p/b", "q/a"]
    assert found(f"p/*/{SLUG}") == ["p/a"]
    assert found("r/*") == []
    with pytest.raises(UsageError, match="syntax error in pattern"):
        found("[")


def test_one_bucket_is_read_by_its_slug(crash_store: CrashStore) -> None:
    crash_store.add(CRASH)
    assert crash_store.bucket(FUZZER, SLUG) == ONE
    for slug in ("segv-g-e68419017049", "", ".", "..", "../a/" + SLUG, SLUG + "/1", "a\0"):
        assert crash_store.bucket(FUZZER, slug) is None


def test_the_same_input_is_only_counted(crash_store: CrashStore, place: Path) -> None:
    first, again = crash_store.add(CRASH), crash_store.add(CRASH)
    assert (first.new, first.same, again.new, again.same) == (True, False, False, True)
    assert again.directory == first.directory
    assert names(place) == ["1", "bucket.json"]
    assert crash_store.buckets()[0].count == 2
    assert not crash_store.add(elsewhere("g")).same


def test_the_first_the_smallest_and_the_newest_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    crash_store = CrashStore(tmp_path, kept=6)
    for size in (50, 9, 60, 8, 70, 7, 80, 90, 91, 92, 93, 94):
        assert crash_store.add(sized(size)).directory
    (bucket,) = crash_store.buckets()
    assert [(number, one.size) for number, one in bucket.kept.items()] == [
        *(("1", 50), ("4", 8), ("6", 7)),
        *(("10", 92), ("11", 93), ("12", 94)),
    ]
    assert names(crash_store.directory(FUZZER, SLUG)) == sorted([*bucket.kept, "bucket.json"])
    assert (bucket.count, bucket.last, bucket.smallest) == (12, 12, 6)
    assert [crash.facts.size for crash in crash_store.crashes(bucket)] == [50, 8, 7, 92, 93, 94]


def test_if_one_crash_is_kept_it_is_the_first(tmp_path: Path) -> None:
    crash_store = CrashStore(tmp_path, kept=1)
    assert [bool(crash_store.add(sized(size)).directory) for size in (5, 4, 6)] == [True, False, False]
    assert crash_store.buckets()[0].count == 3
    assert crash_store.add(sized(5)).same


def test_a_crash_beside_which_something_lies_stays(tmp_path: Path) -> None:
    crash_store = CrashStore(tmp_path, kept=2)
    for number in range(2):
        crash_store.add(other(number))
    (crash_store.directory(FUZZER, SLUG) / "2/.capsule.abcd1234.tmp").mkdir()
    for number in range(2, 5):
        crash_store.add(other(number))
    assert names(crash_store.directory(FUZZER, SLUG)) == ["1", "2", "5", "bucket.json"]


def test_what_a_person_deletes_makes_room(tmp_path: Path) -> None:
    crash_store = CrashStore(tmp_path)
    for number in range(3):
        crash_store.add(other(number))
    place = crash_store.directory(FUZZER, SLUG)
    for crash in ("1", "2", "3"):
        for file in (place / crash).iterdir():
            file.unlink()
        (place / crash).rmdir()
    assert crash_store.add(other(1)) == crashes.StoredCrash(SLUG, "known", place / "4", same=False)
    (bucket,) = crash_store.buckets()
    assert (bucket.count, list(bucket.kept)) == (4, ["4"])


def test_of_many_buckets_the_further_ones_are_counted_together(tmp_path: Path) -> None:
    crash_store = CrashStore(tmp_path, buckets=2, now=lambda: SEEN)
    stored = [crash_store.add(elsewhere(function)) for function in ("f", "g", "h", "i", "f")]
    assert [one.bucket for one in stored][2:] == [OTHERS, OTHERS, SLUG]
    assert [one.directory for one in stored][2:4] == [None, None]
    assert [one.state for one in stored] == ["new", "new", "new", "known", "known"]
    assert {bucket.slug: bucket.count for bucket in crash_store.buckets()} == {stored[1].bucket: 1, SLUG: 2, OTHERS: 2}
    bucket = crash_store.bucket(FUZZER, OTHERS)
    assert bucket
    assert (bucket.kind, bucket.frames, bucket.kept, bucket.last) == (OTHERS, (), {}, 0)
    assert names(crash_store.directory(FUZZER, OTHERS)) == ["bucket.json"]


def test_what_is_only_counted_takes_one_write(crash_store: CrashStore, place: Path) -> None:
    crash_store.add(CRASH)
    crash_store.count(FUZZER, SLUG, BUILD, "nightly", 7)
    crash_store.count(FUZZER, SLUG, "b3:new", "weekly", 2)
    (bucket,) = crash_store.buckets()
    assert (bucket.count, bucket.last, names(place)) == (10, 1, ["1", "bucket.json"])
    assert {name: seen.count for name, seen in bucket.campaigns.items()} == {"nightly": 8, "weekly": 2}
    assert {name: seen.count for name, seen in bucket.builds.items()} == {BUILD: 8, "b3:new": 2}
    assert [build.digest for build in crash_store.builds(FUZZER).builds] == [BUILD, "b3:new"]


@pytest.mark.parametrize("slug", ["segv-gone-000000000000", "../../x", "", OTHERS])
def test_what_is_counted_of_a_bucket_that_is_gone_counts_with_the_others(crash_store: CrashStore, slug: str) -> None:
    for _ in range(2):
        crash_store.count(FUZZER, slug, BUILD, "nightly", 2)
    assert [(bucket.slug, bucket.count) for bucket in crash_store.buckets()] == [(OTHERS, 4)]


def test_what_would_come_to_too_many_bytes_is_only_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    least = OUTPUT_LIMIT + SERIAL_LIMIT + len(CRASH.input)
    crash_store = CrashStore(tmp_path, size=least + 1000)
    assert crash_store.add(CRASH).directory is not None
    large = replace(CRASH, input=bytes(1000))
    assert [crash_store.add(large).directory, crash_store.add(large).directory] == [None, None]
    assert [bucket.count for bucket in crash_store.buckets()] == [3]
    (told,) = caplog.messages
    assert "and no room for more crashes ([campaign] crash_size): further ones are only counted" in told
    again = CrashStore(tmp_path, size=least + 1000)  # what is there counts
    assert again.add(replace(CRASH, input=bytes(500))).directory is None
    assert again.add(CRASH).same


def test_the_first_crash_of_a_bucket_is_kept_whatever_the_others_take(tmp_path: Path) -> None:
    crash_store = CrashStore(tmp_path, size=1)
    kept = [crash_store.add(elsewhere(function)).directory for function in ("f", "g")]
    assert [directory and (directory / "input").read_bytes() for directory in kept] == [CRASH.input] * 2
    assert crash_store.add(replace(elsewhere("f"), input=b"another")).directory is None


def test_causes_that_one_fuzzer_makes_up_hide_nothing_of_another(tmp_path: Path) -> None:
    crash_store = CrashStore(tmp_path, buckets=20, size=1)
    for number in range(50):
        crash_store.add(replace(elsewhere(f"made_up_{number}"), fuzzer="example-fuzzers/liar"))
    real = crash_store.add(elsewhere("real"))
    assert real.new
    assert real.directory
    assert (real.directory / "input").read_bytes() == CRASH.input
    assert len(crash_store.buckets()) == 20 + 2


def test_of_very_many_builds_and_campaigns_the_last_ones_are_named(crash_store: CrashStore) -> None:
    times = iter(f"{number:04}" for number in range(1000))
    bucket = ONE
    for number in range(MOST_SEEN + 20):
        bucket = bucket.counted(next(times), f"b3:{number}", f"campaign {number}")
    assert len(bucket.builds) == len(bucket.campaigns) == MOST_SEEN
    assert f"b3:{MOST_SEEN + 19}" in bucket.builds
    assert "b3:19" not in bucket.builds
    assert bucket.count == MOST_SEEN + 21


def test_buckets_come_in_the_order_in_which_they_were_seen_first(tmp_path: Path) -> None:
    times = iter("3124")
    crash_store = CrashStore(tmp_path, now=lambda: next(times))
    for function in ("a", "b", "c", "a"):
        crash_store.add(elsewhere(function))
    assert [bucket.frames for bucket in crash_store.buckets()] == [("b",), ("c",), ("a",)]


def test_nothing_is_made_to_look(crash_store: CrashStore) -> None:
    assert crash_store.buckets() == []
    assert crash_store.fuzzers() == []
    assert crash_store.bucket(FUZZER, SLUG) is None
    assert crash_store.builds(FUZZER).builds == ()
    crash_store.note_build(FUZZER, BUILD)
    assert not crash_store.root.exists()


def test_a_crash_without_report_is_kept_too(crash_store: CrashStore) -> None:
    stored = crash_store.add(replace(CRASH, report=None, input=b""))
    assert stored.bucket.startswith("unknown-example-fuzzers-a-")
    assert stored.directory is not None
    assert content(stored.directory / "crash.json")["report"] is None
    assert (crash_store.buckets()[0].kind, crash_store.buckets()[0].frames) == ("unknown", ())


def test_of_long_output_both_ends_are_kept_and_of_the_console_the_end(crash_store: CrashStore) -> None:
    half, end = OUTPUT_LIMIT // 2, SERIAL_LIMIT
    long = replace(CRASH, output=b"a" * half + b"left out" + b"b" * half, serial=b"no" + b"c" * end)
    directory = crash_store.add(long).directory
    assert directory is not None
    assert (directory / "output.txt").read_text() == "a" * half + "\n[8 bytes are left out here]\n" + "b" * half
    assert (directory / "serial.txt").read_text() == "c" * end


def test_what_is_stored_is_understood_as_what_came(crash_store: CrashStore) -> None:
    output = (Path(__file__).parent / "outputs/fuzz-parser.txt").read_bytes()
    directory = crash_store.add(replace(CRASH, output=output, report=parse(output))).directory
    assert directory is not None
    assert parse((directory / "output.txt").read_bytes()) == parse(output)
    assert KeptCrash.at(directory).facts.report == replace(parse(output) or REPORT, base64=None)


def test_text_of_the_guest_is_cleaned(crash_store: CrashStore) -> None:
    bad = "\x1b[31m\n\ud800" + "x" * 9999
    report = CrashReport(bad, bad, (Frame(bad, bad, 1, bad),), bad, (bad,), message=bad)
    hostile = replace(CRASH, artifact=bad, build=bad, campaign=bad, environment={bad: bad}, options=(bad,))
    stored = crash_store.add(replace(hostile, output=b"\x1b[31mred\0", serial=b"\xff\x1bc", report=report))
    crash_store.count(FUZZER, stored.bucket, bad, bad)
    assert stored.directory is not None
    for file in ("crash.json", "output.txt", "serial.txt", "../bucket.json", "../../builds.json"):
        text = (stored.directory / file).read_text()
        assert not {"\x1b", "\0"} & set(text)
        assert len(text) < 20_000
    assert stored.directory.parent.parent == crash_store.root / FUZZER


@pytest.mark.parametrize("fuzzer", ["", "a", "/", "../a", "a/..", "a/b/c", ".files/x", "a/.b", "a/b\n", "a/b\0", "ä/b"])
def test_no_name_of_a_fuzzer_leads_elsewhere(crash_store: CrashStore, fuzzer: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a fuzzer"):
        crash_store.add(replace(CRASH, fuzzer=fuzzer))
    with pytest.raises(UsageError, match="cannot be the name of a fuzzer"):
        crash_store.count(fuzzer, SLUG, BUILD, "nightly")
    assert not crash_store.root.exists()


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"{}", b'{"schema": 99}', b'{"schema": 1}', b'{"schema": 2}', b"[" * 100_000, b"\xff"]
)
def test_a_damaged_file_is_counted_anew(crash_store: CrashStore, place: Path, damage: bytes) -> None:
    for number in range(3):
        crash_store.add(other(number))
    (place / "bucket.json").write_bytes(damage)
    assert [bucket.count for bucket in crash_store.buckets()] == [3]
    (place / "2/crash.json").write_bytes(damage)
    assert not crash_store.add(other(3)).new
    (bucket,) = crash_store.buckets()
    assert (bucket.count, bucket.frames, bucket.first_seen, bucket.last_seen) == (4, ("f",), SEEN, SEEN)
    assert [crash.number for crash in crash_store.crashes(bucket)] == [1, 3, 4]
    (place.parent / "builds.json").write_bytes(damage)
    assert crash_store.builds(FUZZER).builds == ()
    crash_store.add(replace(CRASH, build="b3:new"))
    assert [build.digest for build in crash_store.builds(FUZZER).builds] == ["b3:new"]


def test_a_disk_that_takes_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "crashes").write_bytes(b"")
    with pytest.raises(StoreError, match="storing a crash"):
        CrashStore(tmp_path).add(CRASH)
    with pytest.raises(StoreError, match="counting crashes"):
        CrashStore(tmp_path).count(FUZZER, SLUG, BUILD, "nightly")


def test_what_else_lies_in_a_bucket_is_nobodys_business(crash_store: CrashStore, place: Path) -> None:
    crash_store.add(CRASH)
    for name in ("verdicts/0123456789ab.json", "minimised/input", "notes.txt", "01/x", ".minimised.abcd1234.tmp/x"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(b"")
    there = names(place)
    CrashStore(crash_store.root.parent, now=lambda: SEEN).add(CRASH)
    assert names(place) == there
    assert crash_store.buckets()[0].kept == ONE.kept


texts = st.text(max_size=50)


@settings(max_examples=30)  # each waits for the disk
@given(texts, st.lists(st.builds(Frame, texts, texts, st.integers(0, 9), texts), max_size=4), texts)
def test_whatever_was_reported_is_stored_below_the_vault(
    tmp_path_factory: pytest.TempPathFactory, kind: str, frames: list[Frame], message: str
) -> None:
    crash_store = CrashStore(tmp_path_factory.mktemp("crashes"))
    report = CrashReport(kind, frames=tuple(frames), message=message)
    stored = crash_store.add(replace(CRASH, report=report))
    assert stored.bucket == rules.slug(report, FUZZER)
    assert stored.directory == crash_store.root / FUZZER / stored.bucket / "1"
    assert [bucket.count for bucket in crash_store.buckets()] == [1]
