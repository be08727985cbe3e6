"""`topcoat corpus`: list the corpora of the store, copy plain libFuzzer directories into them, and copy them out."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InstanceBusy, StoreError, TopcoatError, UsageError
from pipeline.host.stdio import only_telling
from pipeline.settings import Settings
from pipeline.text.printable import columns, one_line
from pipeline.text.quantity import readable_size

if TYPE_CHECKING:
    from pipeline.fuzz.corpus import Corpus, MergeRecord

SCHEMA = 1
"""The version of the output of `topcoat corpus list --json`."""

_TEXTS = ("fuzzer", "last unit", "last merge")
_NUMBERS = ("units", "size", "in quarantine", "merged units", "merged features", "replaced units")
_SOURCE = "import"
_SEE = "see which corpora there are: topcoat corpus list"


@dataclass(frozen=True)
class Holding:
    """What a corpus holds. The fields are the keys of `topcoat corpus list --json`."""

    fuzzer: str
    directory: str
    units: int
    bytes: int
    quarantined: int
    last_unit: str | None
    merges: int
    last_merge: "MergeRecord | None"
    replaced: int
    """The number of units that merges took out of the corpus, and that are kept."""
    replaced_bytes: int

    @classmethod
    def of(cls, corpus: "Corpus") -> "Holding":
        """What a corpus holds now.

        Raises StoreError, and InstanceBusy if its manifest is lost and another process works on it.
        """
        manifest, replaced = corpus.manifest(), corpus.replaced()
        return cls(
            fuzzer=corpus.fuzzer,
            directory=str(corpus.directory),
            units=len(manifest.units),
            bytes=manifest.total_bytes,
            quarantined=len(corpus.quarantined()),
            last_unit=max((unit.added for unit in manifest.units.values()), default=None),
            merges=manifest.merges,
            last_merge=manifest.last_merge,
            replaced=len(replaced),
            replaced_bytes=sum(unit.bytes for unit in replaced.values()),
        )


def list_all(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat corpus list`: print what each corpus holds. One that cannot be read makes it fail at the end."""
    found, failed = list[Holding](), list[dict[str, str]]()
    for corpus in _asked_for(chosen, options.patterns):
        try:
            found.append(Holding.of(corpus))
        except (InstanceBusy, StoreError) as error:
            failed.append({"fuzzer": corpus.fuzzer, "reason": one_line(error.message), "hint": error.hint})
    if options.json:
        told = {"schema": SCHEMA, "corpora": [asdict(one) for one in found], "failed": failed}
        print(json.dumps(told, indent=2, sort_keys=True))
    elif found:
        print(*columns([_TEXTS + _NUMBERS, *map(_row, found)], len(_TEXTS)), sep="\n")
    elif not failed:
        print(f"no corpora yet in {_root(chosen)}", file=sys.stderr)
    for one in failed:
        print(f"{one['fuzzer']}: {one['reason']} ({one['hint']})", file=sys.stderr)
    return StoreError.exit_code if failed else 0


@only_telling()
def bring(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat corpus import`: add the files of directories to a corpus, as libFuzzer would read them."""
    corpus = _corpus(chosen, options.fuzzer)
    directories = [Path(directory) for directory in options.directories]
    for directory in directories:
        if not directory.is_dir():
            raise UsageError(
                f"there is no directory {one_line(str(directory))}", hint="name directories with one unit in each file"
            )
    _warn_if_unknown(chosen, options.fuzzer)
    for directory in directories:
        added = corpus.import_directory(directory, _SOURCE)
        told = [f"{added.new} new, {added.known} known", *map(str, added.reasons)]
        print(f"{one_line(str(directory))}: {'; '.join(told)}")
    return 0


@only_telling()
def take(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat corpus export`: copy a corpus into a directory, one file for each unit, with libFuzzer's names."""
    corpus, directory = _corpus(chosen, options.fuzzer), Path(options.directory)
    if not corpus.units():
        raise UsageError(f"there are no units of {corpus.fuzzer} in {_root(chosen)}", hint=_SEE)
    there = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise UsageError(f"{one_line(str(there))} is no directory", hint="name one that is there, or one to be made")
    print(f"{one_line(str(directory))}: {corpus.export_directory(directory)} new")
    return 0


@only_telling()
def restore(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat corpus restore`: put the kept units that merges took out of a corpus back into it."""
    corpus = _corpus(chosen, options.fuzzer)
    if corpus.is_new and not corpus.replaced():
        raise UsageError(f"there is no corpus of {corpus.fuzzer} in {_root(chosen)}", hint=_SEE)
    added = corpus.restore()
    print("; ".join([f"{corpus.fuzzer}: {added.new} restored", *map(str, added.reasons)]))
    return 0


def _corpus(chosen: Settings, fuzzer: str) -> "Corpus":
    from pipeline.fuzz.corpus import Corpus, CorpusLimits

    return Corpus.of(chosen.store.root, fuzzer, CorpusLimits.of(chosen.campaign))


def _root(chosen: Settings) -> Path:
    return chosen.store.root / "corpora"


def _asked_for(chosen: Settings, patterns: Sequence[str]) -> "list[Corpus]":
    """The corpora whose fuzzers match any of the patterns; all without one. Raises UsageError if one matches none."""
    from pipeline.fuzz.corpus import Corpus, CorpusLimits
    from pipeline.text import goglob

    corpora = list(Corpus.all(chosen.store.root, CorpusLimits.of(chosen.campaign)))
    asked = set[str]()
    for pattern in patterns:
        wanted = goglob.compiled(pattern)
        names = {corpus.fuzzer for corpus in corpora if wanted.match(corpus.fuzzer)}
        if not names:
            raise UsageError(f"there is no corpus of {one_line(pattern)} in {_root(chosen)}", hint=_SEE)
        asked |= names
    return [corpus for corpus in corpora if corpus.fuzzer in asked] if patterns else corpora


def _row(one: Holding) -> tuple[str, ...]:
    merge = one.last_merge
    return (
        one.fuzzer,
        one_line(one.last_unit or "-"),
        one_line(merge.at) if merge else "-",
        f"{one.units:,}",
        readable_size(one.bytes),
        f"{one.quarantined:,}",
        f"{merge.units_before:,} -> {merge.units_after:,}" if merge else "-",
        f"{merge.before.features:,} -> {merge.after.features:,}" if merge else "-",
        f"{one.replaced:,} ({readable_size(one.replaced_bytes)})" if one.replaced else "-",
    )


def _warn_if_unknown(chosen: Settings, fuzzer: str) -> None:
    """Warn if the fuzzers of the build are known and this is none of them: it may be misspelt, or of another build."""
    from pipeline.builds import build
    from pipeline.campaign.plan.draft import Pattern
    from pipeline.fuzz.targets import FuzzTargets

    try:
        targets = FuzzTargets.of(build.load(chosen))
    except TopcoatError:  # a corpus needs no build
        return
    if fuzzer not in targets.names:
        hint = Pattern(fuzzer, ()).hint(targets.names, targets.missing)
        print(f"warning: no fuzzer of the build is named {fuzzer} ({one_line(hint)})", file=sys.stderr)
