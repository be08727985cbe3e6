"""`topcoat corpus`: what the corpora of the store hold, and plain libFuzzer directories into them and out of them."""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import StoreError, UsageError
from pipeline.settings import Settings
from pipeline.size import readable
from pipeline.text import columns, one_line

if TYPE_CHECKING:
    from pipeline.corpus import Corpus

SCHEMA = 1
"""Of `topcoat corpus list --json`."""

_COLUMNS = ("fuzzer", "last unit", "units", "size", "in quarantine", "merges")
_SOURCE = "import"
_LEFT_OUT = {
    "quarantined": "in quarantine",
    "too_large": "larger than [campaign] unit_size",
    "over_cap": "beyond [campaign] corpus_size or corpus_units",
    "torn": "not what their names say",
    "refused": "no files that can be read",
}


def list_all(chosen: Settings, options: argparse.Namespace) -> int:
    """Tell what each corpus holds. Ends with an error if one of them cannot be understood; the others are told."""
    found, damaged = list[Mapping[str, object]](), False
    for name in _names(chosen):
        try:
            found.append(_facts(_corpus(chosen, name)))
        except StoreError as error:
            damaged = True
            print(f"{name}: {error.explain()}", file=sys.stderr)
    if options.json:
        print(json.dumps({"schema": SCHEMA, "corpora": found}, indent=2, sort_keys=True))
    elif found:
        print(*columns([_COLUMNS, *map(_row, found)], texts=2), sep="\n")
    elif not damaged:
        print(f"no corpora yet in {chosen.store.root / 'corpora'}", file=sys.stderr)
    return StoreError.exit_code if damaged else 0


def bring(chosen: Settings, options: argparse.Namespace) -> int:
    """Add directories to a corpus, as libFuzzer would read them."""
    corpus = _corpus(chosen, options.fuzzer)
    directories = [Path(directory) for directory in options.directories]
    for directory in directories:
        if not directory.is_dir():
            raise UsageError(
                f"there is no directory {one_line(str(directory))}", hint="name directories with one unit in each file"
            )
    for directory in directories:
        added = corpus.import_directory(directory, _SOURCE)
        left_out = [f"{count} {why}" for name, why in _LEFT_OUT.items() if (count := getattr(added, name))]
        told = [f"{added.new} new", f"{added.known} known", *left_out]
        print(f"{one_line(str(directory))}: {', '.join(told)}")
    return 0


def take(chosen: Settings, options: argparse.Namespace) -> int:
    """Copy a corpus into a directory, one file for each unit, named as libFuzzer names them."""
    corpus = _corpus(chosen, options.fuzzer)
    units = len(corpus.units())
    if not units:
        raise UsageError(
            f"there are no units of {one_line(options.fuzzer)} in {chosen.store.root / 'corpora'}",
            hint="see which corpora there are: topcoat corpus list",
        )
    copied = corpus.export_directory(Path(options.directory))
    print(f"{one_line(options.directory)}: {copied} new, {units - copied} known")
    return 0


def _corpus(chosen: Settings, fuzzer: str) -> "Corpus":
    from pipeline.corpus import Corpus, Limits

    return Corpus.of(chosen.store.root, fuzzer, Limits.of(chosen.campaign))


def _names(chosen: Settings) -> list[str]:
    root = chosen.store.root / "corpora"
    return sorted(str(path.relative_to(root)) for path in root.glob("*/*") if path.is_dir())


def _facts(corpus: "Corpus") -> Mapping[str, object]:
    manifest = corpus.manifest()
    return {
        "fuzzer": corpus.fuzzer,
        "directory": str(corpus.directory),
        "units": len(manifest.units),
        "bytes": manifest.total_bytes,
        "quarantined": len(corpus.quarantined()),
        "last_unit": max((unit.added for unit in manifest.units.values()), default=None),
        "merges": manifest.merges,
        "last_merge": asdict(manifest.last_merge) if manifest.last_merge else None,
    }


def _row(facts: Mapping[str, object]) -> tuple[str, ...]:
    size = readable(int(str(facts["bytes"])))
    numbers = (f"{facts[name]:,}" for name in ("quarantined", "merges"))
    return (str(facts["fuzzer"]), str(facts["last_unit"] or "-"), f"{facts['units']:,}", size, *numbers)
