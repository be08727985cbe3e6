"""Commands about the host: whether it can run guests, and what killed runs have left on it."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.host.stdio import only_telling
from pipeline.settings import DAY, Settings
from pipeline.text.quantity import readable_size

if TYPE_CHECKING:
    from pipeline.upkeep.gc import Outcome

_FAILED = 30


def doctor(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat doctor`: print what is found about the host. Returns 0 if guests can run, even with warnings."""
    from pipeline.upkeep.doctor import examine

    findings = []
    for finding in examine(chosen):
        findings.append(finding)
        if not options.json:
            hint = f"; {finding.hint}" if finding.hint else ""
            print(f"{finding.level:<8} {finding.name}: {finding.text}{hint}", flush=True)
    if options.json:
        print(json.dumps({"schema": 1, "findings": [asdict(one) for one in findings]}, indent=2, sort_keys=True))
    return _FAILED if any(finding.level == "error" for finding in findings) else 0


def gc(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat gc`: reclaim what has no living owner, or without --yes only show it."""
    from pipeline.fuzz.corpus import CorpusLimits
    from pipeline.upkeep import gc as collector

    if not options.keep >= 0:
        raise UsageError(f"--keep {options.keep} is no number of days", hint="give 0 or more")
    items = collector.items(chosen.store, options.keep * DAY, CorpusLimits.of(chosen.campaign))
    outcomes = [collector.reclaim(item) if options.yes else collector.Outcome(item) for item in items]
    rows = [
        {
            "kind": outcome.item.kind,
            "what": outcome.item.what,
            "bytes": outcome.item.bytes,
            "why": outcome.item.why,
            "reclaimed": options.yes and not outcome.spared and outcome.error is None,
            "spared": outcome.spared or None,
            "error": outcome.error and outcome.error.message,
        }
        for outcome in outcomes
    ]
    with only_telling(options.yes):
        if options.json:
            print(json.dumps({"schema": 1, "done": options.yes, "items": rows}, indent=2, sort_keys=True))
        else:
            for outcome in outcomes:
                _tell(outcome, done=options.yes)
            if items and not options.yes:
                print("nothing was reclaimed; to do it: topcoat gc --yes")
    return _FAILED if any(outcome.error for outcome in outcomes) else 0


def _tell(outcome: "Outcome", *, done: bool) -> None:
    item = outcome.item
    if outcome.error is not None:
        print(f"error: {outcome.error.explain()}", file=sys.stderr)
        return
    verb = "spared" if outcome.spared else "reclaimed" if done else "reclaim"
    why = outcome.spared or item.why
    print(f"{verb:<9} {item.kind} {item.what} ({readable_size(item.bytes)}): {why}")
