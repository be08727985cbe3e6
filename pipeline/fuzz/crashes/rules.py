"""Which crashes are the same, and belong to one bucket: rules, each with a name and a version, and what they decide.

Crashes are the same if they are of one kind and happened in the same place. By the rule `default` that is what the
target said, if it said anything, and the upper three frames of the stack that are the target's own, without lines and
addresses, so that a bucket stays the same when the target is built again. `frames:N` takes N instead of three.
`dedup-token` takes the functions that the sanitizer names in its `DEDUP_TOKEN: ` instead, but for those that are not
the target's own.

Everything here is a pure function of a report. Tests hold the keys of many reports: if one of them changes, by
whichever module, RULES_VERSION must be raised.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from pipeline.errors import UsageError
from pipeline.fuzz.crashes import functions, messages
from pipeline.fuzz.crashes.functions import ENTRY
from pipeline.fuzz.crashes.report import BAD_CAST_TO, UNKNOWN, CrashReport, parse
from pipeline.fuzz.crashes.stack import Frame
from pipeline.text.printable import one_line

RULES_VERSION = 1
"""The version of all rules. With another one, the same crash may belong to another bucket."""

FRAMES = 3
"""How many frames tell one crash from another: as many as ClusterFuzz takes."""

MOST_FRAMES = 20
"""The most frames that a rule can ask for."""

_WITH_MESSAGE = (messages.ASSERTION, messages.CHECK, messages.PANIC, messages.EXCEPTION)
_BY_SIGNAL = ("deadly signal", "timeout", *_WITH_MESSAGE)
"""The kinds of crash whose stack may be that of libFuzzer's signal handler."""

_NO_MEMORY = ("out-of-memory", "allocation-size-too-big", "calloc-overflow")
_LONGEST_CYCLE, _TURNS = 10, 3

_NO_TOKEN = "the output has no DEDUP_TOKEN that names the target's own functions, so the rule `default` decides"


@dataclass(frozen=True)
class Rule:
    """A rule by which crashes are told apart. `parse_rule` makes one of text, and `str` makes text of it."""

    name: str = "default"
    """`default`, `frames`, or `dedup-token`."""
    frames: int = FRAMES
    """How many frames tell one crash from another. A message takes the place of one."""

    def __str__(self) -> str:
        return f"frames:{self.frames}" if self.name == "frames" else self.name

    @property
    def versioned(self) -> str:
        """The text of the rule with its version, such as `default/1`, as buckets record it."""
        return f"{self}/{RULES_VERSION}"


DEFAULT = Rule()


@dataclass(frozen=True)
class Judged:
    """A frame of the stack, and whether it is one of those that tell the crash from others."""

    frame: Frame
    decides: bool
    why: str
    """Why it was left out, in a few words; of one that decides, what is special about it, or nothing."""


@dataclass(frozen=True)
class Decision:
    """What a rule makes of a crash."""

    rule: Rule
    kind: str
    parts: tuple[str, ...]
    """What tells the crash from others: its message, if that counts, and names of functions."""
    message: str
    """The first of the parts, if it is what the target said; else empty."""
    frames: tuple[Judged, ...]
    """All frames of the stack, from the top."""
    telling: tuple[Frame, ...]
    """Those of them that decide, in the order in which they are in the key."""
    key: str
    """A text that is equal for crashes that are the same."""
    slug: str
    """A name for the bucket's directory, such as `heap-buffer-overflow-parse_record-3f2a91c04d1e`.

    It has at most 80 characters, all of them of [a-z0-9_-].
    """
    title: str
    """A line for people."""
    note: str = ""
    """Why the rule could not be used, and which one was used instead; empty if it was used."""

    def lines(self) -> list[str]:
        """Explain the decision to people: a line for the message and each frame, `+` before those that decide."""
        said = [f"+ said: {self.message}"] if self.message else []
        numbered = [f"{'+' if one.decides else ' '} #{at} {_shown(one)}" for at, one in enumerate(self.frames)]
        return [f"{self.title}  (rule {self.rule.versioned})", *filter(None, [self.note]), *said, *numbered]


