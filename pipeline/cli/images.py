"""`topcoat image`: what is in an image and whether it is sound, and what differs between two."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.images.difference import Difference, differences
from pipeline.images.part import Fact, Part
from pipeline.settings import Settings
from pipeline.text.printable import one_line
from pipeline.text.quantity import readable_size
from pipeline.text.tree import draw

SCHEMA = 1
"""The version of the output of `topcoat image --json` and `topcoat image diff --json`; docs/json.md describes both."""

_MOST = 40
_UNSOUND = 30
_MARKS = {"only in A": "-", "only in B": "+", "changed": "~"}


def image(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat image`: print what is in an image, or, after the word `diff`, what differs between two."""
    word, *others = options.files
    if word == "diff":
        return _diff(others, options)
    if others:
        raise UsageError(
            f"one image at a time, not {len(others) + 1}", hint="of two: topcoat image diff A B tells what differs"
        )
    return _tell(word, options)


def zbi(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat zbi`: what Fuchsia's `zbi` does with the same arguments."""
    from pipeline.images import zbi

    return zbi.main(options.parameters)


def fvm(chosen: Settings, options: argparse.Namespace) -> int:
    """Do `topcoat fvm`: what Fuchsia's `fvm` does with the same arguments."""
    from pipeline.images import fvm

    return fvm.main(options.parameters)


def _tell(name: str, options: argparse.Namespace) -> int:
    from pipeline.images import kinds

    # Only JSON shows digests; without them less must be read
    part = kinds.inspect(Path(name), digests=options.json and not options.no_digests)
    if options.json:
        answer = {"schema": SCHEMA, "file": name, "kind": part.kind, "sound": part.sound, "image": part.encode()}
        _print_json(answer)
    else:
        print(*tree(name, part, None if options.all else _MOST), sep="\n")
    return 0 if part.sound else _UNSOUND


def _diff(names: Sequence[str], options: argparse.Namespace) -> int:
    from pipeline.images import kinds

    if len(names) != 2:
        raise UsageError(
            f"diff needs two images, not {len(names)}",
            hint="write topcoat image diff A B; to look at a file of that name: topcoat image ./diff",
        )
    first, second = (kinds.inspect(Path(name), digests=not options.no_digests) for name in names)
    found = differences(first, second)
    if options.json:
        rows = [difference.encode() for difference in found]
        _print_json({"schema": SCHEMA, "equal": not found, "differences": rows})
    else:
        nothing = "no differences" + (" in sizes and facts; contents were not compared" if options.no_digests else "")
        print(*_told(found, None if options.all else _MOST) if found else [nothing], sep="\n")
    for name, part in zip(names, (first, second), strict=True):
        if not part.sound:
            print(f"{one_line(name)} is not sound: topcoat image {one_line(name)}", file=sys.stderr)
    return 1 if found else 0


def _print_json(answer: dict[str, object]) -> None:
    json.dump(answer, sys.stdout, indent=2, sort_keys=True)  # piece by piece, because it can be long
    print()


def tree(name: str, image: Part, most: int | None) -> Iterator[str]:
    """The lines that describe an image, of each level the first `most` parts and as many later, unsound ones."""

    def visit(node: Part | str) -> tuple[str, list[Part | str]]:
        if isinstance(node, str):
            return node, []
        if node is image:
            return _headline(name, image), [*_problems(image), *_facts(image.facts, ": "), *_shown(image.parts, most)]
        return _line(node), [*_problems(node), *_shown(node.parts, most)]

    root: Part | str = image
    return draw(root, visit)


def _headline(name: str, image: Part) -> str:
    count = sum(len(part.problems) for part in image.walk())
    state = "sound" if image.sound else f"NOT sound: {_counted(count, 'problem')}"
    return f"{one_line(name)}: {one_line(image.kind)}, {readable_size(image.size)}, {state}"


def _problems(part: Part) -> list[str]:
    return [f"! {one_line(problem)}" for problem in part.problems]


def _shown(parts: Sequence[Part], most: int | None) -> list[Part | str]:
    shown: list[Part | str] = list(parts[:most])
    if most is not None:
        shown += [part for part in parts[most:] if not part.sound][:most]
    left = len(parts) - len(shown)
    return [*shown, f"… and {left:,} more (all of them: --all, or --json)"] if left else shown


def _line(part: Part) -> str:
    details = [readable_size(part.size)] if part.size or part.kind == "file" else []
    return "  ".join(filter(None, [_title(part), ", ".join([*details, *_facts(part.facts, " ")])]))


def _title(part: Part) -> str:
    name = one_line(part.name)
    if part.kind == "file":
        return name
    return f"{name}/" if part.kind == "directory" else f"{one_line(part.kind)} {name}".rstrip()


def _facts(facts: Mapping[str, Fact], between: str) -> list[str]:
    return [f"{one_line(key.replace('_', ' '))}{between}{_fact(key, value)}" for key, value in facts.items()]


def _fact(key: str, value: Fact) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return readable_size(value) if isinstance(value, int) and key.endswith("size") else one_line(str(value))


def _told(found: Sequence[Difference], most: int | None) -> Iterator[str]:
    yield f"{_counted(len(found), 'difference')} (- only in A, + only in B, ~ in both)"
    for difference in found[:most]:
        yield from _difference(difference)
    if most is not None and len(found) > most:
        yield f"… and {len(found) - most:,} more (all of them: --all, or --json)"


def _difference(difference: Difference) -> Iterator[str]:
    path = "the image itself" if difference.path == "." else one_line(difference.path)
    details = list(_details(difference))
    start = f"{_MARKS[difference.what]} {path}"
    if difference.what == "changed" and len(details) > 1:
        yield start
        yield from (f"    {detail}" for detail in details)
    else:
        yield f"{start}  {', '.join(details)}"


def _details(difference: Difference) -> Iterator[str]:
    if difference.what == "changed":
        for key in difference.before:
            yield from _changes(key, difference.before[key], difference.after[key])
        return
    part = difference.before or difference.after
    yield one_line(str(part["kind"]))
    if part["size"]:
        yield _value("size", part["size"])
    if part["holds"]:
        yield f"with {_counted(int(str(part['holds'])), 'part')} in it"


def _changes(key: str, before: object, after: object) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for fact in dict.fromkeys([*before, *after]):
            if before.get(fact) != after.get(fact):
                yield from _changes(fact.replace("_", " "), before.get(fact), after.get(fact))
        return
    texts = [_value(key, value) for value in (before, after)]
    if texts[0] == texts[1]:
        texts = [f"{value:,} B" if isinstance(value, int) else str(value) for value in (before, after)]
    yield f"{one_line(key)} {one_line(texts[0])} → {one_line(texts[1])}"


def _value(key: str, value: object) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, list):
        return "; ".join(value)
    if key == "digest":
        return f"{str(value)[:11]}…"
    return _fact(key, value) if isinstance(value, (bool, int, str)) else str(value)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
