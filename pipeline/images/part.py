"""The content of an image as a tree of parts: the one form in which every reader returns it.

The tree is shown, printed as JSON, compared with that of another image, and used to prove that an image still holds
what went into it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

Fact = str | int | bool


@dataclass(frozen=True)
class Part:
    """A file, an item, a partition: something with a place and a size, and maybe with parts of its own.

    `name` comes from the image and may be hostile: it is made printable where it is shown. Siblings can have the same
    name. `digest` is that of the decompressed content: "b3:HEX" (BLAKE3), or "b3s:HEX" for a file with blocks of zeros,
    see pipeline/store/digests.py. It is None for a part without content of its own, and where the content cannot be or
    was not read. `problems` are sentences without a full stop, each of which says why this part is not sound.
    """

    kind: str
    name: str = ""
    size: int = 0
    """The size of the decompressed content in bytes."""
    offset: int | None = None
    """Where the part starts, in bytes from the start of the file or of the decompressed container that it lies in."""
    digest: str | None = None
    facts: Mapping[str, Fact] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    parts: tuple["Part", ...] = ()

    @property
    def sound(self) -> bool:
        """Whether neither this part nor any part within it has a problem."""
        return not any(part.problems for part in self.walk())

    def walk(self) -> Iterator["Part"]:
        """Yield the part itself and all parts within it, parents first."""
        yield self
        for part in self.parts:
            yield from part.walk()

    def encode(self) -> dict[str, object]:
        """The tree as a value for JSON. Fields that are empty or None are left out."""
        data: dict[str, object] = {"kind": self.kind, "size": self.size}
        optional = {
            "name": self.name,
            "digest": self.digest,
            "facts": dict(self.facts),
            "problems": list(self.problems),
            "parts": [part.encode() for part in self.parts],
        }
        data |= {key: value for key, value in optional.items() if value}
        return data if self.offset is None else {**data, "offset": self.offset}