def parse_rule(text: str) -> Rule:
    """Make a rule of `default`, `frames:N` or `dedup-token`, each with or without its version, such as `default/1`.

    Raises UsageError if the text is none of them, or of another version than RULES_VERSION.
    """
    known = "default, frames:N with N from 1 to 20, such as frames:5, or dedup-token"
    name, slash, version = text.partition("/")
    if slash and version != str(RULES_VERSION):
        raise UsageError(
            f"there is no rule {one_line(text, 100)}: all rules here have the version {RULES_VERSION}",
            hint=f"leave the version out: {known}",
        )
    if name in ("default", "dedup-token"):
        return Rule(name)
    number = re.fullmatch(r"frames:([1-9][0-9]?)", name)
    if number is None or int(number[1]) > MOST_FRAMES:
        raise UsageError(
            f"there is no rule {one_line(text, 100) or '(it is empty)'}", hint=f"name one of these: {known}"
        )
    return Rule("frames", int(number[1]))


def decide(report: CrashReport, fuzzer: str = "", rule: Rule = DEFAULT) -> Decision:
    """Say which bucket the crash belongs to, and why. `fuzzer` stands in if nothing of the target is known.

    For a timeout the lowest frames above the entry decide, because what is on top of a loop is chance; but the upper
    ones if the stack was cut off before the entry, because then the lowest are chance too. For a stack overflow those
    of the cycle decide, because the call that was one too many is chance. A message takes the place of one frame, but
    of none that a sanitizer's token names.
    """
    by_token = _by_token(report) if rule.name == "dedup-token" else None
    choice = by_token or _by_stack(report, rule.frames)
    parts = (*filter(None, [report.message]), *_with_file(report, choice))
    key = " | ".join((report.kind, *(parts or (fuzzer,))))
    return Decision(
        rule,
        report.kind,
        parts,
        report.message,
        tuple(
            Judged(frame, at in choice.places, why)
            for at, (frame, why) in enumerate(zip(report.frames, choice.whys, strict=True))
        ),
        tuple(report.frames[at] for at in choice.places),
        key,
        _slug(report.kind, next(iter(choice.names), report.message or fuzzer), key),
        title(report.kind, parts),
        _NO_TOKEN if rule.name == "dedup-token" and not by_token else "",
    )


def key_frames(report: CrashReport, rule: Rule = DEFAULT) -> tuple[str, ...]:
    """Return what tells the crash from others: its message, if it has one, and the names of its telling frames."""
    return decide(report, rule=rule).parts


def key(report: CrashReport, fuzzer: str = "", rule: Rule = DEFAULT) -> str:
    """Return a text that is equal for crashes that are the same. `fuzzer` stands in if no frame is known."""
    return decide(report, fuzzer, rule).key


def slug(report: CrashReport, fuzzer: str = "", rule: Rule = DEFAULT) -> str:
    """Return a name for the directory of the crash's bucket: see Decision.slug."""
    return decide(report, fuzzer, rule).slug


def title(kind: str, parts: Sequence[str]) -> str:
    """Return a line for people, such as `SEGV in parse` or `panic in parse: no such thing`."""
    first = next(iter(parts), "")
    said = kind in _WITH_MESSAGE or first.startswith(BAD_CAST_TO)
    place = "".join(f" in {function}" for function in parts[said:][:1])
    return f"{kind}{place}: {first}" if said and first else f"{kind}{place}"


def identity(key: str) -> str:
    """Return twelve hexadecimal digits that stand for a key."""
    return sha256(key.encode(errors="replace")).hexdigest()[:12]


def consistent(outputs: Iterable[bytes], key: str, fuzzer: str = "", rule: Rule = DEFAULT) -> bool:
    """Whether each of the outputs tells of a crash with this key, as those in a bucket must.

    An output that tells of no crash counts as UNKNOWN.
    """
    return all(decide(parse(output) or UNKNOWN, fuzzer, rule).key == key for output in outputs)


