"""`topcoat crash`, as far as no guest is needed: list buckets, tell all of one, regroup them, and give one away."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError
from pipeline.settings import Settings
from pipeline.text.printable import columns, one_line
from pipeline.text.quantity import counted, readable_size
from pipeline.text.spelling import nearest

if TYPE_CHECKING:
    from pipeline.fuzz.crashes.bucket import Bucket
    from pipeline.fuzz.crashes.known import KnownBucket
    from pipeline.fuzz.crashes.store import CrashStore

SCHEMA = 1
"""The version of the output of `topcoat crash list`, `show` and `bundle` with `--json`."""

_TEXTS = ("crash", "place", "fuzzer", "bucket", "first seen", "last seen")
_NUMBERS = ("times", "builds", "smallest", "reproduced")
_LEAST_WANTED = ("first seen", "builds", "crash", "place", "smallest", "fuzzer", "last seen", "reproduced")
_LONGEST = 60  # characters of one column
_MOST_TOLD = 5
_LISTS = ("joins", "splits", "renames")
_SEE = "see which there are: topcoat crash list"


def list_all(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat crash list`: print what is known of each bucket, those last that were seen last."""
    from pipeline.fuzz.crashes import known
    from pipeline.fuzz.crashes.store import CrashStore

    store = CrashStore(chosen.store.root)
    buckets = sorted(store.buckets(options.patterns), key=lambda one: (one.last_seen, one.fuzzer, one.slug))
    found = known.look_all(store, buckets)
    if options.json:
        print(json.dumps({"schema": SCHEMA, "buckets": [one.encode() for one in found]}, indent=2, sort_keys=True))
    elif found:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        table, left_out = within(width, [(*_TEXTS, *_NUMBERS), *map(_row, found)])
        print(*table, sep="\n")
        if left_out:
            print(f"left out, as this terminal is narrow: {', '.join(left_out)}", file=sys.stderr)
    elif options.patterns and store.buckets():
        print(f"no bucket matches; {_SEE}", file=sys.stderr)
    else:
        print(f"no crashes yet in {one_line(str(store.root))}", file=sys.stderr)
    return 0


def within(width: int | None, rows: Sequence[Sequence[str]]) -> tuple[list[str], list[str]]:
    """The lines of the table for a terminal of this width, and which columns are left out, the least wanted first.

    Without a width, none are. The name of the bucket and how often it was seen always stay.
    """
    left_out: list[str] = []
    for name in ("", *_LEAST_WANTED):
        left_out += [name] if name else []
        kept = [at for at, head in enumerate(rows[0]) if head not in left_out]
        texts = sum(at < len(_TEXTS) for at in kept)
        lines = columns([[row[at] for at in kept] for row in rows], texts)
        if width is None or max(map(len, lines)) <= width:
            break
    return lines, left_out


def _row(one: "KnownBucket") -> tuple[str, ...]:
    bucket, told = one.bucket, one.last_verdict
    texts = (
        *(bucket.title, one.place_in_short, bucket.fuzzer, bucket.slug),
        *(seen.replace("T", " ")[:16] for seen in (bucket.first_seen, bucket.last_seen)),
    )
    return (
        *(one_line(text, _LONGEST if at < 2 else 300) or "-" for at, text in enumerate(texts)),
        f"{bucket.count:,}",
        f"{len(bucket.builds):,}",
        "-" if one.shown is None else readable_size(one.shown.facts.size),
        "-" if told is None else f"{told.same}/{told.tries}",
    )


