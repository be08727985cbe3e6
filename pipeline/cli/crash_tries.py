"""Commands that run the inputs of crashes in a guest: `topcoat crash repro`, `minimise` and `replay`.

Each runs a task of luigi, which keeps what came of it; what is known already is only told.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.crashes import find
from pipeline.errors import CampaignError, TopcoatError
from pipeline.host.stdio import only_telling
from pipeline.settings import Settings
from pipeline.store.digests import shortened
from pipeline.text.printable import one_line
from pipeline.text.quantity import counted

if TYPE_CHECKING:
    from pipeline.campaign.minimising import Facts
    from pipeline.fuzz.crashes.verdicts import CrashVerdict
    from tasks import TriageCrash

MINIMISED_SCHEMA = 1
"""The version of the output of `topcoat crash minimise --json`."""

_WHY = {
    "minimal": "no single byte can be removed or made plainer",
    "runs": "it was run as often as is allowed, and may become smaller yet",
    "deadline": "the time was over, and it may become smaller yet",
    "gave up": "no more guests were there",
    "not in its bucket": "it did not come again, so it stays as it is",
    "not confirmed": "what became of it did not come again, so it stays as it is",
}
_UNSURE = ("not in its bucket", "not confirmed")


def repro(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat crash repro`: run the inputs of a bucket again, and tell what came of it.

    Returns 0 if the crash came again, 1 if something else came or nothing, 30 if nobody can tell, and the exit code of
    luigi if it could not be tried.
    """
    from pipeline.campaign.result import from_here
    from pipeline.fuzz.crashes import replay

    words = _about(chosen, options)
    if code := _run("TriageCrash", words):
        return code
    from tasks import TriageCrash

    task = TriageCrash(**words)
    verdict = _verdict(task)
    said = from_here(task.artifacts()[1])
    if options.json:
        facts = {"word": verdict.word, "build": verdict.build, "made": verdict.made, "output": str(task.artifacts()[1])}
        _print(replay.encode_verdict(verdict.fuzzer, verdict.bucket, verdict) | facts)
    else:
        print(*replay.counted(verdict.fuzzer, verdict.bucket, verdict), *_of_build(verdict, said), sep="\n")
    return replay.exit_code(verdict)


def _about(chosen: Settings, options: argparse.Namespace) -> dict[str, Any]:
    """The parameters of the tasks about the bucket that is meant. Raises UsageError if it is none, or several."""
    from pipeline.fuzz.crashes.store import CrashStore

    bucket = find(CrashStore(chosen.store.root), options.bucket)
    return {"fuzzer": bucket.fuzzer, "bucket": bucket.slug, "tries": options.tries}


def _run(task: str, parameters: Mapping[str, Any]) -> int:
    """Run a task as luigi does; its exit code, after it has told what went wrong."""
    from tasks.engine.command import exit_code_of

    with only_telling():
        return exit_code_of([task, *(f"--{name}={value}" for name, value in parameters.items())])


def _verdict(task: "TriageCrash") -> "CrashVerdict":
    if found := task.verdict():
        return found
    raise CampaignError(f"the verdict on {task.bucket} cannot be read", hint="the same command again makes it anew")


def _of_build(verdict: "CrashVerdict", said: str) -> Sequence[str]:
    build = (
        f"{shortened(verdict.build)}: {verdict.word}; {counted(len(verdict.inputs), 'input')}, tried at {verdict.made}"
    )
    return [f"build {one_line(build)}", f"what the runs have said: {one_line(said, 1000)}"]


def minimise(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat crash minimise`: make an input of a bucket smaller, and tell what came of it.

    Returns 0 if the input that is left is in the bucket, 1 if no input came there again, 30 if nobody can tell.
    """
    words = _about(chosen, options)
    if code := _run("MinimiseCrash", words):
        return code
    from pipeline.campaign.result import from_here
    from tasks import MinimiseCrash

    task = MinimiseCrash(**words)
    facts, path = task.facts(task.build()), task.artifacts()[0]
    if facts is None:
        raise CampaignError(f"what is left of {task.bucket} cannot be read", hint="the same command again makes it")
    if options.json:
        _print({"schema": MINIMISED_SCHEMA, **asdict(facts), "path": str(path)})
    else:
        print(*_minimised(facts, from_here(path)), sep="\n")
    if facts.why in _UNSURE:
        return 1
    return 0 if facts.confirmed or facts.why != "gave up" else TopcoatError.exit_code


def _minimised(facts: "Facts", path: str) -> list[str]:
    before, after = facts.original.size, facts.result.size
    became = f"{before:,} -> {counted(after, 'byte')}" if facts.steps else f"{counted(before, 'byte')}, as before"
    confirmed = f", confirmed {facts.confirmed} of {facts.of}" if facts.of else ""
    return [
        one_line(f"{facts.bucket} of {facts.fuzzer}: {became}{confirmed}", 1000),
        f"{facts.why}: {_WHY[facts.why]}; {counted(facts.tried, 'run')}",
        *([f"trouble: {one_line(facts.trouble)}"] if facts.trouble else []),
        one_line(path, 1000),
    ]


def replay_bundle(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat crash replay`: verify a bundle, run its inputs here, and tell what came of it and what differs.

    Returns 0 if the crash came again, 1 if something else came or nothing, 30 if nobody can tell or the bundle is
    damaged.
    """
    from pipeline.campaign import bundling
    from pipeline.campaign.result import from_here
    from pipeline.fuzz.crashes import bundle as bundles
    from pipeline.fuzz.crashes import replay

    bundle = bundles.read(Path(options.file))
    bucket = bundling.bucket_of(bundle)
    words = {"fuzzer": bucket.fuzzer, "bucket": bucket.slug, "tries": options.tries, "file": options.file}
    if code := _run("ReplayBundle", words):
        return code
    from tasks import ReplayBundle
    from tasks.engine.context import context

    task, here = ReplayBundle(**words), context()
    verdict, said = _verdict(task), task.artifacts()[1]
    now = {bundling.FUZZER: {bundle.fuzzer: verdict.build}, **bundling.digests_here(here.build, here.digests.of)}
    differences = bundles.compare(bundle.digests, now)
    if options.json:
        _print(replay.encode(bundle, verdict, differences) | {"word": verdict.word, "output": str(said)})
    else:
        print(*replay.lines(bundle, verdict, differences), *_of_build(verdict, from_here(said)), sep="\n")
    return replay.exit_code(verdict)


def _print(answer: Mapping[str, Any]) -> None:
    print(json.dumps(answer, indent=2, sort_keys=True))
