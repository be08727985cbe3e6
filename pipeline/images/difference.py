"""The differences between two images, told as differences between their parts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.images.part import Part

What = Literal["only in A", "only in B", "changed"]


@dataclass(frozen=True)
class Difference:
    """A part that only one of the images A and B has, with all that it holds, or a part that has changed.

    `path` leads to the part by names, or by kinds where there are no names, such as `BOOTFS/data/ssh/authorized_keys`;
    "." is the image itself, and `NAME#2` the second part of this kind and name. For a changed part, `before` and
    `after` hold those of `kind`, `size`, `digest`, `facts` and `problems` that differ, as they are in A and in B. For a
    part that only one image has, one of the two holds all of them, and as `holds` the number of parts within it.
    """

    path: str
    what: What
    before: Mapping[str, object] = field(default_factory=dict)
    after: Mapping[str, object] = field(default_factory=dict)

    def encode(self) -> dict[str, object]:
        """The difference as a value for JSON."""
        return {"path": self.path, "what": self.what, "before": dict(self.before), "after": dict(self.after)}


def differences(first: Part, second: Part) -> list[Difference]:
    """All differences between two images A and B, in the order of A; what only B has comes at the end of each level.

    Parts of the two images are compared with each other if they have the same kind and name; where several have, the
    first with the first, and so on. Offsets are not compared. If the images themselves are of different kinds, that is
    the only difference told.
    """
    if first.kind != second.kind:
        return [Difference(".", "changed", {"kind": first.kind}, {"kind": second.kind})]
    return list(_between(first, second, ""))


def _between(first: Part, second: Part, path: str) -> Iterator[Difference]:
    before, after = _own(first), _own(second)
    if before != after:
        keys = [key for key in before if before[key] != after[key]]
        yield Difference(path or ".", "changed", _chosen(before, keys), _chosen(after, keys))
    known, others = _labelled(first.parts), _labelled(second.parts)
    for key, part in known.items():
        place = _joined(path, part, key[2])
        if key in others:
            yield from _between(part, others[key], place)
        else:
            yield Difference(place, "only in A", before=_whole(part))
    for key, part in others.items():
        if key not in known:
            yield Difference(_joined(path, part, key[2]), "only in B", after=_whole(part))


def _own(part: Part) -> dict[str, object]:
    return {
        "size": part.size,
        "digest": part.digest,
        "facts": dict(part.facts),
        "problems": list(part.problems),
    }


def _chosen(data: dict[str, object], keys: Sequence[str]) -> dict[str, object]:
    return {key: data[key] for key in keys}


def _whole(part: Part) -> dict[str, object]:
    data = {key: value for key, value in _own(part).items() if value or key == "size"}
    return {"kind": part.kind, **data, "holds": sum(1 for _ in part.walk()) - 1}


def _labelled(parts: Sequence[Part]) -> dict[tuple[str, str, int], Part]:
    """Parts by kind, name, and number: 1 for the first part of that kind and name, 2 for the second."""
    counts: dict[tuple[str, str], int] = {}
    found = {}
    for part in parts:
        number = counts[part.kind, part.name] = counts.get((part.kind, part.name), 0) + 1
        found[part.kind, part.name, number] = part
    return found


def _joined(path: str, part: Part, number: int) -> str:
    label = (part.name or part.kind) + (f"#{number}" if number > 1 else "")
    return f"{path}/{label}" if path else label
