"""Buckets by builds: the words, the first bad and the first good build agree, whatever has happened."""

import re
from pathlib import Path

from hypothesis import given

from pipeline.campaign.report import matrix
from pipeline.cli.crash_matrix import lines
from pipeline.fuzz.crashes.store import CrashStore
from tests.campaign.report.histories import Then, histories, matrix_of, row_of
from tests.fuzz.crashes.made_up import CRASH, FUZZER


@given(histories)
def test_words_and_first_builds_agree(found: list[list[Then]]) -> None:
    for history, row in zip(found, matrix_of(found).rows, strict=True):
        bad = [at for at, then in enumerate(history) if then.seen or then.tried in ("still", "seldom")]
        assert [at for at, cell in enumerate(row.cells) if cell.bad] == bad
        assert row.first_bad == (bad[0] if bad else None)
        good = [at for at, cell in enumerate(row.cells) if cell.good]
        assert not set(bad) & set(good)
        assert all(history[at].tried == "none" for at in good), "fixed needs runs to the end"
        after = [at for at in good if bad and at > bad[-1]]
        assert row.first_good == (after[0] if after else None)
        for then, cell in zip(history, row.cells, strict=True):
            assert cell.text.startswith(("still ", "seen")) == cell.bad
            assert (cell.text == "fixed") == cell.good
            assert ("masked" in cell.text) == bool(cell.masked_by) == (then.tried == "masked")
            assert ("not run" in cell.text) == (then.tried in ("lost", "failed"))
            assert (cell.text == "-") == (not then.tried and not then.seen)


def test_the_words() -> None:
    history = [Then("still", 2), Then(), Then("masked"), Then("none"), Then("lost"), Then("none", 1), Then("still")]
    texts = [cell.text for cell in row_of(history).cells]
    assert texts == ["still 10/10", "-", "masked", "fixed", "not run", "seen, 0/10", "still 10/10"]
    seldom = [cell.text for cell in row_of([Then("seldom", 9), Then("none")]).cells]
    assert seldom == ["still 1/10", "0/10"], "that may be chance"


@given(histories)
def test_what_is_left_out_is_told_and_the_rest_fits(found: list[list[Then]]) -> None:
    whole = matrix_of(found)
    said = list(lines(whole, 80))
    count, shown = len(found[0]), len(re.findall(r"^B\d+  b3:", "\n".join(said), re.MULTILINE))
    assert all(len(line) <= 80 or " with B" in line for line in said)
    assert shown == count or f"the {count - shown} oldest builds;" in "\n".join(said)
    assert shown >= min(count, 3)
    assert said[1].split() == ["crash", *(f"B{at + 1}" for at in range(count - shown, count)), "bad", "good"]


def test_as_people_see_it() -> None:
    found = matrix_of(
        [[Then("still", 3), Then("none")], [Then("still", 1), Then("masked")], [Then(), Then("still", 1)]]
    )
    assert list(lines(found)) == [
        "mine/a_fuzzer",
        "crash       B1           B2           bad  good",
        "segv-bug_0  still 10/10  fixed        B1   B2",
        "segv-bug_1  still 10/10  masked       B1   -",
        "segv-bug_2  -            still 10/10  B2   -",
        "",
        "B1  b3:00ffffffffff  first seen 2026-12-01 08:00",
        "B2  b3:01ffffffffff  first seen 2026-12-02 08:00",
        "bad: the first bad build; good: the first good build after the last bad one",
        "",
        "segv-bug_1-012345678901 with B2: masked by segv-other-0123456789ab",
    ]


def test_a_long_name_is_cut_at_its_end_and_the_digits_stay_where_they_are_needed() -> None:
    long = "heap-buffer-overflow-a_function_with_a_very_long_name_indeed"
    whole = matrix_of([[Then("still", 1)] * 3] * 3)
    slugs = (f"{long}-0123456789ab", "segv-f-0123456789ab", "segv-f-0123456789ac")
    rows = tuple(row_of([Then("still", 1)] * 3, slug) for slug in slugs)
    table = [line.split()[0] for line in list(lines(type(whole)(whole.fuzzer, whole.builds, rows), 80))[2:5]]
    assert table[0].endswith("…")
    assert long.startswith(table[0][:-1])
    assert table[1:] == ["segv-f-0123456789ab", "segv-f-0123456789ac"]


def test_builds_that_only_buckets_name_come_first(tmp_path: Path) -> None:
    store = CrashStore(tmp_path)
    store.add(CRASH)
    (store.directory(FUZZER) / "builds.json").unlink()
    store.note_build(FUZZER, "b3:newer")
    (found,) = matrix.read(store)
    assert [one.digest for one in found.builds] == [CRASH.build, "b3:newer"]
    assert [cell.text for cell in found.rows[0].cells] == ["seen", "-"]
