"""`topcoat crash matrix` and `topcoat crash check`: crashes by the builds of their fuzzers, and what is new."""

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.settings import Settings
from pipeline.text.printable import columns, one_line

if TYPE_CHECKING:
    from pipeline.campaign.report.check import CheckedBucket, FuzzerCheck
    from pipeline.campaign.report.matrix import Cell, FuzzerMatrix
    from pipeline.fuzz.crashes.builds import KnownBuild
    from pipeline.fuzz.crashes.store import CrashStore

SCHEMA = 1
"""The version of the output of `topcoat crash matrix --json` and `topcoat crash check --json`."""

FAILED = 1
"""The exit code of `topcoat crash check` if a bucket is there that was not there with the base."""

_WIDTH = 80
_SHORTEST_NAME = 24  # characters of a bucket's name
_DIGEST = 15  # characters of a build's digest
_MOST_NOTES = 20
_PROVE = "run those that were not: luigi --module tasks ProveFixes --fuzzers"


def matrix(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat crash matrix`: print what is known of each bucket with each build of its fuzzer."""
    from pipeline.campaign.report import matrix as matrices
    from pipeline.fuzz.crashes.store import CrashStore

    store = CrashStore(chosen.store.root)
    found = matrices.read(store, options.patterns)
    if options.json:
        facts = {"schema": SCHEMA, "fuzzers": [one.encode() for one in found]}
        print(json.dumps(facts, indent=2, sort_keys=True))
    elif found:
        width = shutil.get_terminal_size((_WIDTH, 24)).columns if sys.stdout.isatty() else _WIDTH
        print("\n\n".join("\n".join(lines(one, width)) for one in found))
    else:
        _tell_of_none(store, options.patterns)
    return 0


def lines(found: "FuzzerMatrix", width: int = _WIDTH) -> Iterator[str]:
    """The lines that show the matrix of a fuzzer to people: a table with the newest builds that fit, and what it means.

    A table is wider than `width` characters only if one build does not fit.
    """
    yield one_line(found.fuzzer)
    table, shown = _table(found, width)
    yield from table
    yield ""
    for at in shown:
        build = found.builds[at]
        yield f"{_label(at)}  {_short(build)}  first seen {_time(build)}"
    if left_out := len(found.builds) - len(shown):
        yield f"left out, as they do not fit: the {left_out} oldest builds; --json has all"
    yield "bad: the first bad build; good: the first good build after the last bad one"
    yield from _notes(found, shown)


def _table(found: "FuzzerMatrix", width: int) -> tuple[list[str], range]:
    """The table, and the places of the builds that it shows: the newest ones, as many as fit, and one at least."""
    newest = len(found.builds) - 1
    best = _table_of(found, range(newest, newest + 1), width)
    for first in range(newest - 1, -1, -1):
        larger = _table_of(found, range(first, newest + 1), width)
        if max(map(len, larger)) > width:
            return best, range(first + 1, newest + 1)
        best = larger
    return best, range(newest + 1)


def _table_of(found: "FuzzerMatrix", shown: range, width: int) -> list[str]:
    rows = [_cells(found, shown), *(_cells(found, shown, row) for row in range(len(found.rows)))]
    taken = sum(2 + max(map(len, column)) for column in zip(*rows, strict=True))
    names = ["crash", *_names(found, max(_SHORTEST_NAME, width - taken))]
    return columns([(name, *cells) for name, cells in zip(names, rows, strict=True)], len(rows[0]) + 1)


def _cells(found: "FuzzerMatrix", shown: range, row: int | None = None) -> tuple[str, ...]:
    """What stands behind the name of a bucket, or in the head."""
    if row is None:
        return (*map(_label, shown), "bad", "good")
    one = found.rows[row]
    bad, good = ("-" if at is None else _label(at) for at in (one.first_bad, one.first_good))
    return (*(one.cells[at].text for at in shown), bad, good)


def _names(found: "FuzzerMatrix", width: int) -> list[str]:
    """The names of the buckets, cut at their end if they are too long: their beginnings are enough for other commands.

    The digits at the end are left out where the rest tells the bucket from others.
    """
    slugs = [row.bucket.slug for row in found.rows]
    times = Counter(slug[:-13] for slug in slugs)
    names = [slug[:-13] if len(slug) > 13 and times[slug[:-13]] == 1 else slug for slug in slugs]
    return [name if len(name) <= width else f"{name[: width - 1]}…" for name in names]


def _notes(found: "FuzzerMatrix", shown: range) -> Iterator[str]:
    """What the words in the table do not tell: what masks a crash, and why one was not run."""
    cells = [(row.bucket.slug, at, row.cells[at]) for row in found.rows for at in shown]
    notes = [f"{slug} with {_label(at)}: {_reason(cell)}" for slug, at, cell in cells if _reason(cell)]
    if notes:
        yield ""
    yield from notes[:_MOST_NOTES]
    if len(notes) > _MOST_NOTES:
        yield f"and {len(notes) - _MOST_NOTES} more: --json"


def _reason(cell: "Cell") -> str:
    return cell.word if cell.word.startswith(("masked", "not run")) else ""


def _label(at: int) -> str:
    from pipeline.campaign.report.matrix import label

    return label(at)


def _short(build: "KnownBuild") -> str:
    return one_line(build.digest[:_DIGEST]) or "-"


def _time(build: "KnownBuild") -> str:
    return one_line(build.first_seen.replace("T", " ")[:16]) or "-"


def check(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat crash check`: tell what the newest builds have brought and fixed. Ends with 1 if a crash is new."""
    from pipeline.campaign.report import check as checks
    from pipeline.campaign.report import matrix as matrices
    from pipeline.fuzz.crashes.store import CrashStore

    store = CrashStore(chosen.store.root)
    found = checks.compare(matrices.read(store, options.patterns), options.against or "")
    passed = checks.passes(found)
    if options.json:
        facts = {"schema": SCHEMA, "passed": passed, "fuzzers": [one.encode() for one in found]}
        print(json.dumps(facts, indent=2, sort_keys=True))
    elif found:
        print(*check_lines(found), sep="\n")
    else:
        _tell_of_none(store, options.patterns)
    return 0 if passed else FAILED


def check_lines(found: "Sequence[FuzzerCheck]") -> Iterator[str]:
    """The lines that tell people what newest builds have brought and fixed, those first for which they are refused."""
    from pipeline.campaign.report.check import STATES

    rows = [(one, check) for check in found for one in check.buckets]
    rows.sort(key=lambda row: (STATES.index(row[0].state), row[1].fuzzer))
    if rows:
        yield from columns([("state", "fuzzer", "crash", "now"), *(_checked(*row) for row in rows)], 4)
        yield ""
    for check in found:
        base = f"against {_short(check.base)}, first seen {_time(check.base)}" if check.base else "no build before it"
        yield f"{one_line(check.fuzzer)}: {_short(check.newest)}, first seen {_time(check.newest)}; {base}"
    counts = Counter(one.state for one, _ in rows)
    first = f"; {counts['first']} there with a first build" if counts["first"] else ""
    yield ", ".join(f"{counts[state]} {state}" for state in STATES if state != "first") + first
    if unknown := sorted({check.fuzzer for one, check in rows if one.state == "not known" and not one.now.verdict}):
        yield f"{_PROVE} '{one_line(','.join(unknown))}'"


def _checked(one: "CheckedBucket", check: "FuzzerCheck") -> tuple[str, ...]:
    now = _reason(one.now) or ("not run" if one.now.text == "-" else one.now.text)
    return one.state, one_line(check.fuzzer), one.bucket.slug, now


def _tell_of_none(store: "CrashStore", patterns: Sequence[str]) -> None:
    if patterns and store.buckets():
        print("no bucket matches; see which there are: topcoat crash list", file=sys.stderr)
    else:
        print(f"no crashes yet in {one_line(str(store.root))}", file=sys.stderr)