@dataclass(frozen=True)
class _Choice:
    names: list[str]
    """Names of the functions that decide."""
    places: list[int]
    """Where in the stack they are."""
    whys: list[str]
    """For each frame of the stack, what Judged says of it."""


def _by_stack(report: CrashReport, frames: int) -> _Choice:
    """Choose among the target's own frames, as `decide` tells."""
    names = [functions.name(frame) for frame in report.frames]
    whys = functions.judge(report.frames, report.kind in _BY_SIGNAL, report.kind in _NO_MEMORY)
    mine = [at for at, why in enumerate(whys) if not why]
    most = frames - bool(report.message)
    inner = [at for at in mine if names[at] != ENTRY]
    beyond = f"beyond the first {most}" if most else "the message decides alone"
    if report.kind == "timeout" and inner != mine:
        near = inner if len(inner) >= most else mine
        places = near[max(0, len(near) - most) :]
        special, rest = "next to the entry", {ENTRY: "the entry of every input"}
        beyond = "where in the loop is chance"
    elif report.kind == "stack-overflow" and (turn := _cycle(names, mine)):
        places, special = turn[:most], "in the cycle of calls"
        rest = {names[at]: "in the cycle of calls, too" for at in turn[:most]}
        rest |= {names[at]: f"{beyond} of the cycle" for at in turn[most:] if names[at] not in rest}
        beyond = "not in the cycle of calls"
    else:
        places, special, rest = mine[:most], "", {}
    for at in mine:
        whys[at] = special if at in places else rest.get(names[at], beyond)
    return _Choice([names[at] for at in places], places, whys)


def _by_token(report: CrashReport) -> _Choice | None:
    """Choose what the sanitizer's token names, without what is not the target's own. None if nothing is left."""
    told = functions.own([Frame(function) for function in report.dedup_token], allocating=report.kind in _NO_MEMORY)
    names = [functions.name(frame) for frame in told]
    places: list[int] = []
    for at, frame in enumerate(report.frames):
        if len(places) < len(names) and functions.name(frame) == names[len(places)]:
            places.append(at)
    whys = functions.judge(report.frames, report.kind in _BY_SIGNAL, report.kind in _NO_MEMORY)
    whys = ["" if at in places else why or "not in the sanitizer's token" for at, why in enumerate(whys)]
    return _Choice(names, places, whys) if names else None


def _cycle(names: Sequence[str], mine: Sequence[int]) -> list[int]:
    """Return one turn of the calls that recur, which begins with the same one whichever call was the last.

    It is rotated so that its names come first in sorted order. If calls recur in no fixed order, it is each of them
    once, in the order of their names; if none recurs, it is empty. All is told by the places of frames in the stack.
    """
    called = [names[at] for at in mine]
    for length in range(1, _LONGEST_CYCLE + 1):
        for start in range(len(called) - _TURNS * length + 1):
            turn = called[start : start + length]
            if turn * _TURNS == called[start : start + _TURNS * length]:
                first = min(range(length), key=lambda at: turn[at:] + turn[:at])
                return list(mine[start + first : start + first + length])
    recurring = {name: at for name, at in zip(called, mine, strict=True) if called.count(name) >= _TURNS}
    return [recurring[name] for name in sorted(recurring)]


def _with_file(report: CrashReport, choice: _Choice) -> list[str]:
    """Return the names; if the entry is the only one, with its file, if that is known."""
    file = report.frames[choice.places[0]].file.rpartition("/")[2] if choice.places else ""
    return [f"{ENTRY} {file}"] if choice.names == [ENTRY] and file else choice.names


def _shown(one: Judged) -> str:
    frame = one.frame
    source = f"{frame.file}:{frame.line}" if frame.file and frame.line else frame.file
    text = "  ".join(filter(None, [frame.function or frame.place * (not source) or "?" * (not source), source]))
    return one_line(text) + f"  ({one.why})" * bool(one.why)


def _slug(kind: str, place: str, key: str) -> str:
    words = [_plain(kind)[:30], _plain(place)[:36].strip("-"), identity(key)]
    return "-".join(filter(None, words))


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")
