"""What `topcoat crash show` tells of a bucket: for people, and for machines."""

import base64
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.campaign import minimising
from pipeline.campaign.result import from_here
from pipeline.fuzz.crashes.bucket import Bucket, Seen
from pipeline.fuzz.crashes.crash import FILES, KeptCrash
from pipeline.fuzz.crashes.functions import BELOW
from pipeline.fuzz.crashes.known import KnownBucket
from pipeline.fuzz.crashes.rules import Judged
from pipeline.fuzz.crashes.severity import severity
from pipeline.store.digests import shortened
from pipeline.text.printable import columns, one_line
from pipeline.text.quantity import counted
from pipeline.vm.capsule import found_in

MOST_SHOWN = 256
"""How many bytes of an input are shown to people."""

MOST_ENCODED = 1 << 16
"""How many bytes of an input machines are given."""

_MOST_FRAMES = 30
_WIDTH = 200
_ROW = 16
_NAMES = 12  # characters of the first column


def lines(found: KnownBucket) -> Iterator[str]:
    """The lines that tell people all: what it is, the stack, the input, how to run it again, where it was seen."""
    bucket, crash = found.bucket, found.shown
    yield one_line(bucket.title, _WIDTH)
    if crash and crash.facts.report:
        yield _told("severity", severity(crash.facts.report).sentence)
    yield _told("fuzzer", bucket.fuzzer)
    yield _told("bucket", f"{bucket.slug} by the rule {bucket.rule}")
    yield _told("seen", _times(bucket))
    if last := found.last_verdict:
        yield _told("verdict", f"{found.words[last.build]}, with {shortened(last.build)}")
    for slug, why in found.alike.items():
        yield _told("like", f"probably the same as {slug}: {'; '.join(why)}")
    if crash:
        yield from _of_crash(found, crash)
    else:
        yield "no crash is kept"
    yield from _table("build", bucket.builds, found.words)
    yield from _table("campaign", bucket.campaigns, {})
    yield from _files(found)


def _times(bucket: Bucket) -> str:
    if bucket.count == 1:
        return f"once, at {bucket.last_seen}"
    return f"{bucket.count:,} times, from {bucket.first_seen} to {bucket.last_seen}"


def _of_crash(found: KnownBucket, crash: KeptCrash) -> Iterator[str]:
    facts = crash.facts
    if facts.report:
        yield _told("said", facts.report.summary)
        yield from filter(None, [facts.report.access and _told("access", f"{facts.report.access}")])
    yield ""
    yield f"stack of crash {crash.number}, which has the smallest input; * marks the frames that decide"
    yield from _stack(found)
    yield ""
    yield _told("input", f"{counted(facts.size, 'byte')}, sha256 {facts.sha256}")
    yield from _dump(crash.input())
    smaller = _minimised(found)
    if smaller and smaller.stat().st_size < facts.size:
        yield _told("minimised", f"{counted(smaller.stat().st_size, 'byte')}: {from_here(smaller)}")
    yield _told("options", shlex.join(facts.options))
    yield from (_told("environment", f"{name}={shlex.quote(value)}") for name, value in facts.environment.items())
    yield _told("run it again", again(found))


def _stack(found: KnownBucket) -> Iterator[str]:
    frames = found.decision.frames if found.decision else ()
    if not frames:
        yield "  no stack is known; the output of the run may tell more"
    shown = frames[:_MOST_FRAMES]
    while shown and shown[-1].why == BELOW:
        shown = shown[:-1]
    for at, judged in enumerate(shown):
        yield f" {'*' if judged.decides else ' '} #{at} {_frame(judged)}"
    if below := [one for one in frames[len(shown) :] if one.why == BELOW]:
        yield f"   … and {counted(len(below), 'frame')} {BELOW}"
    if more := len(frames) - len(shown) - len(below):
        yield f"   … and {counted(more, 'frame')} more"


def _frame(judged: Judged) -> str:
    frame, why = judged.frame, f"  ({judged.why})" if judged.why else ""
    where = f"{frame.file}:{frame.line}" if frame.line else frame.file or frame.place
    return one_line(f"{frame.function or '?'}  {where}{why}", _WIDTH).rstrip()


