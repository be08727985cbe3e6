"""`topcoat campaign`: check a campaign's file before it is run, and tell how campaigns stand during and after a run."""

import argparse
import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import MissingResource, ResourceDamaged, StoreError, UsageError
from pipeline.host.faults import entries
from pipeline.settings import Settings
from pipeline.text.printable import columns, one_line
from pipeline.text.quantity import readable_duration

if TYPE_CHECKING:
    from pipeline.campaign.plan.definition import Definition, FuzzerPlan
    from pipeline.campaign.plan.draft import Draft
    from pipeline.campaign.plan.problems import Problem
    from pipeline.campaign.reading import Reading
    from pipeline.fuzz.corpus import Added
    from pipeline.fuzz.targets import FuzzTargets

SCHEMA = 1
"""The version of the output of `topcoat campaign check --json`, which docs/campaign.md describes."""

_WRONG = 2
_RUN = "luigi --module tasks FuzzCampaign --name"
_COLUMNS = ("fuzzer", "budget", "slice", "slices", "options", "dictionary", "seeds")


def check(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat campaign check`: print what a campaign's file means for the build, or all that is wrong with it."""
    from pipeline.campaign import seeds
    from pipeline.campaign.plan import draft
    from pipeline.fuzz.corpus import Corpus, CorpusLimits

    found = draft.look(Path(options.file), chosen.campaign)
    targets, why_not = _targets(chosen)
    problems = found.problems_with(targets.names, targets.missing) if targets else found.problems
    definition = _runnable(chosen, found.expand(targets.names)) if targets and not problems else None
    seeded = _seeded(chosen, definition.name) if definition else {}
    judged = {
        plan.name: seeds.judge(
            plan,
            Corpus.of(chosen.store.root, plan.name, CorpusLimits.of(chosen.campaign)),
            seeded.get(plan.name, ()),
        )
        for plan in (definition.fuzzers if definition else ())
        if plan.seeds
    }
    warnings = [*found.warnings, *_left_out(found, judged.values())]
    if options.json:
        facts = _encoded(warnings, problems, definition) | {"not_expanded": why_not or None}
        print(json.dumps(facts, indent=2, sort_keys=True))
    else:
        for warning in warnings:
            print(f"{warning.place}: warning: {warning.advice}", file=sys.stderr)
        _tell(found, problems, definition, judged, why_not)
    return _WRONG if problems else 0


def _seeded(chosen: Settings, name: str) -> "Mapping[str, Collection[str]]":
    """The names of the units that the campaign's seeds have brought so far, by fuzzer."""
    from pipeline.campaign import ledger
    from pipeline.campaign.reading import LEDGER
    from pipeline.campaign.state import State

    return State.of(ledger.read(chosen.store.campaigns / name / LEDGER)).seeded


def _left_out(found: "Draft", seeds: "Iterable[Added]") -> "Iterator[Problem]":
    from pipeline.campaign.plan.problems import Problem
    from pipeline.fuzz.corpus import Added

    for reason in sum(seeds, Added()).reasons:
        yield Problem(found.source.name, None, "seeds", f"seeds left out: {reason}", reason.hint)


def _runnable(chosen: Settings, definition: "Definition") -> "Definition":
    """Return the definition, if guests of the build can carry it out, as far as is known. Raises UsageError if not."""
    from pipeline.builds import build
    from pipeline.campaign import subjects

    subjects.require(definition, build.load(chosen))
    return definition


def _targets(chosen: Settings) -> "tuple[FuzzTargets | None, str]":
    """All fuzzers of the build, and ""; or None, and the reason why they are not known yet."""
    from pipeline.builds import build
    from pipeline.fuzz.targets import FuzzTargets

    try:
        return FuzzTargets.of(build.load(chosen)), ""
    except ResourceDamaged:
        raise
    except MissingResource as error:
        return None, error.message


def _encoded(
    warnings: "Sequence[Problem]", problems: "Sequence[Problem]", definition: "Definition | None"
) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "definition": definition.encode() if definition else None,
        "problems": [problem.encode() for problem in problems],
        "warnings": [warning.encode() for warning in warnings],
    }


def _tell(
    found: "Draft",
    problems: "Sequence[Problem]",
    definition: "Definition | None",
    seeds: "Mapping[str, Added]",
    why_not: str,
) -> None:
    for problem in problems:
        print(problem, file=sys.stderr)
    if definition:
        print(*_table(definition, seeds), "", _totals(definition), sep="\n")
    elif not problems:
        print(f"{found.source.name}: nothing is wrong with the file itself")
    if why_not:
        print(f"not compared with the fuzzers of the build: {one_line(why_not)}", file=sys.stderr)


def _table(definition: "Definition", seeds: "Mapping[str, Added]") -> list[str]:
    rows = (_row(plan, seeds.get(plan.name)) for plan in definition.fuzzers)
    return columns([_COLUMNS, *rows], texts=len(_COLUMNS))


def _row(plan: "FuzzerPlan", seeds: "Added | None") -> tuple[str, ...]:
    seconds, runs = plan.budget.seconds, plan.budget.runs
    return (
        one_line(plan.name),
        _time(seconds) if seconds else _counted(runs or 0, "run"),
        _time(plan.slice),
        str(plan.slices or "-"),
        " ".join(f"{name}={value}" for name, value in plan.options) or "-",
        one_line(plan.dictionary.name) if plan.dictionary else "-",
        _counted(len(seeds.names), "unit") if seeds else "-",
    )


def _totals(definition: "Definition") -> str:
    plans = definition.fuzzers
    seconds = sum(plan.budget.seconds or 0 for plan in plans)
    runs = sum(plan.budget.runs or 0 for plan in plans)
    slices = sum(plan.slices or 0 for plan in plans)
    parts = [_counted(len(plans), "fuzzer")]
    parts += [f"{_counted(slices, 'slice')} in {_time(seconds)}"] if seconds else []
    parts += [_counted(runs, "run")] if runs else []
    return f"{definition.name}: {', '.join(parts)}; seed {definition.seed}, allocation {definition.allocation}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _time(seconds: int) -> str:
    return f"{seconds} s" if seconds < 60 else readable_duration(seconds)


def status(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat campaign status`: print how one campaign stands, or all."""
    from pipeline.campaign import reading

    found: dict[Path, Reading] = {}
    for directory in _directories(chosen, options.name):
        try:
            found[directory] = reading.read(directory)
        except StoreError as error:
            if options.name:
                raise
            print(f"warning: {error.explain()}", file=sys.stderr)  # the others can still be told
    if options.json:
        facts = [one.status.encode() for one in found.values()]
        print(json.dumps(facts[0] if options.name else facts, indent=2, sort_keys=True))
        return 0
    for number, (directory, one) in enumerate(found.items()):
        print(*([""] if number else []), *_shown(directory, one), sep="\n")
    if not found:
        print(f"no campaigns yet; run one: {_RUN} NAME", file=sys.stderr)
    return 0


def _directories(chosen: Settings, name: str | None) -> list[Path]:
    from pipeline.campaign.reading import LEDGER

    root = chosen.store.campaigns
    known = [path for path in entries(root) if (path / LEDGER).exists()]
    if name is None:
        return known
    if root / name not in known:
        names = ", ".join(path.name for path in known)
        raise UsageError(
            f"there is no campaign named {one_line(name)} in {root}",
            hint=f"there are: {names}" if names else f"run it: {_RUN} {one_line(name)}",
        )
    return [root / name]


def _shown(directory: Path, found: "Reading") -> list[str]:
    from pipeline.campaign import found as found_buckets
    from pipeline.campaign.display import headline
    from pipeline.campaign.result import RESULT, crashes, from_here, proof, table
    from pipeline.fuzz.crashes.store import CrashStore

    status, store = found.status, directory.parents[1]
    buckets = found_buckets.find(CrashStore(store), directory, found.state, found.present)
    lines = [headline(status), *table(status), "", *crashes(buckets, store), "", proof(status)]
    if found.works:
        return [*lines, f"process {status.by.pid} works at it, since {status.by.started}"]
    if status.state == "done" and (directory / RESULT).exists():
        return [*lines, f"it is done: {from_here(directory / RESULT)}"]
    return [*lines, "no process works at it; the command that began it goes on"]
