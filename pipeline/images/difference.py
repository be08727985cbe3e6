"""What differs between two images, in terms of what is in them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.images.part import Part

What = Literal["only in A", "only in B", "changed"]


@dataclass(frozen=True)
class Difference:
    """One part that is in A only or in B only, with all that it holds, or one that has changed.

    `path` leads to it by the names of the parts, or their kinds where they have no names, such as
    `BOOTFS/data/ssh/authorized_keys`; "." is the image itself, `NAME#2` the second part of this kind and name.
    `before` and `after` have what differs (`kind`, `size`, `digest`, `facts`, `problems`) in A and in B; of a part that
    is in one of them only, all of that and, as `holds`, how many parts are in it.
    """

    path: str
    what: What
    before: Mapping[str, object] = field(default_factory=dict)
    after: Mapping[str, object] = field(default_factory=dict)

    def encode(self) -> dict[str, object]:
        """As JSON."""
        return {"path": self.path, "what": self.what, "before": dict(self.before), "after": dict(self.after)}


def differences(first: Part, second: Part) -> list[Difference]:
    """All differences between two images A and B, in the order of A, and what is only in B at the end of each level.

    Parts are the same if kind and name are, and among several of them the first with the first. Where a part lies does
    not count: only what it is. Of images of two kinds the parts are not compared.
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
    """Parts by kind, name, and which one of that kind and name it is."""
    counts: dict[tuple[str, str], int] = {}
    found = {}
    for part in parts:
        number = counts[part.kind, part.name] = counts.get((part.kind, part.name), 0) + 1
        found[part.kind, part.name, number] = part
    return found


def _joined(path: str, part: Part, number: int) -> str:
    label = (part.name or part.kind) + (f"#{number}" if number > 1 else "")
    return f"{path}/{label}" if path else label