def show(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat crash show`: print all that is known of one bucket."""
    from pipeline.cli.crash_report import encode, lines
    from pipeline.fuzz.crashes import known
    from pipeline.fuzz.crashes.store import CrashStore

    store = CrashStore(chosen.store.root)
    found = known.look(store, find(store, options.bucket))
    if options.json:
        print(json.dumps({"schema": SCHEMA, **encode(found)}, indent=2, sort_keys=True))
    else:
        print(*lines(found), sep="\n")
    return 0


def rebucket(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat crash rebucket`: tell what another rule would join and split. It changes nothing."""
    from pipeline.fuzz.crashes import regrouping, rules
    from pipeline.fuzz.crashes.regrouping import BucketedCrash
    from pipeline.fuzz.crashes.report import UNKNOWN
    from pipeline.fuzz.crashes.store import CrashStore

    rule, store = rules.parse_rule(options.rule), CrashStore(chosen.store.root)
    found = regrouping.rebucket(
        (
            BucketedCrash(bucket.fuzzer, bucket.slug, str(crash.number), crash.facts.report or UNKNOWN)
            for bucket in store.buckets()
            for crash in store.crashes(bucket)
        ),
        rule,
    )
    if options.json:
        whole = found.encode()
        counts = {name: len(whole[name]) for name in _LISTS}
        told = {name: value for name, value in whole.items() if options.diff or name not in _LISTS}
        print(json.dumps({**told, "counts": counts}, indent=2, sort_keys=True))
    else:
        print(*found.lines(whole=options.diff), sep="\n")
        print("nothing was changed: crashes stay in the buckets in which they are", file=sys.stderr)
    return 0


def bundle(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat crash bundle`: write all that somebody else needs to see a crash again into one file."""
    from pipeline.builds import build
    from pipeline.campaign import bundling
    from pipeline.fuzz.crashes import bundle, known
    from pipeline.fuzz.crashes.store import CrashStore
    from pipeline.store.digest_cache import DigestCache

    store, path = CrashStore(chosen.store.root), Path(options.output)
    found = known.look(store, find(store, options.bucket))
    if os.path.lexists(path):
        raise UsageError(f"{one_line(str(path))} is there already", hint="give another name, or remove it first")
    here, digests = build.load(chosen), DigestCache(chosen.store.digests)
    there = bundling.digests_here(here, digests.of)
    present = bundling.present_build(found.bucket.fuzzer, here, chosen.store.demo, digests.of)
    made, crash = bundling.bundle_of(store, found, there, present)
    bundle.write(made, path)
    told = {
        "schema": SCHEMA,
        "file": str(path.absolute()),
        "bytes": path.stat().st_size,
        "fuzzer": made.fuzzer,
        "bucket": made.bucket,
        "crash": crash.number,
        "minimised": made.minimised is not None,
        "files": sorted(made.files),
        "same_build": present == crash.facts.build,
    }
    if options.json:
        print(json.dumps(told, indent=2, sort_keys=True))
    else:
        print(*_bundled(told, len(made.input), made.minimised), sep="\n")
    return 0


def _bundled(told: Mapping[str, Any], size: int, minimised: bytes | None) -> Iterator[str]:
    from pipeline.campaign.result import from_here

    smaller = "" if minimised is None else f", minimised {counted(len(minimised), 'byte')}"
    files = len(told["files"])
    yield f"{one_line(from_here(Path(told['file'])), 1000)}: {readable_size(told['bytes'])}"
    yield f"crash {told['crash']} of {told['bucket']}: input {counted(size, 'byte')}{smaller}"
    yield f"the target's own files: {files}" if files else "the target's own files: none; they are not kept"
    if not told["same_build"]:
        yield "the digests of images, tools and QEMU are those of now: the build that crashed is not here any more"


def find(store: "CrashStore", word: str) -> "Bucket":
    """The bucket that is meant by its slug, FUZZER/SLUG, the beginning of either, or the path of its directory.

    Raises UsageError if it is none, or several.
    """
    known = store.buckets()
    found = _meant(store, known, word)
    if len(found) == 1:
        return found[0]
    names = [f"{one.fuzzer}/{one.slug}" for one in found or known]
    if found:
        raise UsageError(f"{one_line(word)} means several buckets", hint=f"say which: {_some(names)}")
    # Without the digits at its end, too: nobody misspells these
    spelled = {name: full for full in names for slug in [full.rpartition("/")[2]] for name in (full, slug, slug[:-13])}
    near = list(dict.fromkeys(spelled[name] for name in nearest(word, spelled, 3)))
    raise UsageError(
        f"there is no bucket {one_line(word)} in {one_line(str(store.root))}",
        hint=f"is it {_some(near)}? {_SEE}" if near else _SEE,
    )


def _meant(store: "CrashStore", known: Sequence["Bucket"], word: str) -> list["Bucket"]:
    path = Path(os.path.abspath(word))
    by_path = [one for one in known if store.directory(one.fuzzer, one.slug) in (path, *path.parents)]
    exact = [one for one in known if word in (one.slug, f"{one.fuzzer}/{one.slug}")]
    begun = [one for one in known if one.slug.startswith(word) or f"{one.fuzzer}/{one.slug}".startswith(word)]
    return by_path or exact or begun


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(one_line, names[:_MOST_TOLD])) + (" …" if len(names) > _MOST_TOLD else "")