def _dump(content: bytes) -> Iterator[str]:
    """The beginning of an input in hexadecimal and as text, in rows."""
    for at in range(0, min(len(content), MOST_SHOWN), _ROW):
        row = content[at : at + _ROW]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        yield f"  {at:08x}  {row.hex(' '):{_ROW * 3}} {text}"
    if len(content) > MOST_SHOWN:
        yield f"  … and {counted(len(content) - MOST_SHOWN, 'byte')} more"


def again(found: KnownBucket) -> str:
    """The command that runs the inputs of the bucket again."""
    return f"topcoat crash repro {shlex.quote(f'{found.bucket.fuzzer}/{found.bucket.slug}')}"


def _table(what: str, seen: Mapping[str, Seen], words: Mapping[str, str]) -> Iterator[str]:
    """Where it was seen: a table, the last one first. `words` are what is to be said of some."""
    names = sorted({*seen, *words}, key=lambda one: (seen[one].last_seen if one in seen else "", one), reverse=True)
    if names:
        rows: list[tuple[str, ...]] = [(what, "times", "first seen", "last seen", "verdict" if words else "")]
        for name in names:
            one = seen.get(name, Seen("-", "-", 0))
            times = [seen_at.replace("T", " ")[:16] for seen_at in (one.first_seen, one.last_seen)]
            told = (shortened(name), f"{one.count:,}", *times, words.get(name, ""))
            rows.append(tuple(one_line(text, _WIDTH) for text in told))
        yield from ("", *columns(rows, texts=5))


def _files(found: KnownBucket) -> Iterator[str]:
    yield ""
    yield f"files in {one_line(from_here(found.directory), 1000)}"
    if found.crashes:
        rows = [("crash", "bytes", "seen", "campaign")]
        for crash in found.crashes:
            facts = crash.facts
            rows.append((f"{crash.number}", f"{facts.size:,}", facts.seen, facts.campaign or "-"))
        yield from columns([tuple(one_line(text, _WIDTH) for text in row) for row in rows], texts=4)
        yield f"of each crash: {', '.join(FILES)}"
    for capsule in found_in(found.directory):
        yield f"the guest as it was at a crash: topcoat open {shlex.quote(from_here(capsule.parent))}"


def _minimised(found: KnownBucket) -> Path | None:
    """The path of the input that was made smaller, if somebody has done that."""
    path = found.directory / minimising.DIRECTORY / minimising.FILES[0]
    return path if path.is_file() else None


def _told(name: str, text: str) -> str:
    return f"{name:{_NAMES}} {one_line(text, 1000)}"


def encode(found: KnownBucket) -> dict[str, Any]:
    """All that is known as values for JSON."""
    return found.encode() | {
        "severity": severity(found.shown.facts.report).sentence if found.shown and found.shown.facts.report else None,
        "again": again(found),
        "minimised": str(smaller) if (smaller := _minimised(found)) else None,
        "shown": _encoded(found, found.shown) if found.shown else None,
        "crashes": [
            {
                "number": crash.number,
                "directory": str(crash.directory),
                "size": crash.facts.size,
                "sha256": crash.facts.sha256,
                "seen": crash.facts.seen,
                "campaign": crash.facts.campaign,
                "build": crash.facts.build,
            }
            for crash in found.crashes
        ],
        "files": {
            build.digest: dict(build.files) for build in found.builds.builds if build.digest in found.bucket.builds
        },
        "capsules": [str(capsule) for capsule in found_in(found.directory)],
    }


def _encoded(found: KnownBucket, crash: KeptCrash) -> dict[str, Any]:
    """The crash that is shown: what crash.json tells, its input, and which frames decide."""
    facts, content = asdict(crash.facts), crash.input()
    if facts["report"]:
        del facts["report"]["base64"]
    return facts | {
        "number": crash.number,
        "deciding": [at for at, one in enumerate(found.decision.frames if found.decision else ()) if one.decides],
        "input": base64.b64encode(content[:MOST_ENCODED]).decode(),
        "whole": len(content) <= MOST_ENCODED,
    }
